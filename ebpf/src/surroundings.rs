//! What is around the plane: it is told, and looks for nothing by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use portolan_model::{MacAddress, NodeId};

/// The node and the cluster as the fast path has to know them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The ingress network; without it only tasks of this node are reached.
    pub mesh: Option<Mesh>,
    /// The links by which clients come.
    pub outside: BTreeSet<String>,
    /// The node's own addresses, those of its overlay included.
    pub own: BTreeSet<Ipv4Addr>,
    /// The other nodes that have the fast path, with their underlay addresses. A frontend with a backend on any
    /// other node is left to the relay.
    pub peers: BTreeMap<NodeId, Ipv4Addr>,
    /// The tasks of this node on the ingress network, by address.
    pub tasks: BTreeMap<Ipv4Addr, TaskLink>,
}

/// The ingress network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Its VXLAN link, `external`: the programs name the other end.
    pub link: String,
    /// Its VNI.
    pub vni: u32,
    /// Its subnet's first address.
    pub subnet: Ipv4Addr,
    /// The length of the subnet's prefix, at most 32.
    pub prefix: u8,
    /// This node's underlay address.
    pub underlay: Ipv4Addr,
    /// The largest packet that fits the tunnel, in bytes.
    pub mtu: u32,
}

/// A task's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLink {
    /// The node's end of the veth pair.
    pub link: String,
    /// The task's Ethernet address.
    pub mac: MacAddress,
    /// That of the task's gateway, the network's bridge.
    pub gateway_mac: MacAddress,
}
