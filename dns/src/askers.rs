//! Who asks at the node's own address: a query there does not tell by the address it came to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnetwork::IpNetwork;
use portolan_model::NetworkName;

/// Who may ask at [`crate::DnsConfig::node_address`], besides tasks at their addresses on our networks: what
/// the node knows of itself and of the containers on it. Anyone else is outside, and gets no answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Askers {
    /// The node's own addresses. Its processes are answered about the networks that the node is on, internal
    /// ones excepted.
    pub own: BTreeSet<IpAddr>,
    /// Where containers of this node are that are not ours: the subnets of bridges that lead nowhere else.
    /// Those of which nothing else is known get the names that are not ours.
    pub local: BTreeSet<IpNetwork>,
    /// Containers at their addresses there which are tasks, and the networks that they are on as such.
    pub tasks: BTreeMap<IpAddr, BTreeSet<NetworkName>>,
    /// Whether [`Self::tasks`] are not all yet: a container that is not among them may turn out to be one.
    pub incomplete: bool,
}

impl Askers {
    /// With a further address of the node, from which its processes ask that choose none.
    pub(crate) fn with_own(mut self, address: Option<Ipv4Addr>) -> Self {
        self.own.extend(address.map(IpAddr::V4));
        self
    }
}
