//! What `mail_fsync` asks for: which files and directories a delivery syncs, as the kernel sees it.

mod support;

use std::fs;
use std::process::Command;

use support::{MAIL, Store, as_user, installed, messages, not_root, program, run_with_input, skip};

#[test]
fn what_is_synced() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    // What Dovecot begins a log with.
    let mut log = vec![1, 3, 40, 0];
    for field in [0x6b02_9a7d_u32, 2, 0, 0, 0x6b02_9a7d, 1, 0, 1, 0] {
        log.extend(field.to_le_bytes());
    }
    let everything = ["tmp/#", "new>", "dovecot-uidlist", "dovecot.index.log"];
    for (setting, synced) in [
        ("never", &everything[..0]),
        ("optimized", &everything[..3]),
        ("always", &everything[..]),
    ] {
        let store = Store::with_inbox();
        let inbox = store.path("home/alice/Maildir");
        let list = "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375\n";
        let uidlist = "home/alice/Maildir/dovecot-uidlist";
        store.scratch.file(uidlist, MAIL, MAIL, 0o600, list);
        fs::write(inbox.join("dovecot.index.log"), &log).unwrap();
        support::own(&inbox.join("dovecot.index.log"), MAIL, MAIL);
        let config = store.configure("", "");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("mail_fsync = \"{setting}\"\n{text}")).unwrap();
        let calls = store.path("run/calls");
        let mut lda = program("postroom-lda");
        lda.arg("-c").arg(&config).args(["-d", "alice"]);
        as_user(&mut lda, MAIL, MAIL, &[]);
        // As root: nobody else sees what the descriptors of the LDA are.
        let mut command = Command::new("strace");
        let traced = "trace=fsync,fdatasync,sync_file_range,syncfs";
        command.args(["-f", "-y", "-e", traced, "-o"]);
        command.arg(&calls).arg(lda.get_program());
        command.args(lda.get_args()).env("POSTROOM_LOG", "json");
        let output = run_with_input(&mut command, b"Subject: x\n\n");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{setting}: {said}");
        assert_eq!(messages(&inbox).len(), 1);
        let calls = fs::read_to_string(calls).unwrap();
        let is_sync = |line: &&str| line.contains("sync(") || line.contains("syncfs(");
        let case = format!("{setting}: {calls} {said}");
        for file in everything {
            let count = calls
                .lines()
                .filter(is_sync)
                .filter(|line| line.contains(file));
            assert_eq!(
                count.count(),
                usize::from(synced.contains(&file)),
                "{file}, {case}"
            );
        }
        let others = calls.lines().filter(is_sync).count();
        assert_eq!(others, synced.len(), "{case}");
        assert_eq!(said.contains("not synced"), setting == "never", "{case}");
        let index = fs::read(inbox.join("dovecot.index.log")).unwrap();
        assert!(index.len() > log.len(), "{case}");
    }
}
