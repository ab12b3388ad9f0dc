//! Configs in, messages with their lines out.

use super::*;
use crate::mailbox::namespace::Kind;

fn problems(text: &str) -> Vec<(usize, String)> {
    let errors = match Config::from_str("t.toml", text) {
        Ok(config) => config.warnings,
        Err(errors) => Some(errors),
    };
    let Some(errors) = errors else {
        return Vec::new();
    };
    errors
        .lines()
        .into_iter()
        .zip(
            errors
                .problems
                .iter()
                .map(|problem| problem.message.clone()),
        )
        .collect()
}

#[test]
fn nothing_configured_is_one_private_maildir() {
    let config = Config::built_in();
    let [inbox] = &config.delivery.namespaces[..] else {
        panic!("one namespace")
    };
    assert_eq!(
        (inbox.kind, inbox.prefix.as_str(), inbox.inbox),
        (Kind::Private, "", true)
    );
    assert_eq!(inbox.location.path.source(), "~/Maildir");
}

/// A private namespace that is right, for the cases to stand beside.
const INBOX: &str =
    "[acl]\ndriver = \"vfile\"\n[namespace.inbox]\nseparator = \"/\"\ninbox = true\n";

#[test]
fn each_problem_with_its_line() {
    for (text, line, message) in [
        ("mail_pth = \"~/M\"", 1, "unknown setting \"mail_pth\""),
        (
            "[delivery]\non_misssing = \"inbox\"",
            2,
            "unknown setting \"on_misssing\" in [delivery]",
        ),
        (
            "[delivery]\non_missing = \"bounce\"",
            2,
            "\"bounce\" is no value",
        ),
        (
            "[delivery]\nmax_mailboxes = \"many\"",
            2,
            "max_mailboxes cannot be this string",
        ),
        (
            "[delivery]\nmessage_size = \"50X\"",
            2,
            "message_size cannot be",
        ),
        ("mail_path = \"/vmail/%x\"", 1, "is no variable"),
        (
            "mail_path = \"/vmail/%{usr}\"",
            1,
            "there is no variable %{usr}",
        ),
        (
            "mail_access_groups = [\"no-such-group\"]",
            1,
            "there is no group",
        ),
        (
            "mail_driver = \"mbox\"\nmailbox_list_layout = \"maildir++\"",
            2,
            "mboxes lie in nested directories",
        ),
        (
            "mbox_write_locks = [\"fcntl\", \"dot\"]",
            1,
            "\"dot\" is no lock of an mbox",
        ),
        ("mbox_write_locks = []", 1, "an mbox needs a lock"),
        ("mail_driver = \"dbox\"", 1, "\"dbox\" is no value"),
        ("mail_privileged_group = 0", 1, "that of root is nobody's"),
        (
            "[[userdb]]\npasswd = {}\nstatic = {}",
            1,
            "a [[userdb]] has one driver",
        ),
        (
            "[[userdb]]\npasswd-file = {}",
            2,
            "a passwd-file needs its path",
        ),
        ("[lmtp]\nlisten = [{ tcp = \"24\" }]", 2, "is no address"),
        (
            "[lmtp]\nlisten = [{ unix = \"/x\" },\n{ tcp = \"127.0.0.1:25\" }]",
            3,
            "port 25 is for SMTP",
        ),
        (
            "[status]\nlisten = [{ tcp = \"[::1]:9154\" },\n{ tcp = \"[::]:9154\" }]",
            3,
            "others would read the names of users",
        ),
        (
            "[status]\nlisten = [{ tcp = \"192.0.2.1:9154\" }]",
            2,
            "others would read the names of users",
        ),
        (
            "[lmtp]\nlisten = [{ tcp = \"[::1]:24\", ssl = true }]",
            2,
            "there is no certificate",
        ),
        (
            "[lmtp]\nlisten = [{ tcp = \"[::1]:24\", haproxy = true }]",
            2,
            "nobody is trusted to say who the client is",
        ),
        (
            "[lmtp]\nlisten = [{ unix = \"/x\", haproxy = true }]",
            2,
            "it is for TCP",
        ),
        ("ssl = \"required\"", 1, "there is no certificate"),
        (
            "ssl_server_key_file = \"/x\"",
            1,
            "its certificate is missing",
        ),
        ("ssl_min_protocol = \"TLSv1.1\"", 1, "ssl_min_protocol"),
        (
            "login_trusted_networks = [\"10.0.0.0/33\"]",
            1,
            "is no network",
        ),
        ("lmtp_client_workarounds = [\"x\"]", 1, "is no workaround"),
        (
            "lmtp_hdr_delivery_address = \"first\"",
            1,
            "lmtp_hdr_delivery_address",
        ),
        (
            "[lmtp]\nlisten = [{ unix = \"/x\", mode = \"rw\" }]",
            2,
            "is no mode",
        ),
        (
            "[[route]]\nheader = \"X\"\nmailbox = \"A\"\nflags = [\"\\\\Seen\", \"$Junk\", \"\\\\Mine\"]",
            4,
            "\"\\\\Mine\" is no system flag",
        ),
        (
            "[[route]]\nheader = \"X\"\nmailbox = \"A\"\nflags = [\"$Junk\", \"two words\"]",
            4,
            "\"two words\" is no keyword",
        ),
        ("mail_path = \"Maildir\"", 1, "\"Maildir\" is not absolute"),
        ("mail_home = \"home\"", 1, "\"home\" is not absolute"),
        (
            "[delivery]\nrequired_paths = [\"srv\"]",
            2,
            "srv is not absolute",
        ),
        (
            "[namespace.inbox.mailbox.Bin]\nspecial_use = \"Trash\"",
            2,
            "\"Trash\" is no special use",
        ),
        ("[lmtp]\nidle_timeout = \"0s\"", 2, "no time at all"),
        (
            "[lmtp]\nidle_timeout = 9223372036854775807",
            2,
            "idle_timeout is longer than 365 days",
        ),
        (
            "[lmtp]\ndata_deadline = \"366d\"",
            2,
            "data_deadline is longer than 365 days",
        ),
        ("[lmtp]\nmax_recipients = 0", 2, "0 lets nothing in"),
        (
            "[lmtp]\nlisten = [{ unix = \"/x\", trusted = \"no\" }]",
            2,
            "trusted",
        ),
        ("a = \nb = 1", 1, ""),
        (
            "mail_fsync = \"never\"",
            1,
            "without fsync a 250 is no promise",
        ),
        (
            "mailbox_subscriptions_filename = \"../x\"",
            1,
            "\"../x\" is not the name of a file",
        ),
        (
            "lda_mailbox_autosubscribe = true\n[namespace.a]\ninbox = true\nprefix = \"A.\"\n\
             [namespace.b]\nprefix = \"B.\"\nmail_path = \"~/B\"\nsubscriptions = false",
            1,
            "no namespace holds the subscriptions of \"b\"",
        ),
    ] {
        let found = problems(text);
        assert!(
            found
                .iter()
                .any(|(at, text)| *at == line && text.contains(message)),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn what_dovecot_refuses_to_start_with() {
    for (text, line, message) in [
        (
            "[namespace.a]\nprefix = \"A\"\nseparator = \"/\"",
            7,
            "must end with the separator",
        ),
        (
            "[namespace.a]\nprefix = \"Inbox/\"\nseparator = \"/\"",
            7,
            "INBOX is looked for in capitals",
        ),
        (
            "[namespace.a]\nprefix = \"/A/\"\nseparator = \"/\"",
            7,
            "must not begin with the separator",
        ),
        (
            "[namespace.a]\nprefix = \"\"\nseparator = \"/\"",
            7,
            "same prefix",
        ),
        (
            "[namespace.a]\nprefix = \"A/\"\nseparator = \"//\"",
            8,
            "is one character",
        ),
        (
            "[namespace.a]\nprefix = \"A.\"\nseparator = \".\"",
            1,
            "different separators",
        ),
        (
            "[namespace.a]\nprefix = \"A/\"\nseparator = \"/\"\ninbox = true",
            1,
            "more than one namespace",
        ),
        (
            "[namespace.a]\nprefix = \"A/\"\nseparator = \"/\"\nalias_for = \"nope\"",
            9,
            "no namespace \"nope\"",
        ),
        (
            "[namespace.a]\nprefix = \"A/\"\nseparator = \"/\"\nalias_for = \"inbox\"\nmail_path = \"~/M2\"",
            9,
            "is not the",
        ),
        (
            "[namespace.s]\ntype = \"shared\"\nprefix = \"s/\"\nseparator = \"/\"\nmail_path = \"%{owner_home}/M\"",
            8,
            "$user or $username",
        ),
        (
            "[namespace.s]\ntype = \"shared\"\nprefix = \"s/$usr/\"\nseparator = \"/\"\nmail_path = \"%{owner_home}/M\"",
            8,
            "$usr is no variable",
        ),
        (
            "[namespace.s]\ntype = \"shared\"\nprefix = \"s/$user/\"\nseparator = \"/\"",
            6,
            "the same for every owner",
        ),
        (
            "[namespace.p]\ntype = \"public\"\nprefix = \"P/\"\nseparator = \"/\"\nmail_path = \"/p\"\nmail_control_path = \"~/c\"",
            11,
            "need index files per user",
        ),
        (
            "[namespace.p]\ntype = \"public\"\nprefix = \"P/\"\nseparator = \"/\"\nmail_path = \"/p\"\nmail_index_path = \"/i\"\n\
             [namespace.q]\ntype = \"public\"\nprefix = \"Q/\"\nseparator = \"/\"\nmail_path = \"/q\"\nmail_index_path = \"/i\"",
            17,
            "same mail_index_path",
        ),
        (
            "[namespace.p]\ntype = \"public\"\nprefix = \"P/\"\nseparator = \"/\"\nmail_path = \"/p\"\n\
             [namespace.q]\ntype = \"public\"\nprefix = \"Q/\"\nseparator = \"/\"\nmail_path = \"/q\"\nmail_index_path = \"/p\"",
            16,
            "same mail_index_path",
        ),
        (
            "[namespace.p]\ntype = \"public\"\nprefix = \"P/\"\nseparator = \"/\"",
            6,
            "same mail_path",
        ),
        (
            "[namespace.p]\ntype = \"public\"\nprefix = \"P/\"\nseparator = \"/\"\nmail_path = \"%{owner_home}/p\"",
            10,
            "a public mailbox has no owner",
        ),
        (
            "[namespace.s]\ntype = \"shared\"\nprefix = \"s/$user/\"\nseparator = \"/\"\nmail_path = \"%{owner_home}/M\"\nmail_inbox_path = \"~/Maildir\"",
            11,
            "in that of somebody else",
        ),
        (
            "[namespace.s]\ntype = \"shared\"\nprefix = \"s/$user/\"\nseparator = \"/\"\nmail_path = \"%{owner_home}/M\"\nmail_inbox_path = \"/var/mail/%{user}\"",
            11,
            "in that of somebody else",
        ),
        (
            "[namespace.s]\ntype = \"shared\"\nprefix = \"s/$user/\"\nseparator = \"/\"\nmail_path = \"%{owner_home}/M\"\nmail_control_path = \"~/control/shared\"",
            11,
            "one list of UIDs",
        ),
        (
            "[namespace.s]\ntype = \"shared\"\nprefix = \"s/$user/\"\nseparator = \"/\"\nmail_path = \"%{owner_home}/M\"\nmail_index_path = \"/var/index/%{user}\"",
            11,
            "one index",
        ),
        (
            "[namespace.p]\nprefix = \"P/\"\nseparator = \"/\"\nmail_path = \"/p\"",
            9,
            "it is not private",
        ),
    ] {
        let found = problems(&format!("{INBOX}{text}"));
        assert!(
            found
                .iter()
                .any(|(at, text)| *at == line && text.contains(message)),
            "{text}: {found:?}"
        );
    }
    let open = "[namespace.inbox]\ninbox = true\nseparator = \"/\"\n[namespace.p]\ntype = \"public\"\nprefix = \"P/\"\nseparator = \"/\"\nmail_path = \"/p\"";
    assert!(
        problems(open)
            .iter()
            .any(|(_, text)| text.contains("who may store there"))
    );
}

#[test]
fn all_problems_at_once() {
    let found = problems(
        "hostnam = \"x\"\nmail_path = 5\n[delivery]\ndetail = \"all\"\n[lmtp]\nlisten = 24\n",
    );
    let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 2, 4, 6], "{found:?}");
}

#[test]
fn a_picture_of_the_place() {
    let errors = Config::from_str("t.toml", "\n[delivery]\ndetial = \"mailbox\"\n").unwrap_err();
    let text = errors.to_string();
    for part in [
        "t.toml:3:1",
        "detial = \"mailbox\"",
        "^^^^^^",
        "did you mean \"detail\"?",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// The namespaces that Dovecot's documents give as examples.
#[test]
fn the_documents_examples() {
    for text in [
        "[namespace.inbox]\nseparator = \".\"\nprefix = \"\"\ninbox = true",
        "[namespace.inbox]\nseparator = \"/\"\ninbox = true\n\
         [namespace.c1]\nseparator = \"/\"\nprefix = \"mail/\"\nhidden = true\nlist = \"no\"\nalias_for = \"\"\n\
         [namespace.c2]\nseparator = \"/\"\nprefix = \"~/mail/\"\nhidden = true\nlist = false\nalias_for = \"\"",
        "[namespace.inbox]\nseparator = \"/\"\ninbox = true\n\
         [namespace.compat]\nseparator = \".\"\nprefix = \"INBOX.\"\ninbox = false\nhidden = true\nlist = \"no\"\nalias_for = \"\"",
        "[namespace.subscriptions]\nsubscriptions = true\nprefix = \"\"\nlist = \"no\"\nhidden = true\n\
         [namespace.inbox]\ninbox = true\nsubscriptions = false\nprefix = \"INBOX/\"\nseparator = \"/\"\n\
         [namespace.inbox.mailbox.Drafts]\nauto = \"subscribe\"\nspecial_use = \"\\\\Drafts\"\n\
         [namespace.inbox.mailbox.\"Sent Messages\"]\nspecial_use = \"\\\\Sent\"",
        "[acl]\ndriver = \"vfile\"\n[namespace.inbox]\nseparator = \"/\"\ninbox = true\n\
         [namespace.shared]\ntype = \"shared\"\nseparator = \"/\"\nprefix = \"shared/%%u/\"\nmail_path = \"%{owner_home}/Maildir\"\n\
         mail_index_private_path = \"~/Maildir/shared/%{owner_user}\"\nsubscriptions = false\nlist = \"children\"",
        "[acl]\ndriver = \"vfile\"\n[namespace.inbox]\nseparator = \"/\"\ninbox = true\n\
         [namespace.public]\ntype = \"public\"\nseparator = \"/\"\nprefix = \"Public/\"\nmail_path = \"/var/mail/public\"\n\
         mail_control_path = \"~/Maildir/public\"\nmail_index_path = \"~/Maildir/public\"\nsubscriptions = false\n\
         [namespace.team]\ntype = \"public\"\nseparator = \"/\"\nprefix = \"Team/\"\nmail_path = \"/var/mail/team\"\n\
         mail_control_path = \"~/Maildir/team\"\nmail_index_path = \"~/Maildir/team\"\nsubscriptions = false",
    ] {
        if let Err(errors) = Config::from_str("t.toml", text) {
            panic!("{errors}");
        }
    }
}

/// What only Dovecot writes needs a way to Dovecot that can name its mailboxes.
#[test]
fn what_is_handed_over() {
    const PUBLIC: &str =
        "\n[namespace.p]\ntype = \"public\"\nprefix = \"P/\"\nseparator = \"/\"\n[acl]\n";
    let lda = "hand_over = \"lda:/usr/lib/dovecot/dovecot-lda\"\n";
    let lmtp = "hand_over = \"lmtp:/run/dovecot/lmtp\"\n";
    // What stands first; the namespaces; the line of what is said, and the saying; 0 and nothing: all is well
    for (first, rest, line, message) in [
        (
            "mail_driver = \"sdbox\"\n",
            "",
            1,
            "namespace \"inbox\": only Dovecot writes sdbox",
        ),
        (
            "mail_driver = \"mdbox\"\n",
            "[namespace.a]\ninbox = true\n",
            2,
            "namespace \"a\": only Dovecot writes mdbox",
        ),
        (
            "",
            "[namespace.a]\ninbox = true\nmailbox_list_layout = \"index\"\n",
            3,
            "only Dovecot writes layout index",
        ),
        (
            "mail_driver = \"sdbox\"\nhand_over = \"dovecot-lda\"\n",
            "",
            2,
            "neither lmtp: nor lda:",
        ),
        ("mail_driver = \"sdbox\"\n", lda, 0, ""),
        ("mail_driver = \"sdbox\"\n", lmtp, 0, ""),
        (
            "mail_driver = \"sdbox\"\nmailbox_list_layout = \"maildir++\"\n",
            lda,
            0,
            "",
        ),
        (
            lda,
            "[namespace.a]\ninbox = true\nmail_driver = \"mdbox\"\n",
            0,
            "",
        ),
        (
            "",
            &format!("[namespace.a]\ninbox = true\nmail_driver = \"mdbox\"\n{lda}"),
            0,
            "",
        ),
        // A namespace of its own that we write, beside.
        (lda, "[namespace.a]\ninbox = true\n", 0, ""),
        (
            "",
            &format!("[namespace.a]\ninbox = true\n{lda}"),
            3,
            "we write its mailboxes",
        ),
        (
            "mail_driver = \"sdbox\"\n",
            &format!("{lmtp}[namespace.a]\ninbox = true{PUBLIC}"),
            5,
            "no mailbox of this namespace",
        ),
        (
            "mail_driver = \"sdbox\"\nhand_over_detail = true\n",
            &format!("{lmtp}[namespace.a]\ninbox = true{PUBLIC}"),
            0,
            "",
        ),
        (
            "mail_driver = \"sdbox\"\nhand_over_detail = true\n",
            &format!(
                "{lmtp}[namespace.a]\ninbox = true\nprefix = \"INBOX/\"\nseparator = \"/\"{PUBLIC}"
            ),
            8,
            "below the prefix",
        ),
        (
            "mail_driver = \"sdbox\"\n",
            &format!("{lda}[namespace.a]\ninbox = true{PUBLIC}"),
            0,
            "",
        ),
        (
            "mail_driver = \"sdbox\"\n",
            &format!("{lmtp}[lmtp]\nlisten = [{{ unix = \"/run/dovecot/lmtp\" }}]\n"),
            2,
            "our own socket",
        ),
        (
            "mail_driver = \"sdbox\"\n",
            "hand_over = \"lmtp:/tmp/x\"\n[lmtp]\nlisten = [{ unix = \"/usr/../tmp/x\" }]\n",
            2,
            "our own socket",
        ),
        (
            "mail_driver = \"sdbox\"\n",
            "hand_over = \"lmtp:localhost:2424\"\n[lmtp]\nlisten = [{ tcp = \"0.0.0.0:2424\" }]\n",
            2,
            "our own socket",
        ),
        (
            "mail_driver = \"sdbox\"\n",
            "hand_over = \"lmtp:[::1]:2424\"\n[lmtp]\nlisten = [{ tcp = \"[::]:2424\" }]\n",
            2,
            "our own socket",
        ),
        (
            "mail_driver = \"sdbox\"\n",
            "hand_over = \"lmtp:[::1]:2424\"\n[lmtp]\nlisten = [{ tcp = \"127.0.0.1:2424\" }]\n",
            0,
            "",
        ),
        (
            "mail_driver = \"sdbox\"\n",
            "hand_over = \"lmtp:127.0.0.1:24\"\n[lmtp]\nlisten = [{ tcp = \"127.0.0.1:2424\" }]\n",
            0,
            "",
        ),
    ] {
        let found = problems(&format!("{first}{rest}"));
        let is_said = |(at, text): &(usize, String)| *at == line && text.contains(message);
        match message {
            "" => assert_eq!(found, [], "{first}{rest}"),
            _ => assert!(found.iter().any(is_said), "{first}{rest}: {found:?}"),
        }
    }
}

/// An empty path in a namespace is none, not that of the file.
#[test]
fn an_empty_path_is_none() {
    let text = "mail_index_path = \"/i/%u\"\nmail_control_path = \"/c/%u\"\nmail_inbox_path = \"/n/%u\"\n\
                [namespace.inbox]\nseparator = \"/\"\ninbox = true\n\
                [namespace.other]\nseparator = \"/\"\nprefix = \"o/\"\nmail_path = \"~/o\"\n\
                mail_index_path = \"\"\nmail_control_path = \"\"\nmail_inbox_path = \"\"\n";
    let config = Config::from_str("t.toml", text).unwrap();
    let paths = |at: usize| {
        let location = &config.delivery.namespaces[at].location;
        let paths = [
            &location.index_path,
            &location.control_path,
            &location.inbox_path,
        ];
        paths.map(|it| it.as_ref().map(|it| it.source().to_owned()))
    };
    assert_eq!(
        paths(0),
        [
            Some("/i/%u".into()),
            Some("/c/%u".into()),
            Some("/n/%u".into())
        ]
    );
    assert_eq!(paths(1), [None, None, None]);
}
