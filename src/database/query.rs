//! Queries with variables, as Dovecot's admins write them: `WHERE userid = '%u'`. A variable becomes a bound parameter; nothing that
//! comes from outside is ever a part of the statement.

use crate::text::template::{NoValue, Template, TemplateError, Variables};

/// A statement for [`Database::rows`](super::Database::rows), and what its parameters are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// With `$1`, `$2`, … where the variables stood.
    pub statement: String,
    parameters: Vec<Template>,
}

/// Why a text is no such query, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadQuery {
    pub message: String,
    pub advice: String,
}

impl Query {
    /// A text in single quotes with a variable in it is one parameter, and so is a variable without quotes. `%%` is a percent sign.
    pub fn parse(text: &str) -> Result<Query, BadQuery> {
        let mut query = Query {
            statement: String::new(),
            parameters: Vec::new(),
        };
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            rest = match first {
                '\'' => query.string(rest)?,
                '"' => query.name(rest)?,
                '-' if rest.starts_with("--") => query.comment(rest, "\n"),
                '/' if rest.starts_with("/*") => query.comment(rest, "*/"),
                '%' => query.variable(rest)?,
                '$' => {
                    let advice = "write a variable: %{user}, %{user | username}, %{user | domain}";
                    return Err(bad("$ is for the parameters that variables become", advice));
                }
                other => {
                    query.statement.push(other);
                    &rest[other.len_utf8()..]
                }
            };
        }
        Ok(query)
    }

    /// The parameters for these values.
    pub fn parameters(&self, variables: &Variables<'_>) -> Result<Vec<String>, NoValue> {
        let expand = |template: &Template| template.expand(variables);
        self.parameters.iter().map(expand).collect()
    }

    fn bind(&mut self, template: Template) {
        self.parameters.push(template);
        self.statement
            .push_str(&format!("${}", self.parameters.len()));
    }

    /// A comment is not sent, and divides what stands on both sides. Answers what is behind it.
    fn comment<'a>(&mut self, text: &'a str, end: &str) -> &'a str {
        self.statement.push(' ');
        text.find(end).map_or("", |at| &text[at + end.len()..])
    }

    /// `'…'` at the start of `text`. Answers what is behind it.
    fn string<'a>(&mut self, text: &'a str) -> Result<&'a str, BadQuery> {
        let (inside, rest) = quoted(text, '\'')?;
        let template = template(&inside)?;
        if template.has_variables() {
            let word = |c: char| c.is_alphanumeric() || c == '&';
            let before = self.statement.trim_end_matches(word).len();
            if matches!(&self.statement[before..], "E" | "e" | "U&" | "u&") {
                let advice = "write the text in plain single quotes";
                return Err(bad("a variable in a text with escapes", advice));
            }
            self.bind(template);
        } else {
            let text = inside.replace("%%", "%").replace('\'', "''");
            self.statement.push_str(&format!("'{text}'"));
        }
        Ok(rest)
    }

    /// `"…"`, the name of a column.
    fn name<'a>(&mut self, text: &'a str) -> Result<&'a str, BadQuery> {
        let (inside, rest) = quoted(text, '"')?;
        if template(&inside)?.has_variables() {
            let advice = "write it in single quotes: double ones are for the names of columns";
            return Err(bad(&format!("a variable in \"{inside}\""), advice));
        }
        let name = inside.replace("%%", "%").replace('"', "\"\"");
        self.statement.push_str(&format!("\"{name}\""));
        Ok(rest)
    }

    /// `%u`, `%{user | domain}`, `%%`.
    fn variable<'a>(&mut self, text: &'a str) -> Result<&'a str, BadQuery> {
        if let Some(rest) = text.strip_prefix("%%") {
            self.statement.push('%');
            return Ok(rest);
        }
        let length = match text.strip_prefix("%{") {
            Some(inside) => inside.find('}').map(|end| end + 3),
            None => {
                let is_modifier = |c: char| c.is_ascii_digit() || "LU.-".contains(c);
                let name = text[1..].find(|c: char| !is_modifier(c));
                name.and_then(|at| Some(at + 1 + text[at + 1..].chars().next()?.len_utf8()))
            }
        };
        let (variable, rest) = text.split_at(length.unwrap_or(text.len()));
        self.bind(template(variable)?);
        Ok(rest)
    }
}

fn template(text: &str) -> Result<Template, BadQuery> {
    Template::parse(text).map_err(|TemplateError { message, advice }| {
        let usual = || "write %% for a percent sign".into();
        let advice = advice.unwrap_or_else(usual);
        BadQuery { message, advice }
    })
}

/// What is between the quotes, two of them being one, and what is behind.
fn quoted(text: &str, quote: char) -> Result<(String, &str), BadQuery> {
    let mut inside = String::new();
    let mut letters = text.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        match letter {
            letter if letter != quote => inside.push(letter),
            _ if letters.next_if(|(_, next)| *next == quote).is_some() => inside.push(quote),
            _ => return Ok((inside, &text[at + 1..])),
        }
    }
    Err(bad("a quote that does not end", "close it"))
}

fn bad(message: &str, advice: &str) -> BadQuery {
    BadQuery {
        message: message.into(),
        advice: advice.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables(user: &str) -> Variables<'_> {
        Variables {
            user,
            ..Variables::default()
        }
    }

    #[test]
    fn variables_become_parameters() {
        for (text, statement, parameters) in [
            ("SELECT 1", "SELECT 1", &[][..]),
            ("WHERE u = '%u'", "WHERE u = $1", &["Bob@d1.test"]),
            ("WHERE u = %u", "WHERE u = $1", &["Bob@d1.test"]),
            ("u='%n' AND d='%d'", "u=$1 AND d=$2", &["Bob", "d1.test"]),
            ("u = '%Ln@%d'", "u = $1", &["bob@d1.test"]),
            (
                "u = %{user | lower} LIMIT 1",
                "u = $1 LIMIT 1",
                &["bob@d1.test"],
            ),
            (
                "'maildir:/srv/%d/%n' AS mail",
                "$1 AS mail",
                &["maildir:/srv/d1.test/Bob"],
            ),
            (
                "'/srv/' || %n, 5 %% 2, '50%%', 'it''s'",
                "'/srv/' || $1, 5 % 2, '50%', 'it''s'",
                &["Bob"],
            ),
            ("'it''s %n'", "$1", &["it's Bob"]),
            (
                "a AS \"namespace/docs/location\"",
                "a AS \"namespace/docs/location\"",
                &[],
            ),
            (
                "SELECT 1 -- of %q's\nFROM t /* '%u' */ x",
                "SELECT 1  FROM t   x",
                &[],
            ),
        ] {
            let query = Query::parse(text).unwrap();
            assert_eq!(query.statement, statement, "{text}");
            let got = query.parameters(&variables("Bob@d1.test")).unwrap();
            assert_eq!(got, parameters, "{text}");
        }
    }

    #[test]
    fn what_is_no_query() {
        for (text, why) in [
            ("u = 'open", "does not end"),
            ("u = \"%u\"", "a variable in"),
            ("u = E'%u'", "with escapes"),
            ("u = %q", "no variable"),
            ("u = %{nobody}", "no variable"),
            ("u = $1", "for the parameters"),
            ("u % 2", "no variable"),
        ] {
            let error = Query::parse(text).unwrap_err();
            assert!(error.message.contains(why), "{text}: {error}");
            assert!(!error.advice.is_empty(), "{text}");
        }
    }

    proptest! {
        /// Whoever somebody says he is, the statement is the same.
        #[test]
        fn nothing_from_outside_is_in_the_statement(text in "[a-z '%\"un{}/*-]{0,30}", user in ".{0,20}") {
            if let Ok(query) = Query::parse(&text) {
                let count = query.statement.matches('$').count();
                if let Ok(parameters) = query.parameters(&variables(&user)) {
                    prop_assert_eq!(parameters.len(), count);
                }
            }
        }
    }
}
