//! What gossip tells its readers: the state of the world, latest wins.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::SystemTime};

use bytes::Bytes;
use imbl::OrdMap;
use portolan_model::NodeId;

/// Everything that a node knows by gossip at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The node whose view it is.
    pub me: NodeId,
    /// Every member known, this node and those down or gone included.
    pub members: BTreeMap<NodeId, Member>,
    /// Records by owner. The `Arc` of an owner stays the same as long as nothing in it changed.
    pub owners: BTreeMap<NodeId, Arc<Owner>>,
    /// Whether what is missing here is missing in the cluster: a first pull from a seed is done, or
    /// there are no seeds, or none answered in time. Until then, add and do not remove.
    pub synced: bool,
    /// Equal at two nodes exactly if they show the same records of the same living owners.
    pub table_hash: u64,
    /// Equal at two nodes exactly if they hold the same members for alive.
    pub membership_hash: u64,
}

impl View {
    pub(crate) fn empty(me: NodeId) -> Self {
        Self {
            me,
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            synced: false,
            table_hash: 0,
            membership_hash: 0,
        }
    }
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name; its id in hexadecimal until the name has arrived.
    pub name: String,
    /// Where it answers gossip.
    pub addr: SocketAddr,
    /// The start of its process; later ones are higher.
    pub boot: u64,
    /// What is believed of it.
    pub state: MemberState,
    /// Since when, by this node's clock.
    pub since: SystemTime,
}

/// What is believed of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer a probe and has a moment to object. Its records still count.
    Suspect,
    /// It did not object. Its records are kept and hidden.
    Down,
    /// It said that it leaves. Its records are dropped.
    Left,
}

impl MemberState {
    /// Whether the member counts as part of the cluster.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// The records of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The life of the owner that wrote them. Just after a restart these may be the records of the
    /// life before: they stay until the new life has published its first whole set.
    pub boot: u64,
    /// Whether the owner is a living member. Records of others are kept for a while, to be there at
    /// once when it comes back, and must not be used.
    pub visible: bool,
    /// The records by key. What did not change is shared with the views before, and so found quickly by
    /// [`OrdMap::diff`].
    pub records: OrdMap<Bytes, Bytes>,
}
