//! `services.*.ports`, in the short and in the long syntax.

use portolan_model::{Protocol, PublishMode, PublishedPort};

use crate::{
    cursor::At,
    diagnostic::Fault,
    port::{join, parse_address, parse_port, parse_protocol, parse_published, parse_target},
    stack::context::Context,
};

const KEYS: &[&str] = &[
    "app_protocol",
    "host_ip",
    "mode",
    "name",
    "protocol",
    "published",
    "target",
];

/// Each port is compared with all before it, so that there must not be any number of them.
const MAX_PORTS: usize = 8192;

pub(super) fn read_all(at: &At<'_>, service: &str, context: &mut Context) -> Vec<PublishedPort> {
    let mut ports = Vec::new();
    for item in at.items() {
        let port = if item.is_map() {
            read_long(&item)
        } else {
            item.parse(parse_port)
        };
        let Some(port) = port else { continue };
        // Ports still to be chosen cannot collide.
        if port.published > 0 {
            if context.ports.len() >= MAX_PORTS {
                item.error(
                    format!("the file publishes more than {MAX_PORTS} ports"),
                    "split it into several stacks, or use ranges",
                );
                break;
            }
            if is_taken(&item, &port, service, context) {
                continue;
            }
            context.ports.push((port, service.to_owned()));
        }
        ports.push(port);
    }
    ports
}

fn read_long(at: &At<'_>) -> Option<PublishedPort> {
    let (mut target, mut published) = (None, None);
    let (mut target_text, mut published_text) = (None, String::new());
    let (mut protocol, mut mode, mut address) = (Protocol::Tcp, PublishMode::Ingress, None);
    let mut whole = true;
    for option in at.fields() {
        let at = &option.value;
        match option.name {
            "target" => {
                target = at.parse(parse_target);
                target_text = at.plain_text();
                whole &= target.is_some();
            }
            "published" if at.is_null() => {}
            "published" => {
                let read = at.parse(parse_published);
                whole &= read.is_some();
                published = read.flatten();
                published_text = at.plain_text().unwrap_or_default();
            }
            "protocol" => match at.parse(parse_protocol) {
                Some(read) => protocol = read,
                None => whole = false,
            },
            "mode" => match at.choice(&[
                ("ingress", PublishMode::Ingress),
                ("host", PublishMode::Host),
            ]) {
                Some(read) => mode = read,
                None => whole = false,
            },
            "host_ip" => match at.parse(parse_address) {
                Some(read) => address = read,
                None => whole = false,
            },
            // For people and for Kubernetes; they change nothing here.
            "name" | "app_protocol" => {}
            _ => option.unknown(KEYS),
        }
    }
    let Some(target_text) = target_text else {
        at.error(
            "the port has no target",
            "add `target`, the port in the task",
        );
        return None;
    };
    let target = target.filter(|_| whole)?;
    let port = join(published, target, &published_text, &target_text)
        .map_err(|error| at.fault(Fault::of(&error)))
        .ok()?;
    Some(PublishedPort {
        protocol,
        mode,
        address,
        ..port
    })
}

/// Reports a port that the file publishes already.
fn is_taken(at: &At<'_>, port: &PublishedPort, service: &str, context: &Context) -> bool {
    let mut others = context.ports.iter();
    let taken = others.find(|(other, _)| port.conflicts(other));
    let Some((other, holder)) = taken else {
        return false;
    };
    let contested = port.published.max(other.published);
    let by = if holder == service {
        "by this service".to_owned()
    } else {
        format!("by service {holder}")
    };
    at.error(
        format!(
            "port {contested}/{} is already published {by}",
            port.protocol
        ),
        "publish another port, or remove one of the two",
    );
    true
}
