//! The objects of which networks consist in the kernel, links excepted, under keys by which the wanted
//! and the actual ones are compared.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use ipnetwork::Ipv4Network;
use portolan_model::MacAddress;

use crate::{
    OverlayError,
    desired::{DesiredNetwork, Place},
    error::Doing,
    links::Pair,
    names::{self, RULE_PRIORITY, Role},
    netlink::{Address, Hop, Link, Neighbour, Netlink, NetlinkError, Route, Rule, Selector},
};

/// What there is at most one of. In the order in which things are added: routes need their source
/// address, and with the rules a network's routes come into force at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Address(Address),
    Neighbour { link: u32, ip: Ipv4Addr },
    Route { table: u32, to: Ipv4Network },
    Rule(Rule),
}

/// What is to be said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    Present,
    Mac(MacAddress),
    Hop(Hop),
}

/// Objects, each with the VNI of its network.
#[derive(Debug, Default)]
pub(crate) struct Objects(pub(crate) BTreeMap<Key, (u32, Value)>);

const ANYWHERE: Ipv4Network =
    Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).expect("zero is a prefix length");

impl Objects {
    /// Adds what a network should consist of. `underlay` is the node's own address there.
    pub(crate) fn want(
        &mut self,
        underlay: IpAddr,
        vni: u32,
        network: &DesiredNetwork,
        links: Pair,
    ) {
        let (table, source) = (names::table(vni), network.gateway);
        let mut put = |key, value| self.0.insert(key, (vni, value));
        for ip in network.addresses() {
            let address = Address {
                link: links.bridge,
                ip: ip.into(),
                prefix: 32,
            };
            put(Key::Address(address), Value::Present);
        }
        for (&ip, &mac) in &network.neighbours {
            let link = links.vxlan;
            put(Key::Neighbour { link, ip }, Value::Mac(mac));
        }
        for (&to, place) in &network.places {
            let hop = match *place {
                Place::Here => Hop::Link {
                    link: links.bridge,
                    source,
                },
                Place::There {
                    gateway,
                    underlay: remote,
                } => Hop::Tunnel {
                    link: links.vxlan,
                    gateway,
                    source,
                    vni,
                    remote,
                    // On a node with several addresses the others know it by this one.
                    local: Some(underlay).filter(|own| own.is_ipv4() == remote.is_ipv4()),
                },
            };
            put(Key::Route { table, to }, Value::Hop(hop));
        }
        let anywhere = Key::Route {
            table,
            to: ANYWHERE,
        };
        put(anywhere, Value::Hop(Hop::Unreachable));
        for selector in [
            Selector::From(names::bridge(vni)),
            Selector::From(names::vxlan(vni)),
            Selector::OwnTo(network.subnet),
        ] {
            let rule = Rule {
                priority: RULE_PRIORITY,
                selector,
                table,
            };
            put(Key::Rule(rule), Value::Present);
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
        let mut found = BTreeMap::new();
        for address in netlink.addresses().doing("list", || "addresses".into())? {
            if let Some(vni) = on(address.link, Role::Bridge).filter(|_| address.ip.is_ipv4()) {
                found.insert(Key::Address(address), (vni, Value::Present));
            }
        }
        for Neighbour { link, ip, mac } in
            netlink.neighbours().doing("list", || "neighbours".into())?
        {
            if let Some(vni) = on(link, Role::Vxlan) {
                found.insert(Key::Neighbour { link, ip }, (vni, Value::Mac(mac)));
            }
        }
        for Route {
            table,
            destination: to,
            hop,
        } in netlink.routes().doing("list", || "routes".into())?
        {
            if let Some(vni) = names::vni_of_table(table) {
                found.insert(Key::Route { table, to }, (vni, Value::Hop(hop)));
            }
        }
        for rule in netlink.rules().doing("list", || "rules".into())? {
            if let Some(vni) = names::vni_of_table(rule.table) {
                found.insert(Key::Rule(rule), (vni, Value::Present));
            }
        }
        Ok(Self(found))
    }
}

impl Key {
    /// Makes it so in the kernel, in one step where something else is there.
    pub(crate) fn upsert(&self, netlink: &mut Netlink, value: Value) -> Result<(), NetlinkError> {
        match (self, value) {
            (Self::Address(address), _) => netlink.add_address(address),
            (Self::Rule(rule), _) => netlink.add_rule(rule),
            (&Self::Neighbour { link, ip }, Value::Mac(mac)) => {
                netlink.set_neighbour(&Neighbour { link, ip, mac })
            }
            (&Self::Route { table, to }, Value::Hop(hop)) => netlink.set_route(&Route {
                table,
                destination: to,
                hop,
            }),
            (Self::Neighbour { .. } | Self::Route { .. }, _) => Ok(()),
        }
    }

    /// Removes it from the kernel.
    pub(crate) fn remove(&self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        match self {
            Self::Address(address) => netlink.remove_address(address),
            Self::Rule(rule) => netlink.remove_rule(rule),
            &Self::Neighbour { link, ip } => netlink.remove_neighbour(link, ip),
            &Self::Route { table, to } => netlink.remove_route(table, to),
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
