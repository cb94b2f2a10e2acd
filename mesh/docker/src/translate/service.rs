//! The services of a Swarm.

use std::collections::BTreeMap;

use portolan_model::{
    EndpointMode, PublishMode, PublishedPort, Service, ServiceId, ServiceNetwork,
};
use portolan_provider::{Labels, check_alias, parse_port};

use super::{Finding, Origin, ServiceWanted, network::Networks, version};
use crate::observed::{SwarmPort, SwarmService};

const STACK_LABEL: &str = "com.docker.stack.namespace";

/// A service as a declaration; `None` if it is none of ours, or none that could be served.
pub(super) fn of_swarm(
    swarm: &SwarmService,
    networks: &Networks,
    findings: &mut Vec<Finding>,
) -> Option<ServiceWanted> {
    let source = format!("service {}", swarm.name);
    let id: ServiceId = match swarm.id.parse() {
        Ok(id) => id,
        Err(error) => {
            let message = format!("its identity is none: {error}");
            findings.push(Finding::new(None, &source, "", &message, "create it anew"));
            return None;
        }
    };
    let mut found = Vec::new();
    let mut complain = |path: &str, message: &str, remedy: &str| {
        found.push(Finding::new(Some(&id), &source, path, message, remedy));
    };
    // Names reach terminals and DNS.
    let name = match swarm.name.parse::<ServiceId>() {
        Ok(name) => name,
        Err(error) => {
            complain("", &format!("its name is none: {error}"), "rename it");
            id.clone()
        }
    };
    let (ports, left_to_docker) = ports(swarm, &mut complain);
    let stack = swarm.labels.get(STACK_LABEL);
    let mut service = Service {
        name: name.as_str().to_owned(),
        ports,
        networks: places(swarm, networks, &mut complain),
        endpoint_mode: if swarm.dnsrr {
            EndpointMode::Dnsrr
        } else {
            EndpointMode::Vip
        },
        stack: stack
            .filter(|stack| stack.parse::<ServiceId>().is_ok())
            .cloned(),
        created_ms: swarm.created_ms,
        spec_version: version::of_swarm(swarm.version),
        ..Service::new(id.clone())
    };
    // What stands at the service goes before what stands at its containers.
    let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, text) in swarm.container_labels.iter().chain(&swarm.labels) {
        labels.insert(name, text);
    }
    let labels = Labels::apply(labels, &source, &mut service);
    if !labels.enabled && labels.wrong.is_empty() {
        return None;
    }
    if let Some(name) = &labels.service {
        name.as_str().clone_into(&mut service.name);
    }
    if service.endpoint_mode == EndpointMode::Dnsrr {
        for place in &mut service.networks {
            place.vip = None;
        }
    }
    let ours = labels.declares
        || !(service.ports.is_empty() && service.networks.is_empty() && left_to_docker.is_empty());
    findings.extend(found);
    findings.extend(labels.wrong.into_iter().map(|diagnostic| Finding {
        service: Some(id.clone()),
        diagnostic,
    }));
    (ours && labels.fits && labels.enabled).then_some(ServiceWanted {
        service,
        origin: Origin::Swarm,
        left_to_docker,
    })
}

/// The ports to be served, and those that Docker serves.
fn ports(
    swarm: &SwarmService,
    complain: &mut dyn FnMut(&str, &str, &str),
) -> (Vec<PublishedPort>, Vec<PublishedPort>) {
    let (mut ours, mut dockers) = (Vec::new(), Vec::new());
    // Of the same target may be one that is asked for by its number.
    let assigned = swarm.assigned.iter();
    let mut chosen: Vec<&SwarmPort> = assigned
        .filter(|port| !swarm.ports.contains(port))
        .collect();
    for port in &swarm.ports {
        // Until the Swarm has assigned one, which it tells by another version of the service, there is none.
        let Some(published) = published(port, &mut chosen) else {
            continue;
        };
        let text = format!("{published}:{}/{}", port.target, port.protocol);
        match parse_port(&text) {
            Ok(read) if port.host => dockers.push(PublishedPort {
                mode: PublishMode::Host,
                ..read
            }),
            Ok(read) => ours.push(read),
            Err(error) => {
                let error = error.to_string();
                let (message, remedy) = error.rsplit_once("; ").unwrap_or((&error, "remove it"));
                complain("ports", &format!("{text}: {message}"), remedy);
            }
        }
    }
    (ranges(ours), ranges(dockers))
}

/// The outside port. One that the Swarm has chosen is taken out of those that are left.
fn published(port: &SwarmPort, chosen: &mut Vec<&SwarmPort>) -> Option<u16> {
    if port.published > 0 {
        return Some(port.published);
    }
    let same = |other: &&SwarmPort| {
        (other.target, &other.protocol, other.host) == (port.target, &port.protocol, port.host)
    };
    let at = chosen.iter().position(same)?;
    let assigned = chosen.remove(at).published;
    (assigned > 0).then_some(assigned)
}

/// Puts neighbours together: the Swarm lists each port of a range, and a record has not room for many.
fn ranges(mut ports: Vec<PublishedPort>) -> Vec<PublishedPort> {
    ports.sort_by_key(|port| (port.protocol, port.published, port.target));
    ports.dedup();
    let mut ranges: Vec<PublishedPort> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some(range)
                if range.protocol == port.protocol
                    && range.published.checked_add(range.count) == Some(port.published)
                    && range.target.checked_add(range.count) == Some(port.target) =>
            {
                range.count += 1;
            }
            _ => ranges.push(port),
        }
    }
    ranges
}

/// Its places on networks of Portolan's driver. Other networks are Docker's alone.
fn places(
    swarm: &SwarmService,
    networks: &Networks,
    complain: &mut dyn FnMut(&str, &str, &str),
) -> Vec<ServiceNetwork> {
    let mut places: Vec<ServiceNetwork> = Vec::new();
    for (id, aliases) in &swarm.networks {
        let Some(name) = networks.name(id) else {
            continue;
        };
        if places.iter().any(|place| place.name == *name) {
            continue;
        }
        let mut good: Vec<String> = Vec::new();
        for alias in aliases {
            match check_alias(alias) {
                Ok(alias) if alias == swarm.name || good.contains(&alias) => {}
                Ok(alias) => good.push(alias),
                Err(error) => {
                    let error = error.to_string();
                    let (message, remedy) =
                        error.rsplit_once("; ").unwrap_or((&error, "remove it"));
                    complain(&format!("networks.{name}.aliases"), message, remedy);
                }
            }
        }
        places.push(ServiceNetwork {
            name: name.clone(),
            aliases: good,
            vip: swarm.vips.get(id).copied(),
        });
    }
    places
}
