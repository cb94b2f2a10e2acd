//! A machine: a disk, clocks, and perhaps a running node.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use portolan_model::NodeId;

use crate::{
    config::{Limits, Timing},
    core::{Core, Input, Output, Settings},
    identity::Identity,
    stats::Stats,
    table::log::mix,
    view::View,
};

pub(super) struct Host {
    pub(super) index: usize,
    pub(super) id: NodeId,
    /// Counts the starts, so that what was meant for an earlier one is not delivered.
    pub(super) life: u32,
    /// What the node is told to publish.
    pub(super) records: BTreeMap<Bytes, Bytes>,
    pub(super) tick_at: Option<Duration>,
    /// Where the node says that it is: another's place makes it a clone of nothing but itself.
    pub(super) addr: SocketAddr,
    /// Set when the node refused to run.
    pub(super) refused: bool,
    core: Option<Core>,
    view: Option<View>,
    started: Duration,
    /// By how much the node's steady clock ran ahead since its start.
    ahead: Duration,
    /// By how much its wall clock is behind.
    pub(super) behind: Duration,
    disk: u64,
    frozen_until: Duration,
}

impl Host {
    pub(super) fn new(index: usize) -> Self {
        Self {
            index,
            id: id(index),
            life: 0,
            records: BTreeMap::new(),
            tick_at: None,
            addr: addr(index),
            refused: false,
            core: None,
            view: None,
            started: Duration::ZERO,
            ahead: Duration::ZERO,
            behind: Duration::ZERO,
            disk: 0,
            frozen_until: Duration::ZERO,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.core.is_some()
    }

    pub(super) fn start(
        &mut self,
        now: Duration,
        seeds: Vec<SocketAddr>,
        seed: u64,
        timing: Timing,
    ) {
        let wall = now.saturating_sub(self.behind).as_millis() as u64;
        let boot = wall.max(self.disk + 1);
        self.disk = boot;
        self.life += 1;
        self.started = now;
        self.ahead = Duration::ZERO;
        self.tick_at = None;
        self.frozen_until = Duration::ZERO;
        self.refused = false;
        let me = Identity {
            node: self.id,
            addr: self.addr,
            boot,
            bump: 0,
        };
        self.core = Some(Core::new(Settings {
            me,
            name: format!("n{}", self.index),
            seeds,
            limits: Limits::default(),
            timing,
            epoch: SystemTime::UNIX_EPOCH,
            seed,
        }));
    }

    pub(super) fn stop(&mut self) {
        self.core = None;
        self.view = None;
        self.life += 1;
        self.tick_at = None;
    }

    pub(super) fn lose_disk(&mut self) {
        self.disk = 0;
    }

    pub(super) fn freeze(&mut self, until: Duration) {
        self.frozen_until = until;
    }

    pub(super) fn jump(&mut self, by: Duration) {
        self.ahead += by;
    }

    /// For how long the process still stands still.
    pub(super) fn frozen(&self, now: Duration) -> Option<Duration> {
        self.frozen_until
            .checked_sub(now)
            .filter(|left| !left.is_zero())
    }

    pub(super) fn step(&mut self, now: Duration, input: Input) -> Vec<Output> {
        let local = now.saturating_sub(self.started) + self.ahead;
        let Some(core) = &mut self.core else {
            return Vec::new();
        };
        let outputs = core.step(local, input);
        for output in &outputs {
            if let Output::Boot(boot) = output {
                self.disk = *boot;
            }
        }
        outputs
    }

    /// When the node wants to be called, by the world's clock.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let local = self.core.as_ref()?.deadline()?;
        Some((self.started + local).saturating_sub(self.ahead))
    }

    pub(super) fn view(&mut self) -> Option<&View> {
        let core = self.core.as_mut()?;
        if let Some(view) = core.view() {
            self.view = Some(view);
        }
        self.view.as_ref()
    }

    /// What the node shows under a key of an owner.
    pub(super) fn record(&self, owner: NodeId, key: &Bytes) -> Option<&Bytes> {
        self.core.as_ref()?.record(owner, key)
    }

    /// Whether the node holds another for alive.
    pub(super) fn holds_alive(&self, member: NodeId) -> bool {
        let core = self.core.as_ref();
        core.is_some_and(|core| core.holds_alive(member))
    }

    /// The hashes of table and membership.
    pub(super) fn hashes(&self) -> Option<(u64, u64)> {
        self.core.as_ref().map(Core::hashes)
    }

    /// Messages that the node could not read.
    pub(super) fn malformed(&self) -> u64 {
        self.core.as_ref().map_or(0, Core::malformed)
    }

    /// Changes that wait to be passed on.
    pub(super) fn queued(&self) -> usize {
        self.core.as_ref().map_or(0, Core::queued)
    }

    pub(super) fn stats(&self) -> Option<Stats> {
        self.core.as_ref().map(Core::stats)
    }
}

pub(super) fn id(index: usize) -> NodeId {
    NodeId::of_name(&format!("n{index}"))
}

pub(super) fn addr(index: usize) -> SocketAddr {
    let [_, _, high, low] = (index as u32).to_be_bytes();
    (Ipv4Addr::new(10, 0, high, low), 7946).into()
}

/// The host at an address.
pub(super) fn index(addr: SocketAddr) -> Option<usize> {
    match addr.ip() {
        std::net::IpAddr::V4(ip) => {
            let [_, _, high, low] = ip.octets();
            Some(usize::from(u16::from_be_bytes([high, low])))
        }
        std::net::IpAddr::V6(_) => None,
    }
}

pub(super) fn key(key: u32) -> Bytes {
    Bytes::from(format!("task/{key}"))
}

/// A number for an output, to tell runs apart by.
pub(super) fn output_digest(output: &Output) -> u64 {
    let (kind, bytes): (u64, &[u8]) = match output {
        Output::Datagram { bytes, .. } => (1, bytes),
        Output::Open { bytes, .. } => (2, bytes),
        Output::Send { bytes, .. } => (3, bytes),
        Output::Close { .. } => (4, &[]),
        Output::Boot(_) => (5, &[]),
        Output::NameTaken { .. } => (6, &[]),
        Output::Left => (7, &[]),
    };
    let (chunks, rest) = bytes.as_chunks::<8>();
    let sum = chunks.iter().fold(kind, |sum, chunk| {
        sum.rotate_left(5) ^ u64::from_be_bytes(*chunk)
    });
    mix(sum ^ bytes.len() as u64 ^ rest.iter().map(|byte| u64::from(*byte)).sum::<u64>())
}
