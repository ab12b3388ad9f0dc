//! `postroom check`, `explain` and the other looks of an admin: what is wrong outside the file has its line.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use support::{MAIL, Store, not_root, program, replaced, write_long_ago};

/// Exit code, and all that was printed, without the scratch folder's path.
fn postroom(store: &Store, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = program("postroom");
    command.arg("-c").arg(store.path("postroom.toml"));
    let output = command.args(arguments).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (
        output.status.code(),
        said.replace(&store.scratch.text(""), ""),
    )
}

#[test]
fn what_is_wrong_outside_the_file() {
    const ADDRESS: &str = "[[address]]\nmatch = \"x@example.test\"\n";
    const DOVECOTS: &str = "[namespace.archive]\nseparator = \"/\"\nprefix = \"Archive/\"\nmail_driver = \"mdbox\"\n\
                            mail_path = \"~/mdbox\"\nhand_over = \"lda:/bin/true\"";
    // in [delivery], at the end of the file, what is said
    #[rustfmt::skip]
    let cases: [(&str, String, &str); 13] = [
        ("", "[address_map.file]\npath = \"/nonexistent/map\"".into(), "error: /nonexistent/map: No such file"),
        ("", "[socketmap]\nlisten = [{ unix = \"/nonexistent/map\" }]".into(), "error: listen /nonexistent/map: /nonexistent: No such file"),
        ("", "[lda]\nlisten = [{ unix = \"/nonexistent/lda\" }]".into(), "error: listen /nonexistent/lda: /nonexistent: No such file"),
        ("", "[status]\nlisten = [{ unix = \"/tmp/status\", group = \"nobody-here\" }]".into(), "error: listen /tmp/status: there is no group \"nobody-here\""),
        ("", "[status]\nlisten = [{ unix = \"/tmp/status\", mode = \"0666\" }]".into(), "warning: listen /tmp/status: mode 0666 lets every local user read"),
        ("", format!("{ADDRESS}mailbox = \"INBOX\"\nuser = \"nobody-here\""), "error: address 1 (x@example.test): look up the user"),
        ("", format!("{ADDRESS}mailbox = \"a//b\"\nuser = \"alice\""), "error: address 1 (x@example.test): use the mailbox name"),
        ("", format!("{ADDRESS}mailbox = \"shared/nobody-here/x\"\nuser = \"alice\""), "shared/nobody-here/x: no such owner"),
        ("", "[[route]]\nheader = \"X\"\nmailbox = \"\\\\Archive\"".into(), "warning: route 1: no mailbox is \\Archive"),
        ("required_paths = [\"/nonexistent/mount\"]", String::new(), "error: required path /nonexistent/mount"),
        ("on_missing = \"reject\"", DOVECOTS.into(), "warning: namespace archive: Dovecot takes INBOX"),
        ("on_denied = \"defer\"", DOVECOTS.into(), "warning: namespace archive: Dovecot takes INBOX"),
        ("", "[[address]]\nmatch = \"*@x.test\"\nmailbox = \"INBOX\"\nuser = \"nobody-here\"".into(), "error: address 1 (*@x.test)"),
    ];
    for (delivery, more, want) in cases {
        let store = Store::with_inbox();
        store.configure(delivery, &more);
        let (code, said) = postroom(&store, &["check"]);
        assert!(said.contains(want), "{want}: {said}");
        let is_error = !want.starts_with("warning");
        assert_eq!(code, Some(if is_error { 78 } else { 0 }), "{said}");
    }
}

/// A file that was cut to nothing knows nobody: no mail bounces for that.
#[test]
fn an_emptied_file_is_no_answer() {
    let store = Store::with_inbox();
    store.configure("", "");
    for text in ["", "# later\n"] {
        fs::write(store.path("users"), text).unwrap();
        let (code, said) = postroom(&store, &["explain", "alice@example.test"]);
        assert_eq!(code, Some(75), "{said}");
        let (code, said) = postroom(&store, &["check"]);
        assert!(said.contains("nobody is in it"), "{said}");
        assert_eq!(code, Some(78), "{said}");
    }
}

#[test]
fn what_explain_says() {
    let store = Store::with_inbox();
    let route = "[[route]]\nheader = \"X-Spam\"\nmailbox = \"\\\\Junk\"\n";
    store.configure("on_missing = \"reject\"", route);
    // what has become of the store, the arguments, exit code, what is said
    type Meddle = fn(&Store);
    #[rustfmt::skip]
    let cases: [(Meddle, &[&str], i32, &str); 10] = [
        (|_| (), &["explain", "alice@example.test"], 0, "1 look at the header"),
        (|_| (), &["explain", "--user", "Alice"], 0, "mailbox=\"INBOX\""),
        (|_| (), &["user", "Alice@example.test"], 0, "user    alice"),
        (|_| (), &["user", "Alice@example.test"], 0, "namespace public  (public, prefix \"Public/\", /public)"),
        (|_| (), &["explain", "alice@example.test"], 0, "a new list of UIDs, UID 1; there is no dovecot.index.log"),
        (|store| fs::write(store.path("home/alice/Maildir/dovecot-uidlist"), "3 V5 N7 G86371b0c7d9a026bb73a000083ecc375\n").unwrap(),
            &["explain", "alice@example.test"], 0, "UID 7 or later"),
        (|store| fs::write(store.path("home/alice/Maildir/dovecot-uidlist"), "nonsense\n").unwrap(),
            &["explain", "alice@example.test"], 0, "Dovecot gives the UID: dovecot-uidlist: its header"),
        (|_| (), &["explain", "--from", "bob@example.test", "alice@example.test"], 0, "mailbox=\"INBOX\""),
        (|_| (), &["explain", "alice+Public/nope@example.test"], 67, "does not exist"),
        (|store| fs::remove_dir_all(store.path("public")).unwrap(),
            &["explain", "alice+Public/info@example.test"], 75, "/public"),
    ];
    for (meddle, arguments, want, part) in cases {
        meddle(&store);
        let (code, said) = postroom(&store, arguments);
        assert_eq!(code, Some(want), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

/// Dovecot reads what a `dovecot-acl` is a symlink to: so does a delivery.
#[test]
fn an_acl_file_elsewhere() {
    let store = Store::with_inbox();
    store.configure("on_denied = \"reject\"", "");
    let file = store.path("public/.info/dovecot-acl");
    let _ = fs::remove_file(&file);
    let rights = store
        .scratch
        .file("rights", MAIL, MAIL, 0o644, "user=bob lrp\n");
    symlink(&rights, &file).unwrap();
    for (user, want) in [("bob", 0), ("alice", 67)] {
        let address = format!("{user}+Public/info@example.test");
        let (code, said) = postroom(&store, &["explain", &address]);
        // Nobody else is named: as if it were not there.
        let inbox = said.contains("on_missing=inbox");
        assert!(code == Some(want) || inbox, "{user}: {said}");
        assert_eq!(
            said.contains("mailbox=\"Public/info\""),
            want == 0,
            "{said}"
        );
    }
}

/// What cannot be looked into is not left out.
#[test]
fn a_closed_directory() {
    if support::not_root() {
        return;
    }
    let store = Store::with_inbox();
    let map = format!(
        "[acl_sharing_map.file]\npath = \"{}/run/shares\"\n",
        store.scratch.text("")
    );
    store.configure("", &map);
    store
        .scratch
        .maildir("home/bob/Maildir/.Shared", MAIL, MAIL, 0o700);
    let acl = store.scratch.file(
        "home/bob/Maildir/.Shared/dovecot-acl",
        MAIL,
        MAIL,
        0o600,
        "user=alice lr\n",
    );
    assert!(acl.exists());
    let (code, said) = postroom(&store, &["share", "rebuild", "bob"]);
    assert_eq!(code, Some(0), "{said}");
    let (_, shares) = postroom(&store, &["share", "list"]);
    assert!(shares.contains("alice"), "{shares}");
    let folder = store.path("home/bob/Maildir/.Shared");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o000)).unwrap();
    let (code, said) = postroom(&store, &["share", "rebuild", "bob"]);
    assert_eq!(code, Some(75), "{said}");
    assert_eq!(postroom(&store, &["share", "list"]).1, shares);
    for arguments in [
        &["doctor", "--user", "bob"][..],
        &["doctor", &store.scratch.text("home/bob/Maildir")],
    ] {
        let (code, said) = postroom(&store, arguments);
        assert_eq!(code, Some(75), "{arguments:?} {said}");
        assert!(
            said.contains(".Shared: cannot tell"),
            "{arguments:?} {said}"
        );
    }
    let (code, said) = postroom(&store, &["share", "verify", "nobody-here"]);
    assert_eq!(code, Some(67), "{said}");
}

/// Where the dotlocks of mboxes cannot be made no mail gets through, or they do not keep others out.
#[test]
fn locks_that_cannot_be_made() {
    if not_root() {
        return;
    }
    #[rustfmt::skip]
    let cases = [
        (0, 7001, 0o2775, "", "mail_privileged_group = 7001"),
        (0, 7001, 0o2775, "mail_privileged_group = 7001", ""),
        (0, 7001, 0o2775, "mail_uid = 8\nmail_gid = 7001", ""),
        (0, 7001, 0o2775, "mbox_write_locks = [\"fcntl\"]", ""),
        (0, 0, 0o755, "", "fcntl or flock alone lock it"),
        (0, 0, 0o755, "mbox_write_locks = [\"dotlock\"]", "no other lock"),
        (0, 0, 0o1777, "", ""),
        (MAIL, MAIL, 0o755, "mail_uid = 8\nmail_gid = 8", ""),
    ];
    for (uid, gid, mode, settings, want) in cases {
        let store = Store::with_inbox();
        let spool = store.scratch.dir("spool", uid, gid, mode);
        fs::write(spool.join("box"), "").unwrap();
        store.scratch.dir("public-mbox", MAIL, MAIL, 0o777);
        symlink(spool.join("box"), store.path("public-mbox/box")).unwrap();
        let config = store.configure("", "");
        let text = fs::read_to_string(&config).unwrap();
        let with = format!("{settings}\nfirst_valid_uid");
        let text = replaced(&text, "first_valid_uid", &with);
        let root = store.scratch.text("");
        let mboxes = format!(
            "[namespace.spool]\nseparator = \"/\"\nprefix = \"spool/\"\nmail_driver = \"mbox\"\n\
             mail_path = \"{root}/public-mbox\"\nmail_inbox_path = \"{root}/spool/%{{user}}\"\n"
        );
        fs::write(&config, format!("{text}{mboxes}")).unwrap();
        let (_, said) = postroom(&store, &["check"]);
        let case = format!("{uid}:{gid} {mode:o} {settings}: {said}");
        match want {
            "" => assert!(!said.contains("dotlock"), "{case}"),
            want => assert!(said.contains(want), "{case}"),
        }
    }
}

/// Users of a file that another userdb is asked for first.
#[test]
fn lines_for_logins() {
    for (lines, behind, want) in [
        ("alice:x\nbob:x:8:8::/h::\n", "passwd = {}", true),
        ("alice:x::\nbob:x:8:8::/h::\n", "passwd = {}", false),
        ("alice:x\nbob:x:8:8::/h::\n", "", false),
    ] {
        let store = Store::new();
        let others = match behind {
            "" => String::new(),
            behind => format!("[[userdb]]\n{behind}\n"),
        };
        store.configure("", &others);
        write_long_ago(&store.path("users"), lines);
        let (_, said) = postroom(&store, &["check"]);
        let found = said.contains("1 of its lines, as that of \"alice\"");
        assert_eq!(found, want, "{lines} {behind}: {said}");
    }
}
