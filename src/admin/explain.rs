//! `postroom explain`: the whole decision for one delivery, nothing written.

use std::io::{self, Write};

use crate::deliver::Report;

/// Width of the labels.
const LABEL: usize = 12;

/// The table of product page "Explain": one line a step, FAIL on the one that ends the delivery, then the replies.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
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
            let mailbox = printable(mailbox.as_deref().unwrap_or("INBOX"));
            writeln!(
                out,
                "  {:LABEL$}  RCPT 250 2.1.5, DATA 250 2.0.0 mailbox=\"{mailbox}\"",
                "reply"
            )?;
            writeln!(out, "  {:LABEL$}  0", "exit code")
        }
    }
}

/// The report for programs: one JSON object.
pub fn print_json(report: &Report, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, report)?;
    writeln!(out)
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
