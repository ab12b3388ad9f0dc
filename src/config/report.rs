//! What is wrong with a config file: every problem at once, each with its place and what to write instead.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    pub advice: Option<String>,
    /// Bytes of the file.
    pub place: Range<usize>,
    /// The file can be used all the same.
    pub is_warning: bool,
}

/// A file with what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    /// The file's name as given.
    pub file: String,
    pub text: String,
    pub problems: Vec<Problem>,
}

impl Errors {
    /// A file that cannot be read at all, or is not there.
    pub fn unreadable(file: &str, message: String, advice: &str) -> Errors {
        let problem = Problem {
            message,
            advice: Some(advice.into()),
            place: 0..0,
            is_warning: false,
        };
        Errors {
            file: file.into(),
            text: String::new(),
            problems: vec![problem],
        }
    }

    /// Not warnings alone.
    pub fn is_fatal(&self) -> bool {
        self.problems.iter().any(|problem| !problem.is_warning)
    }

    /// Lines of the problems, 1-based, in the order of the file.
    pub fn lines(&self) -> Vec<usize> {
        self.problems
            .iter()
            .map(|problem| line_of(&self.text, problem.place.start))
            .collect()
    }
}

/// The line that the byte at `at` is in, 1-based.
pub fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
        + 1
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let renderer = Renderer::plain();
        for problem in &self.problems {
            let level = if problem.is_warning {
                Level::WARNING
            } else {
                Level::ERROR
            };
            let title = level.primary_title(problem.message.as_str());
            let group = match self.text.is_empty() {
                true => Group::with_title(title)
                    .element(annotate_snippets::Origin::path(self.file.as_str())),
                false => {
                    let place = AnnotationKind::Primary.span(problem.place.clone());
                    let snippet = Snippet::source(self.text.as_str())
                        .path(self.file.as_str())
                        .annotation(place);
                    title.element(snippet)
                }
            };
            let group = match &problem.advice {
                Some(advice) => group.element(Level::HELP.message(advice.as_str())),
                None => group,
            };
            writeln!(f, "{}", renderer.render(&[group]))?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
