//! Why a setting of Dovecot is nothing to a delivery.

use super::Import;
use super::block::{Block, Place};

/// Sections, with all that is in them.
const SECTIONS: [(&str, &str); 34] = [
    ("service", "processes and sockets of Dovecot"),
    ("inet_listener", "sockets of Dovecot"),
    ("passdb", "passwords, which no delivery needs"),
    ("metric", "figures of Dovecot; Postroom has [status]"),
    ("event_exporter", "events of Dovecot; Postroom has [notify]"),
    ("fs", "files of Dovecot elsewhere"),
    ("oauth2", "logins"),
    ("ldap", "what Dovecot asks"),
    ("mysql", "what Dovecot asks"),
    ("pgsql", "what Dovecot asks"),
    ("cassandra", "what Dovecot asks"),
    ("dict", "what Dovecot asks"),
    ("dict_server", "what Dovecot asks"),
    ("dict_map", "what Dovecot asks"),
    (
        "quota_warning",
        "a program of Dovecot's ([quota] warning_message_file sends a message)",
    ),
    ("execute", "a program of Dovecot's"),
    ("sieve_script", "Sieve, which Postroom does not have"),
    ("sieve_storage", "Sieve, which Postroom does not have"),
    ("fts", "full text search"),
    ("fts_decoder", "full text search"),
    ("language", "full text search"),
    ("language_filters", "full text search"),
    (
        "crypt_private_key",
        "encryption, which Postroom does not have",
    ),
    (
        "crypt_user_key_private_key",
        "encryption, which Postroom does not have",
    ),
    ("mail_attribute", "annotations of IMAP"),
    ("imap_metadata", "annotations of IMAP"),
    (
        "push_notification",
        "events of Dovecot; Postroom has [notify]",
    ),
    ("remote", "settings for some clients"),
    ("local", "settings for some addresses"),
    ("local_name", "settings for some names"),
    ("submission_client_workarounds", "clients that send mail"),
    ("mail_log_events", "log lines of Dovecot"),
    ("mail_log_fields", "log lines of Dovecot"),
    ("login_log_format_elements", "logins"),
];

/// Settings by the beginning of their names, in any section. The first that fits counts.
const SETTINGS: [(&str, &str); 104] = [
    (
        "dovecot_config_version",
        "what language the file is written in",
    ),
    ("dovecot_storage_version", "what Dovecot may write"),
    ("!", "what Dovecot reads"),
    ("imapc_", "mailboxes on another IMAP server"),
    ("imapsieve_", "Sieve, which Postroom does not have"),
    ("imap_", "IMAP clients"),
    ("pop3c_", "mailboxes on another POP3 server"),
    ("pop3_", "POP3 clients"),
    ("submission_", "clients that send mail"),
    ("managesieve_", "Sieve, which Postroom does not have"),
    ("sieve", "Sieve, which Postroom does not have"),
    (
        "recipient_delimiter_",
        "Sieve, which Postroom does not have",
    ),
    ("login_", "logins"),
    ("auth_", "logins"),
    ("disable_plaintext_auth", "logins"),
    ("passdb_", "logins"),
    ("oauth2_", "logins"),
    ("master_user_separator", "logins"),
    ("mail_max_userip_connections", "logins"),
    ("verbose_ssl", "TLS of Dovecot"),
    (
        "ssl",
        "TLS of Dovecot; a listener over TCP brings the certificate along",
    ),
    ("haproxy_", "connections to Dovecot"),
    ("listen", "sockets of Dovecot"),
    ("protocols", "servers of Dovecot"),
    ("base_dir", "files of Dovecot"),
    ("state_dir", "files of Dovecot"),
    ("libexec_dir", "files of Dovecot"),
    ("instance_name", "files of Dovecot"),
    ("temp_dir", "files of Dovecot"),
    (
        "mail_temp_dir",
        "files of Dovecot; Postroom has delivery.spool_dir",
    ),
    ("default_", "processes of Dovecot"),
    ("service_", "processes of Dovecot"),
    ("shutdown_clients", "processes of Dovecot"),
    ("process_", "processes of Dovecot"),
    ("verbose_proctitle", "processes of Dovecot"),
    ("import_environment", "processes of Dovecot"),
    ("config_cache_size", "processes of Dovecot"),
    ("version_ignore", "processes of Dovecot"),
    ("valid_chroot_dirs", "Postroom does not chroot"),
    ("mail_plugin_dir", "processes of Dovecot"),
    ("login", "logins"),
    ("doveadm_", "the admin command of Dovecot"),
    ("dsync_", "replication"),
    ("replicat", "replication"),
    ("director_", "replication"),
    ("log_", "log lines of Dovecot; see postroom-lmtpd(8)"),
    (
        "info_log_path",
        "log lines of Dovecot; see postroom-lmtpd(8)",
    ),
    (
        "debug_log_path",
        "log lines of Dovecot; see postroom-lmtpd(8)",
    ),
    (
        "syslog_facility",
        "log lines of Dovecot; see postroom-lmtpd(8)",
    ),
    ("mail_log_", "log lines of Dovecot"),
    ("mail_debug", "log lines of Dovecot"),
    ("deliver_log_format", "log lines of Dovecot"),
    ("old_stats_", "figures of Dovecot"),
    ("stats_", "figures of Dovecot"),
    ("metric_", "figures of Dovecot"),
    (
        "event_exporter_",
        "events of Dovecot; Postroom has [notify]",
    ),
    ("rawlog_dir", "log lines of Dovecot"),
    ("lmtp_rawlog_dir", "log lines of Dovecot"),
    ("lmtp_proxy", "see [placement]"),
    (
        "mail_attachment_",
        "attachments apart from their mail, which only dbox has",
    ),
    (
        "mail_ext_attachment_",
        "attachments apart from their mail, which only dbox has",
    ),
    ("mdbox_", "mdbox, which Dovecot writes itself"),
    ("sdbox_", "sdbox, which Dovecot writes itself"),
    ("dbox_", "dbox, which Dovecot writes itself"),
    ("mail_alt_", "dbox, which Dovecot writes itself"),
    ("mail_cache_", "Dovecot's cache files"),
    ("mail_always_cache_fields", "Dovecot's cache files"),
    ("mail_never_cache_fields", "Dovecot's cache files"),
    ("mail_prefetch_count", "how Dovecot reads"),
    ("mail_sort_", "how Dovecot reads"),
    ("mail_vsize_", "how Dovecot reads"),
    ("mail_index_", "how Dovecot keeps its indexes"),
    (
        "mailbox_list_index",
        "how Dovecot keeps its list of mailboxes",
    ),
    ("mailbox_list_iter", "how Dovecot lists mailboxes"),
    ("mailbox_list_drop_noselect", "how Dovecot lists mailboxes"),
    (
        "mailbox_list_visible_escape_char",
        "how Dovecot shows names",
    ),
    (
        "mailbox_list_lost_mailbox_prefix",
        "how Dovecot shows names",
    ),
    ("mailbox_idle_check_interval", "IMAP clients"),
    (
        "mailbox_directory_name_legacy",
        "whether mailbox_directory_name is a part of other paths: said where it matters",
    ),
    (
        "mailbox_root_directory_name",
        "dbox, which Dovecot writes itself",
    ),
    ("mail_volatile_path", "where Dovecot locks its lists"),
    ("mail_nfs_", "NFS: Postroom syncs what it writes"),
    ("mmap_disable", "how Dovecot reads"),
    ("dotlock_use_excl", "Postroom makes lock files exclusively"),
    ("mail_max_lock_timeout", "Postroom has its own limits"),
    ("mail_max_keyword_length", "names of keywords"),
    ("mail_save_crlf", "Postroom stores LF; Dovecot reads both"),
    ("mail_server_", "annotations of IMAP"),
    ("mail_attribute_dict", "annotations of IMAP"),
    ("mail_utf8_extensions", "IMAP clients"),
    ("mail_temp_scan_interval", "how Dovecot tidies up"),
    ("maildir_", "how Dovecot reads Maildirs"),
    ("mbox_", "how Dovecot reads mboxes"),
    ("lazy_expunge", "what becomes of expunged mail"),
    ("trash", "what becomes of a full mailbox"),
    ("expire", "what becomes of old mail"),
    ("autoexpunge", "what becomes of old mail"),
    ("comment", "annotations of IMAP"),
    ("fts", "full text search"),
    ("zlib_", "compression; Dovecot reads uncompressed mail too"),
    (
        "mail_compress_",
        "compression; Dovecot reads uncompressed mail too",
    ),
    ("last_login", "logins"),
    ("http_client_", "what Dovecot asks"),
    ("postmaster_address", "bounces, which the MTA writes"),
];

/// More of them.
const MORE: [(&str, &str); 26] = [
    ("sendmail_path", "bounces, which the MTA writes"),
    ("rejection_", "bounces, which the MTA writes"),
    ("lda_original_recipient_header", "the LDA has -a"),
    ("quota_", "how Dovecot shows and keeps its account"),
    ("quota2_", "how Dovecot shows and keeps its account"),
    ("quota_exceeded_message", "Postroom has its own answers"),
    ("mail_crypt_", "encryption, which Postroom does not have"),
    ("crypt_", "encryption, which Postroom does not have"),
    ("notify", "events of Dovecot; Postroom has [notify]"),
    (
        "push_notification",
        "events of Dovecot; Postroom has [notify]",
    ),
    ("welcome_", "what new users see"),
    ("antispam_", "what IMAP clients move"),
    ("spamreport_", "what IMAP clients move"),
    ("virtual_", "virtual mailboxes, which get no mail"),
    ("mail_lua_", "scripts of Dovecot"),
    ("lua_", "scripts of Dovecot"),
    ("ldap_", "what Dovecot asks"),
    ("mysql_", "what Dovecot asks"),
    ("pgsql_", "what Dovecot asks"),
    ("sql_", "what Dovecot asks"),
    ("sqlite_", "what Dovecot asks"),
    ("dict_", "what Dovecot asks"),
    ("redis_", "what Dovecot asks"),
    ("userdb_", "what Dovecot asks"),
    ("language_", "full text search"),
    ("mail_plugins", "see each plugin"),
];

/// What a delivery does differently where one of these is set.
const MATTERS: [(&str, &str); 4] = [
    (
        "auth_username_translation",
        "letters of names stay as they are here",
    ),
    (
        "mail_full_filesystem_access",
        "a name of a mailbox is never a path here",
    ),
    (
        "mail_shared_explicit_inbox",
        "shared/bob is the INBOX of bob here",
    ),
    (
        "mailbox_list_validate_fs_names",
        "names that a file system could misread are not taken here",
    ),
];

impl Import<'_> {
    /// Says of all that nothing has come from why that is so.
    pub fn explain_rest(&mut self, root: &Block) {
        self.explain(root, "");
        let named = self.out.everything();
        self.name(root, "", &named);
    }

    /// What was looked at and has come to nothing is named all the same.
    fn name(&mut self, block: &Block, above: &str, named: &str) {
        for entry in &block.entries {
            if !is_named(&entry.place, named) {
                let what = format!("{above}{} ({})", entry.key, entry.place);
                self.out
                    .leave_out(what, "counted for what stands above, or is empty");
            }
        }
        for inner in &block.blocks {
            let is_whole = is_named(&inner.place, named);
            if !is_whole || matches!(inner.kind.as_str(), "namespace" | "mailbox" | "plugin") {
                let above = format!("{above}{} {} / ", inner.kind, inner.name);
                self.name(inner, &above, named);
            }
        }
    }

    fn explain(&mut self, block: &Block, above: &str) {
        for entry in &block.entries {
            let what = format!("{above}{} ({})", entry.key, entry.place);
            if entry.key == "mail_plugins" {
                entry.is_explained.set(true);
                self.out
                    .leave_out(what, "each plugin has a line of its own");
                continue;
            }
            if entry.is_overridden.get() {
                self.out.leave_out(what, "said again, which counts");
                continue;
            }
            if entry.is_explained.replace(true) {
                continue;
            }
            let mattering = MATTERS.iter().find(|(key, _)| *key == entry.key);
            let usual = matches!(
                (entry.key.as_str(), entry.value.as_str()),
                ("mailbox_list_validate_fs_names", "yes") | (_, "no" | "")
            );
            if let Some((_, why)) = mattering.filter(|_| !usual || entry.key.ends_with("names")) {
                self.out.warn_above(format!("{what}: {why}"));
                self.out.leave_out(what, why);
                continue;
            }
            if mattering.is_some() {
                self.out.leave_out(what, "as it is here");
                continue;
            }
            let mut known = SETTINGS.iter().chain(&MORE);
            match known.find(|(start, _)| entry.key.starts_with(start)) {
                Some((_, why)) => self.out.leave_out(what, why),
                None => {
                    let why = "not known to Postroom, and nothing is done with it";
                    self.out.warn_above(format!("{what}: {why}"));
                    self.out.leave_out(what, why);
                }
            }
        }
        for inner in &block.blocks {
            let name = match inner.name.is_empty() {
                true => inner.kind.clone(),
                false => format!("{} {}", inner.kind, inner.name),
            };
            if inner.kind == "protocol" && inner.name == "lda" {
                for entry in inner.entries.iter().filter(|it| it.is_explained.get()) {
                    let what = format!("{name} / {} ({})", entry.key, entry.place);
                    self.out
                        .leave_out(what, "what dovecot-lda has for itself, see above");
                }
            }
            if is_explained(inner) && !names_plugins(inner) {
                continue;
            }
            let of_protocol =
                inner.kind == "protocol" && !matches!(inner.name.as_str(), "lmtp" | "lda");
            let section = SECTIONS.iter().find(|(kind, _)| *kind == inner.kind);
            let why = match (of_protocol, section) {
                (true, _) => Some("what other protocols do"),
                (false, Some((_, why))) => Some(*why),
                (false, None) => None,
            };
            let known = [
                "protocol",
                "plugin",
                "namespace",
                "mailbox",
                "userdb",
                "quota",
                "acl",
            ];
            match why {
                Some(why) => {
                    if matches!(inner.kind.as_str(), "remote" | "local") && is_of_delivery(inner) {
                        self.out.warn_above(format!(
                            "{above}{name} ({}): what it says of mail holds for some clients in Dovecot, and not here",
                            inner.place
                        ));
                    }
                    inner.explain();
                    self.out
                        .leave_out(format!("{above}{name} ({})", inner.place), why);
                }
                None if known.contains(&inner.kind.as_str()) => {
                    self.explain(inner, &format!("{above}{name} / "));
                }
                None => {
                    let mut prefixes = SETTINGS.iter().chain(&MORE);
                    let found = prefixes.find(|(start, _)| {
                        start.len() > 2
                            && inner.kind.starts_with(start)
                            && !start.starts_with("mail")
                    });
                    inner.explain();
                    let what = format!("{above}{name} ({})", inner.place);
                    match found {
                        Some((_, why)) => self.out.leave_out(what, why),
                        None => {
                            let why = "not known to Postroom, and nothing is done with it";
                            self.out.warn_above(format!("{what}: {why}"));
                            self.out.leave_out(what, why);
                        }
                    }
                }
            }
        }
    }
}

fn is_explained(block: &Block) -> bool {
    block.entries.iter().all(|it| it.is_explained.get())
        && block.blocks.iter().all(is_explained)
        && !(block.entries.is_empty() && block.blocks.is_empty())
}

fn names_plugins(block: &Block) -> bool {
    block.look("mail_plugins").is_some()
}

/// Whether a text has this place in it.
fn is_named(place: &Place, text: &str) -> bool {
    let place = place.to_string();
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    let is_whole = |at: usize| {
        !text[at + place.len()..].starts_with(|c: char| c.is_ascii_digit())
            && !text[..at].ends_with(is_name)
    };
    text.match_indices(&place).any(|(at, _)| is_whole(at))
}

/// Whether a delivery depends on something in a section.
fn is_of_delivery(block: &Block) -> bool {
    let starts = [
        "mail_",
        "mailbox_",
        "lmtp_",
        "lda_",
        "quota",
        "acl",
        "auth_username_format",
    ];
    let is_setting = |key: &str| {
        starts.iter().any(|it| key.starts_with(it)) && key != "mail_max_userip_connections"
    };
    let is_section =
        |kind: &str| matches!(kind, "namespace" | "plugin" | "userdb") || is_setting(kind);
    block.entries.iter().any(|it| is_setting(&it.key))
        || block
            .blocks
            .iter()
            .any(|it| is_section(&it.kind) || is_of_delivery(it))
}
