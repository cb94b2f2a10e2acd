//! What a task's network namespace needs besides links: addresses, routes, and a way back for answers.
//!
//! On the ingress network requests come from clients outside with the clients' own addresses, and what
//! is answered has to leave by the overlay, whatever other way out the task has:
//!
//! - A rule leads what is sent from the task's address there to a table with a default route by the
//!   gateway. This is all that TCP needs, and UDP from a socket that is bound to the address. It also
//!   satisfies strict source checks (`rp_filter`), which ask for the way back by the same rules.
//! - The main table has a default route by the gateway as a last resort, so that a UDP server bound to no
//!   address takes the right one where there is no other way. Where there is one, by Docker's bridge say,
//!   it would take that one's address, before any hook could see the packet. A packet filter ([`answers`])
//!   then puts the right source into it in the first hook of the way out, before connections are
//!   tracked; the kernel thereupon routes it anew, by the rule. What else was tried: a mark that is
//!   restored from the tracked connection is not found, as the answer's source makes it another
//!   connection; a mark by the client's address and port changes the route and not the source; and
//!   translated (`snat`) the answer gets another port, as the right one is taken by the request.
//!
//! What a task sends outside of its own accord comes to the node's gateway by that last resort, and is
//! answered there with an ICMP error: the ingress network has no way out.

mod answers;
mod ipv6;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use portolan_model::{INGRESS_NETWORK, MacAddress};
use rustix::io::Errno;

use crate::{
    AttachEndpoint, OverlayError,
    alias::{Alias, Answers},
    error::Doing,
    names::{self, LAST_METRIC, TASK_RULE_PRIORITY},
    netlink::{
        ANYWHERE, Address, Family, Framing, Hop, Kind, Link, MAIN_TABLE, Netlink, Route, Rule,
        Selector,
    },
    netns::{Netns, NetnsRef},
};

/// Gives the task's end of one pair its address and routes.
pub(crate) fn finish(
    netns: &Netns,
    inside: &mut Netlink,
    mtu: u32,
    endpoint: &AttachEndpoint,
) -> Result<(), OverlayError> {
    const LOOPBACK: &str = "lo";
    let links = inside.links().doing("list", || "links".into())?;
    let peer = find(&links, endpoint.mac)
        .ok_or_else(|| OverlayError::LinkGone(format!("of the task on {}", endpoint.network)))?;
    if peer.mtu != mtu {
        inside
            .set_mtu(peer.index, mtu)
            .doing("set", || format!("MTU of link {} of the task", peer.name))?;
    }
    ipv6::allow(netns, inside, peer, endpoint)?;
    let loopback = links.iter().find(|link| link.name == LOOPBACK);
    for link in loopback.into_iter().chain([peer]).filter(|link| !link.up) {
        inside
            .set_up(link.index)
            .doing("take up", || format!("link {} of the task", link.name))?;
    }
    inside
        .settle(peer.index)
        .doing("settle", || format!("link {} of the task", peer.name))?;
    let address = Address {
        link: peer.index,
        ip: endpoint.address.into(),
        prefix: endpoint.subnet.prefix(),
    };
    let addresses = inside.addresses().doing("list", || "addresses".into())?;
    if !addresses.contains(&address) {
        inside
            .add_address(&address)
            .doing("add", || format!("address {} of the task", address.ip))?;
    }
    set_routes(inside, Family::V4, &routes_on(peer.index, endpoint))
}

/// The IPv4 addresses of a namespace, loopback apart: on the overlay, and elsewhere.
pub(crate) fn addresses(inside: &mut Netlink) -> Result<BTreeSet<Ipv4Addr>, OverlayError> {
    let all = inside.addresses().doing("list", || "addresses".into())?;
    let found = all.into_iter().filter_map(|address| match address.ip {
        IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    Ok(found.collect())
}

/// Those of the namespace that an alias names; `None` if it cannot be entered.
pub(crate) fn addresses_of(alias: &Alias) -> Option<BTreeSet<Ipv4Addr>> {
    let (_, mut inside, _) = enter(alias)?;
    addresses(&mut inside).ok()
}

/// Leads what is answered from the ingress network back by the overlay, if the task is on it. `turned`:
/// the packet filter is there from an earlier time.
pub(crate) fn lead_back(
    netns: &Netns,
    inside: &mut Netlink,
    endpoints: &[AttachEndpoint],
    turned: bool,
) -> Result<Answers, OverlayError> {
    let Some(ingress) = endpoints
        .iter()
        .find(|endpoint| endpoint.network.as_str() == INGRESS_NETWORK)
    else {
        return Ok(Answers::Straight);
    };
    let links = inside.links().doing("list", || "links".into())?;
    let link = find(&links, ingress.mac)
        .ok_or_else(|| OverlayError::LinkGone("of the task on ingress".into()))?;
    let table = names::task_table(ingress.address);
    set_routes(inside, Family::V4, &ways_out(link.index, table, ingress))?;
    let mut addresses = vec![ingress.address.into()];
    let mut rules = vec![Rule {
        priority: TASK_RULE_PRIORITY,
        selector: Selector::Source(ingress.address.into()),
        table,
    }];
    if ingress.has_ipv6() {
        ipv6::lead_back(inside, link, table, ingress)?;
        addresses.push(ipv6::address(ingress));
        rules.extend(ipv6::rules(table, ingress));
    }
    set_rules(inside, link.index, &rules)?;
    let ours = |link: &Link| endpoints.iter().any(|e| is_end(link, e.mac));
    let others = links
        .iter()
        .any(|link| link.up && link.framing != Framing::Loopback && !ours(link));
    if !others && !turned {
        return Ok(Answers::Straight);
    }
    match answers::turn(netns, &link.name, &addresses) {
        Ok(()) => Ok(Answers::Turned),
        // Its UDP is left to the relay, which the users are told of as long as it is so.
        Err(reason) => {
            tracing::debug!(reason, address = %ingress.address, "answers are not turned");
            Ok(Answers::Astray)
        }
    }
}

/// Undoes in its namespace what was done for the end that an alias is of, and does not go with it. A namespace that is gone, or
/// is another one by now, is fine.
pub(crate) fn leave(alias: &Alias) -> Result<(), OverlayError> {
    let Some((netns, mut inside, link)) = enter(alias) else {
        return Ok(());
    };
    if alias.network.as_str() != INGRESS_NETWORK {
        return Ok(());
    }
    set_rules(&mut inside, link.index, &[])?;
    let answers = alias.end.as_ref().map(|end| end.answers);
    if answers == Some(Answers::Turned) {
        answers::leave(&netns).map_err(OverlayError::Filter)?;
    }
    Ok(())
}

/// Gives the task's end that an alias is of another MTU. `false`: it was not found.
pub(crate) fn set_mtu(alias: &Alias, mtu: u32) -> Result<bool, OverlayError> {
    let Some((_, mut inside, link)) = enter(alias) else {
        return Ok(false);
    };
    if link.mtu != mtu {
        inside
            .set_mtu(link.index, mtu)
            .doing("set", || format!("MTU of link {} of the task", link.name))?;
    }
    Ok(true)
}

/// The namespace that an alias names, if it is still the one with the task's end in it.
fn enter(alias: &Alias) -> Option<(Netns, Netlink, Link)> {
    let end = alias.end.as_ref()?;
    let netns = Netns::open(&NetnsRef::Path(end.netns.clone()?)).ok()?;
    let mut inside = netns.netlink().ok()?;
    let links = inside.links().ok()?;
    let link = find(&links, end.mac)?.clone();
    Some((netns, inside, link))
}

/// The task's end with this Ethernet address.
pub(crate) fn find(links: &[Link], mac: MacAddress) -> Option<&Link> {
    links.iter().find(|link| is_end(link, mac))
}

fn is_end(link: &Link, mac: MacAddress) -> bool {
    link.kind == Kind::Veth && link.mac == Some(mac)
}

fn set_routes(inside: &mut Netlink, family: Family, wanted: &[Route]) -> Result<(), OverlayError> {
    let routes = inside.routes(family).doing("list", || "routes".into())?;
    for route in wanted.iter().filter(|route| !routes.contains(route)) {
        inside
            .set_route(route)
            .doing("set", || format!("route {} of the task", route.destination))?;
    }
    Ok(())
}

fn routes_on(link: u32, endpoint: &AttachEndpoint) -> Vec<Route> {
    let (source, gateway) = (IpAddr::V4(endpoint.address), IpAddr::V4(endpoint.gateway));
    let route = |destination, hop| Route {
        table: MAIN_TABLE,
        destination,
        metric: 0,
        hop,
    };
    let by_gateway = Hop::Gateway {
        link,
        gateway,
        source,
    };
    let ranges = [endpoint.subnet].into_iter().chain(endpoint.own_range);
    [route(gateway.into(), Hop::Link { link, source })]
        .into_iter()
        .chain(ranges.map(|range| route(range.into(), by_gateway)))
        .collect()
}

/// The default routes by the gateway, of the rule's table and of the main one.
fn ways_out(link: u32, table: u32, ingress: &AttachEndpoint) -> [Route; 2] {
    let route = |table, metric| Route {
        table,
        destination: ANYWHERE,
        metric,
        hop: Hop::Gateway {
            link,
            gateway: ingress.gateway.into(),
            source: ingress.address.into(),
        },
    };
    [route(table, 0), route(MAIN_TABLE, LAST_METRIC)]
}

/// Makes the rules by the addresses of a link these. Those by addresses that are not there any more go; those by
/// others' are another task's in the same namespace.
fn set_rules(inside: &mut Netlink, link: u32, wanted: &[Rule]) -> Result<(), OverlayError> {
    let mut there = Vec::new();
    for family in [Family::V4, Family::V6] {
        match inside.rules(family) {
            // A kernel without IPv6.
            Err(error) if error.errno() == Some(Errno::AFNOSUPPORT) => {}
            rules => there.extend(rules.doing("list", || "rules".into())?),
        }
    }
    let addresses = inside.addresses().doing("list", || "addresses".into())?;
    let elsewhere = |ip: IpAddr| addresses.iter().any(|a| a.ip == ip && a.link != link);
    let ours = |rule: &&Rule| rule.selector.source().is_some_and(|ip| !elsewhere(ip));
    for rule in there.iter().filter(ours) {
        if !wanted.contains(rule) {
            inside
                .remove_rule(rule)
                .doing("remove", || format!("rule {} of the task", rule.selector))?;
        }
    }
    for rule in wanted.iter().filter(|rule| !there.contains(rule)) {
        inside
            .add_rule(rule)
            .doing("add", || format!("rule {} of the task", rule.selector))?;
    }
    Ok(())
}
