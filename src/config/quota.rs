//! `[quota]`, and that of a public namespace.

use super::section::Section;
use crate::deliver::quota::Quotas;
use crate::deliver::warning::Warning;
use crate::mailbox::quota::{self, Limits};

/// None: nothing is counted.
pub fn quotas(root: &Section<'_>) -> Option<Quotas> {
    let section = root.section("quota");
    let drivers = [("maildir", true), ("none", false)];
    let driver = section.choice("driver", &drivers, None);
    let limits = limits(&section);
    if !limits.are_none() && driver.is_none() {
        let advice = "write driver = \"maildir\"";
        section.error("driver", "it says where the account is kept", advice);
    }
    let warning = warning(&section);
    section.finish();
    let quotas = Quotas {
        warning,
        limits,
        counted: Default::default(),
        checks_at_rcpt: root.flag("lmtp_rcpt_check_quota", true),
        full_is_temporary: root.flag("quota_full_tempfail", false),
    };
    (driver == Some(true)).then_some(quotas)
}

/// The file is read once: whoever delivers need not be able to.
fn warning(section: &Section<'_>) -> Option<Warning> {
    let percent = section.number("warning_percent", Some(90)).unwrap_or(90);
    if !(1..=100).contains(&percent) {
        let advice = "write a number from 1 to 100";
        section.error("warning_percent", "it is a share of the limit", advice);
    }
    let path = section.text("warning_message_file")?;
    let message = match std::fs::read(&path) {
        Ok(message) => message,
        Err(error) => {
            let advice = "write a message there: From:, Subject:, an empty line, and what the user is to read";
            section.error("warning_message_file", format!("{path}: {error}"), advice);
            return None;
        }
    };
    let has_header =
        message.starts_with(b"From:") || memchr::memmem::find(&message, b"\nFrom:").is_some();
    if !has_header || message.len() > 60_000 {
        let advice =
            "begin it with From: and Subject:, then an empty line; no more than 60000 bytes";
        section.error(
            "warning_message_file",
            format!("{path} is no message"),
            advice,
        );
    }
    Some(Warning {
        percent: percent.into(),
        message,
    })
}

/// The limits of `[quota]`, or of a namespace's own.
pub fn limits(section: &Section<'_>) -> Limits {
    let usual = Limits::default();
    let number = |key, default: u64| {
        let number = section.number(key, Some(default as u32));
        number.map_or(default, u64::from)
    };
    let grace = section.text("storage_grace");
    Limits {
        storage: section.size("storage_size").unwrap_or(0),
        percentage: number("storage_percentage", usual.percentage),
        extra: section.size("storage_extra").unwrap_or(0),
        messages: number("message_count", 0),
        grace: grace.map_or(usual.grace, |text| {
            quota::grace(&text).unwrap_or_else(|| {
                let advice = "write a size or a share: \"10M\", \"10%\"";
                section.error("storage_grace", format!("{text:?} is no size"), advice);
                usual.grace
            })
        }),
        rules: Vec::new(),
    }
}
