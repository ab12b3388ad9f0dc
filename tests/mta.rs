//! Behind the other ways in: Exim's LMTP transport and its pipe, Postfix's pipe, a last procmail recipe.

mod support;

use std::fs;
use std::process::Command;

use support::peers::{Exim, Postfix};
use support::{MAIL, Store, as_user, installed, messages, not_root, program, skip, unfinished};

/// The command line of the LDA for this store. `user` is the MTA's word for the user.
fn lda(store: &Store, options: &str, user: &str) -> String {
    let lda = program("postroom-lda");
    let (path, config) = (
        lda.get_program().to_str().unwrap(),
        store.scratch.text("postroom.toml"),
    );
    format!("{path} -c {config} {options} -d {user}")
}

fn body(store: &Store, folder: &str) -> String {
    let found = messages(&store.path(folder));
    assert_eq!(found.len(), 1, "{folder}: {found:?}");
    String::from_utf8(found[0].1.clone()).unwrap()
}

#[test]
fn exim_over_the_socket() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let server = store.serve("on_missing = \"reject\"", "");
    let recipients = [
        "alice@example.test",
        "alice+Public/info@example.test",
        "bob@example.test",
        "nobody-here@example.test",
    ];
    let message = b"Subject: exim\n\n.dot\nlast";
    let spool = store.path("spool");
    let Some(exim) = Exim::new(&store.scratch, &server.socket, "/bin/false", &spool) else {
        return;
    };
    let log = exim.send(&recipients, message);
    for folder in ["home/alice/Maildir", "home/bob/Maildir"] {
        let text = body(&store, folder);
        assert!(
            text.starts_with("Return-Path: <sender@else.test>\nDelivered-To: "),
            "{text}"
        );
        assert!(text.ends_with("\n\n.dot\nlast\n"), "{text}");
    }
    assert!(
        log.contains("nobody-here@example.test") && log.contains("550 5.1.1"),
        "{log}"
    );
    assert_eq!(
        unfinished(&store.path("home")),
        Vec::<std::path::PathBuf>::new()
    );
}

#[test]
fn exim_through_a_pipe() {
    if not_root() {
        return;
    }
    let store = Store::new();
    store.configure("on_missing = \"reject\"", "");
    let socket = store.path("run/nothing");
    // The sender comes in $SENDER: Exim lets no address of a stranger onto a command line.
    let command = lda(&store, "", "$local_part_data");
    let Some(exim) = Exim::new(&store.scratch, &socket, &command, &store.path("spool")) else {
        return;
    };
    let recipients = ["alice@lda.test", "nobody-here@lda.test"];
    let log = exim.send(&recipients, b"Subject: x\n\ny\n");
    // Its `From ` line is not stored; the empty line at the end is.
    let text = body(&store, "home/alice/Maildir");
    assert!(
        text.starts_with("Received: ") && text.ends_with("\n\ny\n\n"),
        "{text:?}"
    );
    assert!(log.contains("5.1.1 <nobody-here> No such user"), "{log}");
}

#[test]
fn postfix_through_a_pipe() {
    if not_root() {
        return;
    }
    let store = Store::new();
    store.configure("on_missing = \"reject\"", "");
    let command = lda(
        &store,
        "-f ${sender} -a ${original_recipient} -m ${extension}",
        "${user}",
    );
    let Some(postfix) = Postfix::start(&store.scratch, &store.path("run/nothing"), &command) else {
        return;
    };
    postfix.send(&["alice@lda.test"], b"Subject: x\n\n.dot\n");
    postfix.send(&["nobody-here@lda.test"], b"Subject: x\n\ny\n");
    // A folder that cannot be written: temporary, stays in the queue.
    store.scratch.dir("home/carol", 0, 0, 0o700);
    postfix.send(&["carol@lda.test"], b"Subject: x\n\ny\n");
    let says = |user: &str, what: &str| {
        postfix.wait_for(|log| {
            log.lines()
                .any(|line| line.contains(&format!("to=<{user}@lda.test>")) && line.contains(what))
        })
    };
    says("alice", "dsn=2.0.0, status=sent");
    says(
        "nobody-here",
        "dsn=5.1.1, status=bounced (<nobody-here> No such user",
    );
    says("carol", "status=deferred");
    let text = body(&store, "home/alice/Maildir");
    assert!(text.contains("\nSubject: x\n\n.dot\n"), "{text}");
    assert!(!text.starts_with("From "), "{text}");
}

#[test]
fn the_last_recipe_of_procmail() {
    if !installed("procmail") {
        skip("procmail is not installed");
        return;
    }
    let store = Store::new();
    store.configure("", "");
    let command = lda(&store, "-m Spam", "alice");
    let recipes = format!(
        "SHELL=/bin/sh\nLOGFILE={0}/run/procmail.log\nDEFAULT={0}/run/fallback\nORGMAIL={0}/run/orgmail\n:0 w\n| {command}\n",
        store.scratch.text("")
    );
    let file = store
        .scratch
        .file("procmailrc", MAIL, MAIL, 0o600, &recipes);
    let mut procmail = Command::new("/usr/bin/procmail");
    procmail
        .arg(&file)
        .env("HOME", store.path("home/alice"))
        .env("PATH", "/usr/bin:/bin");
    as_user(&mut procmail, MAIL, MAIL, &[]);
    let output = support::run_with_input(&mut procmail, b"From a@b Mon\nSubject: x\n\ny\n");
    let log = fs::read_to_string(store.path("run/procmail.log")).unwrap_or_default();
    assert!(output.status.success(), "{output:?} {log}");
    // procmail itself adds the empty line at the end.
    let text = body(&store, "home/alice/Maildir/.Spam");
    assert_eq!(text, "Subject: x\n\ny\n\n");
    assert!(
        !store.path("run/fallback").exists() && !store.path("run/orgmail").exists(),
        "{log}"
    );
}
