//! What the kernel has around the overlay and of it, for those who work on the node's links beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnetwork::Ipv4Network;
use portolan_model::{MacAddress, NetworkName, TaskId};

use crate::{
    alias::{Alias, Answers},
    names::{self, Role},
    netlink::{Address, Framing, Kind, Link},
};

/// The node's links, addresses, networks and tasks, as the kernel has them at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Around {
    /// The links by which packets from outside come, with an Ethernet header: those that are up and
    /// neither the overlay's nor ports of another link (of which a bridge or bond stands for all). Of a
    /// VLAN the link itself and the one below it are both among them.
    pub outside: BTreeSet<String>,
    /// Such links without an Ethernet header that have an address: tunnels, `wg0`, `ppp0`.
    pub without_ethernet: BTreeSet<String>,
    /// The node's own addresses, those of a loopback net or a single link (`fe80::/10`) apart. Of the
    /// addresses on the overlay the gateways are among them; virtual addresses and those from which the
    /// node connects are not.
    pub own: BTreeSet<IpAddr>,
    /// Where containers are that other software has put on bridges of this node, on which nothing else is.
    pub containers: BTreeSet<Ipv4Network>,
    /// All addresses in the namespaces of attached tasks, those on other software's networks too, as they were
    /// when it was a task's turn to be read: one at each look. What an earlier run attached is not among them.
    pub addresses: BTreeMap<TaskId, BTreeSet<Ipv4Addr>>,
    /// The networks that are set up on this node.
    pub networks: BTreeMap<NetworkName, NetworkLink>,
    /// The attached tasks by their addresses.
    pub tasks: BTreeMap<Ipv4Addr, TaskEnd>,
}

/// A network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkLink {
    /// Its VXLAN link.
    pub link: String,
    /// Its VNI.
    pub vni: u32,
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// This node's address on it.
    pub gateway: Ipv4Addr,
    /// The longest packet that the link takes, in bytes.
    pub mtu: u32,
}

/// A task's place on a network, seen from the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEnd {
    /// The task.
    pub task: TaskId,
    /// The network.
    pub network: NetworkName,
    /// The node's end of its veth pair.
    pub link: String,
    /// The Ethernet address of the task's end.
    pub mac: MacAddress,
    /// The Ethernet address of the node's gateway, as the task knows it.
    pub gateway_mac: MacAddress,
    /// Whether what a UDP server of it answers to a client outside comes back by the overlay, also from a
    /// server that is bound to no address. Where not, the task has other links besides the overlay's and
    /// the answers may leave by those: its UDP is not to carry clients' own addresses. TCP always may.
    pub answers_udp: bool,
}

/// What a network of this node was last known as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) name: NetworkName,
    pub(crate) subnet: Ipv4Network,
    pub(crate) gateway: Ipv4Addr,
}

impl Around {
    /// Puts it together; `known` are the networks by VNI.
    pub(crate) fn new(links: &[Link], addresses: &[Address], known: &BTreeMap<u32, Known>) -> Self {
        let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let addressed: BTreeSet<u32> = addresses
            .iter()
            .filter(|address| is_own(address.ip))
            .map(|address| address.link)
            .collect();
        let mut around = Self::default();
        for link in links.iter().filter(|link| is_outside(link, &by_index)) {
            match link.framing {
                Framing::Ethernet => around.outside.insert(link.name.clone()),
                Framing::Other if addressed.contains(&link.index) => {
                    around.without_ethernet.insert(link.name.clone())
                }
                Framing::Other | Framing::Loopback => false,
            };
        }
        let elsewhere = addresses.iter().filter(|address| {
            let link = by_index.get(&address.link);
            is_own(address.ip) && link.is_none_or(|link| names::role(&link.name).is_none())
        });
        around.own.extend(elsewhere.map(|address| address.ip));
        for link in links.iter().filter(|link| link.up) {
            if let Some((Role::Vxlan, vni)) = names::role(&link.name)
                && let Some(network) = known.get(&vni)
            {
                around.own.insert(network.gateway.into());
                let network_link = NetworkLink {
                    link: link.name.clone(),
                    vni,
                    subnet: network.subnet,
                    gateway: network.gateway,
                    mtu: link.mtu,
                };
                around.networks.insert(network.name.clone(), network_link);
            } else {
                around.tasks.extend(task(link, &by_index));
            }
        }
        around
    }
}

fn is_outside(link: &Link, by_index: &BTreeMap<u32, &Link>) -> bool {
    let ours = names::role(&link.name).is_some() || names::is_host_end(&link.name);
    let master = link.master.and_then(|index| by_index.get(&index));
    let port = master.is_some_and(|master| master.kind != Kind::Vrf);
    link.up && !ours && !port && link.kind != Kind::Vrf
}

fn is_own(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

fn task(link: &Link, by_index: &BTreeMap<u32, &Link>) -> Option<(Ipv4Addr, TaskEnd)> {
    let alias = Alias::of(link)?;
    let end = alias.end?;
    let bridge = by_index.get(&link.master?)?;
    let task = TaskEnd {
        task: alias.task,
        network: alias.network,
        link: link.name.clone(),
        mac: end.mac,
        gateway_mac: bridge.mac?,
        answers_udp: end.answers != Answers::Astray,
    };
    Some((end.address, task))
}

#[cfg(test)]
mod tests;
