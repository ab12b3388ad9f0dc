//! ACL files in, rights out. The files are written with `;` for the end of a line.

use proptest::prelude::*;

use super::*;

fn groups(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn shown(file: &str, user: &str, is_owner: bool) -> String {
    let acl = Acl::parse(file.replace(';', "\n").as_bytes(), "f").unwrap();
    let groups = match user {
        "bob" => groups(&["staff", "ops"]),
        "carol" => groups(&["staff"]),
        _ => Vec::new(),
    };
    let identity = Identity {
        name: Some(user),
        groups: &groups,
        is_owner,
    };
    match acl.effective(&identity) {
        None => "-".into(),
        Some(Effective { rights, .. }) if rights == Rights::all() => "all".into(),
        Some(Effective { rights, .. }) if rights.is_empty() => "-".into(),
        Some(Effective { rights, .. }) => rights.to_string(),
    }
}

/// As measured with Dovecot 2.3: alice owns the mailbox, bob is in staff and ops, carol in staff, dave in no group.
#[test]
fn who_has_what() {
    #[rustfmt::skip]
    let table = [
        ("",                                                          "all",         "-",      "-",    "-"),
        ("group=staff l;group=ops r",                                 "all",         "lr",     "l",    "-"),
        ("group=staff lr;user=bob l",                                 "all",         "l",      "lr",   "-"),
        ("group=staff lr;-user=bob r",                                "all",         "l",      "lr",   "-"),
        ("group=staff lr;-group=staff r",                             "all",         "l",      "l",    "-"),
        ("anyone lr;-anyone r;user=bob lri",                          "all",         "li",     "l",    "l"),
        ("anyone lr;-anyone r;user=bob lri;-user=bob",                "all",         "lri",    "l",    "l"),
        ("group-override=staff;user=bob lrwi",                        "all",         "-",      "-",    "-"),
        ("group-override=staff lr;group-override=ops i;user=bob lrwx", "all",        "lri",    "lr",   "-"),
        ("-group-override=staff r;user=bob lr",                       "all",         "l",      "-",    "-"),
        ("user=bob l;user=bob r;user=bob ll",                         "all",         "lr",     "-",    "-"),
        ("owner l",                                                   "l",           "-",      "-",    "-"),
        ("owner l;user=alice lr",                                     "lr",          "-",      "-",    "-"),
        ("anyone lr;-anyone r",                                       "all",         "l",      "l",    "l"),
        ("-owner x",                                                  "lrwstipeka",  "-",      "-",    "-"),
        ("-user=alice l",                                             "rwstipekxa",  "-",      "-",    "-"),
        ("authenticated lr;anyone p",                                 "all",         "lr",     "lr",   "lr"),
        ("anonymous lr",                                              "all",         "lr",     "lr",   "lr"),
        ("anyone lr;-user=bob r",                                     "all",         "l",      "lr",   "lr"),
        ("-user=bob r",                                               "all",         "-",      "-",    "-"),
        ("user=bob",                                                  "all",         "-",      "-",    "-"),
        ("\"-user=bob\" lr;anyone lrp",                               "all",         "p",      "lrp",  "lrp"),
        ("user=bob lr :foo bar,baz",                                  "all",         "lr +bar +baz +foo", "-", "-"),
        ("user=bob :lookup read post",                                "all",         "lrp",    "-",    "-"),
        ("user=bob :lookup:x",                                        "all",         " +lookup:x", "-", "-"),
        ("anyone lr;-anyone r;user=bob lr",                           "all",         "l",      "l",    "l"),
        ("anyone lr;-anyone r;user=bob l;user=bob r",                 "all",         "lr",     "l",    "l"),
        ("group=staff lrw;-user=bob r",                               "all",         "lw",     "lrw",  "-"),
        ("group=staff lrw;-user=bob r;-user=bob w",                   "all",         "-",      "lrw",  "-"),
        ("group=staff lrw;user=bob lrwi;-user=bob r;-user=bob w",     "all",         "li",     "lrw",  "-"),
        ("user=bob lr\r",                                             "all",         "lr",     "-",    "-"),
        ("user=bob\tlr",                                              "all",         "-",      "-",    "-"),
        ("# all;;user=bob   lr   ",                                   "all",         "lr",     "-",    "-"),
        ("\"user=bob\" lp",                                           "all",         "lp",     "-",    "-"),
        ("user=bob lr:custom",                                        "all",         "lr +custom", "-", "-"),
        ("user= lr;user=BOB lr",                                      "all",         "-",      "-",    "-"),
        ("group=staff lp;group-override=ops lr",                      "all",         "lr",     "lp",   "-"),
        ("anyone lrwstipekxa",                                        "all",         "all",    "all",  "all"),
    ];
    for (file, alice, bob, carol, dave) in table {
        assert_eq!(shown(file, "alice", true), alice, "alice: {file:?}");
        for (user, want) in [("bob", bob), ("carol", carol), ("dave", dave)] {
            assert_eq!(shown(file, user, false), want, "{user}: {file:?}");
        }
    }
}

/// Whom no entry names falls to the namespace's default; whom one names, even with nothing, does not.
#[test]
fn nobody_named_is_not_nothing_given() {
    for (file, named) in [
        ("user=bob lr", false),
        ("user=alice", true),
        ("-user=alice r", true),
        ("anyone", true),
        ("owner lr", false),
        ("authenticated l", true),
    ] {
        let acl = Acl::parse(file.as_bytes(), "f").unwrap();
        let alice = Identity {
            name: Some("alice"),
            groups: &[],
            is_owner: false,
        };
        assert_eq!(acl.effective(&alice).is_some(), named, "{file:?}");
    }
    let acl = Acl::parse(b"authenticated lrp\nanyone p", "f").unwrap();
    let stranger = Identity {
        name: None,
        groups: &[],
        is_owner: false,
    };
    assert_eq!(acl.effective(&stranger).unwrap().rights.to_string(), "p");
}

#[test]
fn what_cannot_be_told() {
    for (file, line, why) in [
        ("anyone lrZ", 1, "'Z' is not a right letter"),
        ("user=bob lrcd", 1, "'c' is not a right letter"),
        ("anyone lr foo", 1, "begin with ':'"),
        ("user=bob lr #x", 1, "begin with ':'"),
        (";bob lr", 2, "\"bob\" is no identifier"),
        ("User=bob lr", 1, "is no identifier"),
        ("anyone=foo lr", 1, "is no identifier"),
        ("--user=bob r", 1, "is no identifier"),
        ("-\"user=bob\" lr", 1, "is no identifier"),
        (" user=bob lr", 1, "\"\" is no identifier"),
        ("\"user=bob\"lr", 1, "a blank must follow"),
        ("\"user=bob lr", 1, "does not end"),
        ("anyone lr;;owner q", 3, "'q'"),
    ] {
        let error = Acl::parse(file.replace(';', "\n").as_bytes(), "f").unwrap_err();
        assert_eq!(error.line, line, "{file:?}");
        assert!(error.why.contains(why), "{file:?}: {}", error.why);
    }
}

#[test]
fn files_as_dovecot_writes_them() {
    for (file, want) in [
        ("", ""),
        ("user=bob lrwstipekxa", "user=bob akxeilprwts\n"),
        (
            "user=bob p;anyone l;owner a;group=g i",
            "anyone l\ngroup=g i\nowner a\nuser=bob p\n",
        ),
        ("user=b lri :custom", "user=b ilr :custom\n"),
        ("\"user=b \\\"b\" l", "\"user=b \\\"b\" l\n"),
        ("user=bob lr;user=bob p", "user=bob lpr\n-user=bob \n"),
        ("-user=bob r", "-user=bob r\n"),
        (
            "group-override=x l;user=x l",
            "user=x l\ngroup-override=x l\n",
        ),
    ] {
        let acl = Acl::parse(file.replace(';', "\n").as_bytes(), "f").unwrap();
        assert_eq!(acl.stored(), want, "{file:?}");
    }
}

#[test]
fn the_trace_tells_how_it_came_about() {
    let acl = Acl::parse(b"anyone lr\n-user=bob r\nuser=carol p\n", "dovecot-acl").unwrap();
    let bob = Identity {
        name: Some("bob"),
        groups: &[],
        is_owner: false,
    };
    let effective = acl.effective(&bob).unwrap();
    let steps: Vec<String> = effective
        .trace
        .iter()
        .map(|step| format!("{} -> {}", step.entry, step.left))
        .collect();
    assert_eq!(
        steps,
        [
            "dovecot-acl:1 \"anyone lr\" -> lr",
            "dovecot-acl:2 \"-user=bob r\" -> l"
        ]
    );
}

proptest! {
    #[test]
    fn any_bytes_have_an_answer(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Acl::parse(&text, "f");
    }

    /// What is written means what was read.
    #[test]
    fn stored_and_read_again(lines in proptest::collection::vec("-?(anyone|owner|user=[a-c \"\\\\]{1,3}|group=g) [lrwip]{0,4}( :x)?", 0..8)) {
        let text: Vec<String> = lines.iter().filter(|line| is_fine(line)).cloned().collect();
        let acl = Acl::parse(text.join("\n").as_bytes(), "f").unwrap();
        let again = Acl::parse(acl.stored().as_bytes(), "f").unwrap();
        prop_assert_eq!(acl.stored(), again.stored());
        let bob = Identity { name: Some("a"), groups: &[], is_owner: false };
        prop_assert_eq!(acl.effective(&bob).map(|it| it.rights), again.effective(&bob).map(|it| it.rights));
    }
}

fn is_fine(line: &str) -> bool {
    entry::Line::parse(line).is_ok()
}
