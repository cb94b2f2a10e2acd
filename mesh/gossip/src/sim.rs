//! Many cores on one virtual clock, over a network that does all that networks do.
//!
//! Everything follows from one seed: a run that fails is run again by giving the seed. The simulator
//! works beneath the encryption, so a damaged datagram is handed to the decoder, which must not
//! panic, and then dropped as the authentication would have dropped it.

#![expect(
    clippy::indexing_slicing,
    reason = "a wrong index is a bug of the simulator, and shall stop it"
)]

mod faults;
mod host;
mod network;
mod truth;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{config::Timing, core::Input, stats::Stats};
use host::Host;
pub use network::Faults;
use network::{Event, Network};
use truth::Witness;

/// A world of nodes and a network between them.
pub struct World {
    now: Duration,
    seed: u64,
    rng: SmallRng,
    network: Network,
    hosts: Vec<Host>,
    timing: Timing,
    witness: Witness,
    version: u64,
    events: u64,
    digest: u64,
}

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(20);
/// The moment at which a world begins. Not zero, so that clocks can go back.
const BEGIN: Duration = Duration::from_secs(1_000_000);

/// Bytes and packets that one node sent on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traffic {
    /// Bytes of datagrams, with the envelope and IP headers.
    pub udp_bytes: f64,
    /// Datagrams.
    pub udp_packets: f64,
    /// Bytes of streams, with what TCP adds to set one up.
    pub tcp_bytes: f64,
}

impl World {
    /// Nodes that know nothing of one another yet, and are not running.
    pub fn new(nodes: usize, seed: u64) -> Self {
        Self::with_timing(nodes, seed, Timing::default())
    }

    /// The same with another clockwork.
    pub fn with_timing(nodes: usize, seed: u64, timing: Timing) -> Self {
        Self {
            now: BEGIN,
            seed,
            rng: SmallRng::seed_from_u64(seed),
            network: Network::new(nodes, seed),
            hosts: (0..nodes).map(Host::new).collect(),
            timing,
            witness: Witness::default(),
            version: 0,
            events: 0,
            digest: seed,
        }
    }

    /// How to get this very run again.
    pub fn rerun(&self) -> String {
        format!("seed {}", self.seed)
    }

    /// For how long it has gone on.
    pub fn age(&self) -> Duration {
        self.now.saturating_sub(BEGIN)
    }

    /// Nodes that run.
    pub fn running(&self) -> Vec<usize> {
        let hosts = self.hosts.iter().enumerate();
        hosts
            .filter(|(_, host)| host.is_running())
            .map(|(index, _)| index)
            .collect()
    }

    /// What the network does to packets from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.network.faults = faults;
    }

    /// Starts a node, with one fixed and up to two random others as seeds.
    pub fn start(&mut self, node: usize) {
        let seeds: BTreeSet<usize> = (0..2)
            .map(|_| self.rng.random_range(0..self.hosts.len()))
            .chain([usize::from(node == 0)])
            .filter(|seed| *seed != node && *seed < self.hosts.len())
            .collect();
        let seeds = seeds.into_iter().map(host::addr).collect();
        let seed = self.rng.random();
        let Some(host) = self.hosts.get_mut(node) else {
            return;
        };
        host.start(self.now, seeds, seed, self.timing.clone());
        let records = host.records.clone();
        self.step(node, Input::Records(records));
    }

    /// Starts all, spread over `within`, and lets that time pass.
    pub fn start_all(&mut self, within: Duration) {
        let count = self.hosts.len();
        for node in 0..count {
            self.start(node);
            self.run(within / count as u32);
        }
    }

    /// Stops a node without a word.
    pub fn kill(&mut self, node: usize) {
        if let Some(host) = self.hosts.get_mut(node) {
            host.stop();
            self.network.forget(node);
        }
    }

    /// Stops a node after it has said so.
    pub fn leave(&mut self, node: usize) {
        self.step(node, Input::Leave);
    }

    /// Publishes a new value under a key of the node, and returns it.
    pub fn publish(&mut self, node: usize, key: u32) -> Bytes {
        self.version += 1;
        let value = Bytes::copy_from_slice(&[&self.version.to_be_bytes()[..], &[7; 64]].concat());
        if let Some(host) = self.hosts.get_mut(node) {
            host.records.insert(host::key(key), value.clone());
            let records = host.records.clone();
            self.step(node, Input::Records(records));
        }
        value
    }

    /// Publishes this many records on every node, at one moment.
    pub fn publish_many(&mut self, records: u32) {
        for node in 0..self.hosts.len() {
            let value = Bytes::from(vec![7; 72]);
            if let Some(host) = self.hosts.get_mut(node) {
                for key in 0..records {
                    host.records.insert(host::key(key), value.clone());
                }
                let records = host.records.clone();
                self.step(node, Input::Records(records));
            }
        }
    }

    /// Deletes a record of the node.
    pub fn retract(&mut self, node: usize, key: u32) {
        if let Some(host) = self.hosts.get_mut(node) {
            host.records.remove(&host::key(key));
            let records = host.records.clone();
            self.step(node, Input::Records(records));
        }
    }

    /// Cuts or joins the way from one node to another, one way.
    pub fn cut(&mut self, from: usize, to: usize, cut: bool) {
        self.network.cut(from, to, cut);
    }

    /// Cuts a set of nodes from the rest, both ways.
    pub fn isolate(&mut self, island: &BTreeSet<usize>) {
        for a in 0..self.hosts.len() {
            for b in 0..self.hosts.len() {
                if island.contains(&a) != island.contains(&b) {
                    self.network.cut(a, b, true);
                }
            }
        }
    }

    /// Joins everything again.
    pub fn heal(&mut self) {
        self.network.heal();
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some((at, event)) = self.network.next(until) {
            self.now = self.now.max(at);
            self.events += 1;
            self.handle(event);
        }
        self.now = until;
    }

    /// Lets time pass until the condition holds; how long that took, or `None` if it did not.
    pub fn until(
        &mut self,
        most: Duration,
        mut condition: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let start = self.now;
        while !condition(self) {
            if self.now.saturating_sub(start) >= most {
                return None;
            }
            self.run(STEP);
        }
        Some(self.now.saturating_sub(start))
    }

    /// Whether a node shows this value of another's record.
    pub fn shows(&self, viewer: usize, owner: usize, key: u32, value: &Bytes) -> bool {
        let owner = host::id(owner);
        let host = self.hosts.get(viewer);
        host.is_some_and(|host| host.record(owner, &host::key(key)) == Some(value))
    }

    /// Whether a node holds another for a living member.
    pub fn holds_alive(&self, viewer: usize, member: usize) -> bool {
        let host = self.hosts.get(viewer);
        host.is_some_and(|host| host.holds_alive(host::id(member)))
    }

    /// How often members were declared down so far, by any node.
    pub fn downs(&self) -> u64 {
        self.stats().iter().map(|stats| stats.downs).sum()
    }

    /// The counters of all nodes that run.
    pub fn stats(&self) -> Vec<Stats> {
        self.hosts.iter().filter_map(Host::stats).collect()
    }

    /// What a node sent on average since the last call.
    pub fn take_traffic(&mut self) -> Traffic {
        let sent = std::mem::take(&mut self.network.sent);
        let nodes = self.running().len().max(1) as f64;
        Traffic {
            udp_bytes: sent.udp_bytes as f64 / nodes,
            udp_packets: sent.udp_packets as f64 / nodes,
            tcp_bytes: sent.tcp_bytes as f64 / nodes,
        }
    }

    /// A number that is equal for two runs exactly if they went the same way.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Events handled so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether nothing is wrong: as [`World::differences`], and quick to say no.
    pub fn is_settled(&mut self) -> bool {
        let mut hashes = self
            .hosts
            .iter()
            .filter_map(Host::hashes)
            .collect::<BTreeSet<_>>();
        hashes.pop_first();
        hashes.is_empty() && self.differences().is_empty()
    }

    /// What is wrong after all is quiet: every node that runs must show exactly the records of
    /// every node that runs, and hold exactly these for alive.
    pub fn differences(&mut self) -> Vec<String> {
        let truth: BTreeMap<_, _> = self
            .hosts
            .iter()
            .filter(|host| host.is_running())
            .map(|host| (host.id, host.records.clone()))
            .collect();
        let mut found = Vec::new();
        let mut hashes = BTreeSet::new();
        for host in self.hosts.iter_mut().filter(|host| host.is_running()) {
            let index = host.index;
            if let Some(view) = host.view() {
                hashes.insert((view.table_hash, view.membership_hash));
                truth::compare(index, view, &truth, &mut found);
            }
        }
        if hashes.len() > 1 {
            found.push(format!("{} different hashes", hashes.len()));
        }
        found
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } => {
                if let Some(host) = self.hosts.get_mut(node)
                    && host.life == life
                {
                    host.tick_at = None;
                    if let Some(wait) = host.frozen(self.now) {
                        self.network.set_tick(node, life, self.now + wait);
                    } else {
                        self.step(node, Input::Tick);
                    }
                }
            }
            Event::Deliver { node, life, input } => {
                let Some(host) = self.hosts.get_mut(node) else {
                    return;
                };
                if !host.is_running() || life.is_some_and(|life| life != host.life) {
                    return;
                }
                if let Some(wait) = host.frozen(self.now) {
                    // The kernel keeps it until the process goes on, if it has room.
                    let event = Event::Deliver { node, life, input };
                    self.network.keep(self.now + wait, event);
                } else {
                    self.step(node, input);
                }
            }
            Event::Damaged(bytes) => {
                let _ = crate::codec::datagram::decode(bytes);
            }
            Event::Arrive { connection, to } => self.arrive(connection, to),
        }
    }

    fn step(&mut self, node: usize, input: Input) {
        let Some(host) = self.hosts.get_mut(node) else {
            return;
        };
        let outputs = host.step(self.now, input);
        for output in outputs {
            self.digest = crate::table::log::mix(self.digest ^ host::output_digest(&output));
            self.output(node, output);
        }
        if let Some(host) = self.hosts.get_mut(node)
            && let Some(deadline) = host.deadline()
        {
            let at = deadline.max(self.now);
            if host.tick_at.is_none_or(|set| at < set) {
                host.tick_at = Some(at);
                self.network.set_tick(node, host.life, at);
            }
        }
    }
}
