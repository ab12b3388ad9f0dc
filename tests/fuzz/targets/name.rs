//! Mailbox names of a stranger: whatever is asked for, the place lies below its root and spells back.
#![no_main]

use std::path::Component;

use libfuzzer_sys::fuzz_target;
use postroom::config::Config;
use postroom::mailbox::lookup;
use postroom::mailbox::name::{self, StorageName};
use postroom::mailbox::path::Paths;
use postroom::text::mutf7;
use postroom::text::template::Variables;

const CONFIG: &str = r#"
[acl]
driver = "vfile"
[namespace.inbox]
separator = "/"
inbox = true
[namespace.nested]
prefix = "N/"
separator = "/"
mail_path = "~/nested"
mailbox_list_layout = "fs"
mailbox_list_storage_escape_char = "\\"
[namespace.shared]
type = "shared"
prefix = "shared/$user/"
separator = "/"
mail_path = "/srv/%{owner_user}/Maildir"
mailbox_list_utf8 = true
"#;

fuzz_target!(|text: &str| {
    if let Some(decoded) = mutf7::decode(text) {
        assert_eq!(mutf7::encode(&decoded), text);
    }
    assert_eq!(mutf7::decode(&mutf7::encode(text)).as_deref(), Some(text));
    let config = Config::from_str("fuzz", CONFIG).unwrap();
    let namespaces = &config.delivery.namespaces;
    let name = name::normalise(text, &['/']);
    let Ok(found) = lookup::find(namespaces, &name, "alice") else {
        return;
    };
    let Ok(storage) = StorageName::parse(&found.rest, found.namespace) else {
        return;
    };
    let variables = Variables {
        user: "alice",
        home: Some("/home/alice"),
        owner_user: found.owner.as_deref(),
        ..Variables::default()
    };
    let Ok(paths) = Paths::of(&found.namespace.location, &storage, &variables) else {
        return;
    };
    assert!(paths.mailbox.starts_with(&paths.root));
    assert!(paths.root.starts_with("/home/alice") || paths.root.starts_with("/srv"));
    let climbs = |it: Component<'_>| matches!(it, Component::ParentDir | Component::CurDir);
    assert!(!paths.mailbox.components().any(climbs));
    let control = |c: char| c.is_control();
    assert!(!paths.mailbox.to_str().unwrap().contains(control));
    if let StorageName::Box(levels) = &storage {
        let location = &found.namespace.location;
        let spelled = levels.iter().map(|level| {
            let level = match location.utf8 {
                true => level.clone(),
                false => mutf7::decode(level).unwrap(),
            };
            match location.storage_escape_char {
                Some(escape) => unescaped(&level, escape),
                None => level,
            }
        });
        assert_eq!(spelled.collect::<Vec<_>>().join("/"), found.rest);
    }
});

/// Without the escapes: two hexadecimal digits a byte.
fn unescaped(level: &str, escape: char) -> String {
    let mut parts = level.split(escape);
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).unwrap());
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).unwrap()
}
