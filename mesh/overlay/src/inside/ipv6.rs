//! IPv6 at a task's end, for clients outside that speak it.
//!
//! The task has the address that belongs to its IPv4 one, a gateway to answer by, and nothing else: no
//! prefix, no neighbours, no routes to other tasks. The gateway has no IPv6 address that it would answer
//! for, so it is a permanent neighbour: frames to it are the fast path's, and no one else takes them.
//!
//! Only what leaves by the ports that it serves goes there, by rules, and its ICMP errors. With a default
//! route a task that has no other IPv6 would try all names that have IPv6 addresses by a way that leads
//! nowhere; now it is told at once that there is none.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use portolan_model::{MacAddress, ipv6_of};

use super::set_routes;
use crate::{
    AttachEndpoint, OverlayError,
    error::Doing,
    names::TASK_RULE_PRIORITY,
    netlink::{ANYWHERE_V6, Address, Family, Hop, Link, Neighbour, Netlink, Route, Rule, Selector},
    netns::Netns,
    settings,
};

/// What the kernel takes where no metric is given.
const METRIC: u32 = 1024;

/// The address of a task's end.
pub(super) fn address(endpoint: &AttachEndpoint) -> IpAddr {
    ipv6_of(endpoint.vni, endpoint.address).into()
}

/// Lets the task's end have its address, or no IPv6 if it had one and is to have none any more. Comes
/// before the end is taken up, so that it gets no address of another kind.
pub(super) fn allow(
    netns: &Netns,
    inside: &mut Netlink,
    link: &Link,
    endpoint: &AttachEndpoint,
) -> Result<(), OverlayError> {
    let set = |write: fn(&str) -> Result<(), OverlayError>| {
        let written = netns.run(|| Ok(write(&link.name)));
        written.map_err(|source| OverlayError::Setting {
            path: settings::disables_ipv6(&link.name),
            source,
        })?
    };
    if endpoint.has_ipv6() {
        return set(settings::enable_ipv6);
    }
    let addresses = inside.addresses().doing("list", || "addresses".into())?;
    if addresses.contains(&own(link, endpoint)) {
        set(settings::disable_ipv6)?;
    }
    Ok(())
}

/// Gives the task's end its address, and a gateway by a routing table of its own.
pub(super) fn lead_back(
    inside: &mut Netlink,
    link: &Link,
    table: u32,
    endpoint: &AttachEndpoint,
) -> Result<(), OverlayError> {
    let own = own(link, endpoint);
    let addresses = inside.addresses().doing("list", || "addresses".into())?;
    if !addresses.contains(&own) {
        inside
            .add_address(&own)
            .doing("add", || format!("address {} of the task", own.ip))?;
    }
    let gateway: IpAddr = ipv6_of(endpoint.vni, endpoint.gateway).into();
    inside
        .set_neighbour(&Neighbour {
            link: link.index,
            ip: gateway,
            mac: MacAddress::of_address(endpoint.gateway),
        })
        .doing("set", || format!("neighbour {gateway} of the task"))?;
    let (link, source) = (link.index, own.ip);
    let route = |destination, hop| Route {
        table,
        destination,
        metric: METRIC,
        hop,
    };
    let by_gateway = Hop::Gateway {
        link,
        gateway,
        source,
    };
    let routes = [
        // The kernel takes no gateway that it does not know to be on the link.
        route(IpNetwork::from(gateway), Hop::Link { link, source }),
        route(ANYWHERE_V6, by_gateway),
    ];
    set_routes(inside, Family::V6, &routes)
}

/// The rules by which answers go to the gateway.
pub(super) fn rules(table: u32, endpoint: &AttachEndpoint) -> impl Iterator<Item = Rule> {
    let own = ipv6_of(endpoint.vni, endpoint.address);
    let served = endpoint
        .ipv6
        .iter()
        .map(move |ports| Selector::Served(own, *ports));
    served
        .chain([Selector::Errors(own)])
        .map(move |selector| Rule {
            priority: TASK_RULE_PRIORITY,
            selector,
            table,
        })
}

fn own(link: &Link, endpoint: &AttachEndpoint) -> Address {
    let ip = address(endpoint);
    Address {
        link: link.index,
        ip,
        prefix: Family::of(ip).bits(),
    }
}
