//! Tables: what Dovecot's settings become.

mod rows;

use super::*;
use rows::ROWS;

/// A configuration, and what comes of it: lines of the result that must be there, and parts of what is said.
struct Row {
    conf: &'static str,
    lines: &'static [&'static str],
    said: &'static [&'static str],
}

fn imported(conf: &str) -> Imported {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dovecot.conf");
    std::fs::write(&path, conf).unwrap();
    import(&path).unwrap()
}

fn settings(toml: &str) -> Vec<String> {
    let setting = |line: &str| line.split("  # ").next().unwrap_or(line).trim().to_owned();
    toml.lines().map(setting).collect()
}

#[test]
fn settings_become_ours() {
    for Row { conf, lines, said } in ROWS {
        let imported = imported(conf);
        assert!(imported.toml.parse::<toml::Table>().is_ok(), "{conf}");
        let settings = settings(&imported.toml);
        for line in *lines {
            let found = settings.iter().any(|it| it == line);
            assert!(found, "{conf}\n{line}\n{}", imported.toml);
        }
        let all: Vec<&String> = imported.warnings.iter().chain(&imported.to_mend).collect();
        for part in *said {
            let found = all.iter().any(|it| it.contains(part));
            assert!(found, "{conf}\n{part}\n{all:#?}");
        }
    }
}

/// A value of the file that we do not have is left to mend; a user whom this machine does not have is not.
#[test]
fn what_is_left_to_mend() {
    for (conf, is_left) in [
        (
            "mail_location = maildir:~/Maildir\nuserdb {\n  driver = passwd\n}\n",
            false,
        ),
        (
            "mail_location = maildir:~/Maildir\nmail_uid = nobody-of-this-name\n",
            false,
        ),
        ("mail_location = maildir:~/Maildir:LAYOUT=imapdir\n", true),
        (
            "mail_location = maildir:~/Maildir\nlock_method = lockf\n",
            true,
        ),
    ] {
        assert_eq!(!imported(conf).to_mend.is_empty(), is_left, "{conf}");
    }
}

/// What Dovecot does not take.
#[test]
fn what_is_no_configuration() {
    for (conf, why) in [
        ("a\n", "dovecot.conf:1: \"a\" is followed neither by ="),
        ("a b\n", "is followed neither by ="),
        ("namespace{\n}\n", "is followed neither by ="),
        ("namespace x { inbox = yes }\n", "behind the {"),
        (
            "namespace x {\n",
            "dovecot.conf:1: this namespace has no closing brace",
        ),
        ("}\n", "dovecot.conf:1: this brace closes nothing"),
        ("namespace x {\n} y\n", "is followed neither by ="),
        ("!include missing.conf\n", "there is no"),
        ("!include {missing,gone}.conf\n", "there is no"),
        (
            "!include {a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}\n",
            "write several lines",
        ),
        (
            "!include_try {a,b,c,d,e,f}{a,b,c,d,e,f,g}\n",
            "write several lines",
        ),
        ("!include dovecot.conf\n", "includes itself"),
        ("= x\n", "has a name before the ="),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dovecot.conf");
        std::fs::write(&path, conf).unwrap();
        let error = import(&path).unwrap_err().to_string();
        assert!(error.contains(why), "{conf}: {error}");
    }
}

/// Dovecot's ways to write a line, and what it reads there.
#[test]
fn lines() {
    for (line, want) in [
        ("hostname = a", "\"a\""),
        ("hostname=a", "\"a\""),
        ("\thostname\t=\ta # b", "\"a\""),
        ("hostname = a#b", "\"a\""),
        ("hostname = \"a # b\"", "\"a # b\""),
        ("hostname = '  a  '", "\"  a  \""),
        ("hostname = \"a \\\" b\"", "'a \" b'"),
        ("hostname = \"a\\nb\"", "\"anb\""),
        ("hostname = a\\nb", "'a\\nb'"),
        ("hostname = \"a\" \"b\"", "'a\" \"b'"),
        ("hostname = \"a b", "'\"a b'"),
        ("hostname = a \\\n   b", "\"a b\""),
        ("hostname = a\r", "\"a\""),
        ("\"hostname\" = a", "\"a\""),
        ("hostname = x\nhostname = a", "\"a\""),
    ] {
        let toml = imported(&format!("{line}\n")).toml;
        let want = format!("hostname = {want}");
        assert!(settings(&toml).contains(&want), "{line}\n{toml}");
    }
    // Nothing follows the backslash: Dovecot forgets the line.
    for conf in [
        "hostname = a \\\n\nssl = no\n",
        "hostname = a \\\n# b\n",
        "hostname = a \\",
    ] {
        let lost = imported(conf);
        let settings = settings(&lost.toml);
        assert!(
            !settings.iter().any(|it| it.starts_with("hostname")),
            "{conf}"
        );
        assert!(
            lost.warnings.iter().any(|it| it.contains("backslash")),
            "{conf}"
        );
    }
}

/// Nothing is handed over, and no directory named, for a field that Dovecot does not look at.
#[test]
fn fields_that_are_lost() {
    let conf = "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb static {\n  allow_all_users = yes\n  fields {\n    mail = mdbox:/boxes\n    uid = 8\n  }\n}\n";
    let toml = imported(conf).toml;
    for word in ["hand_over", "mail_roots", "mdbox"] {
        assert!(
            !settings(&toml)
                .iter()
                .any(|it| !it.starts_with('#') && it.contains(word)),
            "{toml}"
        );
    }
}

/// Dovecot's programs are told of a file that they would not find.
#[test]
fn hand_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dovecot.conf");
    let told = format!("-c {}", path.display());
    for (before, command) in [
        ("", format!("/usr/lib/dovecot/dovecot-lda {told}")),
        (
            "# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf\n",
            "/usr/lib/dovecot/dovecot-lda".into(),
        ),
        (
            "libexec_dir = /opt/dovecot\n",
            format!("/opt/dovecot/dovecot-lda {told}"),
        ),
    ] {
        std::fs::write(&path, format!("{before}mail_location = mdbox:~/mdbox\n")).unwrap();
        let toml = import(&path).unwrap().toml;
        let line = format!("hand_over = \"lda:{command}\"");
        assert!(settings(&toml).contains(&line), "{line}\n{toml}");
    }
    // A userdb may say so too, and a file of users.
    let users = folder.path().join("my users");
    std::fs::write(
        &users,
        "bob:x:8:8::/homes/bob::\nann:x:8:8::/homes/ann::userdb_mail=mdbox:/boxes/ann\n",
    )
    .unwrap();
    let query = "driver = pgsql\nconnect = host=db\nuser_query = SELECT uid, 'mdbox:/boxes/' || n AS mail FROM u WHERE n = '%n'\n";
    std::fs::write(folder.path().join("sql.ext"), query).unwrap();
    let attributes = "user_attrs = uidNumber=uid, =mail=sdbox:/boxes/%{ldap:uid}\n";
    std::fs::write(folder.path().join("ldap.ext"), attributes).unwrap();
    let file = format!(
        "passwd-file\n  args = username_format=%u {}",
        users.display()
    );
    let file = (file.as_str(), "mail_roots = [\"/boxes\", \"/homes\"]");
    for (userdb, roots) in [
        (
            "static\n  args = uid=8 gid=8 mail=sdbox:~/x allow_all_users=yes",
            "",
        ),
        (
            "static\n  args = uid=8 gid=8 namespace/a/location=maildir:~/x:LAYOUT=index allow_all_users=yes",
            "",
        ),
        ("sql\n  args = sql.ext", "mail_roots = [\"/boxes\"]"),
        ("ldap\n  args = ldap.ext", "mail_roots = [\"/boxes\"]"),
        ("sql\n  override_fields = mail=mdbox:~/x", ""),
        file,
    ] {
        let conf = format!("mail_location = maildir:~/M\nuserdb {{\n  driver = {userdb}\n}}\n");
        std::fs::write(&path, conf).unwrap();
        let toml = import(&path).unwrap().toml;
        let line = format!("hand_over = \"lda:/usr/lib/dovecot/dovecot-lda {told}\"");
        assert!(settings(&toml).contains(&line), "{line}\n{toml}");
        assert!(
            roots.is_empty() || settings(&toml).iter().any(|it| it == roots),
            "{roots}\n{toml}"
        );
    }
}

#[test]
fn files_of_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "dovecot.conf",
        "!include conf.d/*.conf\n!include_try local.conf\n!include_try missing.conf\n",
    );
    write(
        "conf.d/10-mail.conf",
        "mail_location = maildir:~/Maildir\nmail_plugins = quota\n",
    );
    write(
        "conf.d/20-lmtp.conf",
        "protocol lmtp {\n  mail_plugins = $mail_plugins acl\n}\n",
    );
    write("conf.d/.hidden.conf", "mail_home = /hidden\n");
    write(
        "local.conf",
        "hostname = mx.example.org\nuserdb {\n  driver = sql\n  args = sql.conf.ext\n}\n",
    );
    write(
        "sql.conf.ext",
        "driver = pgsql\nconnect = host=db dbname=mail user=dove password=se$cret\nuser_query = SELECT home, uid, gid \\\n  FROM users WHERE name = '%n'\n",
    );
    let imported = import(&folder.path().join("dovecot.conf")).unwrap();
    let toml = &imported.toml;
    for line in [
        "mail_path = \"~/Maildir\"  # conf.d/10-mail.conf:1",
        "hostname = \"mx.example.org\"  # local.conf:1",
        "postgresql = { connection = \"host=db dbname=mail user=dove\", password_file = \"/etc/postroom/userdb.password\", query = \"SELECT home, uid, gid FROM users WHERE name = '%n'\" }  # local.conf:2",
    ] {
        assert!(toml.lines().any(|it| it == line), "{line}\n{toml}");
    }
    assert!(!toml.contains("hidden"), "{toml}");
    for (pattern, hostname) in [
        ("host.{b,c}", "c"),
        ("host.{c,b}", "b"),
        ("host.{gone,b}", "b"),
        ("host.{b,{d,c}}", "c"),
        ("{host.c,host.b}", "b"),
        ("host.b{}", "b"),
        ("host.[!b]", "d"),
        ("host.\\b", "b"),
        ("**.b", "b"),
    ] {
        for name in ["b", "c", "d"] {
            write(&format!("host.{name}"), &format!("hostname = {name}\n"));
        }
        write("braces.conf", &format!("!include {pattern}\n"));
        let toml = import(&folder.path().join("braces.conf")).unwrap().toml;
        let line = format!("hostname = \"{hostname}\"");
        assert!(settings(&toml).contains(&line), "{pattern}\n{toml}");
    }
    assert!(
        !toml.contains("se$cret") && !imported.warnings.iter().any(|it| it.contains("se$cret"))
    );
}

/// What libpq may be told, and no password in what is printed.
#[test]
fn connections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dovecot.conf");
    let conf = "mail_location = maildir:~/M\nuserdb {\n  driver = sql\n  args = sql.ext\n}\n";
    std::fs::write(&path, conf).unwrap();
    for (connect, want) in [
        ("host=db password=SECRET user=m", Some("host=db user=m")),
        ("host=db password = SECRET user = m", Some("host=db user=m")),
        (
            "host=db password='my SECRET' user='a b'",
            Some("host=db user='a b'"),
        ),
        (
            "host=db password='it\\'s SECRET' user=m",
            Some("host=db user=m"),
        ),
        ("host=db sslpassword=SECRET", None),
        ("postgresql://m:SECRET@db/mail", None),
        ("host=db password='SECRET", None),
    ] {
        let text = format!(
            "driver = pgsql\nconnect = {connect}\nuser_query = SELECT uid FROM u WHERE n = '%n'\n"
        );
        std::fs::write(folder.path().join("sql.ext"), text).unwrap();
        let imported = import(&path).unwrap();
        assert!(
            !imported.toml.contains("SECRET"),
            "{connect}\n{}",
            imported.toml
        );
        assert!(!imported.warnings.concat().contains("SECRET"), "{connect}");
        let found = imported.toml.contains("dovecot = { socket");
        match want {
            Some(want) => {
                let line = format!("connection = {},", toml::Value::from(want));
                assert!(
                    imported.toml.contains(&line),
                    "{connect}\n{}",
                    imported.toml
                );
            }
            None => assert!(found, "{connect}\n{}", imported.toml),
        }
    }
}
