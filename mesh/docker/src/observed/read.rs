//! From the engine's JSON to what it says.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Container, DockerNetwork, Engine, Kind, SwarmNode, SwarmService, SwarmTask, Unreadable, wire,
};

/// An object of the engine that can be read from its JSON.
pub trait Readable: Sized {
    /// What it is, in messages.
    const KIND: Kind;
    /// The object that this JSON speaks of; nulls are gone from it.
    ///
    /// # Errors
    /// The place that makes no sense, and why.
    fn of_json(json: Value) -> Result<Self, String>;
}

/// Reads one object.
///
/// # Errors
/// It cannot be read, or has no identity.
pub fn read<T: Readable>(json: Value) -> Result<T, Unreadable> {
    let text = |names: &[&str]| {
        let mut found = names.iter().filter_map(|name| json.get(name)?.as_str());
        found.next().unwrap_or_default().to_owned()
    };
    let id = text(&["ID", "Id"]);
    let of_spec = || Some(json.get("Spec")?.get("Name")?.as_str()?.to_owned());
    let name = of_spec().unwrap_or_else(|| text(&["Name"]));
    let unreadable = |reason: String| Unreadable {
        kind: T::KIND,
        id: id.clone(),
        name: name.trim_start_matches('/').to_owned(),
        reason,
    };
    if !json.is_object() {
        return Err(unreadable("it is no object".into()));
    }
    if id.is_empty() && T::KIND != Kind::Engine {
        return Err(unreadable("it has no identity".into()));
    }
    T::of_json(without_nulls(json)).map_err(unreadable)
}

/// Reads a list of objects, each for itself.
///
/// # Errors
/// It is no list. Nothing at all (`null`) is an empty one.
pub fn read_list<T: Readable>(json: Value) -> Result<(Vec<T>, Vec<Unreadable>), Unreadable> {
    let items = match json {
        Value::Array(items) => items,
        Value::Null => Vec::new(),
        _ => {
            return Err(Unreadable {
                kind: T::KIND,
                id: String::new(),
                name: String::new(),
                reason: "the engine gives no list of them".into(),
            });
        }
    };
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for item in items {
        match read(item) {
            Ok(object) => good.push(object),
            Err(error) => bad.push(error),
        }
    }
    Ok((good, bad))
}

/// JSON in which what is null is absent: the engine writes either.
fn without_nulls(json: Value) -> Value {
    match json {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, v)| (key, without_nulls(v))).collect())
        }
        Value::Array(items) => {
            let kept = items.into_iter().filter(|value| !value.is_null());
            Value::Array(kept.map(without_nulls).collect())
        }
        other => other,
    }
}

fn from_wire<W: DeserializeOwned>(json: Value) -> Result<W, String> {
    serde_path_to_error::deserialize(json).map_err(|error| error.to_string())
}

macro_rules! read_by {
    ($($object:ty, $kind:ident, $wire:ty;)*) => {$(
        impl Readable for $object {
            const KIND: Kind = Kind::$kind;
            fn of_json(json: Value) -> Result<Self, String> {
                from_wire::<$wire>(json).map(Into::into)
            }
        }
    )*};
}

read_by! {
    Engine, Engine, wire::Info;
    SwarmService, Service, wire::Service;
    SwarmTask, Task, wire::Task;
    SwarmNode, Node, wire::Node;
    DockerNetwork, Network, wire::Network;
    Container, Container, wire::Inspected;
    Listed, Container, wire::Summary;
}

/// A container as the list of all has it: enough to tell whether it has to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: String,
    /// Whether it has a label of the Swarm or of Portolan.
    pub(crate) labelled: bool,
    /// The identities of its networks.
    pub(crate) networks: Vec<String>,
}

impl From<wire::Summary> for Listed {
    fn from(summary: wire::Summary) -> Self {
        let mut labels = summary.labels.keys();
        Self {
            id: summary.id,
            labelled: labels.any(|name| crate::concerns_us(name)),
            networks: summary
                .network_settings
                .networks
                .into_values()
                .map(|endpoint| endpoint.network_id)
                .collect(),
        }
    }
}
