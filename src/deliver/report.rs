//! What a delivery would do, step by step: RCPT answers from it, `explain` and `--dry-run` print it.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::mailbox::agent::HandOver;

/// The decision for one recipient, step by step. `explain` prints it, RCPT answers from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The recipient as given.
    pub recipient: String,
    /// The steps in their order.
    pub lines: Vec<Line>,
    /// The mailbox that would take the message, by its full name.
    pub mailbox: Option<String>,
    /// How Dovecot would get it, where only Dovecot can write that mailbox.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hand_over: Option<HandOver>,
    /// Why it would be refused.
    pub fault: Option<Fault>,
}

/// One step of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `namespace`, `mailbox`, `path`, `rights`, `identity`, `new file`, …
    pub label: String,
    pub text: String,
    /// False: this step ends the delivery, and `explain` writes FAIL behind it.
    pub ok: bool,
}

impl Line {
    /// A step that lets the delivery go on. `label`: at most 12 characters, the width of the table. `text` may hold anything: the table
    /// makes it printable.
    pub fn ok(label: &str, text: impl Into<String>) -> Line {
        Line {
            label: label.into(),
            text: text.into(),
            ok: true,
        }
    }

    /// The step that ends the delivery, but on the way of a route; the report has the same fault. `label` and `text` as in [`Line::ok`].
    pub fn fail(label: &str, text: impl Into<String>) -> Line {
        Line {
            label: label.into(),
            text: text.into(),
            ok: false,
        }
    }
}

impl Report {
    /// For people a table, for programs one JSON object.
    pub fn print(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if !json {
            return table(self, out);
        }
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)
    }

    /// A report of a delivery that ended before there was anything to inspect.
    pub fn failed(recipient: String, fault: Fault) -> Report {
        let line = Line::fail("address", fault.to_string());
        Report {
            recipient,
            lines: vec![line],
            mailbox: None,
            hand_over: None,
            fault: Some(fault),
        }
    }
}

/// Width of the labels.
const LABEL: usize = 12;

/// One line a step, FAIL on the one that ends the delivery, then the replies.
fn table(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", report.recipient.escape_debug())?;
    for line in &report.lines {
        let fail = if line.ok { "" } else { "   FAIL" };
        writeln!(
            out,
            "  {:LABEL$}  {}{fail}",
            line.label,
            printable(&line.text)
        )?;
    }
    match (&report.fault, &report.mailbox) {
        (Some(fault), _) => {
            if let Some(advice) = &fault.advice {
                writeln!(out, "  {:LABEL$}  {}", "to mend it", printable(advice))?;
            }
            let (code, status) = fault.code.smtp();
            writeln!(
                out,
                "  {:LABEL$}  RCPT {code} {status} {}",
                "reply",
                fault.code.text()
            )?;
            writeln!(out, "  {:LABEL$}  {}", "exit code", fault.code.exit())
        }
        (None, mailbox) => {
            let data = match mailbox {
                Some(_) if report.hand_over.is_some() => "as Dovecot says".into(),
                Some(mailbox) => format!("250 2.0.0 mailbox=\"{}\"", printable(mailbox)),
                None => "as the other server says".into(),
            };
            writeln!(out, "  {:LABEL$}  RCPT 250 2.1.5, DATA {data}", "reply")?;
            writeln!(out, "  {:LABEL$}  0", "exit code")
        }
    }
}

/// No control character of a name or a path reaches the terminal.
fn printable(text: &str) -> String {
    let safe = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(safe).collect()
}
