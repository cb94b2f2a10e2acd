//! Streams: joining, pulling what is missing, and pings that datagrams lost.

mod ask;
mod serve;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use foca::State;
use portolan_model::NodeId;

use super::{Core, Output, StreamId, Timer};
use crate::{
    codec::{datagram, members::Update, records::Part, stream::Message},
    identity::Identity,
    table::log::LEFT,
    view::MemberState,
};

/// Lost members called at one time, by a node that is alone.
const MAX_CALLED: usize = 16;
/// Seeds and lost members asked at one time.
const MAX_JOINS: usize = 3;
/// Bytes of records that one side sends in one pull; the next pull brings the rest.
const BUDGET: usize = 4 << 20;
/// One random pull in this many compares everything, whatever the hashes say.
const FULL: u64 = 10;
/// How long a peer is left alone after a pull that changed nothing: doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));
/// Between two tries of a node that is alone.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// Between two tries of a seed that is no member, by a node that is not alone.
const RETRY_SEED: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Asked {
    Ping,
    Pull {
        /// `None` for an address that is not known to be a member's.
        peer: Option<NodeId>,
        /// Whether anything came of it yet.
        useful: bool,
    },
}

#[derive(Debug)]
struct Served {
    from: Identity,
    mask: u64,
}

/// The streams under way, and when pulls may begin.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    count: u64,
    asked: BTreeMap<u64, (SocketAddr, Asked)>,
    served: BTreeMap<StreamId, Served>,
    last: Option<Duration>,
    /// Until when a peer is left alone, and for how long after the next vain pull.
    backoff: BTreeMap<NodeId, (Duration, Duration)>,
    joins: u32,
    join_at: Duration,
    random: u64,
}

impl Core {
    /// Asks seeds, and members that were lost, as long as this node is alone.
    pub(super) fn join(&mut self, now: Duration) {
        if now < self.pulls.join_at {
            return;
        }
        if !self.synced && now >= self.timing.join && !self.rivalry.is_refused() {
            tracing::warn!("no seed has answered yet; going on alone, and trying further");
            self.set_synced(now);
        }
        let alone = self.membership.peers().is_empty();
        let joined: Vec<SocketAddr> = self.membership.peers().iter().map(|p| p.addr).collect();
        let mut candidates: Vec<SocketAddr> = self
            .seeds
            .iter()
            .copied()
            .filter(|seed| !joined.contains(seed))
            .collect();
        if alone {
            let down = self.membership.known().values();
            let down = down.filter(|known| known.state == MemberState::Down);
            let down: Vec<Identity> = down.map(|known| known.identity).collect();
            candidates.extend(down.iter().map(|id| id.addr));
            // foca calls those that are down only as long as somebody is up. A stream to an address
            // that was cut off may hang for seconds after it is back; a datagram does not.
            for id in down.into_iter().take(MAX_CALLED) {
                self.membership.call(id, now);
            }
        }
        let wanted = if alone || !self.synced { MAX_JOINS } else { 1 };
        for _ in 0..wanted.min(candidates.len()) {
            let index = rand::RngExt::random_range(&mut self.rng, 0..candidates.len());
            let addr = candidates.swap_remove(index);
            let busy = self.pulls.asked.values().any(|(to, _)| *to == addr);
            if !busy {
                self.open_pull(addr, None, false);
            }
        }
        let next = if alone || !self.synced {
            self.pulls.joins += 1;
            let wait = (RETRY.0 * self.pulls.joins.min(4)).min(RETRY.1);
            wait / 2 + self.jitter(wait / 2)
        } else {
            self.pulls.joins = 0;
            RETRY_SEED / 2 + self.jitter(RETRY_SEED)
        };
        let next = if self.synced {
            now + next
        } else {
            (now + next).min(self.timing.join.max(now + RETRY.0 / 5))
        };
        self.join_at(next);
    }

    /// Joins at that time, and not at the time that was set before.
    pub(super) fn join_at(&mut self, at: Duration) {
        self.pulls.join_at = at;
        self.timers.set(at, 9, Timer::Join);
    }

    /// A peer has what this node lacks, or the reverse.
    pub(super) fn want_pull(&mut self, peer: NodeId, now: Duration) {
        let waits = self.pulls.backoff.get(&peer);
        if waits.is_none_or(|(until, _)| *until <= now) {
            self.begin_pull(peer, false, now);
        }
    }

    pub(super) fn begin_pull(&mut self, peer: NodeId, full: bool, now: Duration) {
        let recent = |last: Duration| now.saturating_sub(last) < self.timing.pull;
        let known = self.membership.known().get(&peer);
        let Some(known) = known.filter(|known| known.state.is_active()) else {
            return;
        };
        if peer == self.membership.me().node || self.pulls.last.is_some_and(recent) {
            return;
        }
        let addr = known.identity.addr;
        let spread = self.jitter(self.timing.pull / 5);
        self.pulls.last = Some(now + spread);
        self.open_pull(addr, Some(peer), full);
    }

    /// Pulls from whomever, hashes or no hashes.
    pub(super) fn pull_random(&mut self, now: Duration) {
        self.pulls.random += 1;
        let full = self.pulls.random.is_multiple_of(FULL);
        if let Some(peer) = self.choose(1).first() {
            self.begin_pull(peer.node, full, now);
        }
    }

    fn open_pull(&mut self, addr: SocketAddr, peer: Option<NodeId>, full: bool) {
        let message = Message::Open {
            from: self.membership.me(),
            full,
            buckets: Box::new(*self.table.buckets()),
        };
        self.stats.pulls.started += 1;
        let asked = Asked::Pull {
            peer,
            useful: false,
        };
        self.open(addr, asked, &message);
    }

    /// Sends a ping once more, over a stream.
    pub(super) fn ping_by_stream(&mut self, to: Identity, message: &[u8], now: Duration) {
        let message = Message::Datagram(datagram::membership(self.header(now), message));
        self.open(to.addr, Asked::Ping, &message);
    }

    fn open(&mut self, to: SocketAddr, asked: Asked, message: &Message) {
        self.pulls.count += 1;
        let stream = self.pulls.count;
        self.pulls.asked.insert(stream, (to, asked));
        let bytes = message.encode();
        self.outputs.push(Output::Open { stream, to, bytes });
    }

    /// A stream ended, by the other side, by an error or by its time.
    pub(super) fn closed(&mut self, stream: StreamId, now: Duration) {
        match stream {
            StreamId::In(_) => {
                self.pulls.served.remove(&stream);
            }
            StreamId::Out(id) => {
                if let Some((_, Asked::Pull { peer, .. })) = self.pulls.asked.remove(&id) {
                    self.stats.pulls.failed += 1;
                    self.put_off(peer, now);
                }
            }
        }
    }

    pub(super) fn message(&mut self, stream: StreamId, bytes: Bytes, now: Duration) {
        let message = match Message::decode(bytes) {
            Ok(message) if !self.leaving => message,
            Ok(_) => {
                self.close(stream, now);
                return;
            }
            Err(_) => {
                self.stats.drops.malformed += 1;
                self.close(stream, now);
                return;
            }
        };
        match stream {
            StreamId::In(_) => self.serve(stream, message, now),
            StreamId::Out(id) => self.continue_asking(id, message, now),
        }
    }

    pub(super) fn close(&mut self, stream: StreamId, now: Duration) {
        self.closed(stream, now);
        self.outputs.push(Output::Close { stream });
    }

    pub(super) fn reply(&mut self, stream: StreamId, message: &Message) {
        let bytes = message.encode();
        self.outputs.push(Output::Send { stream, bytes });
    }

    pub(super) fn learn(&mut self, from: Identity, members: Vec<Update>, now: Duration) {
        let first = Update::new(from, 0, State::Alive);
        let members = members
            .into_iter()
            .filter(|update| *update.id() != from || update.state() != State::Down);
        self.membership
            .learn([first].into_iter().chain(members).collect(), now);
        self.settle(now);
    }

    /// Takes parts that `peer` sent. Returns whether any brought something.
    pub(super) fn merge(&mut self, peer: NodeId, parts: Vec<Part>, now: Duration) -> bool {
        let before = self.table.hash();
        let mut useful = false;
        let times = self.times();
        for part in parts {
            let (owner, boot) = (part.owner, part.boot);
            let (fresh, full) = self.table.merge(part, owner == peer, now);
            if full {
                self.full(owner);
            }
            useful |= !fresh.is_empty();
            // A pull brings much to one node that others have: only small ones are news.
            let pass_on = fresh.len() <= MAX_PASSED_ON;
            for key in fresh {
                if key == LEFT {
                    self.membership.departed(owner, boot, now);
                }
                if pass_on {
                    self.queue.push(owner, key, times, false);
                }
            }
        }
        useful || before != self.table.hash()
    }

    /// Forgets what is no longer of use.
    pub(super) fn expire_pulls(&mut self, now: Duration) {
        self.pulls
            .backoff
            .retain(|_, (until, next)| *until + *next > now);
    }

    pub(super) fn put_off(&mut self, peer: Option<NodeId>, now: Duration) {
        if let Some(peer) = peer {
            let wait = self.pulls.backoff.get(&peer).map_or(BACKOFF.0, |b| b.1);
            let next = (wait * 2).min(BACKOFF.1);
            self.pulls.backoff.insert(peer, (now + wait, next));
        }
    }

    pub(super) fn set_synced(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.synced, true) {
            self.dirty = true;
            self.publish_all(now);
        }
    }

    /// Passes all own records on.
    pub(super) fn publish_all(&mut self, now: Duration) {
        let me = self.membership.me().node;
        let times = self.times();
        for key in self.table.own_keys() {
            self.queue.push(me, key, times, true);
        }
        self.refresh_hashes(now);
        self.flush(self.timing.fanout, now);
    }
}

/// Changes of one owner that a pull brought and that are passed on at most.
const MAX_PASSED_ON: usize = 16;
