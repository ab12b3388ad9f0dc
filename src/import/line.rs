//! One line of a Dovecot configuration, in both dialects (Dovecot's `config-parser.c`).

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Nothing,
    Setting {
        key: String,
        value: Value,
    },
    /// `kind name {`
    Begin {
        kind: String,
        name: String,
    },
    End,
    Include {
        pattern: String,
        /// `!include_try`: it may be missing.
        may_miss: bool,
    },
}

/// The right side of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// As it is to be taken; `$name` in it is not looked at.
    Quoted(String),
    /// Without quotes.
    Plain(String),
    /// `<file`: what the file holds.
    File(String),
}

fn is_blank(letter: char) -> bool {
    letter == ' ' || letter == '\t'
}

/// The text before a comment, without blanks at its ends.
pub fn without_comment(line: &str) -> &str {
    let line = line.trim_start_matches(is_blank);
    let mut letters = line.char_indices();
    let mut quote = None;
    let mut end = line.len();
    while let Some((at, letter)) = letters.next() {
        match (quote, letter) {
            (Some(_), '\\') => drop(letters.next()),
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(letter),
            (None, '#') => {
                end = at;
                break;
            }
            (None, _) => {}
        }
    }
    line[..end].trim_end_matches(is_blank)
}

/// A line that `doveconf -n` has printed: a `#` in the name of a section is one, and values with a `#` are quoted.
pub fn of_doveconf(line: &str) -> &str {
    let line = line.trim_matches(is_blank);
    match line.ends_with('{') && !line.starts_with('#') {
        true => line,
        false => without_comment(line),
    }
}

/// Reads a line without its comment and line end. An error says what is wrong with it.
pub fn parse(line: &str) -> Result<Line, String> {
    if line.is_empty() {
        return Ok(Line::Nothing);
    }
    let key_end = line.find(|c| is_blank(c) || c == '=').unwrap_or(line.len());
    let (key, rest) = line.split_at(key_end);
    let rest = rest.trim_start_matches(is_blank);
    if key == "!include" || key == "!include_try" {
        return Ok(Line::Include {
            pattern: rest.to_owned(),
            may_miss: key == "!include_try",
        });
    }
    if let Some(value) = rest.strip_prefix('=') {
        if key.is_empty() {
            return Err("a setting has a name before the =".into());
        }
        return Ok(Line::Setting {
            key: unquoted(key).unwrap_or_else(|| key.to_owned()),
            value: value_of(value.trim_start_matches(is_blank)),
        });
    }
    if key == "}" && rest.is_empty() {
        return Ok(Line::End);
    }
    begin(key, rest)
}

fn value_of(text: &str) -> Value {
    match (text.strip_prefix('<'), unquoted(text)) {
        (Some(path), _) => Value::File(path.trim_matches(is_blank).to_owned()),
        (None, Some(inside)) => Value::Quoted(inside),
        (None, None) => Value::Plain(text.to_owned()),
    }
}

/// `name {`, `"name with blanks" {`, or `{` behind the kind of a section.
fn begin(kind: &str, rest: &str) -> Result<Line, String> {
    let wanted = || {
        format!(
            "{kind:?} is followed neither by = nor by {{: it is no setting and begins no section"
        )
    };
    let (name, behind) = match rest.strip_prefix('"') {
        _ if rest.starts_with('{') => (String::new(), rest),
        // Two words: `group @x a {`; doveconf prints several names of one certificate so.
        _ if matches!(kind, "group" | "local_name") && rest.ends_with('{') => {
            let end = rest.len() - 1;
            (
                rest[..end].trim_end_matches(is_blank).to_owned(),
                &rest[end..],
            )
        }
        Some(inside) => {
            let end = inside.find('"').ok_or_else(wanted)?;
            (unescaped(&inside[..end]), &inside[end + 1..])
        }
        None => {
            let end = rest.find(is_blank).unwrap_or(rest.len());
            (rest[..end].to_owned(), &rest[end..])
        }
    };
    match behind.trim_matches(is_blank) {
        "{" if !kind.is_empty() => Ok(Line::Begin {
            kind: kind.to_owned(),
            name,
        }),
        behind if behind.starts_with('{') => Err(format!(
            "{:?} behind the {{: a section begins a line of its own",
            behind[1..].trim_matches(is_blank)
        )),
        _ => Err(wanted()),
    }
}

/// Whether no setting and no section of Dovecot has such a name.
pub fn is_odd(name: &str) -> bool {
    let is_usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '@' | ':');
    !name.chars().all(is_usual)
}

/// What stands between quotes, where they are around the whole text.
fn unquoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inside = text[1..].strip_suffix(quote)?;
    Some(unescaped(inside))
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => out.extend(letters.next()),
            letter => out.push(letter),
        }
    }
    out
}
