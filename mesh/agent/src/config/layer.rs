//! What one source said, before it is known what it means.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{ConfigProblem, key::Key};

/// The keys that one source gives, as text, and what is wrong with the source itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer {
    pub(crate) entries: BTreeMap<Key, Entry>,
    pub(crate) problems: Vec<ConfigProblem>,
}

impl Layer {
    /// Gives a key one value from the command line, as if by its flag.
    pub fn set_flag(&mut self, key: Key, value: impl Into<String>) {
        let origin = Origin::Flag;
        let values = vec![Value {
            text: value.into(),
            origin: origin.clone(),
        }];
        self.entries.insert(key, Entry { values, origin });
    }

    /// Whether no key is given.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the source had nothing wrong with it; the values may still be.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

/// What a key was given: one value, or for a list any number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) values: Vec<Value>,
    /// Where the key itself stands.
    pub(crate) origin: Origin,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In a file, at a line from 1.
    File { source: Arc<str>, line: usize },
    /// In the environment.
    Environment,
    /// On the command line.
    Flag,
    /// Nowhere.
    Default,
}

impl Origin {
    /// The place of a key, as it begins a message.
    pub(crate) fn place(&self, key: Key) -> String {
        match self {
            Self::File { source, line } => format!("{source}:{line}: {}", key.name()),
            Self::Environment => key.variable(),
            Self::Flag => key.flag(),
            Self::Default => key.name().to_owned(),
        }
    }
}

/// What is wrong with a value, before it is known where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) remedy: String,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn at(self, place: impl Into<String>) -> ConfigProblem {
        ConfigProblem {
            place: place.into(),
            message: self.message,
            remedy: self.remedy,
        }
    }
}

/// Reads the environment. Variables that are empty count as not set, which is how service managers and
/// container tools leave one out. Other `PORTOLAN_*` variables may belong to something else and are passed
/// over, unless they look like a key misspelt.
pub fn parse_env(variables: impl IntoIterator<Item = (String, String)>) -> Layer {
    let mut layer = Layer::default();
    for (variable, text) in variables {
        let Some(name) = variable.strip_prefix("PORTOLAN_") else {
            continue;
        };
        let name = name.to_ascii_lowercase();
        if text.is_empty() || name == "config" {
            continue;
        }
        let Some(key) = Key::ALL.into_iter().find(|key| key.name() == name) else {
            if let Some(near) = nearest(&name, Key::ALL.iter().map(|key| key.name())) {
                layer.problems.push(
                    Fault::new(
                        "no such variable",
                        format!("did you mean PORTOLAN_{}?", near.to_ascii_uppercase()),
                    )
                    .at(variable),
                );
            }
            continue;
        };
        let origin = Origin::Environment;
        let values = split(key, &text)
            .map(|text| Value {
                text,
                origin: origin.clone(),
            })
            .collect();
        layer.entries.insert(key, Entry { values, origin });
    }
    layer
}

/// The values in a text from the environment or a flag.
pub(crate) fn split(key: Key, text: &str) -> impl Iterator<Item = String> {
    let list = key.shape() == super::key::Shape::List;
    let parts: Vec<&str> = if list {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect()
    } else {
        vec![text.trim()]
    };
    parts
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

/// The name that was probably meant, if any is near enough.
pub(crate) fn nearest<'a>(
    wrong: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    /// Two letters wrong in a short name, one in four in a long one.
    const NEAR: f64 = 0.6;
    names
        .into_iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(wrong, name), name))
        .filter(|&(similarity, _)| similarity >= NEAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

/// A user's text as it may stand in a message: in quotes, without control characters, and not endless.
pub(crate) fn quoted(text: &str) -> impl fmt::Display {
    const LONGEST: usize = 80;
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .flat_map(|c| {
            let escaped: String = if c.is_control() {
                c.escape_default().collect()
            } else {
                c.into()
            };
            escaped.chars().collect::<Vec<_>>()
        })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    format!("'{shown}'")
}
