//! What is wrong with a file, and the collection of it.

use std::{cell::RefCell, collections::BTreeSet, fmt};

use serde::Serialize;

/// A line and a column of a file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// One thing that is wrong with a file.
///
/// Displayed as `stack.yml:12:9: services.web.ports[1]: what is wrong; what to do about it`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file.
    pub source: String,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// The column, from 1, in characters, where it is known.
    pub column: Option<usize>,
    /// The keys that lead there: `services.web.ports[1]`. Empty is the whole file.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it, where that is not plain from the message.
    pub remedy: Option<String>,
}

impl Diagnostic {
    /// What is wrong with an object that has no lines: `source` names it, `path` the part of it.
    pub fn of_object(source: &str, path: &str, message: &str, remedy: Option<&str>) -> Self {
        let text = |text: &str| printable(text.to_owned());
        Self {
            source: text(source),
            line: None,
            column: None,
            path: text(path),
            message: text(message),
            remedy: remedy.map(text),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;
        self.remedy
            .as_ref()
            .map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

impl std::error::Error for Diagnostic {}

/// What is wrong with a value, before it is known where the value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) remedy: Option<String>,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// The fault that an error tells. Errors here are worded `what is wrong; what to do about it`, and the
    /// second part never holds the user's own text, so that the last semicolon is the one between them.
    pub(crate) fn of<E: fmt::Display>(error: &E) -> Self {
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((message, remedy)) => Self::new(message, remedy),
            None => Self {
                message: text,
                remedy: None,
            },
        }
    }
}

/// What reading a file has found besides its meaning: all that is wrong, and the keys passed over.
pub(crate) struct Report {
    source: String,
    wrong: RefCell<Vec<Diagnostic>>,
    ignored: RefCell<BTreeSet<String>>,
}

impl Report {
    pub(crate) fn new(source: &str) -> Self {
        Self {
            source: printable(source.to_owned()),
            wrong: RefCell::default(),
            ignored: RefCell::default(),
        }
    }

    pub(crate) fn add(&self, place: Option<Place>, path: &str, fault: Fault) {
        self.wrong.borrow_mut().push(Diagnostic {
            source: self.source.clone(),
            line: place.map(|p| p.line),
            column: place.map(|p| p.column),
            path: printable(path.to_owned()),
            message: printable(fault.message),
            remedy: fault.remedy.map(printable),
        });
    }

    /// Notes a key that has nothing to do with the network.
    pub(crate) fn ignore(&self, key: &str) {
        self.ignored.borrow_mut().insert(printable(key.to_owned()));
    }

    /// The keys passed over, each once, in alphabetical order.
    pub(crate) fn ignored(&self) -> Vec<String> {
        self.ignored.borrow().iter().cloned().collect()
    }

    /// All that is wrong, in the order in which it was found.
    pub(crate) fn into_wrong(self) -> Vec<Diagnostic> {
        self.wrong.into_inner()
    }

    /// What was read, unless something is wrong; then all of that, in the order of the file.
    pub(crate) fn finish<T>(self, read: Option<T>) -> Result<T, Vec<Diagnostic>> {
        let mut wrong = self.wrong.into_inner();
        match read {
            Some(read) if wrong.is_empty() => Ok(read),
            _ => {
                wrong.sort_by_key(|d| (d.line, d.column));
                Err(wrong)
            }
        }
    }
}

/// Text of a user as it may stand in a message: in quotes, and not endless.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    if text.chars().count() <= LONGEST {
        return format!("'{text}'");
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("'{start}...'")
}

/// Text of a file must not fill a screen, and its control characters not reach a terminal or break a line
/// of a log.
fn printable(text: String) -> String {
    const LONGEST: usize = 1000;
    if text.len() <= LONGEST && !text.contains(char::is_control) {
        return text;
    }
    text.chars()
        .take(LONGEST)
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}
