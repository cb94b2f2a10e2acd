//! Who a member is: its node, where it is, and which of its lives this is.

use std::net::SocketAddr;

use portolan_model::NodeId;

/// One life of one node, as membership sees it.
///
/// `boot` grows with every start of the process and names the node's records; `bump` grows each
/// time that the cluster wrongly declared this life down, so that a false alarm costs one small
/// update and not all records again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// The node, which is the key of membership.
    pub(crate) node: NodeId,
    /// Where it answers on UDP and TCP.
    pub(crate) addr: SocketAddr,
    /// The start of the process.
    pub(crate) boot: u64,
    /// How often this start was declared down and came back.
    pub(crate) bump: u32,
}

impl Identity {
    /// Which of two identities of one node is the later.
    pub(crate) fn life(&self) -> (u64, u32) {
        (self.boot, self.bump)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            bump: self.bump.wrapping_add(1),
            ..*self
        })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        // The address breaks ties, or two clones of one boot would be kept by some and not others.
        (self.life(), self.addr) > (adversary.life(), adversary.addr)
    }
}
