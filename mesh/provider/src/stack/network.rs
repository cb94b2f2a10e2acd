//! The top-level `networks`.

use std::net::Ipv4Addr;

use ipnetwork::{IpNetwork, Ipv4Network};
use portolan_model::{INGRESS_NETWORK, NameError, NetworkName, claims::INGRESS_SUBNET};

use super::{StackNetwork, context::Context};
use crate::{
    cursor::{At, Field},
    diagnostic::{Fault, quoted},
};

const KEYS: &[&str] = &[
    "attachable",
    "driver",
    "driver_opts",
    "enable_ipv4",
    "enable_ipv6",
    "encrypted",
    "external",
    "internal",
    "ipam",
    "labels",
    "name",
];
const IPAM_KEYS: &[&str] = &["config", "driver", "options"];
const POOL_KEYS: &[&str] = &["aux_addresses", "gateway", "ip_range", "subnet"];
const EXTERNAL_KEYS: &[&str] = &["name"];
const ENCRYPTED: &str = "encrypted";

/// The longest prefix of a subnet: a node's slice takes 16 addresses, and the last quarter is for VIPs.
const LONGEST_PREFIX: u8 = 26;

pub(super) fn read_all(at: &At<'_>, context: &mut Context) -> Vec<StackNetwork> {
    at.fields()
        .iter()
        .filter_map(|field| {
            let network = read(field, context);
            let name = network.as_ref().map(|n| n.name.clone());
            context.networks.insert(field.name.to_owned(), name);
            network
        })
        .collect()
}

fn read(field: &Field<'_>, context: &mut Context) -> Option<StackNetwork> {
    let (mut given_name, mut subnet, mut described) = (None, None, false);
    let (mut internal, mut encrypted, mut external) = (false, false, false);
    for option in field.value.fields() {
        let at = &option.value;
        match option.name {
            "name" => given_name = given_name.or_else(|| at.text()),
            "external" if at.is_map() => {
                // The form of Compose files before 3.5.
                external = true;
                for option in at.fields() {
                    match option.name {
                        "name" => given_name = option.value.text(),
                        _ => option.unknown(EXTERNAL_KEYS),
                    }
                }
            }
            "external" => external = at.flag().unwrap_or(false),
            "internal" => internal = at.flag().unwrap_or(false),
            "encrypted" => encrypted |= at.flag().unwrap_or(false),
            "attachable" => {
                at.flag();
            }
            "driver" => read_driver(at),
            "driver_opts" => encrypted |= read_driver_opts(at),
            "ipam" => {
                described = true;
                subnet = read_ipam(at, context);
            }
            "enable_ipv6" if at.flag() == Some(true) => {
                at.error("networks with IPv6 are not supported yet", "remove it");
            }
            "enable_ipv4" if at.flag() == Some(false) => {
                at.error("a network without IPv4 is not supported", "remove it");
            }
            "enable_ipv4" | "enable_ipv6" => {}
            "labels" => at.ignore("networks.labels"),
            _ => option.unknown(KEYS),
        }
        described |= matches!(option.name, "internal" | "encrypted" | "driver_opts");
    }
    if external && described {
        field.value.error(
            "an external network is described where it is declared, not here",
            "leave only `external` and `name`",
        );
    }
    let name = read_name(field, given_name, external, context)?;
    if let Some(subnet) = subnet {
        context.subnets.push((subnet, name.clone()));
    }
    Some(StackNetwork {
        name,
        subnet,
        internal,
        encrypted,
        external,
    })
}

fn read_name(
    field: &Field<'_>,
    given: Option<String>,
    external: bool,
    context: &Context,
) -> Option<NetworkName> {
    let full = given.unwrap_or_else(|| {
        if external {
            field.name.to_owned()
        } else {
            context.full_name(field.name)
        }
    });
    let name: NetworkName = full
        .parse()
        .map_err(|error| field.fault(Fault::of::<NameError>(&error)))
        .ok()?;
    if name.as_str() == INGRESS_NETWORK {
        field.error(
            "the network ingress is built in, and every service with published ports is on it",
            "remove it here and from the services, or choose another name",
        );
        return None;
    }
    if context.networks.values().flatten().any(|n| *n == name) {
        field.error(
            format!("network {name} is declared already under another key"),
            "give one of the two another `name`",
        );
        return None;
    }
    Some(name)
}

fn read_driver(at: &At<'_>) {
    if at.is_null() {
        return;
    }
    let Some(driver) = at.text() else { return };
    if !matches!(driver.as_str(), "" | "overlay" | "bridge" | "default") {
        at.error(
            format!("the driver {} is not supported", quoted(&driver)),
            "write overlay, or remove it",
        );
    }
}

/// Whether the options ask for encryption. Docker takes the bare option `encrypted: ""` for true.
fn read_driver_opts(at: &At<'_>) -> bool {
    let mut encrypted = false;
    for option in at.fields() {
        if option.name == ENCRYPTED {
            let bare = option.value.plain_text().is_none_or(|text| text.is_empty());
            encrypted = bare || option.value.flag().unwrap_or(false);
        } else {
            option.ignore("networks.driver_opts.", &[ENCRYPTED]);
        }
    }
    encrypted
}

fn read_ipam(at: &At<'_>, context: &Context) -> Option<Ipv4Network> {
    let mut subnet = None;
    for option in at.fields() {
        match option.name {
            "config" => subnet = read_pools(&option.value, context),
            "driver" => {
                if option
                    .value
                    .text()
                    .is_some_and(|driver| driver != "default")
                {
                    option.value.error(
                        "only the default driver is supported: each node hands out its slices of the subnet",
                        "write default, or remove it",
                    );
                }
            }
            "options" => option.value.ignore("networks.ipam.options"),
            _ => option.unknown(IPAM_KEYS),
        }
    }
    subnet
}

fn read_pools(at: &At<'_>, context: &Context) -> Option<Ipv4Network> {
    let mut found: Option<Ipv4Network> = None;
    for pool in at.items() {
        for option in pool.fields() {
            match option.name {
                "subnet" => {
                    let Some(subnet) = read_subnet(&option.value, context) else {
                        continue;
                    };
                    if let Some(first) = found {
                        option.value.error(
                            format!("the network has the subnet {first} already"),
                            "leave one subnet, and make it larger if it is too small",
                        );
                    }
                    found = found.or(Some(subnet));
                }
                "gateway" | "ip_range" | "aux_addresses" => {
                    option
                        .value
                        .ignore(&format!("networks.ipam.config.{}", option.name));
                }
                _ => option.unknown(POOL_KEYS),
            }
        }
    }
    found
}

fn read_subnet(at: &At<'_>, context: &Context) -> Option<Ipv4Network> {
    let subnet = match read_cidr(at)? {
        IpNetwork::V4(subnet) => subnet,
        IpNetwork::V6(subnet) => {
            at.error(
                format!("{subnet} is IPv6, which networks do not support yet"),
                "give an IPv4 subnet, or none to have one chosen",
            );
            return None;
        }
    };
    if subnet.prefix() > LONGEST_PREFIX {
        at.error(
            format!(
                "{subnet} is too small: every node takes a slice of 16 addresses, and a quarter is kept for virtual addresses"
            ),
            format!("give a /{LONGEST_PREFIX} or a larger one"),
        );
        return None;
    }
    let ingress = Ipv4Network::new(INGRESS_SUBNET.0, INGRESS_SUBNET.1).ok()?;
    if subnet.overlaps(ingress) {
        at.error(
            format!("{subnet} overlaps {ingress} of the ingress network"),
            "give a subnet outside of it",
        );
        return None;
    }
    if let Some((range, what)) = RESERVED
        .iter()
        .filter_map(|(ip, prefix, what)| Some((Ipv4Network::new(*ip, *prefix).ok()?, what)))
        .find(|(range, _)| subnet.overlaps(*range))
    {
        at.error(
            format!("{subnet} overlaps {range}, which is for {what}"),
            "give a private subnet, such as 10.1.0.0/20",
        );
        return None;
    }
    if let Some((other, name)) = context.subnets.iter().find(|(o, _)| o.overlaps(subnet)) {
        at.error(
            format!("{subnet} overlaps {other} of network {name}"),
            "give each network a subnet of its own",
        );
        return None;
    }
    Some(subnet)
}

/// Ranges that no task can have an address of (RFC 6890).
const RESERVED: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::UNSPECIFIED, 8, "this network"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local addresses"),
    (Ipv4Addr::new(224, 0, 0, 0), 3, "multicast and reserved"),
];

/// A network in CIDR notation, its host bits 0. A bare address is a network of one.
pub(super) fn read_cidr(at: &At<'_>) -> Option<IpNetwork> {
    let text = at.text()?;
    let Ok(cidr) = text.parse::<IpNetwork>() else {
        at.error(
            format!("{} is no network", quoted(&text)),
            "write an address and a prefix length, such as 10.1.0.0/20",
        );
        return None;
    };
    if cidr.ip() != cidr.network() {
        at.error(
            format!("{cidr} is an address within a network"),
            format!("write {}/{} for the network", cidr.network(), cidr.prefix()),
        );
        return None;
    }
    Some(cidr)
}
