//! YAML as a tree that knows its places. Deserializing into structs would stop at the first value that
//! does not fit; a tree can be walked to the end, and everything wrong with it reported at once.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{
    Error, Location, MessageFormatter, Spanned, UserMessageFormatter, budget::BudgetBreach,
    options::NonFiniteFloatPolicy,
};

use crate::diagnostic::{Fault, Place};

/// Larger files are refused before they are parsed; the largest of real ones have some hundred KiB.
const MAX_BYTES: usize = 4 << 20;
/// Deeper files are refused. Real ones have some ten levels, and each takes up to 50 KiB of stack.
const MAX_DEPTH: usize = 20;
/// Nodes after the expansion of aliases, so that a few lines cannot become a million.
const MAX_NODES: usize = 100_000;

/// A value and its place: for an alias or a merged key, where it is defined.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) place: Option<Place>,
    pub(crate) value: Value,
}

/// A value. Merge keys and aliases are already resolved.
#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Flag(bool),
    Integer(i128),
    Fraction(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map and its place.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) place: Option<Place>,
    pub(crate) name: String,
}

impl Node {
    /// The tree of a text of one document.
    pub(crate) fn parse(text: &str) -> Result<Self, (Option<Place>, Fault)> {
        if text.len() > MAX_BYTES {
            let fault = Fault::new(
                format!("the file has {} bytes of at most {MAX_BYTES}", text.len()),
                "split it into several stacks",
            );
            return Err((None, fault));
        }
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_depth: MAX_DEPTH,
                max_nodes: MAX_NODES,
            },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: 2 * MAX_NODES,
            },
            strict_booleans: true,
            non_finite_float_policy: NonFiniteFloatPolicy::AsString,
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let at = error.location().and_then(place);
            (at, fault_of(&error))
        })
    }
}

fn fault_of(error: &Error) -> Fault {
    match error {
        // Something wrong below an alias; the place is that of the alias.
        Error::AliasError { error, .. } => fault_of(error),
        Error::Budget {
            breach: BudgetBreach::Depth { .. },
            ..
        } => Fault::new(
            format!("the file is nested deeper than {MAX_DEPTH} levels"),
            "flatten it here",
        ),
        Error::Budget {
            breach: BudgetBreach::Nodes { .. },
            ..
        } => Fault::new(
            format!("the file has more than {MAX_NODES} values, with its aliases filled in"),
            "split it into several stacks, or use fewer aliases",
        ),
        other => Fault {
            message: format!(
                "not valid YAML: {}",
                UserMessageFormatter.format_message(other)
            ),
            remedy: None,
        },
    }
}

fn place(location: Location) -> Option<Place> {
    Some(Place {
        line: usize::try_from(location.line()).ok().filter(|n| *n > 0)?,
        column: usize::try_from(location.column()).ok()?,
    })
}

impl Value {
    /// What the value is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Flag(_) => "true or false",
            Self::Integer(_) | Self::Fraction(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            place: place(spanned.defined),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self {
            place: place(spanned.defined),
            name: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Integer(number.into()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Value, E> {
        Ok(i128::try_from(number).map_or(Value::Text(number.to_string()), Value::Integer))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Fraction(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }
}
