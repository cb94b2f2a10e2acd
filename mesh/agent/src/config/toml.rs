//! The configuration file.

use std::{collections::BTreeMap, sync::Arc};

use ::toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    key::{Key, Shape},
    layer::{Entry, Fault, Layer, Origin, Value, nearest, quoted},
};

/// How many lines that are no TOML are told one by one.
const SYNTAX_ERRORS: usize = 5;

/// Reads the text of a configuration file. `source` is its name in messages. Whatever is wrong is kept in
/// the layer beside what could be read, so that one run shows all of it.
pub fn parse_toml(text: &str, source: &str) -> Layer {
    let lines = Lines {
        text,
        source: source.into(),
    };
    let mut layer = Layer::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut first = BTreeMap::new();
    for error in &errors {
        let line = error.span().map_or(1, |span| lines.number(span.start));
        // What follows on the same line follows from it.
        first.entry(line).or_insert(error);
    }
    let more = first.len().saturating_sub(SYNTAX_ERRORS);
    for (line, error) in first.into_iter().take(SYNTAX_ERRORS) {
        layer.problems.push(
            Fault::new(
                error.message().trim_end_matches('\n').replace('\n', ", "),
                "write it as TOML: key = value, text in quotes, lists in brackets",
            )
            .at(format!("{source}:{line}")),
        );
    }
    if more > 0 {
        let what = format!("no TOML: {more} more lines that cannot be read");
        let remedy = "give a configuration file; `portolan check --config FILE` reads it";
        layer.problems.push(Fault::new(what, remedy).at(source));
    }
    // After a syntax error the parser goes on with a guess: what it takes for a key may be none.
    let broken = !layer.problems.is_empty();
    for (name, value) in table.get_ref() {
        let line = lines.number(name.span().start);
        let Some(key) = Key::ALL
            .into_iter()
            .find(|key| key.name() == name.get_ref().as_ref())
        else {
            if !broken {
                layer.problems.push(unknown(name.get_ref(), source, line));
            }
            continue;
        };
        let origin = Origin::File {
            source: lines.source.clone(),
            line,
        };
        match read(key, value, &lines) {
            Ok(values) => {
                layer.entries.insert(key, Entry { values, origin });
            }
            Err(fault) if !broken => layer.problems.push(fault.at(origin.place(key))),
            Err(_) => {}
        }
    }
    // The table is ordered by key; people read their file from the top.
    layer.problems.sort_by_key(|problem| {
        let line = problem.place.strip_prefix(source).and_then(|rest| {
            let digits = rest.strip_prefix(':')?.split(':').next()?;
            digits.parse::<usize>().ok()
        });
        line.unwrap_or_default()
    });
    layer
}

struct Lines<'a> {
    text: &'a str,
    source: Arc<str>,
}

impl Lines<'_> {
    /// The line, from 1, of a place in the text.
    fn number(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|&&byte| byte == b'\n').count()
    }
}

fn unknown(name: &str, source: &str, line: usize) -> super::ConfigProblem {
    let remedy = nearest(name, Key::ALL.iter().map(|key| key.name())).map_or_else(
        || {
            let keys: Vec<_> = Key::ALL.iter().map(|key| key.name()).collect();
            format!("the keys are {}", keys.join(", "))
        },
        |near| format!("did you mean {near}?"),
    );
    Fault::new(format!("unknown key {}", quoted(name)), remedy).at(format!("{source}:{line}"))
}

/// The values of a key, as text.
fn read(key: Key, value: &Spanned<DeValue<'_>>, lines: &Lines<'_>) -> Result<Vec<Value>, Fault> {
    let at = |span: std::ops::Range<usize>| Origin::File {
        source: lines.source.clone(),
        line: lines.number(span.start),
    };
    let text = |spanned: &Spanned<DeValue<'_>>| {
        scalar(spanned.get_ref(), key.shape()).map(|text| Value {
            text,
            origin: at(spanned.span()),
        })
    };
    let values = match (key.shape(), value.get_ref()) {
        (Shape::List, DeValue::Array(items)) => items.iter().map(text).collect(),
        _ => text(value).map(|value| vec![value]),
    };
    values.ok_or_else(|| {
        let wanted = match key.shape() {
            Shape::Text => format!("give it text in quotes: {} = \"...\"", key.name()),
            Shape::Number => format!("give it a whole number without quotes: {} = 1", key.name()),
            Shape::Switch => format!("give it true or false: {} = true", key.name()),
            Shape::TextOrSwitch => format!(
                "give it text in quotes, true or false: {} = \"...\"",
                key.name()
            ),
            Shape::List => format!("give it a list of texts: {} = [\"...\"]", key.name()),
        };
        Fault::new(format!("takes no {}", value.get_ref().type_str()), wanted)
    })
}

fn scalar(value: &DeValue<'_>, shape: Shape) -> Option<String> {
    match (shape, value) {
        (Shape::Text | Shape::TextOrSwitch | Shape::List, DeValue::String(text)) => {
            Some(text.to_string())
        }
        (Shape::Number, DeValue::Integer(number)) => {
            // The parser keeps digits without their radix; `0x10` must not be read as ten.
            i64::from_str_radix(number.as_str(), number.radix())
                .ok()
                .map(|number| number.to_string())
        }
        (Shape::Switch | Shape::TextOrSwitch, DeValue::Boolean(switch)) => Some(switch.to_string()),
        _ => None,
    }
}
