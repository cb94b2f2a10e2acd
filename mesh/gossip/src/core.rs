//! The whole protocol as a step function: `(now, input) -> outputs`.
//!
//! There is no socket, no clock and no thread in here, every choice comes from one seeded generator,
//! and none from the order of a hash map: the same inputs give the same outputs.

mod pull;
mod receive;
mod report;
mod rival;
mod timers;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use portolan_model::NodeId;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    codec::datagram::{self, Header},
    config::{Limits, Timing},
    identity::Identity,
    membership::{Due, Effect, Membership, transmissions},
    queue::Queue,
    stats::Stats,
    table::{
        Keep, Table,
        log::{AWAY, LEFT},
    },
};
use pull::Pulls;
use rival::Rivalry;
use timers::Timers;

/// What a core is told at its start.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) me: Identity,
    pub(crate) name: String,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) limits: Limits,
    pub(crate) timing: Timing,
    /// The wall clock at moment zero, only for display.
    pub(crate) epoch: SystemTime,
    pub(crate) seed: u64,
}

/// A TCP stream, named by whoever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StreamId {
    /// Opened by this core.
    Out(u64),
    /// Accepted by the driver.
    In(u64),
}

/// What happens to a core. Everything in here is authenticated already.
#[derive(Debug)]
pub(crate) enum Input {
    Datagram { sender: NodeId, bytes: Bytes },
    Message { stream: StreamId, bytes: Bytes },
    Closed { stream: StreamId },
    Records(BTreeMap<Bytes, Bytes>),
    Join(Vec<SocketAddr>),
    Leave,
    Pause(Duration),
    Tick,
}

/// What a core wants done, in order.
#[derive(Debug)]
pub(crate) enum Output {
    Datagram {
        to: SocketAddr,
        bytes: Bytes,
    },
    Open {
        stream: u64,
        to: SocketAddr,
        bytes: Bytes,
    },
    Send {
        stream: StreamId,
        bytes: Bytes,
    },
    Close {
        stream: StreamId,
    },
    /// To be on disk before anything that follows leaves.
    Boot(u64),
    /// This node's name is alive elsewhere; it must not go on.
    NameTaken {
        theirs: SocketAddr,
    },
    /// The others are told; nothing follows.
    Left,
}

/// What a core does later.
#[derive(Debug)]
enum Timer {
    Membership(Due),
    Repeat {
        to: SocketAddr,
        message: Bytes,
    },
    Gossip,
    Expire,
    Join,
    Pull(NodeId),
    PullRandom,
    /// The last word of this life, once more.
    LastWord(Bytes),
}

pub(crate) struct Core {
    name: String,
    /// Names of members, which outlive the records that brought them.
    names: BTreeMap<NodeId, String>,
    timing: Timing,
    epoch: SystemTime,
    rng: SmallRng,
    membership: Membership,
    table: Table,
    queue: Queue,
    timers: Timers<Timer>,
    pulls: Pulls,
    rivalry: Rivalry,
    seeds: BTreeSet<SocketAddr>,
    synced: bool,
    /// Set while this node goes, and after.
    leaving: bool,
    /// Both hashes, and since when they are these.
    hashes: (u64, u64),
    hashes_since: Duration,
    outputs: Vec<Output>,
    /// Answers to a message that came by stream, which go back the same way.
    captured: Option<(NodeId, Vec<Bytes>)>,
    stats: Stats,
    dirty: bool,
}

/// How late a timer may be before the process counts as stalled.
const STALL: Duration = Duration::from_millis(250);

impl Core {
    pub(crate) fn new(settings: Settings) -> Self {
        let Settings {
            me,
            name,
            seeds,
            limits,
            timing,
            epoch,
            seed,
        } = settings;
        let mut rng = SmallRng::seed_from_u64(seed);
        let foca_rng = SmallRng::seed_from_u64(rng.random());
        let keep = Keep {
            gone: timing.keep,
            previous: timing.hold_previous,
        };
        let seeds: BTreeSet<_> = seeds.into_iter().filter(|seed| *seed != me.addr).collect();
        let mut core = Self {
            membership: Membership::new(me, timing.clone(), limits, foca_rng),
            table: Table::new(me.node, me.boot, limits, keep),
            queue: Queue::default(),
            timers: Timers::default(),
            pulls: Pulls::default(),
            rivalry: Rivalry::default(),
            synced: seeds.is_empty(),
            seeds,
            leaving: false,
            hashes: (0, 0),
            hashes_since: Duration::ZERO,
            outputs: Vec::new(),
            captured: None,
            stats: Stats::default(),
            dirty: true,
            names: BTreeMap::from([(me.node, name.clone())]),
            name,
            timing,
            epoch,
            rng,
        };
        core.timers.set(Duration::ZERO, 9, Timer::Join);
        core.timers.set(core.timing.gossip, 9, Timer::Gossip);
        core.timers.set(EXPIRE, 9, Timer::Expire);
        let first = core.jitter(core.timing.pull_random);
        core.timers.set(first, 9, Timer::PullRandom);
        core
    }

    /// One step. The moments of the steps must not go back.
    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Vec<Output> {
        match input {
            Input::Datagram { sender, bytes } => self.datagram(sender, bytes, now),
            Input::Message { stream, bytes } => self.message(stream, bytes, now),
            Input::Closed { stream } => self.closed(stream, now),
            Input::Records(records) => self.records(records, now),
            Input::Join(seeds) => {
                let me = self.membership.me().addr;
                self.seeds
                    .extend(seeds.into_iter().filter(|seed| *seed != me));
                self.join_at(now);
            }
            Input::Leave => self.end(&LEFT, Table::leave, now),
            Input::Pause(time) => self.end(&AWAY, |table| table.pause(time), now),
            Input::Tick => self.fire(now),
        }
        self.settle(now);
        std::mem::take(&mut self.outputs)
    }

    /// When the next [`Input::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.timers.first()
    }

    /// The identity as it is now.
    pub(crate) fn me(&self) -> Identity {
        self.membership.me()
    }

    /// Whether what readers see changed since the last [`Core::view`].
    pub(crate) fn has_news(&self) -> bool {
        self.dirty
    }

    fn records(&mut self, records: BTreeMap<Bytes, Bytes>, now: Duration) {
        if self.leaving {
            return;
        }
        let me = self.membership.me().node;
        let changed = self.table.set_own(&self.name, records, now);
        if !changed.is_empty() {
            let times = self.times();
            for key in changed {
                self.queue.push(me, key, times, true);
            }
            self.refresh_hashes(now);
            self.flush(self.timing.fanout, now);
        }
    }

    /// Ends this life by a record under that key.
    fn end(&mut self, key: &Bytes, write: impl FnOnce(&mut Table), now: Duration) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        write(&mut self.table);
        self.refresh_hashes(now);
        self.tell_end(key, now);
        let again = Timer::LastWord(key.clone());
        self.timers.set(now + END_AGAIN, 9, again);
    }

    fn tell_end(&mut self, key: &Bytes, now: Duration) {
        let me = self.membership.me();
        let Some((boot, change)) = self.table.latest(me.node, key) else {
            return;
        };
        let changes = [change];
        for peer in self.choose(TELL_END) {
            let groups = [(me.node, boot, &changes[..])];
            self.send(peer.addr, datagram::deltas(self.header(now), groups));
        }
    }

    fn fire(&mut self, now: Duration) {
        if let Some(first) = self.timers.first()
            && now.saturating_sub(first) > STALL
        {
            // This process stood still, the others did not: whoever seems silent may have spoken.
            // Everything that was to happen meanwhile happens from now on, in order.
            self.membership.stalled();
            self.timers.shift(now.saturating_sub(first));
        }
        while let Some(timer) = self.timers.pop(now) {
            self.fire_one(timer, now);
            self.settle(now);
        }
    }

    fn fire_one(&mut self, timer: Timer, now: Duration) {
        match timer {
            Timer::LastWord(key) => {
                self.tell_end(&key, now);
                if key == LEFT {
                    self.membership.leave(now);
                    self.settle(now);
                }
                self.outputs.push(Output::Left);
            }
            _ if self.leaving => {}
            Timer::Membership(due) => self.membership.fire(due, now),
            Timer::Repeat { to, message } => {
                self.send(to, datagram::membership(self.header(now), &message));
            }
            Timer::Gossip => {
                let tenth = self.timing.gossip / 10;
                let next = tenth * self.rng.random_range(8..=12);
                self.timers.set(now + next, 9, Timer::Gossip);
                self.dirty |= self.membership.refresh_now_and_then(now);
                self.flush(self.timing.fanout, now);
            }
            Timer::Expire => {
                self.timers.set(now + EXPIRE, 9, Timer::Expire);
                self.table.expire(now);
                self.expire_pulls(now);
            }
            Timer::Join => self.join(now),
            Timer::Pull(peer) => self.begin_pull(peer, false, now),
            Timer::PullRandom => {
                let next = self.jitter(self.timing.pull_random) + self.timing.pull_random / 2;
                self.timers.set(now + next, 9, Timer::PullRandom);
                self.pull_random(now);
            }
        }
    }

    /// Sends what waits to `count` random members.
    fn flush(&mut self, count: usize, now: Duration) {
        if !self.synced || self.queue.len() == 0 {
            return;
        }
        for peer in self.choose(count) {
            let groups = self.queue.fill(&self.table);
            if groups.is_empty() {
                break;
            }
            let groups = groups
                .iter()
                .map(|((owner, boot), changes)| (*owner, *boot, changes.as_slice()));
            let bytes = datagram::deltas(self.header(now), groups);
            self.send(peer.addr, bytes);
        }
    }

    /// Does what membership wants done, and what follows from it, until nothing does.
    fn settle(&mut self, now: Duration) {
        loop {
            let effects = self.membership.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.effect(effect, now);
            }
        }
        self.refresh_hashes(now);
    }

    fn effect(&mut self, effect: Effect, now: Duration) {
        match effect {
            Effect::Send { to, message } => {
                let bytes = datagram::membership(self.header(now), &message);
                match &mut self.captured {
                    Some((node, messages)) if *node == to.node => messages.push(bytes),
                    _ => self.send(to.addr, bytes),
                }
            }
            Effect::Repeat { to, message, after } => {
                let timer = Timer::Repeat {
                    to: to.addr,
                    message,
                };
                self.timers.set(now + after, 9, timer);
            }
            Effect::Stream { to, message } => self.ping_by_stream(to, &message, now),
            Effect::Timer { timer, after } => {
                let rank = timer.rank();
                self.timers.set(now + after, rank, Timer::Membership(timer));
            }
            Effect::Up(id) => {
                tracing::info!(member = self.name_of(id.node), addr = %id.addr, "member is up");
                self.dirty = true;
                self.stats.joins += 1;
                self.table.show(id.node, id.boot, now);
                if self
                    .table
                    .life(id.node)
                    .is_none_or(|life| life.0 == id.boot)
                {
                    // New, or back from a partition: it has news, and so have we.
                    let soon = self.jitter(Duration::from_millis(200));
                    self.timers.set(now + soon, 9, Timer::Pull(id.node));
                }
            }
            Effect::Renamed(id) => {
                self.dirty = true;
                let known = self.membership.known().get(&id.node);
                if known.is_some_and(|known| known.state.is_active() && known.identity == id) {
                    self.table.show(id.node, id.boot, now);
                }
            }
            Effect::Down(id) => {
                tracing::info!(member = self.name_of(id.node), addr = %id.addr, "member is down or left");
                self.dirty = true;
                self.stats.downs += 1;
                self.table.hide(id.node, now);
            }
            Effect::Renewed => {
                tracing::info!("others held this node for down; it is back");
                self.dirty = true;
            }
            Effect::Rival(id) => self.rival(id, now),
        }
    }

    fn refresh_hashes(&mut self, now: Duration) {
        self.dirty |= self.table.take_changed();
        let hashes = (self.table.hash(), self.membership.hash());
        if hashes != self.hashes {
            self.hashes = hashes;
            self.hashes_since = now;
            self.dirty = true;
        }
    }

    fn header(&self, now: Duration) -> Header {
        let quiet = now.saturating_sub(self.hashes_since).as_millis();
        Header {
            boot: self.membership.me().boot,
            table: self.hashes.0,
            members: self.hashes.1,
            quiet: u16::try_from(quiet).unwrap_or(u16::MAX),
        }
    }

    fn send(&mut self, to: SocketAddr, bytes: Bytes) {
        self.outputs.push(Output::Datagram { to, bytes });
    }

    /// Up to `count` different random members.
    fn choose(&mut self, count: usize) -> Vec<Identity> {
        let peers = self.membership.peers();
        if peers.len() <= count {
            return peers.to_vec();
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(count);
        while chosen.len() < count {
            let index = self.rng.random_range(0..peers.len());
            if !chosen.contains(&index) {
                chosen.push(index);
            }
        }
        chosen
            .iter()
            .filter_map(|index| peers.get(*index).copied())
            .collect()
    }

    fn times(&self) -> u32 {
        transmissions(self.membership.peers().len() + 1)
    }

    /// Some time in `0..most`.
    fn jitter(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.random())
    }
}

/// Between two looks at what may be forgotten.
const EXPIRE: Duration = Duration::from_secs(1);
/// A node that ends says so twice, this far apart.
const END_AGAIN: Duration = Duration::from_millis(100);
/// How many members a node that ends tells; they tell the rest.
const TELL_END: usize = 16;
