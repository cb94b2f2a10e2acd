//! A place in a file that is being read: a value, the keys that lead to it, and where to report what is
//! wrong with it. Every reading method reports and gives `None` (or nothing) when the value does not fit,
//! so that the caller goes on to the next one.

use std::fmt::Display;

use crate::{
    diagnostic::{Fault, Place, Report, quoted},
    yaml::{Node, Value},
};

/// The longest key that is shown in full.
const LONGEST_KEY: usize = 80;

/// A value in its place.
pub(crate) struct At<'a> {
    node: &'a Node,
    path: String,
    report: &'a Report,
}

/// An entry of a map.
pub(crate) struct Field<'a> {
    /// Its key.
    pub(crate) name: &'a str,
    /// Its value.
    pub(crate) value: At<'a>,
    key_place: Option<Place>,
}

impl<'a> At<'a> {
    pub(crate) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self {
            node,
            path: String::new(),
            report,
        }
    }

    /// Reports something that is wrong here.
    pub(crate) fn fault(&self, fault: Fault) {
        self.report.add(self.node.place, &self.path, fault);
    }

    pub(crate) fn error(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.fault(Fault::new(message, remedy));
    }

    fn unfit(&self, expected: &str) {
        self.error(
            format!("found {}", self.node.value.kind()),
            format!("write {expected}"),
        );
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// How many entries a list or map has; nothing is an empty one.
    pub(crate) fn len(&self) -> usize {
        match &self.node.value {
            Value::Null => 0,
            Value::List(items) => items.len(),
            Value::Map(entries) => entries.len(),
            _ => 1,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_flag(&self) -> bool {
        matches!(self.node.value, Value::Flag(_))
    }

    /// The entries of a map; nothing is an empty one.
    pub(crate) fn fields(&self) -> Vec<Field<'a>> {
        match &self.node.value {
            Value::Null => Vec::new(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| Field {
                    name: &key.name,
                    value: Self {
                        node,
                        path: self.below(&key.name),
                        report: self.report,
                    },
                    key_place: key.place,
                })
                .collect(),
            _ => {
                self.unfit("a map");
                Vec::new()
            }
        }
    }

    /// The items of a list; nothing is an empty one.
    pub(crate) fn items(&self) -> Vec<Self> {
        match &self.node.value {
            Value::Null => Vec::new(),
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(i, node)| Self {
                    node,
                    path: format!("{}[{i}]", self.path),
                    report: self.report,
                })
                .collect(),
            _ => {
                self.unfit("a list");
                Vec::new()
            }
        }
    }

    /// The path of an entry. A key that is no name of anything is cut, as it would be copied into the path
    /// of every value below it.
    fn below(&self, key: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        if key.len() <= LONGEST_KEY {
            return format!("{}{dot}{key}", self.path);
        }
        let start: String = key.chars().take(LONGEST_KEY).collect();
        format!("{}{dot}{start}...", self.path)
    }

    /// A text, or a number as one, without a report where it is neither.
    pub(crate) fn plain_text(&self) -> Option<String> {
        match &self.node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Fraction(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// A text, or a number as one.
    pub(crate) fn text(&self) -> Option<String> {
        let Some(text) = self.plain_text() else {
            self.unfit("a text");
            return None;
        };
        if text.contains("${") {
            self.error(
                format!("variables are not filled in: {}", quoted(&text)),
                "write the value, or give what `docker compose config` prints of the file",
            );
            return None;
        }
        Some(text)
    }

    /// A text that `read` understands; its error is worded as [`Fault::of`] wants it.
    pub(crate) fn parse<T, E: Display>(
        &self,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        read(&self.text()?)
            .map_err(|error| self.fault(Fault::of(&error)))
            .ok()
    }

    /// True or false, also as a text and in the words of YAML 1.1, as Docker takes them.
    pub(crate) fn flag(&self) -> Option<bool> {
        let flag = match &self.node.value {
            Value::Flag(flag) => Some(*flag),
            Value::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        };
        if flag.is_none() {
            self.unfit("true or false");
        }
        flag
    }

    /// A whole number from `least` to `most`, also as a text.
    pub(crate) fn number<T>(&self, least: T, most: T) -> Option<T>
    where
        T: Copy + Display + PartialOrd + TryFrom<i128>,
    {
        let number = match &self.node.value {
            Value::Integer(number) => Some(*number),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        let fits = number
            .and_then(|n| T::try_from(n).ok())
            .filter(|n| (least..=most).contains(n));
        if fits.is_none() {
            let expected = format!("a whole number from {least} to {most}");
            match number {
                Some(number) => self.error(
                    format!("{number} is out of range"),
                    format!("write {expected}"),
                ),
                None => self.unfit(&expected),
            }
        }
        fits
    }

    /// One of some words.
    pub(crate) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.error(
                format!("{} is not known here", quoted(&text)),
                instead(&text, &known, "write"),
            );
        }
        found.map(|(_, value)| *value)
    }

    /// Notes a key of Compose that says nothing about the network.
    pub(crate) fn ignore(&self, key: &str) {
        self.report.ignore(key);
    }
}

impl Field<'_> {
    /// Reports something that is wrong with the key itself.
    pub(crate) fn fault(&self, fault: Fault) {
        self.report().add(self.key_place, &self.value.path, fault);
    }

    /// Reports a key that has no meaning here. Compose leaves keys that start with `x-` to others.
    pub(crate) fn unknown(&self, known: &[&str]) {
        if self.name == "x-portolan" {
            self.error(
                "x-portolan has no meaning here",
                "move it into a service, or to the top level for `tasks`",
            );
        } else if nearest(self.name, known).is_some() || !self.name.starts_with("x-") {
            self.error("unknown key", instead(self.name, known, "use"));
        }
    }

    /// Notes a key of Compose that says nothing about the network, under `parent`. One that is nearly one
    /// of `known` is an error instead: to pass over `port` would lose the ports of a service.
    pub(crate) fn ignore(&self, parent: &str, known: &[&str]) {
        if self.name.starts_with("x-") || nearest(self.name, known).is_some() {
            self.unknown(known);
        } else {
            self.report().ignore(&format!("{parent}{}", self.name));
        }
    }

    pub(crate) fn error(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.fault(Fault::new(message, remedy));
    }

    fn report(&self) -> &Report {
        self.value.report
    }
}

/// What to write instead of a word that is not known: the one it resembles, or all of them.
pub(crate) fn instead(word: &str, known: &[&str], verb: &str) -> String {
    match nearest(word, known) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => "remove it".to_owned(),
        None => format!("{verb} {}", one_of(known)),
    }
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The word of `known` that differs by a slip of the keyboard or two.
pub(crate) fn nearest<'w>(word: &str, known: &[&'w str]) -> Option<&'w str> {
    known
        .iter()
        .filter(|candidate| word.len().abs_diff(candidate.len()) <= 2)
        .map(|candidate| (strsim::osa_distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| {
            *distance > 0 && *distance <= 2 && *distance * 3 <= candidate.len()
        })
        .min()
        .map(|(_, candidate)| candidate)
}
