//! What is around the plane: it is told, and looks for nothing by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use portolan_model::{MacAddress, NetworkName, NodeId};

/// The node and the cluster as the fast path has to know them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The networks that this node is on, the ingress network among them. Their subnets do not overlap. Without
    /// any, no task is reached.
    pub networks: BTreeMap<NetworkName, Mesh>,
    /// The links by which clients come.
    pub outside: BTreeSet<String>,
    /// The node's own addresses, those of its overlay included.
    pub own: BTreeSet<IpAddr>,
    /// The root of the cgroups, for the programs on sockets ([`crate::cgroup2_root`]); without it processes of the
    /// node are left to the relay.
    pub cgroup: Option<PathBuf>,
    /// The other nodes that have the fast path, with their underlay addresses. A frontend with a backend on any
    /// other node is left to the relay.
    pub peers: BTreeMap<NodeId, Ipv4Addr>,
    /// The tasks of this node on these networks, by address; their IPv6 addresses follow from these
    /// ([`portolan_model::ipv6_of`]).
    pub tasks: BTreeMap<Ipv4Addr, TaskLink>,
}

impl Surroundings {
    /// The network that an address belongs to.
    pub(crate) fn network_of(&self, ip: Ipv4Addr) -> Option<(&NetworkName, &Mesh)> {
        self.networks.iter().find(|(_, mesh)| mesh.contains(ip))
    }
}

/// A network on this node.
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
    /// This node's gateway address on it.
    pub gateway: Ipv4Addr,
    /// This node's underlay address.
    pub underlay: Ipv4Addr,
    /// The largest packet that fits the tunnel, in bytes.
    pub mtu: u32,
}

impl Mesh {
    pub(crate) fn mask(&self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix.min(32)))
            .unwrap_or(0)
    }

    fn contains(&self, ip: Ipv4Addr) -> bool {
        (ip.to_bits() ^ self.subnet.to_bits()) & self.mask() == 0
    }
}

/// A task's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLink {
    /// The network; one that is not among the surroundings' networks is an error.
    pub network: NetworkName,
    /// The node's end of the veth pair.
    pub link: String,
    /// The task's Ethernet address.
    pub mac: MacAddress,
    /// That of the task's gateway, the network's bridge.
    pub gateway_mac: MacAddress,
}
