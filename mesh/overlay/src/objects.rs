//! The objects of which networks consist in the kernel, links excepted, by keys under which the wanted
//! and the actual ones are compared.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{
    OverlayError,
    desired::{DesiredNetwork, Place},
    error::Doing,
    links::Pair,
    names::{self, RULE_PRIORITY, Role},
    netlink::{
        ANYWHERE, Address, Family, Hop, Link, Neighbour, Netlink, NetlinkError, Route, Rule,
        Selector,
    },
};

/// Something in the kernel that a network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    Address(Address),
    Neighbour(Neighbour),
    Route(Route),
    Rule(Rule),
}

/// What there is at most one of. In the order in which things are added: routes need their source
/// address, and with its rules a network's routes come into force at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Address(Address),
    Neighbour { link: u32, ip: IpAddr },
    Route { table: u32, to: IpNetwork },
    Rule(Rule),
}

/// Objects, each with the VNI of its network.
#[derive(Debug, Default)]
pub(crate) struct Objects(pub(crate) BTreeMap<Key, (u32, Object)>);

impl Objects {
    /// Adds what a network should consist of. `underlay` is the node's own address there.
    pub(crate) fn want(
        &mut self,
        underlay: IpAddr,
        vni: u32,
        network: &DesiredNetwork,
        links: Pair,
    ) {
        let (table, source) = (names::table(vni), network.gateway.into());
        for ip in network.addresses() {
            let address = Address {
                link: links.bridge,
                ip: ip.into(),
                prefix: 32,
            };
            self.put(vni, Object::Address(address));
        }
        for (&ip, &mac) in &network.neighbours {
            let ip = ip.into();
            if let Some(link) = links.vxlan {
                self.put(vni, Object::Neighbour(Neighbour { link, ip, mac }));
            }
        }
        let hops = network
            .places
            .iter()
            .filter_map(|(&to, place)| match *place {
                Place::Here => {
                    let link = links.bridge;
                    Some((to.into(), Hop::Link { link, source }))
                }
                Place::There {
                    gateway,
                    underlay: remote,
                } => {
                    let hop = Hop::Tunnel {
                        link: links.vxlan?,
                        gateway: gateway.into(),
                        source,
                        vni,
                        remote,
                        // On a node with several addresses the others know it by this one.
                        local: Some(underlay).filter(|own| own.is_ipv4() == remote.is_ipv4()),
                    };
                    Some((to.into(), hop))
                }
            });
        for (destination, hop) in hops.chain([(ANYWHERE, Hop::Unreachable)]) {
            let route = Route {
                table,
                destination,
                metric: 0,
                hop,
            };
            self.put(vni, Object::Route(route));
        }
        let links = [names::bridge(vni), names::vxlan(vni)].map(Selector::From);
        let own = network.ranges().map(Selector::OwnTo);
        for selector in links.into_iter().chain(own) {
            let rule = Rule {
                priority: RULE_PRIORITY,
                selector,
                table,
            };
            self.put(vni, Object::Rule(rule));
        }
    }

    /// Those of ours that are in the kernel: all on links of ours, and what is marked as ours.
    pub(crate) fn dump(netlink: &mut Netlink, present: &[Link]) -> Result<Self, OverlayError> {
        let roles: BTreeMap<u32, (Role, u32)> = present
            .iter()
            .filter_map(|link| Some((link.index, names::role(&link.name)?)))
            .collect();
        let on = |link: u32, role: Role| {
            let (found, vni) = roles.get(&link)?;
            (*found == role).then_some(*vni)
        };
        let mut found = Self::default();
        for address in netlink.addresses().doing("list", || "addresses".into())? {
            if let Some(vni) = on(address.link, Role::Bridge).filter(|_| address.ip.is_ipv4()) {
                found.put(vni, Object::Address(address));
            }
        }
        for neighbour in netlink.neighbours().doing("list", || "neighbours".into())? {
            if let Some(vni) = on(neighbour.link, Role::Vxlan) {
                found.put(vni, Object::Neighbour(neighbour));
            }
        }
        for route in netlink
            .routes(Family::V4)
            .doing("list", || "routes".into())?
        {
            if let Some(vni) = names::vni_of_table(route.table) {
                found.put(vni, Object::Route(route));
            }
        }
        for rule in netlink.rules(Family::V4).doing("list", || "rules".into())? {
            if let Some(vni) = names::vni_of_table(rule.table) {
                found.put(vni, Object::Rule(rule));
            }
        }
        Ok(found)
    }

    fn put(&mut self, vni: u32, object: Object) {
        self.0.insert(object.key(), (vni, object));
    }
}

impl Object {
    fn key(&self) -> Key {
        match self {
            Self::Address(address) => Key::Address(*address),
            &Self::Neighbour(Neighbour { link, ip, .. }) => Key::Neighbour { link, ip },
            &Self::Route(Route {
                table,
                destination: to,
                ..
            }) => Key::Route { table, to },
            Self::Rule(rule) => Key::Rule(rule.clone()),
        }
    }

    /// Makes it so in the kernel, in one step where something else is under its key.
    pub(crate) fn upsert(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        match self {
            Self::Address(address) => netlink.add_address(address),
            Self::Neighbour(neighbour) => netlink.set_neighbour(neighbour),
            Self::Route(route) => netlink.set_route(route),
            Self::Rule(rule) => netlink.add_rule(rule),
        }
    }
}

impl Key {
    /// Removes from the kernel what is under it.
    pub(crate) fn remove(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        match self {
            Self::Address(address) => netlink.remove_address(address),
            &Self::Neighbour { link, ip } => netlink.remove_neighbour(link, ip),
            &Self::Route { table, to } => netlink.remove_route(table, to),
            Self::Rule(rule) => netlink.remove_rule(rule),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "address {}", address.ip),
            Self::Neighbour { ip, .. } => write!(f, "neighbour {ip}"),
            Self::Route { to, .. } => write!(f, "route {to}"),
            Self::Rule(rule) => write!(f, "rule {}", rule.selector),
        }
    }
}
