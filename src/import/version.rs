//! Which Dovecot a configuration is written for.

use super::source::Source;

/// The two languages that Dovecot's settings have had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    V23,
    V24,
}

/// Words that only 2.3 has, anywhere.
const OLD: [&str; 5] = [
    "mail_location",
    "location",
    "args",
    "acl_shared_dict",
    "ssl_cert",
];
/// Words that only 2.4 has, anywhere.
const NEW: [&str; 9] = [
    "mail_path",
    "mail_driver",
    "mail_index_private_path",
    "acl_driver",
    "sql_driver",
    "fields",
    "dict_server",
    "acl_sharing_map",
    "ssl_server_cert_file",
];

impl Dialect {
    pub fn name(self) -> &'static str {
        match self {
            Dialect::V23 => "2.3",
            Dialect::V24 => "2.4",
        }
    }

    /// What the file says of itself, else the words in it; with neither, 2.3.
    pub fn of(source: &Source) -> Dialect {
        let mut entries = source.root.entries.iter();
        let written = entries.rfind(|it| it.key == "dovecot_config_version");
        let said = written
            .map(|it| it.value.as_str())
            .or(source.version.as_deref());
        if let Some(said) = said {
            let numbers: Vec<u32> = said.split('.').map_while(|it| it.parse().ok()).collect();
            return match numbers.as_slice() >= [2, 4].as_slice() {
                true => Dialect::V24,
                false => Dialect::V23,
            };
        }
        let words = words(&source.root);
        let has = |some: &[&str]| words.iter().any(|word| some.contains(&word.as_str()));
        match has(&NEW) && !has(&OLD) {
            true => Dialect::V24,
            false => Dialect::V23,
        }
    }
}

fn words(block: &super::block::Block) -> Vec<String> {
    let mut found: Vec<String> = block.entries.iter().map(|it| it.key.clone()).collect();
    for inner in &block.blocks {
        found.push(inner.kind.clone());
        found.extend(words(inner));
    }
    found
}
