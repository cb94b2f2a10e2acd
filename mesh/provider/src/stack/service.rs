//! The `services`.

mod ports;

use std::net::Ipv4Addr;

use portolan_model::{
    EncodeError, Endpoint, EndpointMode, HealthProbe, MAX_RECORD_BYTES, MacAddress, NameError,
    NetworkName, PlaneChoice, Protocol, ProxyProtocol, Record, Service, ServiceId, ServiceNetwork,
    Task, TaskState,
};

use super::{
    context::{Context, DEFAULT_NETWORK},
    options, task,
};
use crate::{
    cursor::{At, Field},
    diagnostic::{Fault, quoted},
};

const KEYS: &[&str] = &["deploy", "networks", "ports", "x-portolan"];
const DEPLOY_KEYS: &[&str] = &["endpoint_mode", "mode", "replicas"];
const PLACE_KEYS: &[&str] = &["aliases"];

pub(super) fn read_all(at: &At<'_>, context: &mut Context) -> Vec<Service> {
    let fields = at.fields();
    // All names first, so that a task may name any of them.
    for field in &fields {
        let id = context
            .full_name(field.name)
            .parse()
            .map_err(|error| field.fault(Fault::of::<NameError>(&error)))
            .ok();
        context.services.insert(field.name.to_owned(), id);
    }
    fields
        .iter()
        .filter_map(|field| read(field, context))
        .collect()
}

fn read(field: &Field<'_>, context: &mut Context) -> Option<Service> {
    let id: Option<ServiceId> = context.services.get(field.name).cloned().flatten();
    // A name that is wrong is reported already; another stands in for it, so that the rest is checked too.
    let mut service = Service::new(match id {
        Some(id) => id,
        None => "unnamed".parse().ok()?,
    });
    service.stack.clone_from(&context.stack);
    let (mut networks, mut extra) = (None, None);
    for option in field.value.fields() {
        match option.name {
            "ports" => service.ports = ports::read_all(&option.value, field.name, context),
            "networks" => networks = Some(option.value),
            "deploy" => service.endpoint_mode = read_deploy(&option.value),
            "x-portolan" => extra = Some(option.value),
            _ => option.ignore("", KEYS),
        }
    }
    service.networks = read_networks(networks.as_ref(), field, context);
    if let Some(extra) = &extra {
        options::read(extra, &mut service, &mut |tasks| {
            task::read_all(tasks, Some(field.name), context);
        });
        for (fault, _) in contradictions(&service) {
            extra.fault(fault);
        }
    }
    if let Some(fault) = too_long(&service) {
        field.fault(fault);
    }
    Some(service)
}

fn read_deploy(at: &At<'_>) -> EndpointMode {
    let mut mode = EndpointMode::default();
    for option in at.fields() {
        let at = &option.value;
        match option.name {
            // How many tasks there are is up to whoever starts them.
            "mode" => {
                at.choice(&[
                    ("replicated", ()),
                    ("global", ()),
                    ("replicated-job", ()),
                    ("global-job", ()),
                ]);
            }
            "replicas" => {
                at.number(0, u32::MAX);
            }
            "endpoint_mode" => {
                mode = at
                    .choice(&[("vip", EndpointMode::Vip), ("dnsrr", EndpointMode::Dnsrr)])
                    .unwrap_or_default();
            }
            _ => option.ignore("deploy.", DEPLOY_KEYS),
        }
    }
    mode
}

fn read_networks(
    at: Option<&At<'_>>,
    service: &Field<'_>,
    context: &mut Context,
) -> Vec<ServiceNetwork> {
    let mut places = Vec::new();
    match at {
        Some(at) if at.is_map() => {
            for field in at.fields() {
                let aliases = read_place(&field.value);
                let fault = |fault| field.fault(fault);
                join(&mut places, field.name, aliases, &fault, service, context);
            }
        }
        Some(at) => {
            for item in at.items() {
                let Some(key) = item.text() else { continue };
                let fault = |fault| item.fault(fault);
                join(&mut places, &key, Vec::new(), &fault, service, context);
            }
        }
        None => {}
    }
    if at.is_none_or(At::is_empty) {
        let fault = |fault| service.fault(fault);
        join(
            &mut places,
            DEFAULT_NETWORK,
            Vec::new(),
            &fault,
            service,
            context,
        );
    }
    places
}

/// Puts a service on the network of a key.
fn join(
    places: &mut Vec<ServiceNetwork>,
    key: &str,
    mut aliases: Vec<String>,
    fault: &dyn Fn(Fault),
    service: &Field<'_>,
    context: &mut Context,
) {
    let name = match context.network(key) {
        Ok(Some(name)) => name,
        Ok(None) => return,
        Err(undeclared) => return fault(undeclared),
    };
    if places.iter().any(|place| place.name == name) {
        fault(Fault::new(
            format!("the service is on network {} twice", quoted(key)),
            "remove one of the two",
        ));
        return;
    }
    if context.stack.is_some() && !aliases.iter().any(|alias| alias == service.name) {
        aliases.insert(0, service.name.to_owned());
    }
    places.push(ServiceNetwork {
        name,
        aliases,
        vip: None,
    });
}

/// The aliases of a service on one network.
fn read_place(at: &At<'_>) -> Vec<String> {
    let mut aliases: Vec<String> = Vec::new();
    for option in at.fields() {
        match option.name {
            "aliases" => {
                for item in option.value.items() {
                    if let Some(alias) = item.parse(check_alias)
                        && !aliases.contains(&alias)
                    {
                        aliases.push(alias);
                    }
                }
            }
            "ipv4_address" | "ipv6_address" | "link_local_ips" | "mac_address" => {
                option.fault(Fault::new(
                    "the addresses of tasks are chosen from the slice of their node and cannot be given",
                    "remove it, and find the service by its name or an alias",
                ));
            }
            "driver_opts" | "gw_priority" | "interface_name" | "priority" => {
                option.value.ignore(&format!("networks.{}", option.name));
            }
            _ => option.unknown(PLACE_KEYS),
        }
    }
    aliases
}

/// An alias is one DNS label or some with dots between, at most 253 characters (RFC 1035).
pub(crate) fn check_alias(text: &str) -> Result<String, NameError> {
    for label in text.split('.') {
        label.parse::<NetworkName>()?;
    }
    if text.len() > 253 {
        return Err(NameError::TooLong(text.to_owned()));
    }
    Ok(text.to_owned())
}

/// Takes from a service what contradicts the rest of it.
pub(crate) type Mend = fn(&mut Service);

/// What of the options contradicts the rest of the service, which may stand after them, and how to serve
/// the service all the same.
pub(crate) fn contradictions(service: &Service) -> Vec<(Fault, Mend)> {
    let has = |protocol| service.ports.iter().any(|port| port.protocol == protocol);
    let probe_port = service.health.as_ref().map(|check| match &check.probe {
        HealthProbe::Tcp { port } | HealthProbe::Http { port, .. } => *port,
    });
    let mut found: Vec<(Fault, Mend)> = Vec::new();
    if probe_port == Some(0) && !has(Protocol::Tcp) {
        let fault = Fault::new(
            "the health check has no port, and the service publishes no tcp port to take it from",
            "give `health` a port",
        );
        found.push((fault, |service| service.health = None));
    }
    if service.proxy_protocol == Some(ProxyProtocol::V1) && has(Protocol::Udp) {
        let fault = Fault::new(
            "proxy_protocol v1 has no form for udp, which the service publishes",
            "use v2",
        );
        found.push((fault, |service| service.proxy_protocol = None));
    }
    if service.proxy_protocol.is_some() && service.plane == PlaneChoice::Ebpf {
        let fault = Fault::new(
            "the plane ebpf forwards packets as they are and cannot add the PROXY protocol",
            "remove `plane`, or `proxy_protocol`: with ebpf a task sees the client's address anyway",
        );
        found.push((fault, |service| service.plane = PlaneChoice::default()));
    }
    found
}

/// A record has an upper length, that of the service and that of each of its tasks. What the agent adds
/// later (VIPs, addresses, versions, times, chosen ports) is counted in with the longest values it can have.
pub(crate) fn too_long(service: &Service) -> Option<Fault> {
    let mut longest = service.clone();
    longest.spec_version = u64::MAX;
    longest.created_ms = u64::MAX;
    for place in &mut longest.networks {
        place.vip = Some(Ipv4Addr::BROADCAST);
    }
    for port in &mut longest.ports {
        port.published = u16::MAX;
    }
    let fault = |what: &str, error: &EncodeError| {
        Fault::new(
            format!(
                "{what} takes {} bytes of at most {MAX_RECORD_BYTES} as a record",
                error.bytes
            ),
            "give the service fewer or shorter ports, networks, aliases or allowed clients; a port range counts as one port",
        )
    };
    if let Err(error) = Record::Service(longest).encode() {
        return Some(fault("the service", &error));
    }
    let task = Record::Task(longest_task(service)?);
    let error = task.encode().err()?;
    Some(fault("a task of the service", &error))
}

fn longest_task(service: &Service) -> Option<Task> {
    let endpoint = |network| Endpoint {
        network,
        ip: Ipv4Addr::BROADCAST.into(),
        mac: Some(MacAddress([0xff; 6])),
    };
    Some(Task {
        id: "x".repeat(63).parse().ok()?,
        service: Some(service.id.clone()),
        slot: u32::MAX,
        endpoints: service.task_networks().map(endpoint).collect(),
        state: TaskState::Starting,
        weight: u16::MAX,
    })
}
