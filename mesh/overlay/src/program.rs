//! One pass that brings the kernel to the desired state.
//!
//! What is right already is not touched, so that packets flow on through a pass, and through a restart.
//! Additions come before removals. An operation that fails is reported, and the pass goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnetwork::Ipv4Network;

use crate::{
    Failure, OverlayError,
    desired::{Desired, DesiredNetwork, Place},
    error::Doing,
    links,
    names::{self, RULE_PRIORITY, Role},
    netlink::{Address, Hop, Link, Neighbour, Netlink, NetlinkError, Route, Rule, Selector},
};

const ANYWHERE: Ipv4Network =
    Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).expect("zero is a prefix length");

/// What a pass needs to know besides the desired state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) underlay: IpAddr,
    pub(crate) port: u16,
    pub(crate) mtu: u32,
}

/// The kernel objects of all networks, links excepted.
#[derive(Debug, Default)]
struct Objects {
    addresses: BTreeSet<Address>,
    neighbours: BTreeSet<Neighbour>,
    routes: Vec<Route>,
    rules: BTreeSet<Rule>,
    /// The network of each object's link: for messages, and to know what is ours.
    links: BTreeMap<u32, u32>,
}

/// Adds what lacks and mends what is wrong.
pub(crate) fn upsert(netlink: &mut Netlink, settings: Settings, desired: &Desired) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut wanted = Objects::default();
    let present = match netlink.links().doing("list", || "links".into()) {
        Ok(present) => present,
        Err(error) => return vec![failure("links", error)],
    };
    for (&vni, network) in &desired.networks {
        match links::ensure(netlink, &present, settings, vni, network.mac()) {
            Ok(made) => wanted.add(settings, vni, network, made),
            Err(error) => failures.push(failure(network.name.as_str(), error)),
        }
    }
    let actual = match Objects::dump(netlink, &present) {
        Ok(actual) => actual,
        Err(error) => {
            failures.push(failure("overlay", error));
            return failures;
        }
    };
    let mut check = |vni: Option<u32>, done: Result<(), OverlayError>| {
        if let Err(error) = done {
            failures.push(failure(&desired.object(vni), error));
        }
    };
    for address in wanted.addresses.difference(&actual.addresses) {
        let done = netlink.add_address(address);
        check(
            wanted.links.get(&address.link).copied(),
            done.doing("add", || format!("address {}", address.ip)),
        );
    }
    for neighbour in wanted.neighbours.difference(&actual.neighbours) {
        let done = netlink.set_neighbour(neighbour);
        check(
            wanted.links.get(&neighbour.link).copied(),
            done.doing("set", || format!("neighbour {}", neighbour.ip)),
        );
    }
    for route in wanted.routes.iter().filter(|r| !actual.routes.contains(r)) {
        let done = netlink.set_route(route);
        check(
            names::vni_of_table(route.table),
            done.doing("set", || format!("route {}", route.destination)),
        );
    }
    for rule in wanted.rules.difference(&actual.rules) {
        let done = netlink.add_rule(rule);
        check(
            names::vni_of_table(rule.table),
            done.doing("add", || format!("rule {}", rule.selector)),
        );
    }
    failures
}

/// Removes what is ours and no longer desired. A network on which tasks are attached stays whole.
pub(crate) fn remove(netlink: &mut Netlink, settings: Settings, desired: &Desired) -> Vec<Failure> {
    let mut failures = Vec::new();
    let present = match netlink.links().doing("list", || "links".into()) {
        Ok(present) => present,
        Err(error) => return vec![failure("links", error)],
    };
    let actual = match Objects::dump(netlink, &present) {
        Ok(actual) => actual,
        Err(error) => return vec![failure("overlay", error)],
    };
    let in_use = links::in_use(&present);
    let stays = |vni: &u32| !desired.networks.contains_key(vni) && in_use.contains(vni);
    let mut wanted = Objects::default();
    for (&vni, network) in &desired.networks {
        if let Some(made) = links::find(&present, vni) {
            wanted.add(settings, vni, network, made);
        }
    }
    let mut check = |vni: Option<u32>, done: Result<(), OverlayError>| {
        if let Err(error) = done {
            failures.push(failure(&desired.object(vni), error));
        }
    };
    for rule in actual.rules.difference(&wanted.rules) {
        let vni = names::vni_of_table(rule.table);
        if vni.is_some_and(|vni| !stays(&vni)) {
            let done = gone_is_fine(netlink.remove_rule(rule));
            check(
                vni,
                done.doing("remove", || format!("rule {}", rule.selector)),
            );
        }
    }
    for route in &actual.routes {
        let vni = names::vni_of_table(route.table);
        let is_wanted = wanted
            .routes
            .iter()
            .any(|w| (w.table, w.destination) == (route.table, route.destination));
        if !is_wanted && vni.is_some_and(|vni| !stays(&vni)) {
            let done = gone_is_fine(netlink.remove_route(route));
            check(
                vni,
                done.doing("remove", || format!("route {}", route.destination)),
            );
        }
    }
    for neighbour in &actual.neighbours {
        let vni = actual.links.get(&neighbour.link).copied();
        let is_wanted = wanted
            .neighbours
            .iter()
            .any(|w| (w.link, w.ip) == (neighbour.link, neighbour.ip));
        if !is_wanted && vni.is_some_and(|vni| !stays(&vni)) {
            let done = gone_is_fine(netlink.remove_neighbour(neighbour));
            check(
                vni,
                done.doing("remove", || format!("neighbour {}", neighbour.ip)),
            );
        }
    }
    for address in actual.addresses.difference(&wanted.addresses) {
        let vni = actual.links.get(&address.link).copied();
        if vni.is_some_and(|vni| !stays(&vni)) {
            let done = gone_is_fine(netlink.remove_address(address));
            check(
                vni,
                done.doing("remove", || format!("address {}", address.ip)),
            );
        }
    }
    for link in &present {
        let vni = match names::role(&link.name) {
            Some((_, vni)) if !desired.networks.contains_key(&vni) && !stays(&vni) => vni,
            _ => continue,
        };
        let done = gone_is_fine(netlink.remove_link(link.index));
        check(
            Some(vni),
            done.doing("remove", || format!("link {}", link.name)),
        );
    }
    failures
}

impl Objects {
    /// Adds those of one network.
    fn add(&mut self, settings: Settings, vni: u32, network: &DesiredNetwork, made: links::Pair) {
        let (table, source) = (names::table(vni), network.gateway);
        self.links.extend([(made.bridge, vni), (made.vxlan, vni)]);
        self.addresses.extend(network.addresses().map(|ip| Address {
            link: made.bridge,
            ip: ip.into(),
            prefix: 32,
        }));
        self.neighbours
            .extend(network.neighbours.iter().map(|(ip, mac)| Neighbour {
                link: made.vxlan,
                ip: *ip,
                mac: *mac,
            }));
        let route = |destination, hop| Route {
            table,
            destination,
            hop,
        };
        self.routes
            .extend(network.places.iter().map(|(prefix, place)| {
                let hop = match *place {
                    Place::Here => Hop::Link {
                        link: made.bridge,
                        source,
                    },
                    Place::There { gateway, underlay } => Hop::Tunnel {
                        link: made.vxlan,
                        gateway,
                        source,
                        vni,
                        remote: underlay,
                        local: Some(settings.underlay)
                            .filter(|own| own.is_ipv4() == underlay.is_ipv4()),
                    },
                };
                route(*prefix, hop)
            }));
        self.routes.push(route(ANYWHERE, Hop::Unreachable));
        let selectors = [
            Selector::From(names::bridge(vni)),
            Selector::From(names::vxlan(vni)),
            Selector::OwnTo(network.subnet),
        ];
        self.rules.extend(selectors.map(|selector| Rule {
            priority: RULE_PRIORITY,
            selector,
            table,
        }));
    }

    /// Those of ours that are in the kernel. Of addresses and neighbours: all on links of ours.
    fn dump(netlink: &mut Netlink, present: &[Link]) -> Result<Self, OverlayError> {
        // Links that this pass has made hold nothing yet.
        let role_of = |index: u32| {
            let link = present.iter().find(|link| link.index == index)?;
            names::role(&link.name)
        };
        let ours = |index: u32, role: Role| role_of(index).is_some_and(|(r, _)| r == role);
        let addresses = netlink.addresses().doing("list", || "addresses".into())?;
        let neighbours = netlink.neighbours().doing("list", || "neighbours".into())?;
        Ok(Self {
            addresses: addresses
                .into_iter()
                .filter(|a| a.ip.is_ipv4() && ours(a.link, Role::Bridge))
                .collect(),
            neighbours: neighbours
                .into_iter()
                .filter(|n| ours(n.link, Role::Vxlan))
                .collect(),
            routes: netlink.routes().doing("list", || "routes".into())?,
            rules: netlink
                .rules()
                .doing("list", || "rules".into())?
                .into_iter()
                .collect(),
            links: present
                .iter()
                .filter_map(|link| Some((link.index, names::role(&link.name)?.1)))
                .collect(),
        })
    }
}

impl Desired {
    /// What a failure's object is called.
    fn object(&self, vni: Option<u32>) -> String {
        let Some(vni) = vni else {
            return "overlay".into();
        };
        self.networks
            .get(&vni)
            .map_or_else(|| format!("vni {vni}"), |network| network.name.to_string())
    }
}

fn failure(object: &str, error: OverlayError) -> Failure {
    Failure {
        object: object.to_owned(),
        error,
    }
}

/// What is to be removed may have gone with something else: a route with its link, say.
pub(crate) fn gone_is_fine(done: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    use rustix::io::Errno;
    match done {
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::NODEV | Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL)
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}
