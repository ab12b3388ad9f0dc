//! Settings of Dovecot, each with what becomes of it.

use super::Row;

pub const ROWS: &[Row] = &[
    // Where mail lies.
    Row {
        conf: "mail_location = maildir:~/Maildir:INDEX=/var/index/%u:CONTROL=/var/control/%u:LAYOUT=fs:UTF-8\n",
        lines: &[
            "mail_driver = \"maildir\"",
            "mail_path = \"~/Maildir\"",
            "mail_index_path = \"/var/index/%u\"",
            "mail_control_path = \"/var/control/%u\"",
            "mailbox_list_layout = \"fs\"",
            "mailbox_list_utf8 = true",
        ],
        said: &[],
    },
    Row {
        conf: "# nothing\n",
        lines: &[],
        said: &["nothing says where mail lies"],
    },
    Row {
        conf: "mail_location = maildir:/srv/%2.256Nu/%u\n",
        lines: &["mail_path = \"/srv/%2.256Nu/%u\""],
        said: &["mail_path", "is no variable"],
    },
    Row {
        conf: "mail_location = imapc:~/x\n",
        lines: &["mail_driver = \"imapc\""],
        said: &["\"imapc\" is no driver"],
    },
    // A location of its own is instead of that of the file.
    Row {
        conf: "mail_location = maildir:~/Maildir:INDEX=/var/index/%u:CONTROL=/var/control/%u:LAYOUT=fs:UTF-8:DIRNAME=x\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace public {\n  type = public\n  separator = /\n  prefix = Public/\n  location = maildir:/srv/public:CONTROL=/srv/control\n}\n",
        lines: &[
            "mail_control_path = \"/srv/control\"",
            "mail_index_path = \"\"",
            "mailbox_list_layout = \"maildir++\"",
            "mailbox_list_utf8 = false",
            "mailbox_directory_name = \"\"",
        ],
        said: &[],
    },
    // A comment is no version of doveconf's.
    Row {
        conf: "# 2.3 configuration\nmail_location = maildir:~/Maildir # where\nlda_mailbox_autocreate = YES # make\n",
        lines: &["mail_path = \"~/Maildir\"", "on_missing = \"create\""],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmailbox_list_utf8 = Yes\nnamespace inbox {\n  inbox = Yes\n}\nnamespace old {\n  prefix = Old/\n  separator = /\n  mail_driver = mbox\n}\nmail_plugins {\n  quota = NO\n}\n",
        lines: &[
            "mailbox_list_utf8 = true",
            "inbox = true",
            "mail_path = \"~/mail\"",
        ],
        said: &[],
    },
    // What Dovecot alone writes.
    Row {
        conf: "mail_location = mdbox:~/mdbox:INDEX=/var/index/%u:ALT=/alt/%u\nnamespace inbox {\n  inbox = yes\n}\nnamespace a {\n  prefix = a/\n  separator = /\n  location = maildir:~/m:LAYOUT=index\n}\n",
        lines: &["mail_driver = \"mdbox\"", "mailbox_list_layout = \"index\""],
        said: &["dbox with its indexes elsewhere"],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = sdbox\nmail_path = ~/sdbox\nlibexec_dir = /opt/dovecot\n",
        lines: &["mail_driver = \"sdbox\""],
        said: &[],
    },
    // What the documents warn of.
    Row {
        conf: "mail_location = maildir:~/Maildir\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace p {\n  type = public\n  separator = /\n  prefix = Public/\n  location = maildir:/p:CONTROL=~/c:INDEX=~/i\n}\n",
        lines: &[],
        said: &["control files per user do not share dovecot-keywords"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace p {\n  type = public\n  separator = /\n  prefix = Public/\n  location = maildir:/p:CONTROL=~/c\n}\n",
        lines: &[],
        said: &["control files per user need index files per user"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace a {\n  type = public\n  separator = /\n  prefix = A/\n  location = maildir:/a:INDEX=/i\n}\nnamespace b {\n  type = public\n  separator = /\n  prefix = B/\n  location = maildir:/b:INDEX=/i\n}\n",
        lines: &[],
        said: &["have the same mail_index_path"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace a {\n  type = public\n  separator = .\n  prefix = A.\n  location = maildir:/a\n}\n",
        lines: &[],
        said: &["have different separators"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace a {\n  type = shared\n  separator = /\n  prefix = shared/%u/\n  location = maildir:%%h/Maildir\n}\n",
        lines: &[],
        said: &["names whoever asks, not the owner: write %%u (2.3) or $user (2.4)"],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = /srv/%d/%n\n",
        lines: &["mail_path = \"/srv/%d/%n\""],
        said: &["variables of Dovecot 2.3, which 2.4 does not fill in"],
    },
    // Dovecot's defaults that are not ours.
    Row {
        conf: "mail_location = maildir:~/Maildir\n",
        lines: &[
            "detail = \"ignore\"",
            "on_missing = \"inbox\"",
            "permissions = \"best-effort\"",
            "new_mailbox_permissions = \"parent\"",
            "recipient_headers = \"single\"",
            "duplicate_window = 0",
            "mbox_quoting = \"none\"",
            "lmtp_rcpt_check_quota = false",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nlmtp_save_to_detail_mailbox = yes\nlda_mailbox_autocreate = y\nrecipient_delimiter = +-\n",
        lines: &[
            "detail = \"mailbox\"",
            "on_missing = \"create\"",
            "recipient_delimiter = \"+-\"",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nprotocol lda {\n  lda_mailbox_autocreate = yes\n}\n",
        lines: &["on_missing = \"inbox\""],
        said: &[
            "dovecot-lda has other settings than the LMTP server",
            "on_missing = \"create\"",
        ],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nprotocol !imap {\n  lmtp_save_to_detail_mailbox = yes\n}\nprotocol imap {\n  lda_mailbox_autocreate = yes\n}\n",
        lines: &["detail = \"mailbox\"", "on_missing = \"inbox\""],
        said: &[],
    },
    // Users.
    Row {
        conf: "mail_location = maildir:~/Maildir\nuserdb {\n  driver = passwd\n}\nuserdb {\n  driver = passwd-file\n  args = username_format=%u /etc/dovecot/users\n}\nuserdb {\n  driver = static\n  args = uid=8 gid=8 home=/srv/%n allow_all_users=yes\n}\n",
        lines: &[
            "passwd = {}",
            "passwd-file = { path = \"/etc/dovecot/users\" }",
            "static = { uid = \"8\", gid = \"8\", home = \"/srv/%n\" }",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nbase_dir = /run/dove\nuserdb {\n  driver = passwd-file\n  args = username_format=%n /etc/dovecot/users\n}\nuserdb {\n  driver = static\n  args = uid=8 gid=8 home=/srv/%n\n}\nuserdb {\n  driver = prefetch\n}\n",
        lines: &["dovecot = { socket = \"/run/dove/auth-userdb\" }"],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nsql_driver = sqlite\nsqlite_path = /srv/users.db\nuserdb sql {\n  query = SELECT uid, gid, home FROM users WHERE name = '%{user}'\n}\nuserdb static {\n  fields {\n    uid = 8\n    gid = 8\n  }\n  allow_all_users = yes\n}\n",
        lines: &[
            "sqlite = { path = \"/srv/users.db\", query = \"SELECT uid, gid, home FROM users WHERE name = '%{user}'\" }",
            "static = { uid = \"8\", gid = \"8\" }",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nuserdb {\n  driver = static\n  args = home=/srv/my mail/%n allow_all_users=yes\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-userdb\" }"],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nuserdb {\n  driver = static\n  args = uid=8 gid=8 home=/srv/%n quota_rule=*:storage=5G allow_all_users=yes\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-userdb\" }"],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb sql {\n  sql_driver = sqlite\n  sqlite_path = /x.db\n  query = SELECT uid FROM u WHERE n = '%{user}'\n  fields {\n    home = /srv/%{user}\n  }\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-userdb\" }"],
        said: &[],
    },
    Row {
        conf: "# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf\nmail_location = maildir:~/Maildir # the mail\nnamespace inbox {\n  inbox = yes\n  separator = \\\n  mailbox #lists {\n    auto = create\n  }\n}\nssl_key = # hidden, use -P to show it\n",
        lines: &[
            "mail_path = \"~/Maildir\"",
            "separator = '\\'",
            "[namespace.inbox.mailbox.\"#lists\"]",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nremote 10.0.0.0/8 {\n  protocol lmtp {\n    mail_location = maildir:/other/%u\n  }\n}\nuserdb {\n  driver = passwd\n  result_success = continue\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-userdb\" }"],
        said: &["remote 10.0.0.0/8 (dovecot.conf:2): what it says of mail holds for some clients"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = acl\nplugin {\n  acl = vfile\n  acl_shared_dict = file:/var/lib/shared.db:lock=fcntl\n}\n",
        lines: &["path = \"/var/lib/shared.db\""],
        said: &[
            "acl_shared_dict (dovecot.conf:5): \"lock=fcntl\": Postroom locks a map by a file beside it",
        ],
    },
    // Rights.
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = acl\nplugin {\n  acl = vfile:/etc/dovecot/global-acls:cache_secs=300\n  acl_shared_dict = file:/var/lib/dovecot/shared-mailboxes.db\n  acl_ignore_namespace = private/*\n}\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace p {\n  separator = /\n  prefix = private/\n  location = maildir:~/other\n}\n",
        lines: &[
            "driver = \"vfile\"",
            "delivery_right = \"post\"",
            "dovecot = \"2.3\"",
            "global_path = \"/etc/dovecot/global-acls\"",
            "acl.ignore = true",
            "[acl_sharing_map.file]",
            "path = \"/var/lib/dovecot/shared-mailboxes.db\"",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nprotocol imap {\n  mail_plugins = $mail_plugins acl\n}\nplugin {\n  acl = vfile\n}\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace p {\n  type = public\n  separator = /\n  prefix = Public/\n  location = maildir:/p\n}\n",
        lines: &["driver = \"none\""],
        said: &["mail_plugins of the delivery has no acl"],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmail_plugins {\n  acl = yes\n}\nacl_driver = vfile\nnamespace p {\n  type = public\n  separator = /\n  prefix = Public/\n  mail_path = /p\n  acl user=bob {\n    rights = lookup read post\n  }\n  mailbox Lists/* {\n    acl -anyone {\n      rights = lp\n    }\n  }\n}\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\n",
        lines: &[
            "[namespace.p.acl.entries]",
            "\"user=bob\" = \"lrp\"",
            "[namespace.p.mailbox.\"Lists/*\".acl.entries]",
            "anyone = \"-lp\"",
        ],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmail_plugins = acl\nacl_driver = vfile\nacl_ignore = no\nnamespace inbox {\n  inbox = yes\n  acl_ignore = yes\n  mailbox Trash {\n    acl_ignore = no\n  }\n}\n",
        lines: &["ignore = false", "acl.ignore = true", "acl.ignore = false"],
        said: &[],
    },
    // Said twice: the last counts, and the result is TOML.
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_path = ~/other\nnamespace inbox {\n  inbox = yes\n  location = maildir:~/a:INDEX=~/i\n  mail_index_path = ~/j\n}\n",
        lines: &["mail_path = \"~/other\"", "mail_index_path = \"~/j\""],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_path = ~/Maildir\nmail_driver = maildir\nnamespace inbox {\n  inbox = yes\n  mailbox A {\n  }\n  mailbox B {\n    name = A\n  }\n}\n",
        lines: &[],
        said: &["[namespace.inbox.mailbox.A] would be there twice"],
    },
    // Quota.
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:User quota\n  quota_rule = *:storage=1G:messages=1000\n  quota_rule2 = Trash:storage=+100M\n  quota_rule3 = Spam:ignore\n  quota_grace = 10%%\n}\nnamespace inbox {\n  inbox = yes\n  mailbox Trash {\n    auto = create\n  }\n  mailbox Spam {\n  }\n}\n",
        lines: &[
            "[quota]",
            "driver = \"maildir\"",
            "storage_size = \"1G\"",
            "message_count = 1000",
            "storage_grace = \"10%\"",
            "quota_storage_extra = \"100M\"",
            "quota_ignore = true",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:User quota\n  quota_rule = *:storage=1G\n  quota_rule2 = INBOX.Trash:storage=+10%%\n}\nnamespace inbox {\n  inbox = yes\n  prefix = INBOX.\n}\n",
        lines: &[
            "[namespace.inbox.mailbox.Trash]",
            "quota_storage_extra = 107374182",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:User quota\n  quota_rule = *:storage=100000\n}\n",
        lines: &["storage_size = \"100000k\""],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = count:User quota\n  quota_rule = *:storage=1G\n}\n",
        lines: &[],
        said: &["quota count: Dovecot keeps the account in files of its own"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:User quota\n  quota_rule = *:storage=10%%\n  quota_rule2 = Junk:bytes=5\n}\nnamespace inbox {\n  inbox = yes\n  mailbox Junk {\n  }\n}\n",
        lines: &[],
        said: &[
            "storage_size cannot be this string",
            "a limit of one mailbox that Postroom does not know",
        ],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:Pub:ns=Public/\n  quota_rule = *:storage=1G\n}\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\nnamespace p {\n  type = public\n  prefix = Public/\n  separator = /\n  location = maildir:/p\n}\n",
        lines: &["[namespace.p.quota]", "storage_size = \"1G\""],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:User quota:noenforcing\n  quota_rule = *:storage=1G\n}\n",
        lines: &["[quota]", "driver = \"maildir\""],
        said: &["noenforcing: mail is counted"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir:LAYOUT=FS:DIRNAME=Mails.D\nmail_plugins = quota\nplugin {\n  quota = maildir:User quota:noenforcing:hidden\n  quota_rule = *:storage=1G\n}\nauth_default_realm = example.org\nnamespace inbox {\n  inbox = yes\n  mailbox a\"b'c\\d {\n    auto = create\n  }\n}\n",
        lines: &[
            "mailbox_list_layout = \"fs\"",
            "mailbox_directory_name = \"Mails.D\"",
            "[namespace.inbox.mailbox.\"a\\\"b'c\\\\d\"]",
        ],
        said: &["noenforcing: mail is counted"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:User quota\n  quota_rule = *:storage=1G\n}\n",
        lines: &["storage_grace = \"10%\""],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmail_plugins = acl\nacl_driver = vfile\nacl user=bob {\n  rights = lrpi\n}\nacl -user=bob {\n  rights = p\n}\n",
        lines: &["\"user=bob\" = \"lrpi\""],
        said: &["a second entry for \"user=bob\""],
    },
    // Lists: what a filter says is instead of what is above it, its words are beside.
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmail_plugins {\n  quota = yes\n}\nquota a {\n  driver = maildir\n  storage_size = 1k\n}\nprotocol lmtp {\n  mail_plugins = acl\n}\nacl_driver = vfile\nnamespace p {\n  type = public\n  prefix = P/\n  separator = /\n  mail_path = /p\n}\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\n",
        lines: &["driver = \"vfile\""],
        said: &[
            "It has: [acl] driver = \"none\"; [quota] driver = \"maildir\"; [quota] storage_size = \"1k\"",
        ],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmail_access_groups {\n  a = yes\n}\nmail_access_groups = b c\nmail_access_groups/d = yes\nprotocol lmtp {\n  mail_access_groups {\n    b = no\n    e = yes\n  }\n}\n",
        lines: &["mail_access_groups = [\"c\", \"d\", \"e\"]"],
        said: &[],
    },
    // What 2.3 counts, by the full name, and until a number is missing.
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:User quota:ns=\n  quota_rule = *:storage=1G\n  quota_rule2 = Trash:ignore\n  quota_rule4 = *:messages=5\n}\nnamespace inbox {\n  inbox = yes\n  prefix = INBOX/\n  separator = /\n  mailbox Trash {\n    auto = create\n  }\n}\n",
        lines: &["storage_size = \"1G\"", "[namespace.inbox.mailbox.Trash]"],
        said: &["quota_rule2 (dovecot.conf:6): no section mailbox has this name"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = quota\nplugin {\n  quota = maildir:x\n  quota_rule = *:storage=1G\n  quota_rule2 = Trash:storage=+100M:messages=+5\n}\nnamespace inbox {\n  inbox = yes\n  mailbox Trash {\n  }\n}\n",
        lines: &["quota_storage_extra = \"100M\""],
        said: &["\"messages=+5\" is a limit of one mailbox"],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmail_plugins = quota\nquota a {\n  driver = maildir\n  storage_size = 1G\n  enforce = no\n}\nnamespace inbox {\n  inbox = yes\n  mailbox Trash {\n    quota_storage_percentage = 110\n  }\n}\n",
        lines: &["driver = \"maildir\""],
        said: &[
            "not enforced: mail is counted",
            ") of one mailbox: a limit that Postroom does not know",
        ],
    },
    // The result has to be right, and its directories have to be Dovecot's.
    Row {
        conf: "mail_location = maildir:~/Maildir:DIRNAME=D:CONTROL=/c/%u\nnamespace inbox {\n  inbox = yes\n}\n",
        lines: &["mailbox_directory_name = \"D\""],
        said: &["DIRNAME is no part of the paths of CONTROL and INDEX"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir:FULLDIRNAME=D:LAYOUT=imapdir\nuserdb {\n  driver = prefetch\n}\n",
        lines: &[
            "mailbox_directory_name = \"D\"",
            "mailbox_list_layout = \"imapdir\"",
        ],
        said: &["is no value of mailbox_list_layout", "there is no userdb"],
    },
    // Lengths of paths in a variable; names in the case that they have.
    Row {
        conf: "mail_location = maildir:/srv/%{env:HOME}/Maildir:INDEX=/i/%{env:HOME}\nauth_username_format =\n",
        lines: &[
            "mail_path = \"/srv/%{env:HOME}/Maildir\"",
            "mail_index_path = \"/i/%{env:HOME}\"",
            "auth_username_format = \"%{user}\"",
        ],
        said: &[],
    },
    // Names without a domain.
    Row {
        conf: "mail_location = maildir:~/Maildir\nauth_default_realm = Example.org\n",
        lines: &[
            "auth_username_format = \"%{user | username | lower}@%{user | domain | lower | default('example.org')}\"",
        ],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nauth_default_domain = Example.org\nauth_username_format = %{user}\n",
        lines: &[
            "auth_username_format = \"%{user | username}@%{user | domain | default('Example.org')}\"",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nauth_default_realm = example.org\nauth_username_format = %Ln\nauth_username_chars = abc\n",
        lines: &[
            "auth_username_format = \"%Ln\"",
            "auth_username_chars = \"abc\"",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\n",
        lines: &[
            "auth_username_chars = \"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234567890.-_@\"",
        ],
        said: &[],
    },
    // Two percent signs: no owner, but a percent sign.
    Row {
        conf: "mail_location = maildir:~/Maildir\nuserdb {\n  driver = static\n  args = uid=8 gid=8 home=/srv/%%n/%n allow_all_users=yes\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-userdb\" }"],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nauth_default_realm = example.org\nauth_username_format = %d/%n\n",
        lines: &[],
        said: &["a name without a domain stays so here"],
    },
    // Where Dovecot's answers come from, and where its paths begin.
    Row {
        conf: "mail_location = maildir:~/Maildir\nauth_socket_path = /run/dovecot/auth-master\nuserdb {\n  driver = dict\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-master\" }"],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_chroot = /data\n",
        lines: &[],
        said: &["dovecot.conf:2: mail_chroot: here the paths are those of the machine"],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = listescape\nplugin {\n  listescape_char = ^\n}\n",
        lines: &["mailbox_list_storage_escape_char = \"^\""],
        said: &[],
    },
    // Dovecot's LMTP server takes mail without TLS all the same.
    Row {
        conf: "mail_location = maildir:~/Maildir\nssl = required\nssl_cert = </c\nssl_key = </k\nservice lmtp {\n  inet_listener lmtp {\n    port = 24\n  }\n}\n",
        lines: &["ssl = \"yes\""],
        said: &[],
    },
    // What a userdb says of where mail lies.
    Row {
        conf: "mail_location = maildir:~/Maildir\nuserdb {\n  driver = static\n  args = uid=5000 gid=5000 home=/srv/%n mail=mdbox:/boxes/%d/%n:INDEX=/idx/%u allow_all_users=yes\n}\n",
        lines: &["mail_roots = [\"/boxes\", \"/idx\", \"/srv\"]"],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:/mail/%u:INDEX=/idx/%u\nuserdb {\n  driver = ldap\n  args = missing.ext\n  default_fields = mail=sdbox:/boxes/%n home=/homes/%n\n}\n",
        lines: &[
            "mail_roots = [\"/boxes\", \"/homes\", \"/idx\", \"/mail\"]",
            "dovecot = { socket = \"/run/dovecot/auth-userdb\" }",
        ],
        said: &["userdb ldap (dovecot.conf:2): missing.ext cannot be read here"],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb sql {\n  sql_driver = sqlite\n  sqlite_path = /x.db\n  query = SELECT uid, gid, '/homes/' || n AS home, concat('/boxes/', n, '/Maildir') AS mail_path FROM u WHERE n = '%{user}'\n}\n",
        lines: &["mail_roots = [\"/boxes\", \"/homes\"]"],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb sql {\n  sql_driver = sqlite\n  sqlite_path = /x.db\n  query = SELECT u.uid, u.mail_path, u.home FROM u WHERE n = '%{user}'\n}\n",
        lines: &[],
        said: &["userdb sql (dovecot.conf:4): mail_path of each user is not written here"],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb ldap {\n  fields {\n    home = %{ldap:homeDirectory}\n    mail_path = /boxes/%{ldap:uid}/Maildir\n  }\n}\n",
        lines: &["mail_roots = [\"/boxes\"]"],
        said: &["mail_roots: add the directories that the homes lie in"],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb static {\n  allow_all_users = yes\n  fields {\n    mail_driver = mdbox\n    mail_path = ~/mdbox\n    uid = 8\n    gid = 8\n  }\n}\n",
        lines: &[
            "static = { mail_driver = \"mdbox\", mail_path = \"~/mdbox\", uid = \"8\", gid = \"8\" }",
        ],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb static {\n  allow_all_users = yes\n  fields {\n    mail = mdbox:/boxes/%{user}\n    uid = 8\n  }\n}\nuserdb sql {\n  sql_driver = sqlite\n  sqlite_path = /x.db\n  query = SELECT uid, 'mdbox:/boxes' AS mail FROM u WHERE n = '%{user}'\n}\n",
        lines: &["static = { uid = \"8\" }"],
        said: &[
            "userdb sql (dovecot.conf:11): it answers mail, which Dovecot 2.4 does not look at",
        ],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nuserdb {\n  driver = static\n  args = uid=8 mail_path=/boxes/%n mail_location=maildir:/m/%n allow_all_users=yes\n}\n",
        lines: &[
            "static = { uid = \"8\", mail_location = \"maildir:/m/%n\" }",
            "mail_roots = [\"/m\"]",
        ],
        said: &[],
    },
    // The path of a passwd-file is all that stands behind its one option.
    Row {
        conf: "mail_location = maildir:~/Maildir\nuserdb {\n  driver = passwd-file\n  args = username_format=%Lu /etc/my users\n}\nuserdb {\n  driver = passwd-file\n  args = /etc/my other users\n}\n",
        lines: &[
            "passwd-file = { path = \"/etc/my users\" }",
            "passwd-file = { path = \"/etc/my other users\" }",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nuserdb {\n  driver = passwd-file\n  args = scheme=CRYPT username_format=%u /etc/users\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-userdb\" }"],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nauth_username_format = %u\nuserdb {\n  driver = passwd-file\n  args = username_format=%Lu /etc/users\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-userdb\" }"],
        said: &[],
    },
    // Outside of any userdb, for all of them.
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb_fields {\n  uid = 8\n  gid = 8\n  home = /srv/%{user}\n}\nuserdb_static_allow_all_users = yes\nuserdb static {\n  fields {\n    gid = 9\n  }\n}\n",
        lines: &["static = { uid = \"8\", home = \"/srv/%{user}\", gid = \"9\" }"],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nuserdb_fields/uid = 8\npasswd_file_path = /etc/my users\nuserdb passwd-file {\n}\n",
        lines: &["dovecot = { socket = \"/run/dovecot/auth-userdb\" }"],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\npasswd_file_path = /etc/my users\nuserdb passwd-file {\n}\n",
        lines: &["passwd-file = { path = \"/etc/my users\" }"],
        said: &[],
    },
    // TLS.
    Row {
        conf: "mail_location = maildir:~/Maildir\nssl_min_protocol = TLSv1.3\nssl_cert = </c\nssl_key = </k\nservice lmtp {\n  inet_listener lmtp {\n    port = 24\n  }\n}\n",
        lines: &["ssl_min_protocol = \"TLSv1.3\""],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nssl_min_protocol = TLSv1.1\nssl_server_cert_file = /c\nssl_server_key_file = /k\nservice lmtp {\n  inet_listener lmtp {\n    port = 24\n  }\n}\n",
        lines: &[],
        said: &["ssl_min_protocol TLSv1.1 (dovecot.conf:4): Postroom speaks TLSv1.2 and TLSv1.3"],
    },
    // How many deliveries there are for one user at once.
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\n",
        lines: &["max_per_user = 10"],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.0\nmail_driver = maildir\nmail_path = ~/Maildir\n",
        lines: &["max_per_user = 32"],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\n",
        lines: &["max_per_user = 32"],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nlmtp_user_concurrency_limit = 5\n",
        lines: &["max_per_user = 5"],
        said: &[],
    },
    // A flag of a plugin: it is there.
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = acl\nplugin {\n  acl = vfile\n  acl_globals_only =\n  acl_defaults_from_inbox = false\n}\n",
        lines: &["globals_only = true", "defaults_from_inbox = false"],
        said: &[],
    },
    // Namespaces of another format: what holds for all of them does for these, and what a format says goes before.
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmbox {\n  mail_path = ~/mboxes\n  mail_inbox_path = ~/theinbox\n}\nnamespace inbox {\n  inbox = yes\n  separator = /\n  mail_driver = mbox\n}\n",
        lines: &[
            "mail_path = \"~/mboxes\"",
            "mail_inbox_path = \"~/theinbox\"",
        ],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmbox {\n  mail_inbox_path = /var/mail/%{user}\n}\nmail_driver = mbox\nmail_path = ~/mail\nnamespace md {\n  inbox = yes\n  separator = /\n  mail_driver = maildir\n  mail_path = ~/md\n}\n",
        lines: &["mail_path = \"~/md\""],
        said: &["mbox { mail_inbox_path }"],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmail_inbox_path = ~/in\nmailbox_subscriptions_filename = subs\nnamespace inbox {\n  inbox = yes\n  separator = /\n  mail_driver = mbox\n  mail_path = ~/mail\n}\n",
        lines: &[
            "mail_inbox_path = \"~/in\"",
            "mailbox_subscriptions_filename = \"subs\"",
        ],
        said: &[],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir:LAYOUT=fs:DIRNAME=D\n",
        lines: &["mail_inbox_path = \"INBOX/D\""],
        said: &[],
    },
    Row {
        conf: "dovecot_config_version = 2.4.1\nmail_driver = maildir\nmail_path = ~/Maildir\nmailbox_list_layout = fs\nmailbox_directory_name = D\nmail_control_path = ~/c\nnamespace inbox {\n  inbox = yes\n  mail_inbox_path =\n}\n",
        lines: &[],
        said: &[
            "dovecot.conf:7: mailbox_directory_name is no part of mail_control_path",
            "dovecot.conf:9: INBOX is beside the other mailboxes",
        ],
    },
    Row {
        conf: "mail_location = maildir:\n",
        lines: &[],
        said: &["dovecot.conf:1: no path"],
    },
    // Sockets.
    Row {
        conf: "mail_location = maildir:~/Maildir\nservice lmtp {\n  unix_listener /var/spool/postfix/private/dovecot-lmtp {\n    mode = 0600\n    user = postfix\n    group = postfix\n  }\n  unix_listener lmtp {\n    mode = 0\n  }\n  inet_listener lmtp {\n    address = 127.0.0.1 ::1\n    port = 24\n  }\n}\n",
        lines: &[
            "{ unix = \"/var/spool/postfix/private/dovecot-lmtp\", mode = \"0600\", user = \"postfix\", group = \"postfix\" },",
            "{ tcp = \"127.0.0.1:24\" },",
            "{ tcp = \"[::1]:24\" },",
        ],
        said: &[],
    },
    // Mailboxes and their names.
    Row {
        conf: "mail_location = maildir:~/Maildir\nmail_plugins = listescape\nnamespace inbox {\n  inbox = yes\n  mailbox \"Sent Messages\" {\n    special_use = \\Sent\n    auto = subscribe\n    autoexpunge = 30d\n  }\n}\n",
        lines: &[
            "mailbox_list_storage_escape_char = '\\'",
            "[namespace.inbox.mailbox.\"Sent Messages\"]",
            "special_use = '\\Sent'",
            "auto = \"subscribe\"",
        ],
        said: &[],
    },
    // What changes a message's fate, and is not ours.
    Row {
        conf: "mail_location = maildir:~/Maildir\nprotocol lmtp {\n  mail_plugins = $mail_plugins sieve mail_crypt unheard_of\n}\n",
        lines: &[],
        said: &[
            "mail_plugins has sieve: the scripts of the users are not run",
            "mail_plugins has mail_crypt: Dovecot stores messages encrypted",
            "mail_plugins has unheard_of: Postroom does not know this plugin",
        ],
    },
    Row {
        conf: "mail_location = maildir:~/Maildir\nunheard_of = 1\nnamespace inbox {\n  inbox = perhaps\n  unheard = 2\n}\nsection of {\n  x = y\n}\n",
        lines: &[],
        said: &[
            "unheard_of (dovecot.conf:2): not known to Postroom",
            "inbox is yes or no, not \"perhaps\"",
            "namespace inbox / unheard (dovecot.conf:5): not known to Postroom",
            "section of (dovecot.conf:7): not known to Postroom",
        ],
    },
];
