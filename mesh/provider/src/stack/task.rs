//! Tasks that a file names, under the `x-portolan` of a service or of the whole file.

use std::{net::IpAddr, path::PathBuf};

use portolan_model::ServiceId;

use super::{StaticTask, TaskPlace, context::Context, undeclared};
use crate::{cursor::At, diagnostic::quoted};

const KEYS_IN_SERVICE: &[&str] = &["address", "netns", "node", "pid", "slot", "weight"];
const KEYS: &[&str] = &[
    "address", "netns", "node", "pid", "service", "slot", "weight",
];

/// Reads a list of tasks; `service` is the key of the service that they stand in, if they do.
pub(super) fn read_all(at: &At<'_>, service: Option<&str>, context: &mut Context) {
    for item in at.items() {
        if let Some(task) = read(&item, service, context) {
            check_unique(&item, &task, context);
            context.tasks.push(task);
        }
    }
}

fn read(at: &At<'_>, within: Option<&str>, context: &Context) -> Option<StaticTask> {
    let mut service = within.map(|key| context.services.get(key).cloned().flatten());
    let (mut node, mut slot, mut weight) = (None, None, None);
    let (mut places, mut place_keys) = (Vec::new(), 0);
    for option in at.fields() {
        let at = &option.value;
        match option.name {
            "service" if within.is_none() => service = Some(read_service(at, context)),
            "node" => node = Some(read_node(at)),
            "slot" => slot = at.number(1, u32::MAX),
            "weight" => weight = at.number(0, u16::MAX),
            "netns" | "pid" | "address" => {
                place_keys += 1;
                places.extend(match option.name {
                    "netns" => read_netns(at),
                    "pid" => at.number(1, i32::MAX.unsigned_abs()).map(TaskPlace::Pid),
                    _ => read_address(at),
                });
            }
            _ => option.unknown(if within.is_some() {
                KEYS_IN_SERVICE
            } else {
                KEYS
            }),
        }
    }
    if service.is_none() {
        at.error("the task has no service", "add `service`");
    }
    if node.is_none() {
        at.error(
            "the task has no node",
            "add `node`, the name of the node that it runs on",
        );
    }
    match place_keys {
        0 => at.error(
            "the task has no place",
            "add one of `netns`, `pid` and `address`",
        ),
        1 => {}
        _ => at.error(
            "the task has more than one place",
            "leave one of `netns`, `pid` and `address`",
        ),
    }
    Some(StaticTask {
        service: service.flatten()?,
        node: node.flatten()?,
        slot,
        place: places.pop().filter(|_| place_keys == 1)?,
        weight,
    })
}

/// A service of the file, by its key or its full name.
fn read_service(at: &At<'_>, context: &Context) -> Option<ServiceId> {
    let key = at.text()?;
    let by_key = context.services.get(&key).cloned();
    let mut ids = context.services.values();
    if let Some(found) = by_key.or_else(|| {
        ids.find(|id| id.as_ref().is_some_and(|id| id.as_str() == key))
            .cloned()
    }) {
        return found;
    }
    let known: Vec<_> = context.services.keys().map(String::as_str).collect();
    at.fault(undeclared("service", &key, &known, "`services`"));
    None
}

/// Names of nodes are free, but they are shown in tables and stand in labels of metrics.
fn read_node(at: &At<'_>) -> Option<String> {
    let name = at.text()?;
    if name.is_empty()
        || name.len() > 255
        || name.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        at.error(
            format!("{} is no name of a node", quoted(&name)),
            "write the name that `portolan nodes` shows",
        );
        return None;
    }
    Some(name)
}

fn read_netns(at: &At<'_>) -> Option<TaskPlace> {
    let path = at.text()?;
    if !path.starts_with('/') || path.contains('\0') {
        at.error(
            format!("{} is no absolute path", quoted(&path)),
            format!(
                "write the path of a network namespace, such as /run/netns/{}",
                name_of(&path)
            ),
        );
        return None;
    }
    Some(TaskPlace::Netns(PathBuf::from(path)))
}

/// The namespace that was probably meant: `ip netns` keeps them by name in /run/netns.
fn name_of(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()) => name,
        _ => "web1",
    }
}

fn read_address(at: &At<'_>) -> Option<TaskPlace> {
    let text = at.text()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        at.error(
            format!("{} is no address", quoted(&text)),
            "write an IP address without a port, as the ports are those of the service",
        );
        return None;
    };
    let unusable = match address.to_canonical() {
        a if a.is_loopback() => "is the node's own loopback, which other nodes cannot reach",
        a if a.is_unspecified() => "is every address and none",
        a if a.is_multicast() => "is a multicast address",
        IpAddr::V4(a) if a.is_broadcast() => "is the broadcast address",
        IpAddr::V6(a) if a.is_unicast_link_local() => "is link-local, known on one link only",
        _ => return Some(TaskPlace::Address(address)),
    };
    at.error(
        format!("{address} {unusable}"),
        "write an address of the node that the others reach",
    );
    None
}

fn check_unique(at: &At<'_>, task: &StaticTask, context: &mut Context) {
    if let Some(slot) = task.slot
        && !context.slots.insert((task.service.clone(), slot))
    {
        at.error(
            format!(
                "service {} has a task with slot {slot} already",
                task.service
            ),
            "give each task a slot of its own, or leave all out",
        );
    }
    let place = (task.service.clone(), task.node.clone(), task.place.clone());
    if !context.places.insert(place) {
        at.error(
            format!("service {} has a task at this place already", task.service),
            "remove one of the two",
        );
    }
}
