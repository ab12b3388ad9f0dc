//! A Dovecot configuration, 2.3 or 2.4, as ours: what `postroom config import` prints.
//!
//! Each setting of the file becomes a line of ours with its origin, or stands in a comment that says why none. What is not
//! understood is said, and never guessed.

mod block;
mod delivery;
mod document;
mod group;
mod left_out;
mod line;
mod listeners;
mod places;
mod quota;
mod rights;
mod source;
mod user_places;
mod users;
mod version;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use block::Block;
use document::Document;
pub use source::SyntaxError;
use user_places::Named;
use version::Dialect;

use crate::config::Config;

/// What has come out.
#[derive(Debug)]
pub struct Imported {
    /// Our configuration, with comments.
    pub toml: String,
    /// What has to be mended by hand before it says what Dovecot's said.
    pub to_mend: Vec<String>,
    /// What an admin has to know.
    pub warnings: Vec<String>,
}

/// Settings of a delivery that are yes or no.
const FLAGS: [&str; 18] = [
    "inbox",
    "hidden",
    "subscriptions",
    "disabled",
    "ignore_on_failure",
    "lmtp_save_to_detail_mailbox",
    "lmtp_rcpt_check_quota",
    "lmtp_add_received_header",
    "lmtp_verbose_replies",
    "lmtp_proxy",
    "lda_mailbox_autocreate",
    "lda_mailbox_autosubscribe",
    "quota_full_tempfail",
    "quota_ignore",
    "acl_ignore",
    "acl_defaults_from_inbox",
    "acl_globals_only",
    "mailbox_list_utf8",
];

/// One file on its way.
struct Import<'a> {
    dialect: Dialect,
    /// What counts for the deliveries of one protocol.
    root: &'a Block,
    /// `mail_plugins` of the delivery.
    plugins: Vec<String>,
    /// Directories that hold the mail of the file, and those of its indexes and control files.
    roots: Vec<String>,
    roots_beside: Vec<String>,
    /// What userdbs say of homes and places.
    named: Vec<Named>,
    /// That of the file: what it names without a leading slash is in it.
    folder: &'a Path,
    /// The file, where Dovecot's programs have to be told of it.
    conf: Option<PathBuf>,
    out: Document,
}

/// Reads `path` with all that it includes. An error is one that Dovecot has too.
pub fn import(path: &Path) -> Result<Imported, SyntaxError> {
    let mut source = source::read(path)?;
    let dialect = Dialect::of(&source);
    let is_printed = source.version.is_some();
    let unknown_groups = group::write_out(&mut source.root);
    let root = source.root.for_protocol("lmtp");
    let mut out = Document::default();
    out.comment(&format!(
        "From {}, which is written for Dovecot {}. Behind each line is where it comes from; what was left out stands at the end.",
        path.display(),
        dialect.name()
    ));
    let mut import = Import {
        dialect,
        root: &root,
        plugins: root.words("mail_plugins"),
        roots: Vec::new(),
        roots_beside: Vec::new(),
        named: Vec::new(),
        folder: path.parent().unwrap_or(Path::new("")),
        conf: std::path::absolute(path)
            .ok()
            .filter(|it| !is_printed && *it != Path::new("/etc/dovecot/dovecot.conf")),
        out,
    };
    for warning in source.warnings {
        import.out.warn(warning);
    }
    for group in unknown_groups {
        import.out.mend(group);
    }
    import.all();
    import.flags(&root);
    import.unnamed(&root);
    import.other_protocol(&source.root);
    import.explain_rest(&source.root);
    import.out.finish();
    let Document {
        to_mend, warnings, ..
    } = &import.out;
    let (mut to_mend, mut warnings) = (to_mend.clone(), warnings.clone());
    let toml = import.out.to_string();
    for (is_wrong, text) in said_by_config(&toml) {
        match is_wrong {
            true => to_mend.push(text),
            false => warnings.push(text),
        }
    }
    Ok(Imported {
        toml,
        to_mend,
        warnings,
    })
}

impl Import<'_> {
    fn all(&mut self) {
        self.named = self.named_places();
        self.general();
        self.locations();
        self.userdbs();
        self.namespaces();
        self.acl();
        self.sharing_map();
        self.quota();
        self.delivery();
        self.lmtp();
        self.plugins();
    }

    /// Neither yes nor no, which Dovecot does not take.
    fn flags(&mut self, block: &Block) {
        for entry in &block.entries {
            let value = entry.value.to_ascii_lowercase();
            let is_flag = matches!(value.as_str(), "yes" | "y" | "1" | "no" | "");
            if FLAGS.contains(&entry.key.as_str()) && !is_flag {
                self.out.to_mend.push(format!(
                    "{}: {} is yes or no, not {:?}",
                    entry.place, entry.key, entry.value
                ));
            }
        }
        // What a plugin of 2.3 is told is not looked at.
        for inner in block.blocks.iter().filter(|it| it.kind != "plugin") {
            self.flags(inner);
        }
    }

    /// 2.4 wants a name for each section of these.
    fn unnamed(&mut self, root: &Block) {
        if self.dialect == Dialect::V23 {
            return;
        }
        let first = root.entries.first().map(|it| it.key.as_str());
        if first != Some("dovecot_config_version") {
            let text = "Dovecot 2.4 wants dovecot_config_version as the first setting";
            self.out.warnings.push(text.into());
        }
        for block in &root.blocks {
            let is_odd = block.name.is_empty()
                && matches!(block.kind.as_str(), "namespace" | "userdb" | "passdb");
            if is_odd {
                self.out.warnings.push(format!(
                    "{}: Dovecot 2.4 wants a name behind {}",
                    block.place, block.kind
                ));
            }
        }
    }

    /// What Dovecot's LDA does otherwise than its LMTP server.
    fn other_protocol(&mut self, whole: &Block) {
        let root = whole.for_protocol("lda");
        let mut other = Import {
            dialect: self.dialect,
            root: &root,
            plugins: root.words("mail_plugins"),
            roots: Vec::new(),
            roots_beside: Vec::new(),
            named: Vec::new(),
            folder: self.folder,
            conf: self.conf.clone(),
            out: Document::default(),
        };
        other.all();
        let (own, other) = (settings(&self.out), settings(&other.out));
        let only = |one: &[String], other: &[String]| {
            let differing = one.iter().filter(|it| !other.contains(it));
            differing.cloned().collect::<Vec<_>>().join("; ")
        };
        let (of_lda, of_lmtp) = (only(&other, &own), only(&own, &other));
        if of_lda.is_empty() && of_lmtp.is_empty() {
            return;
        }
        let text = format!(
            "dovecot-lda has other settings than the LMTP server; give them to postroom-lda with -o, or a file of its own. It has: {}. It has not: {}",
            or_nothing(&of_lda),
            or_nothing(&of_lmtp)
        );
        self.out.heading("postroom-lda");
        self.out.warn(text);
    }
}

fn or_nothing(text: &str) -> &str {
    match text {
        "" => "nothing else",
        text => text,
    }
}

/// Settings that LMTP and LDA have both, each with its table: `[quota] driver = "maildir"`.
fn settings(out: &Document) -> Vec<String> {
    let of_lmtp = ["lmtp_", "ssl", "detail "];
    let (mut table, mut found) = (String::new(), Vec::new());
    for line in out.to_string().lines() {
        let line = line.split("  # ").next().unwrap_or(line);
        if line.starts_with('[') {
            table = format!("{line} ");
        } else if !line.is_empty()
            && !line.starts_with(['#', ' ', ']'])
            && table != "[lmtp] "
            && !of_lmtp.iter().any(|it| line.starts_with(it))
        {
            found.push(format!("{table}{line}"));
        }
    }
    found
}

/// What our own configuration has to say of the result: whether it is wrong, and how. What this machine lacks, users and files,
/// makes none wrong.
fn said_by_config(toml: &str) -> Vec<(bool, String)> {
    let problems = match Config::from_str("the result", toml) {
        Ok(config) => config.warnings.map(|it| it.problems).unwrap_or_default(),
        Err(errors) => errors.problems,
    };
    let said = problems.into_iter().map(|problem| {
        let line = crate::config::report::line_of(toml, problem.place.start);
        let advice = problem.advice.map_or(String::new(), |it| format!("; {it}"));
        let of_machine = [
            "there is no user",
            "there is no group",
            "(os error",
            "a sharing map is one file",
        ];
        let is_of_machine = of_machine.iter().any(|it| problem.message.contains(it));
        let text = format!("line {line} of the result: {}{advice}", problem.message);
        (!problem.is_warning && !is_of_machine, text)
    });
    said.collect()
}
