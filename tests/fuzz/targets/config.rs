//! Configuration files: errors point into the text, and nothing panics. Templates: a value is inserted as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::config::Config;
use postroom::text::template::{Template, Variables};

fuzz_target!(|text: &str| {
    if let Err(errors) = Config::from_str("fuzz", text) {
        assert!(!errors.problems.is_empty());
        assert!(errors.problems.iter().all(|it| it.place.end <= text.len()));
        let _ = errors.to_string();
    }
    if let Ok(template) = Template::parse(text) {
        let variables = |user| Variables {
            user,
            owner_user: Some(user),
            home: Some("/home/alice"),
            owner_home: Some("/home/alice"),
            hostname: "mx",
        };
        // One who is called like a variable, and one who is not.
        let (named, plain) = ("%{home}@%u", "\u{e000}{home}@\u{e000}u");
        let expand = |user| template.expand(&variables(user)).ok();
        let expanded = expand(named);
        // His bytes are others.
        if !text.contains("hex") && !text.contains('\u{e000}') {
            assert_eq!(
                expanded,
                expand(plain).map(|it| it.replace('\u{e000}', "%"))
            );
        }
        let with_user = Template::parse(&format!("{text}%{{user}}")).expect("both are whole");
        let with_user = with_user.expand(&variables(named)).ok();
        assert_eq!(with_user, expanded.map(|it| it + named));
    }
});
