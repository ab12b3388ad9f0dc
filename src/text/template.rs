//! Settings with variables, in the dialects of Dovecot 2.3 (`%u`) and 2.4 (`%{user | lower}`).
//!
//! A template is parsed once, when the config is read. Values are inserted as opaque text and never parsed again:
//! a user called `%{home}` is just that.

use std::fmt;

/// A parsed setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

/// What the variables stand for in one expansion. An absent value that a template needs is an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct Variables<'a> {
    /// `%{user}`: the accessing user.
    pub user: &'a str,
    /// `%{home}`: the accessing user's home.
    pub home: Option<&'a str>,
    /// `%{owner_user}`: whose mailboxes a shared namespace shows.
    pub owner_user: Option<&'a str>,
    /// `%{owner_home}`.
    pub owner_home: Option<&'a str>,
    pub hostname: &'a str,
}

/// Why a setting is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    pub message: String,
    /// What to write instead.
    pub advice: Option<String>,
}

/// Why a template could not be expanded for these values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("%{{{variable}}} has no value here")]
pub struct NoValue {
    pub variable: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Literal(String),
    Variable(Variable, Vec<Filter>),
}

#[derive(Debug, Clone, PartialEq)]
enum Variable {
    User,
    Home,
    OwnerUser,
    OwnerHome,
    Hostname,
    /// From the environment when the config is read.
    Env(String, Option<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Filter {
    Lower,
    Upper,
    Username,
    Domain,
    Reverse,
    Hex,
    /// Start and length in characters; a negative start counts from the end.
    Substr(i64, Option<usize>),
    Truncate(usize),
    Default(String),
}

/// The names that may stand in braces, with what they mean.
const NAMES: [(&str, Variable, Option<Filter>); 10] = [
    ("user", Variable::User, None),
    ("username", Variable::User, Some(Filter::Username)),
    ("domain", Variable::User, Some(Filter::Domain)),
    ("home", Variable::Home, None),
    ("owner_user", Variable::OwnerUser, None),
    (
        "owner_username",
        Variable::OwnerUser,
        Some(Filter::Username),
    ),
    ("owner_domain", Variable::OwnerUser, Some(Filter::Domain)),
    ("owner_home", Variable::OwnerHome, None),
    ("hostname", Variable::Hostname, None),
    ("system:hostname", Variable::Hostname, None),
];

/// The filters, as they are written.
const FILTERS: &str = "lower, upper, username, domain, reverse, hexlify, substr(start, length), truncate(n), default(\"text\")";

impl Template {
    /// Parses a setting. `%%` before anything but a name in braces is a percent sign.
    pub fn parse(source: &str) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            let (part, length) = variable(&rest[at..])?;
            match part {
                Part::Literal(text) => literal.push_str(&text),
                variable => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(variable);
                }
            }
            rest = &rest[at + length..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Template {
            source: source.to_owned(),
            parts,
        })
    }

    /// The setting as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The setting for these values.
    pub fn expand(&self, variables: &Variables<'_>) -> Result<String, NoValue> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Variable(variable, filters) => {
                    out.push_str(&value(variable, filters, variables)?)
                }
            }
        }
        Ok(out)
    }

    /// Whether any variable occurs (a leading `~` is none).
    pub fn has_variables(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, Part::Variable(..)))
    }

    /// Whether the value differs from one accessing user to the next.
    pub fn uses_user(&self) -> bool {
        self.source.starts_with('~')
            || self.uses(|variable| matches!(variable, Variable::User | Variable::Home))
    }

    /// Whether the value differs from one owner to the next.
    pub fn uses_owner(&self) -> bool {
        self.uses(|variable| matches!(variable, Variable::OwnerUser | Variable::OwnerHome))
    }

    fn uses(&self, which: impl Fn(&Variable) -> bool) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, Part::Variable(variable, _) if which(variable)))
    }

    /// The part of a path before the first component with a variable; none where that is nothing, or `/`.
    pub fn fixed_part(&self) -> Option<&str> {
        let text = match self.parts.first()? {
            Part::Literal(text) => text.as_str(),
            Part::Variable(..) => return None,
        };
        let fixed = match self.parts.len() {
            1 => text,
            _ => &text[..text.rfind('/')?],
        };
        (fixed.starts_with('/') && fixed.len() > 1).then_some(fixed)
    }

    /// The part of a path before the component with the last variable: `/vmail/%d/%n/Maildir` -> `/vmail/%d`.
    pub fn before_last_variable(&self) -> Option<Template> {
        let last = self
            .parts
            .iter()
            .rposition(|part| matches!(part, Part::Variable(..)))?;
        let mut parts = self.parts[..last].to_vec();
        while let Some(part) = parts.pop() {
            let Part::Literal(text) = part else { continue };
            let Some(slash) = text.rfind('/') else {
                continue;
            };
            if slash > 0 {
                parts.push(Part::Literal(text[..slash].to_owned()));
            }
            return Some(Template {
                source: self.source.clone(),
                parts,
            });
        }
        None
    }
}

/// The part at the start of `text`, which begins with a percent sign, and its length in bytes.
fn variable(text: &str) -> Result<(Part, usize), TemplateError> {
    // 2.3 writes the owner's values as %%u: the second percent is the same variable, of the other user.
    let (owner, after) = match text.strip_prefix("%%") {
        Some(after) => (true, after),
        None => (false, &text[1..]),
    };
    let percent = 1 + usize::from(owner);
    if let Some(inside) = after.strip_prefix('{') {
        let end = inside
            .find('}')
            .ok_or_else(|| error(format!("{text:?} has no closing brace"), None))?;
        let (mut variable, filters) = braces(&inside[..end])?;
        if owner {
            variable = of_owner(variable);
        }
        return Ok((Part::Variable(variable, filters), percent + end + 2));
    }
    let (mut filters, letters) = modifiers(after);
    let mut chars = letters.chars();
    let named = match chars.next() {
        Some('u') => Some((Variable::User, None)),
        Some('n') => Some((Variable::User, Some(Filter::Username))),
        Some('d') => Some((Variable::User, Some(Filter::Domain))),
        Some('h') => Some((Variable::Home, None)),
        _ => None,
    };
    match named {
        Some((variable, filter)) => {
            filters.splice(0..0, filter);
            let variable = if owner { of_owner(variable) } else { variable };
            let length = percent + (after.len() - letters.len()) + 1;
            Ok((Part::Variable(variable, filters), length))
        }
        None if owner => Ok((Part::Literal("%".into()), 2)),
        None => {
            let shown: String = text.chars().take(4).collect();
            let advice = "the variables are %u %n %d %h and %{user} %{home} %{owner_user} …; write %% for a percent sign";
            Err(error(
                format!("{shown:?} is no variable"),
                Some(advice.into()),
            ))
        }
    }
}

/// The width forms of 2.3 (`%1n`, `%0.2n`) and its modifiers `L`, `U` and `R` (`%Lu`, `%1Ln`): first what the letters say, then the
/// width.
fn modifiers(text: &str) -> (Vec<Filter>, &str) {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    let width = &text[..text.len() - rest.len()];
    let number = |text: &str| text.parse::<i64>().ok();
    let cut = match width.split_once('.') {
        Some((start, length)) => match (number(start), number(length)) {
            // To the end.
            (Some(start), Some(0)) => Some(Filter::Substr(start, None)),
            (Some(start), Some(length)) if length >= 0 => {
                Some(Filter::Substr(start, Some(length as usize)))
            }
            _ => return (vec![], text),
        },
        None if width.is_empty() => None,
        // Zeros in front, which only numbers have.
        None if width.starts_with('0') => return (vec![], text),
        None => match number(width) {
            Some(length) if length >= 0 => Some(Filter::Truncate(length as usize)),
            _ => return (vec![], text),
        },
    };
    let mut filters = Vec::new();
    let mut rest = rest;
    loop {
        let filter = match rest.chars().next() {
            Some('L') => Filter::Lower,
            Some('U') => Filter::Upper,
            Some('R') => Filter::Reverse,
            _ => break,
        };
        filters.push(filter);
        rest = &rest[1..];
    }
    filters.extend(cut);
    (filters, rest)
}

fn of_owner(variable: Variable) -> Variable {
    match variable {
        Variable::User => Variable::OwnerUser,
        Variable::Home => Variable::OwnerHome,
        other => other,
    }
}

/// `user | username | lower`
fn braces(inside: &str) -> Result<(Variable, Vec<Filter>), TemplateError> {
    let mut words = split_filters(inside).into_iter();
    let name = words.next().unwrap_or_default();
    let known = NAMES.into_iter().find(|(known, _, _)| *known == name);
    let (variable, first) = match (known, name.strip_prefix("env:")) {
        (Some((_, variable, filter)), _) => (variable, filter),
        (None, Some(key)) => (Variable::Env(key.to_owned(), std::env::var(key).ok()), None),
        (None, None) => {
            let near = NAMES
                .iter()
                .find(|(known, _, _)| known.starts_with(&name) || name.starts_with(known));
            let advice = near.map(|(known, _, _)| format!("did you mean %{{{known}}}?"));
            return Err(error(format!("there is no variable %{{{name}}}"), advice));
        }
    };
    let filters = words
        .map(|word| filter(&word))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((variable, first.into_iter().chain(filters).collect()))
}

/// Splits at bars that are not inside quotes.
fn split_filters(text: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for c in text.chars() {
        match (quote, c) {
            (None, '|') => {
                words.push(String::new());
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words.iter().map(|word| word.trim().to_owned()).collect()
}

fn filter(word: &str) -> Result<Filter, TemplateError> {
    let (name, argument) = match word.split_once('(') {
        Some((name, rest)) => (name.trim(), rest.strip_suffix(')').map(str::trim)),
        None => (word, None),
    };
    let unknown = || {
        error(
            format!("there is no filter {word:?}"),
            Some(format!("the filters are {FILTERS}")),
        )
    };
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| unknown());
    Ok(match (name, argument) {
        ("lower", None) => Filter::Lower,
        ("upper", None) => Filter::Upper,
        ("username", None) => Filter::Username,
        ("domain", None) => Filter::Domain,
        ("reverse", None) => Filter::Reverse,
        ("hexlify" | "hex", None) => Filter::Hex,
        ("truncate", Some(length)) => {
            Filter::Truncate(usize::try_from(number(length)?).map_err(|_| unknown())?)
        }
        ("substr", Some(range)) => match range.split_once(',') {
            Some((start, length)) => {
                let length = usize::try_from(number(length)?).map_err(|_| unknown())?;
                Filter::Substr(number(start)?, Some(length))
            }
            None => Filter::Substr(number(range)?, None),
        },
        ("default", Some(text)) => Filter::Default(text.trim_matches(['"', '\'']).to_owned()),
        _ => return Err(unknown()),
    })
}

fn error(message: String, advice: Option<String>) -> TemplateError {
    TemplateError { message, advice }
}

fn value(
    variable: &Variable,
    filters: &[Filter],
    variables: &Variables<'_>,
) -> Result<String, NoValue> {
    let start = match variable {
        Variable::User => Some(variables.user),
        Variable::Home => variables.home,
        Variable::OwnerUser => variables.owner_user,
        Variable::OwnerHome => variables.owner_home,
        Variable::Hostname => Some(variables.hostname).filter(|text| !text.is_empty()),
        Variable::Env(_, value) => value.as_deref(),
    };
    let mut value = start.map(str::to_owned);
    for filter in filters {
        value = match (filter, value) {
            (Filter::Default(text), value) => Some(
                value
                    .filter(|value| !value.is_empty())
                    .unwrap_or_else(|| text.clone()),
            ),
            (filter, Some(value)) => Some(filter.apply(&value)),
            (_, None) => None,
        };
    }
    value.ok_or_else(|| NoValue {
        variable: variable.to_string(),
    })
}

impl Filter {
    fn apply(&self, value: &str) -> String {
        match self {
            Filter::Lower => value.to_lowercase(),
            Filter::Upper => value.to_uppercase(),
            Filter::Username => value.split('@').next().unwrap_or("").to_owned(),
            Filter::Domain => value
                .split_once('@')
                .map_or("", |(_, domain)| domain)
                .to_owned(),
            Filter::Reverse => value.chars().rev().collect(),
            Filter::Hex => value.bytes().map(|byte| format!("{byte:02x}")).collect(),
            Filter::Truncate(length) => value.chars().take(*length).collect(),
            Filter::Substr(start, length) => {
                let count = value.chars().count();
                let from = if *start < 0 {
                    count.saturating_sub(start.unsigned_abs() as usize)
                } else {
                    *start as usize
                };
                value
                    .chars()
                    .skip(from)
                    .take(length.unwrap_or(usize::MAX))
                    .collect()
            }
            Filter::Default(_) => value.to_owned(),
        }
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variable::User => f.write_str("user"),
            Variable::Home => f.write_str("home"),
            Variable::OwnerUser => f.write_str("owner_user"),
            Variable::OwnerHome => f.write_str("owner_home"),
            Variable::Hostname => f.write_str("hostname"),
            Variable::Env(key, _) => write!(f, "env:{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VALUES: Variables<'_> = Variables {
        user: "Bob@D1.test",
        home: Some("/home/bob"),
        owner_user: Some("amy@d2.test"),
        owner_home: Some("/home/amy"),
        hostname: "mx",
    };

    #[test]
    fn both_dialects() {
        for (template, want) in [
            ("~/Maildir", "~/Maildir"),
            ("/vmail/%d/%n/Maildir", "/vmail/D1.test/Bob/Maildir"),
            ("/vmail/%Ld/%1n", "/vmail/d1.test/B"),
            ("%0.2n-%1.1n-%Lu", "Bo-o-bob@d1.test"),
            ("%1Ln-%2Un-%1.1Rn", "b-BO-o"),
            ("%h/x", "/home/bob/x"),
            ("%%u %%n %%d %%h", "amy@d2.test amy d2.test /home/amy"),
            (
                "%{user}|%{user | username | lower}|%{user|domain}",
                "Bob@D1.test|bob|D1.test",
            ),
            ("%{username} %{domain}", "Bob D1.test"),
            ("%{home}/Maildir", "/home/bob/Maildir"),
            ("%{owner_home}/%{owner_user}", "/home/amy/amy@d2.test"),
            ("%{owner_username}.%{owner_domain}", "amy.d2.test"),
            ("%{user | substr(0,1)}%{user | substr(-4)}", "Btest"),
            ("%{user | username | hexlify}", "426f62"),
            ("%{env:POSTROOM_NO_SUCH | default(\"a|b\")}", "a|b"),
            ("100%%, %%", "100%, %"),
        ] {
            let got = Template::parse(template).unwrap().expand(&VALUES).unwrap();
            assert_eq!(got, want, "{template}");
        }
    }

    #[test]
    fn what_is_no_template() {
        for template in [
            "%",
            "%x",
            "%{",
            "%{nobody}",
            "%{user | lowercase}",
            "%{user | substr(a)}",
            "50% off",
            // Paths of one service alone: nobody who reads mail would look there.
            "%s",
            "%{service}",
        ] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }

    #[test]
    fn a_missing_value_is_named() {
        let none = Variables {
            user: "bob",
            ..Variables::default()
        };
        for (template, variable) in [
            ("%{home}/x", "home"),
            ("%{owner_home}", "owner_home"),
            ("%%u", "owner_user"),
        ] {
            let missing = Template::parse(template)
                .unwrap()
                .expand(&none)
                .unwrap_err();
            assert_eq!(missing.variable, variable);
        }
    }

    #[test]
    fn the_directory_above_the_last_variable() {
        for (template, want) in [
            ("/vmail/%d/%n/Maildir", Some("/vmail/D1.test")),
            ("/vmail/%u", Some("/vmail")),
            (
                "/vmail/x-%{user | domain}-%{user | username}/Maildir",
                Some("/vmail"),
            ),
            ("/var/mail", None),
            ("%h/Maildir", None),
        ] {
            let above = Template::parse(template).unwrap().before_last_variable();
            assert_eq!(
                above.map(|above| above.expand(&VALUES).unwrap()).as_deref(),
                want,
                "{template}"
            );
        }
    }

    proptest! {
        #[test]
        fn values_are_never_parsed(user in "[%{}u|a-z]{0,12}") {
            let values = Variables { user: &user, ..VALUES };
            let got = Template::parse("<%{user}>").unwrap().expand(&values).unwrap();
            prop_assert_eq!(got, format!("<{user}>"));
        }

        #[test]
        fn any_text_is_a_template_or_an_error(text in "\\PC{0,30}") {
            if let Ok(template) = Template::parse(&text) {
                let _ = template.expand(&VALUES);
                let _ = template.before_last_variable();
            }
        }
    }
}
