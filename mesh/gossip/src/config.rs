//! What a node is told at its start.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use portolan_model::NodeId;

use crate::keyring::Keyring;

/// How a node takes part in a cluster.
#[derive(Debug)]
pub struct Config {
    /// The node: the hash of its name.
    pub node: NodeId,
    /// Its name, which others show.
    pub name: String,
    /// Where UDP and TCP are bound. With port 0 both get the same free port.
    pub bind: SocketAddr,
    /// Where other nodes reach it. With port 0, the port that was bound.
    pub advertise: SocketAddr,
    /// The cluster's name. Nodes of another one are refused even if they have a key.
    pub cluster: String,
    /// Other members, to join by. They may come up later: they are tried again.
    pub join: Vec<SocketAddr>,
    /// The keys. Without any, packets are only protected against accidents, not against anybody.
    pub keyring: Option<Keyring>,
    /// Where the boot number is kept. It is on disk before the first packet leaves.
    pub state_dir: PathBuf,
    /// How much is taken from others.
    pub limits: Limits,
    /// The clockwork.
    pub timing: Timing,
}

/// How much a node takes from others. What goes beyond is refused, counted and logged once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records of one owner, deletes of the last minutes included. Default 4096.
    pub records_per_owner: usize,
    /// Owners of records. Default 4096.
    pub owners: usize,
    /// Members, those down included. Default 4096.
    pub members: usize,
    /// Datagrams per second from one source address, with twice that as a burst. Default 2000.
    pub datagrams_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records_per_owner: 4096,
            owners: 4096,
            members: 4096,
            datagrams_per_second: 2000,
        }
    }
}

/// The clockwork. The defaults are measured (`make sim`): with 1000 nodes an update reaches all in
/// 0.4 s, the loss of a node is known to all in 2.8 s and two halves that were parted are one again
/// after 3.7 s, for 1.3 kB/s by datagram and 2.6 kB/s by stream per node at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Between two rounds of gossip, give or take a fifth. Default 100 ms.
    pub gossip: Duration,
    /// Peers per round. Default 4.
    pub fanout: usize,
    /// Between two probes. Default 300 ms: a member is probed by somebody so often on average, so
    /// that a longer silence than 2.5 s, which luck allows, comes once in thousands of losses.
    pub probe: Duration,
    /// How long a probed member has before it is probed by other ways. Default 150 ms.
    pub probe_rtt: Duration,
    /// How long a suspect has to object. Default 2 s: all should know of a loss within 5.
    pub suspicion: Duration,
    /// How long a member that is only said to be down has to object. Default 1 s.
    pub hearsay: Duration,
    /// Between two calls to members that are down. Default 1 s.
    pub announce_to_down: Duration,
    /// How long two nodes must both be quiet before differing hashes mean anything. Default 400 ms.
    pub quiet: Duration,
    /// Between two pulls that a node begins. Default 1 s.
    pub pull: Duration,
    /// Between two pulls from a random peer. Default 30 s.
    pub pull_random: Duration,
    /// How long a stream may take. Default 5 s.
    pub stream: Duration,
    /// After how long without any answering seed a node counts as synced. Default 5 s.
    pub join: Duration,
    /// For how long a node whose name is taken asks again before it gives up: a member that moved
    /// to another address is forgotten by then. Default 8 s.
    pub clone_patience: Duration,
    /// For how long deletes and the records of members down are kept. Default 10 min.
    pub keep: Duration,
    /// For how long members that are down are called and shown. Default 1 h.
    pub keep_member: Duration,
    /// For how long the records of an owner's life before stand in for the new one. Default 10 s.
    pub hold_previous: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            gossip: Duration::from_millis(100),
            fanout: 4,
            probe: Duration::from_millis(300),
            probe_rtt: Duration::from_millis(150),
            suspicion: Duration::from_secs(2),
            hearsay: Duration::from_secs(1),
            announce_to_down: Duration::from_secs(1),
            quiet: Duration::from_millis(400),
            pull: Duration::from_secs(1),
            pull_random: Duration::from_secs(30),
            stream: Duration::from_secs(5),
            join: Duration::from_secs(5),
            clone_patience: Duration::from_secs(8),
            keep: Duration::from_mins(10),
            keep_member: Duration::from_hours(1),
            hold_previous: Duration::from_secs(10),
        }
    }
}
