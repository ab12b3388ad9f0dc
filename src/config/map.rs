//! `[[address]]` and `[[route]]`.

use super::file::ON_MISSING;
use super::rights::SUBJECTS;
use super::section::Section;
use crate::deliver::address::{AddressMap, Rule};
use crate::deliver::route::{Route, Test};
use crate::mailbox::namespace::OnMissing;
use crate::message::Address;

pub fn addresses(root: &Section<'_>) -> AddressMap {
    let mut map = AddressMap::default();
    for (number, section) in (1..).zip(root.tables("address")) {
        let (pattern, mailbox) = (required(&section, "match"), required(&section, "mailbox"));
        let user = required(&section, "user");
        let subject = section.choice("subject", &SUBJECTS, None);
        let on_missing = section.choice("on_missing", &ON_MISSING, Some(OnMissing::Parent));
        section.finish();
        let (Some(pattern), Some(mailbox), Some(user)) = (pattern, mailbox, user) else {
            continue;
        };
        let rule = Rule {
            mailbox,
            user,
            subject,
            on_missing: on_missing.unwrap_or(OnMissing::Parent),
            from: format!("address {number} ({pattern})"),
        };
        let key = pattern.to_lowercase();
        let earlier = match key.strip_prefix("*@") {
            Some(domain) if !domain.is_empty() && !domain.contains(['*', '@']) => {
                map.domains.insert(domain.to_owned(), rule)
            }
            _ => match Address::parse(&key).ok().filter(|_| !key.contains('*')) {
                Some(address) => map.exact.insert(address.to_string(), rule),
                None => {
                    let advice = "write an address, or \"*@domain\"";
                    section.error("match", format!("{pattern:?} is no address"), advice);
                    continue;
                }
            },
        };
        if let Some(earlier) = earlier {
            let message = format!("{pattern:?} is matched by {} already", earlier.from);
            section.error("match", message, "take one of them out");
        }
    }
    map
}

pub fn routes(root: &Section<'_>) -> Vec<Route> {
    let mut routes = Vec::new();
    for (number, section) in (1..).zip(root.tables("route")) {
        let (header, mailbox) = (required(&section, "header"), required(&section, "mailbox"));
        let tests = [
            section.text("equals").map(Test::Equals),
            section.text("contains").map(Test::Contains),
            section.text("begins_with").map(Test::BeginsWith),
        ];
        section.finish();
        let mut tests = tests.into_iter().flatten();
        let test = tests.next().unwrap_or(Test::Exists);
        if tests.next().is_some() {
            let advice = "write equals, contains or begins_with; none of them: the field is there";
            section.error("", "a route has one test", advice);
        }
        let (Some(header), Some(mailbox)) = (header, mailbox) else {
            continue;
        };
        let is_name = |c: char| c.is_ascii_graphic() && c != ':';
        if header.is_empty() || !header.chars().all(is_name) {
            let message = format!("{header:?} is no name of a header field");
            section.error("header", message, "write it like \"X-Spam-Flag\"");
        }
        routes.push(Route {
            header,
            test,
            mailbox,
            from: format!("route {number}"),
        });
    }
    routes
}

fn required(section: &Section<'_>, key: &'static str) -> Option<String> {
    let text = section.text(key);
    if text.is_none() && !section.has(key) {
        section.error(
            "",
            format!("{key} is missing"),
            format!("write {key} = \"…\""),
        );
    }
    text
}
