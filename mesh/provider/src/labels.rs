//! Labels (`portolan.publish=8080:80/tcp`): the words of stack files for services that another engine
//! declares, each label one key and its text one value.

use std::collections::BTreeMap;

use portolan_model::{
    EndpointMode, INGRESS_NETWORK, NameError, NetworkName, Service, ServiceId, ServiceNetwork,
};

use crate::{
    cursor::{At, Field, instead},
    diagnostic::{Diagnostic, Report},
    port::parse_port,
    stack::{options, service},
    yaml::{Key, Node, Value},
};

/// What the names of labels that are for Portolan start with.
pub const LABEL_PREFIX: &str = "portolan.";

/// The labels that are no option of `x-portolan`.
const KEYS: &[&str] = &[
    "enable",
    "endpoint_mode",
    "networks",
    "publish",
    "service",
    "slot",
    "weight",
];
/// Those of them that say something of the one task only.
const OF_THE_TASK: &[&str] = &["enable", "service", "slot", "weight"];
/// Labels that hold several values, with commas between.
const LISTS: &[&str] = &["allow", "networks", "publish"];

/// Each port is compared with all before it, so that there must not be any number of them.
const MAX_PORTS: usize = 256;

/// What the labels of an object say besides the service that they describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Whether Portolan may serve the object at all: false only with `portolan.enable=false`.
    pub enabled: bool,
    /// The service that the object is, or is a task of: `portolan.service`.
    pub service: Option<ServiceId>,
    /// The task's number within the service, from 1.
    pub slot: Option<u32>,
    /// The task's share of new flows, relative to the other tasks; 0 is none.
    pub weight: Option<u16>,
    /// Whether a label describes the service, and not the one task only.
    pub declares: bool,
    /// Whether the service, with all that was read, can be published as a record.
    pub fits: bool,
    /// Everything that is wrong. What is wrong is left out of the service, the rest is in it.
    pub wrong: Vec<Diagnostic>,
}

impl Labels {
    /// Adds to `service` what the labels say; those that do not start with [`LABEL_PREFIX`] are passed over.
    /// `source` names the object in messages.
    ///
    /// In the names of labels `-` is the same as `_`. Published ports left open are 0.
    pub fn apply<'a>(
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        source: &str,
        service: &mut Service,
    ) -> Self {
        let report = Report::new(source);
        let tree = tree(labels);
        let mut read = Self {
            enabled: true,
            service: None,
            slot: None,
            weight: None,
            declares: false,
            fits: true,
            wrong: Vec::new(),
        };
        let root = At::root(&tree, &report);
        for field in root.fields() {
            read.take(&field, service);
            read_options(&field.value, service);
            for (fault, mend) in service::contradictions(service) {
                field.fault(fault);
                mend(service);
            }
        }
        if let Some(fault) = service::too_long(service) {
            root.fault(fault);
            read.fits = false;
        }
        read.wrong = report.into_wrong();
        read
    }

    fn take(&mut self, root: &Field<'_>, service: &mut Service) {
        for field in root.value.fields() {
            self.declares |= !OF_THE_TASK.contains(&field.name);
            let at = &field.value;
            match field.name {
                // In doubt nothing is served that may not be.
                "enable" => self.enabled = at.flag().unwrap_or(false),
                "service" => self.service = at.parse(str::parse::<ServiceId>),
                "slot" => self.slot = at.number(1, u32::MAX),
                "weight" => self.weight = at.number(0, u16::MAX),
                "publish" => publish(at, service),
                "networks" => join(at, service),
                "endpoint_mode" => {
                    let words = [("vip", EndpointMode::Vip), ("dnsrr", EndpointMode::Dnsrr)];
                    service.endpoint_mode = at.choice(&words).unwrap_or(service.endpoint_mode);
                }
                _ => {}
            }
        }
    }
}

/// Whether a text can be an alias of a service: one DNS label or some with dots between, at most 253
/// characters (RFC 1035).
///
/// # Errors
/// What stands against it.
pub fn check_alias(text: &str) -> Result<String, NameError> {
    service::check_alias(text)
}

/// Reads the options of `x-portolan`, and reports what is no label at all.
fn read_options(at: &At<'_>, service: &mut Service) {
    for field in at.fields() {
        if field.name == "health" && !field.value.is_map() {
            field.error(
                "the check asks nothing",
                "write portolan.health.http=/path or portolan.health.tcp=PORT",
            );
        } else if options::KEYS.contains(&field.name) {
            options::read_option(&field, service, &mut |tasks| {
                tasks.error("a container is a task by itself", "remove it");
            });
        } else if !KEYS.contains(&field.name) {
            let known = [KEYS, options::KEYS].concat();
            field.error("unknown label", instead(field.name, &known, "use"));
        }
    }
}

fn publish(at: &At<'_>, service: &mut Service) {
    if at.is_empty() {
        at.error("no port is given", "write such as 8080:80/tcp");
    }
    for item in at.items() {
        let Some(port) = item.parse(parse_port) else {
            continue;
        };
        if service.ports.len() >= MAX_PORTS {
            item.error(
                format!("the service publishes more than {MAX_PORTS} ports"),
                "publish ranges, such as 8000-8010:80-90",
            );
            return;
        }
        if service.ports.contains(&port) {
            continue;
        }
        // Ports still to be chosen cannot collide.
        let taken = |other: &&portolan_model::PublishedPort| {
            port.published > 0 && other.published > 0 && port.conflicts(other)
        };
        match service.ports.iter().find(taken) {
            Some(other) => item.error(
                format!("{port} is already published by this service, as {other}"),
                "remove one of the two",
            ),
            None => service.ports.push(port),
        }
    }
}

fn join(at: &At<'_>, service: &mut Service) {
    for item in at.items() {
        let Some(name) = item.parse(str::parse::<NetworkName>) else {
            continue;
        };
        if name.as_str() == INGRESS_NETWORK {
            item.error(
                "the network ingress is built in",
                "remove it: every service with published ports is on it",
            );
        } else if service.networks.iter().all(|place| place.name != name) {
            service.networks.push(ServiceNetwork {
                name,
                aliases: Vec::new(),
                vip: None,
            });
        }
    }
}

/// The labels as a file of the key `portolan` would have them: `health.http` is the key `http` of the map
/// `health`.
fn tree<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Node {
    let mut keys: BTreeMap<String, Node> = BTreeMap::new();
    let mut maps: BTreeMap<String, BTreeMap<String, Node>> = BTreeMap::new();
    for (name, text) in labels {
        let Some(key) = name.strip_prefix(LABEL_PREFIX) else {
            continue;
        };
        let key = key.replace('-', "_");
        if let Some((map, key)) = key.split_once('.') {
            let map = maps.entry(map.to_owned()).or_default();
            map.insert(key.to_owned(), node(scalar(text)));
        } else {
            let value = value(&key, text);
            keys.insert(key, node(value));
        }
    }
    keys.extend(maps.into_iter().map(|(key, map)| (key, node(to_map(map)))));
    if keys.is_empty() {
        return node(Value::Null);
    }
    let root = BTreeMap::from([("portolan".to_owned(), node(to_map(keys)))]);
    node(to_map(root))
}

fn node(value: Value) -> Node {
    Node { place: None, value }
}

fn to_map(map: BTreeMap<String, Node>) -> Value {
    let entries = map.into_iter();
    Value::Map(
        entries
            .map(|(name, node)| (Key { place: None, name }, node))
            .collect(),
    )
}

fn value(key: &str, text: &str) -> Value {
    if !LISTS.contains(&key) {
        return scalar(text);
    }
    let items = text.split(',').map(str::trim).filter(|t| !t.is_empty());
    Value::List(items.map(|t| node(Value::Text(t.to_owned()))).collect())
}

fn scalar(text: &str) -> Value {
    match text.trim() {
        "true" => Value::Flag(true),
        "false" => Value::Flag(false),
        text => Value::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests;
