//! `x-portolan` of a service: what Compose has no word for.

use portolan_model::{Balancing, HealthCheck, HealthProbe, PlaneChoice, ProxyProtocol, Service};

use super::network::read_cidr;
use crate::{
    cursor::{At, Field},
    duration::parse_duration,
};

/// The keys of a service's `x-portolan`.
pub(crate) const KEYS: &[&str] = &[
    "allow",
    "balancing",
    "drain",
    "health",
    "idle_timeout",
    "ipv6",
    "local_first",
    "plane",
    "proxy_protocol",
    "tasks",
    "udp_idle_timeout",
];
const HEALTH_KEYS: &[&str] = &[
    "fall", "http", "interval", "port", "rise", "status", "tcp", "timeout",
];

pub(super) fn read(at: &At<'_>, service: &mut Service, read_tasks: &mut dyn FnMut(&At<'_>)) {
    for option in at.fields() {
        read_option(&option, service, read_tasks);
    }
}

/// Reads one option of a service. Its `tasks` are left to `read_tasks`.
pub(crate) fn read_option(
    option: &Field<'_>,
    service: &mut Service,
    read_tasks: &mut dyn FnMut(&At<'_>),
) {
    let at = &option.value;
    match option.name {
        "balancing" => {
            set(
                &mut service.balancing,
                at.choice(&[
                    ("round-robin", Balancing::RoundRobin),
                    ("least-connections", Balancing::LeastConnections),
                    ("source-hash", Balancing::SourceHash),
                ]),
            );
        }
        "local_first" => set(&mut service.local_first, at.flag()),
        "ipv6" => set(&mut service.ipv6, at.flag()),
        "drain" => set(&mut service.drain_ms, at.parse(parse_duration)),
        "idle_timeout" => service.tcp_idle_ms = at.parse(parse_duration).filter(|ms| *ms > 0),
        "udp_idle_timeout" => set(&mut service.udp_idle_ms, positive(at)),
        "health" => service.health = read_health(at),
        "proxy_protocol" => {
            service.proxy_protocol =
                at.choice(&[("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)]);
        }
        "plane" => {
            set(
                &mut service.plane,
                at.choice(&[
                    ("auto", PlaneChoice::Auto),
                    ("ebpf", PlaneChoice::Ebpf),
                    ("relay", PlaneChoice::Relay),
                ]),
            );
        }
        "allow" => {
            service.allow = at.items().iter().filter_map(read_cidr).collect();
            if at.is_empty() {
                at.error(
                    "an empty list allows everyone",
                    "name the networks of the clients that may connect, or remove `allow`",
                );
            }
        }
        "tasks" => read_tasks(at),
        _ => option.unknown(KEYS),
    }
}

fn set<T>(field: &mut T, read: Option<T>) {
    if let Some(read) = read {
        *field = read;
    }
}

/// A duration that is not 0.
fn positive(at: &At<'_>) -> Option<u32> {
    let ms = at.parse(parse_duration)?;
    if ms == 0 {
        at.error("the duration is 0", "write a longer one, such as 30s");
        return None;
    }
    Some(ms)
}

fn read_health(at: &At<'_>) -> Option<HealthCheck> {
    let (mut tcp, mut path, mut port, mut status) = (None, None, None, None);
    let mut check = HealthCheck {
        probe: HealthProbe::Tcp { port: 0 },
        interval_ms: 2000,
        timeout_ms: 1000,
        rise: 2,
        fall: 3,
    };
    let (mut asks_tcp, mut asks_http) = (false, false);
    for option in at.fields() {
        let at = &option.value;
        match option.name {
            "tcp" => {
                asks_tcp = true;
                tcp = read_tcp(at);
            }
            "http" => {
                asks_http = true;
                path = read_path(at);
            }
            "port" => port = at.number(1, u16::MAX).map(|port| (port, option)),
            "status" => status = at.number(100, 599_u16).map(|status| (status, option)),
            "interval" => set(&mut check.interval_ms, positive(at)),
            "timeout" => set(&mut check.timeout_ms, positive(at)),
            "rise" => set(&mut check.rise, at.number(1, u8::MAX)),
            "fall" => set(&mut check.fall, at.number(1, u8::MAX)),
            _ => option.unknown(HEALTH_KEYS),
        }
    }
    check.probe = match (asks_tcp, asks_http) {
        (true, false) => {
            for (number, option) in port.iter().chain(&status) {
                option.value.error(
                    format!("`{}: {number}` belongs to a check by http", option.name),
                    "write the port as `tcp: PORT`, without `port` and `status`",
                );
            }
            HealthProbe::Tcp { port: tcp? }
        }
        (false, true) => HealthProbe::Http {
            port: port.map_or(0, |(port, _)| port),
            path: path?,
            status: status.map_or(0, |(status, _)| status),
        },
        (true, true) => {
            at.error("the check asks by tcp and by http", "remove one of the two");
            return None;
        }
        (false, false) => {
            if at.is_map() || at.is_null() {
                at.error(
                    "the check asks nothing",
                    "add `tcp: PORT`, `tcp: true` or `http: /path`",
                );
            }
            return None;
        }
    };
    Some(check)
}

/// A port, or `true` for the target of the first published tcp port, which is 0.
fn read_tcp(at: &At<'_>) -> Option<u16> {
    if !at.is_flag() {
        return at.number(1, u16::MAX);
    }
    if at.flag() == Some(false) {
        at.error(
            "a check that is not wanted is left out",
            "remove `health`, or write `tcp: true`",
        );
        return None;
    }
    Some(0)
}

/// A path goes into the request line as it is (RFC 9112, section 3.2.1).
fn read_path(at: &At<'_>) -> Option<String> {
    let path = at.text()?;
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        at.error(
            format!("{} is no path", crate::diagnostic::quoted(&path)),
            "write one that starts with / and has only printable ASCII, such as /health",
        );
        return None;
    }
    Some(path)
}
