//! The line before a message: `From sender@example.org  Sun Nov 22 07:22:09 2026`, in local time (Dovecot's `mbox-from.c`).

use jiff::Zoned;

use crate::message::ReversePath;

/// Without the line's end.
pub fn from_line(sender: &ReversePath, received: &Zoned) -> String {
    let sender = match sender {
        ReversePath::Null => "MAILER-DAEMON".to_owned(),
        // A quoted local part may have blanks; a reader takes the first word for the address.
        ReversePath::Address(address) => address.to_string().replace(char::is_whitespace, "_"),
    };
    format!(
        "From {sender}  {}",
        received.strftime("%a %b %d %H:%M:%S %Y")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Address;

    #[test]
    fn lines() {
        let at = jiff::civil::date(2026, 11, 2).at(7, 2, 9, 0);
        let at = at.to_zoned(jiff::tz::TimeZone::UTC).unwrap();
        for (sender, want) in [
            ("a@b.example", "From a@b.example  Mon Nov 02 07:02:09 2026"),
            ("\"a b\"@c", "From \"a_b\"@c  Mon Nov 02 07:02:09 2026"),
            ("", "From MAILER-DAEMON  Mon Nov 02 07:02:09 2026"),
        ] {
            let sender = match sender {
                "" => ReversePath::Null,
                text => ReversePath::Address(Address::parse(text).unwrap()),
            };
            assert_eq!(from_line(&sender, &at), want);
        }
    }
}
