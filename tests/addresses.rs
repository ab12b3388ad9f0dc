//! Mailboxes with addresses of their own, and routes by header fields.

mod support;

use std::fs;

use support::{MAIL, Store, messages, messages_below};

const MAP: &str = r#"
[[address]]
match = "sales@example.test"
mailbox = "Public/Sales"
user = "bob"
subject = "anonymous"

[[address]]
match = "team+lead@example.test"
mailbox = "Public/info"
user = "bob"

[[address]]
match = "closed@example.test"
mailbox = "Public/Closed"
user = "bob"
subject = "anonymous"
on_missing = "reject"

[[address]]
match = "gone@example.test"
mailbox = "Public/Gone"
user = "bob"
on_missing = "reject"

[[address]]
match = "broken@example.test"
mailbox = "Public/info"
user = "nobody-here"

[[address]]
match = "*@catch.test"
mailbox = "Public/info"
user = "bob"

[[route]]
header = "X-Spam-Flag"
equals = "YES"
mailbox = "\\Junk"

[[route]]
header = "List-Id"
contains = "<team."
mailbox = "Public/info"

[[route]]
header = "X-Nowhere"
mailbox = "No/Such/Mailbox"

[[route]]
header = "X-Bad"
mailbox = "a/../b"
"#;

fn store() -> Store {
    let store = Store::new();
    for (name, acl) in [
        ("Sales", "anyone p\n"),
        ("Sales.eu", "anyone p\n"),
        ("Closed", "user=alice lp\n"),
    ] {
        store
            .scratch
            .maildir(&format!("public/.{name}"), MAIL, 100, 0o2770);
        store.scratch.file(
            &format!("public/.{name}/dovecot-acl"),
            MAIL,
            100,
            0o660,
            acl,
        );
    }
    store
}

#[test]
fn where_addresses_and_headers_lead() {
    const ALICE: &str = "home/alice/Maildir";
    // recipient, header fields, the reply begins with, the mailbox that has it
    #[rustfmt::skip]
    let cases = [
        ("sales@example.test",           "",                            "250 2.0.0", "public/.Sales"),
        ("SALES@Example.Test",           "",                            "250 2.0.0", "public/.Sales"),
        ("sales+eu@example.test",        "",                            "250 2.0.0", "public/.Sales.eu"),
        ("sales+nope@example.test",      "",                            "250 2.0.0", "public/.Sales"),
        ("\"sales+../x\"@example.test",  "",                            "250 2.0.0", "public/.Sales"),
        ("sales@example.test",           "X-Spam-Flag: YES\n",          "250 2.0.0", "public/.Sales"),
        ("team+lead@example.test",       "",                            "250 2.0.0", "public/.info"),
        ("team@example.test",            "",                            "550 5.1.1", ""),
        ("closed@example.test",          "",                            "550 5.1.1", ""),
        ("gone@example.test",            "",                            "550 5.1.1", ""),
        ("broken@example.test",          "",                            "451 4.3.0", ""),
        ("whoever@catch.test",           "",                            "250 2.0.0", "public/.info"),
        ("alice@catch.test",             "",                            "250 2.0.0", ALICE),
        ("nobody-here@example.test",     "",                            "550 5.1.1", ""),
        ("alice@example.test",           "",                            "250 2.0.0", ALICE),
        ("alice@example.test",           "x-spam-flag: yes\n",          "250 2.0.0", "home/alice/Maildir/.Spam"),
        ("alice@example.test",           "X-Spam-Flag: NO\n",           "250 2.0.0", ALICE),
        ("alice@example.test",           "X-Spam-Flag: NO\nX-Spam-Flag: YES\n", "250 2.0.0", ALICE),
        ("alice@example.test",           "\nX-Spam-Flag: YES\n",        "250 2.0.0", ALICE),
        ("alice+Spam@example.test",      "List-Id: <team.x>\n",         "250 2.0.0", "home/alice/Maildir/.Spam"),
        ("alice@example.test",           "List-Id: Team <team.x>\n",    "250 2.0.0", "public/.info"),
        ("alice+Nope@example.test",      "X-Spam-Flag: YES\n",          "250 2.0.0", ALICE),
        ("alice@example.test",           "X-Nowhere: 1\n",              "250 2.0.0", ALICE),
        ("alice@example.test",           "X-Bad: 1\n",                  "250 2.0.0", ALICE),
    ];
    for (recipient, fields, reply, folder) in cases {
        let store = store();
        let server = store.serve("", MAP);
        let message = format!("{fields}Subject: x\n\ny\n");
        let replies = server.client().deliver(&[recipient], message.as_bytes());
        let case = format!("{recipient} {fields:?}: {replies:?} {}", server.log());
        assert!(replies[0].starts_with(reply), "{case}");
        let everywhere = messages_below(&store.path(""));
        assert_eq!(everywhere.len(), usize::from(!folder.is_empty()), "{case}");
        if !folder.is_empty() {
            assert_eq!(messages(&store.path(folder)).len(), 1, "{case}");
        }
    }
}

/// A file that cannot be read costs a route its way, not the mail.
#[test]
fn a_route_that_fails_never_costs_the_mail() {
    let store = store();
    fs::write(store.path("public/.info/dovecot-acl"), "nonsense here\n").unwrap();
    let server = store.serve("", MAP);
    let message = b"List-Id: <team.x>\n\ny\n";
    let replies = server.client().deliver(&["alice@example.test"], message);
    assert!(
        replies[0].contains("mailbox=\"INBOX\" Saved"),
        "{replies:?} {}",
        server.log()
    );
    assert!(server.log().contains("nonsense"), "{}", server.log());
}
