//! Streams: joining, pulling what is missing, and pings that datagrams lost.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use foca::State;
use portolan_model::NodeId;

use super::{Core, Output, StreamId, Timer};
use crate::{
    codec::{
        datagram::{self, Body},
        members::Update,
        records::{Digest, Part},
        stream::Message,
    },
    identity::Identity,
    table::log::LEFT,
};

/// Pulls answered at one time.
const MAX_SERVED: usize = 4;
/// Seeds and lost members asked at one time.
const MAX_JOINS: usize = 3;
/// Bytes of records that one side sends in one pull; the next pull brings the rest.
const BUDGET: usize = 4 << 20;
/// One random pull in this many compares everything, whatever the hashes say.
const FULL: u64 = 10;
/// How long a peer is left alone after a pull that changed nothing: doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));
/// Between two tries of a node that is alone.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
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
        if !self.synced && now >= self.timing.join {
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
            let down = down.filter(|known| known.state == crate::view::MemberState::Down);
            candidates.extend(down.map(|known| known.identity.addr));
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

    fn close(&mut self, stream: StreamId, now: Duration) {
        self.closed(stream, now);
        self.outputs.push(Output::Close { stream });
    }

    fn reply(&mut self, stream: StreamId, message: &Message) {
        let bytes = message.encode();
        self.outputs.push(Output::Send { stream, bytes });
    }

    // The answering side.

    fn serve(&mut self, stream: StreamId, message: Message, now: Duration) {
        match message {
            Message::Datagram(bytes) => self.serve_datagram(stream, bytes, now),
            Message::Open {
                from,
                full,
                buckets,
            } => {
                if self.pulls.served.len() >= MAX_SERVED {
                    self.stats.pulls.busy += 1;
                    self.reply(stream, &Message::Busy);
                    self.outputs.push(Output::Close { stream });
                    return;
                }
                let me = self.membership.me();
                let known = if from.node == me.node {
                    Some((me, true))
                } else {
                    let known = self.membership.known().get(&from.node);
                    known.map(|known| (known.identity, known.state.is_active()))
                };
                let boot = self.table.life(from.node).map(|(boot, _)| boot);
                // Records may outlive what membership knows.
                let known = match (known, boot) {
                    (Some((id, alive)), Some(boot)) if boot > id.boot => {
                        Some((Identity { boot, ..id }, alive))
                    }
                    (None, Some(boot)) => Some((Identity { boot, ..from }, false)),
                    (known, _) => known,
                };
                let differing = if full {
                    u64::MAX
                } else {
                    self.table.differing(&buckets)
                };
                let answer = Message::Digest {
                    from: me,
                    known,
                    differing,
                    digests: self.table.digests(differing),
                    members: self.membership.updates(),
                };
                let mask = differing;
                self.pulls.served.insert(stream, Served { from, mask });
                self.reply(stream, &answer);
            }
            Message::Exchange {
                digests,
                members,
                parts,
            } => {
                let Some(Served { from, mask }) = self.pulls.served.remove(&stream) else {
                    self.outputs.push(Output::Close { stream });
                    return;
                };
                self.stats.pulls.served += 1;
                if !self.accepts(from) {
                    self.stats.drops.stale += 1;
                    self.tell_superseded(from, now);
                    self.outputs.push(Output::Close { stream });
                    return;
                }
                self.learn(from, members, now);
                self.merge(from.node, parts, now);
                let parts = self.table.parts(&digests, mask, BUDGET);
                self.surpassed_in(&digests, now);
                self.reply(stream, &Message::Parts(parts));
                self.outputs.push(Output::Close { stream });
            }
            Message::Digest { .. } | Message::Parts(_) | Message::Busy => {
                self.stats.drops.malformed += 1;
                self.close(stream, now);
            }
        }
    }

    /// Whether whoever asks may be taken for the member that it says it is.
    fn accepts(&self, from: Identity) -> bool {
        let me = self.membership.me();
        let known = self.membership.known().get(&from.node);
        from.node != me.node
            && known.is_none_or(|known| {
                from.life() >= known.identity.life()
                    && (from.addr == known.identity.addr || !known.state.is_active())
            })
    }

    /// Tells somebody who it is that this node holds for its node.
    fn tell_superseded(&mut self, from: Identity, now: Duration) {
        let known = self.membership.known().get(&from.node);
        if let Some(known) = known.map(|known| known.identity) {
            self.send(from.addr, datagram::notice(self.header(now), &known));
        }
    }

    /// A datagram that came by stream; what it is answered with goes back by it.
    fn serve_datagram(&mut self, stream: StreamId, bytes: Bytes, now: Duration) {
        if let Ok((_, Body::Membership(packet))) = datagram::decode(bytes) {
            let sender = packet.header.src.node;
            self.captured = Some((sender, Vec::new()));
            self.membership_packet(sender, packet, now);
            self.settle(now);
            let (_, answers) = self.captured.take().unwrap_or((sender, Vec::new()));
            let mut answers = answers.into_iter();
            if let Some(answer) = answers.next() {
                self.reply(stream, &Message::Datagram(answer));
            }
            // Whatever else membership wanted to tell the sender goes the usual way.
            if let Some(known) = self.membership.known().get(&sender) {
                let addr = known.identity.addr;
                answers.for_each(|bytes| self.send(addr, bytes));
            }
        } else {
            self.stats.drops.malformed += 1;
        }
        self.outputs.push(Output::Close { stream });
    }

    // The asking side.

    fn continue_asking(&mut self, id: u64, message: Message, now: Duration) {
        let stream = StreamId::Out(id);
        let Some(&(_, asked)) = self.pulls.asked.get(&id) else {
            self.outputs.push(Output::Close { stream });
            return;
        };
        match (asked, message) {
            (Asked::Ping, Message::Datagram(bytes)) => {
                self.pulls.asked.remove(&id);
                self.outputs.push(Output::Close { stream });
                if let Ok((_, Body::Membership(packet))) = datagram::decode(bytes) {
                    let sender = packet.header.src.node;
                    self.membership_packet(sender, packet, now);
                } else {
                    self.stats.drops.malformed += 1;
                }
            }
            (
                Asked::Pull { .. },
                Message::Digest {
                    from,
                    known,
                    differing,
                    digests,
                    members,
                },
            ) => {
                if !self.accepts(from) {
                    self.stats.drops.stale += 1;
                    self.tell_superseded(from, now);
                    self.close(stream, now);
                    return;
                }
                if !self.may_go_on(from, known, now) {
                    self.close(stream, now);
                    return;
                }
                let before = self.membership.hash();
                self.learn(from, members, now);
                let parts = self.table.parts(&digests, differing, BUDGET);
                let useful = !parts.is_empty() || before != self.membership.hash();
                if let Some((_, asked)) = self.pulls.asked.get_mut(&id) {
                    *asked = Asked::Pull {
                        peer: Some(from.node),
                        useful,
                    };
                }
                let answer = Message::Exchange {
                    digests: self.table.digests(differing),
                    members: self.membership.updates(),
                    parts,
                };
                self.reply(stream, &answer);
            }
            (Asked::Pull { peer, useful }, Message::Parts(parts)) => {
                let owner = peer.unwrap_or(self.membership.me().node);
                let useful = self.merge(owner, parts, now) || useful;
                self.pulls.asked.remove(&id);
                self.outputs.push(Output::Close { stream });
                if useful {
                    self.stats.pulls.useful += 1;
                    if let Some(peer) = peer {
                        self.pulls.backoff.remove(&peer);
                    }
                } else {
                    self.put_off(peer, now);
                }
                self.set_synced(now);
            }
            _ => {
                self.close(stream, now);
            }
        }
    }

    /// Whether the answer to a pull lets this node be a member.
    fn may_go_on(
        &mut self,
        from: Identity,
        known: Option<(Identity, bool)>,
        now: Duration,
    ) -> bool {
        let me = self.membership.me();
        let Some((known, alive)) = known.filter(|(known, _)| known.node == me.node) else {
            return true;
        };
        if known.addr != me.addr && alive {
            if self.membership.peers().is_empty() {
                self.refused(known, now);
            } else {
                self.rival(known, now);
            }
            return false;
        }
        if self.surpassed(known.boot, now) {
            // The other side still has the life that this pull began with.
            self.join_at(now);
            return false;
        }
        true
    }

    fn learn(&mut self, from: Identity, members: Vec<Update>, now: Duration) {
        let first = Update::new(from, 0, State::Alive);
        let members = members
            .into_iter()
            .filter(|update| *update.id() != from || update.state() != State::Down);
        self.membership
            .learn([first].into_iter().chain(members).collect(), now);
        self.settle(now);
    }

    /// Takes parts that `peer` sent. Returns whether any brought something.
    fn merge(&mut self, peer: NodeId, parts: Vec<Part>, now: Duration) -> bool {
        let me = self.membership.me().node;
        let before = self.table.hash();
        let mut useful = false;
        let times = self.times();
        for part in parts {
            let (owner, boot) = (part.owner, part.boot);
            if owner == me {
                self.surpassed(boot, now);
                continue;
            }
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

    fn surpassed_in(&mut self, digests: &[Digest], now: Duration) {
        let me = self.membership.me().node;
        if let Some(digest) = digests.iter().find(|digest| digest.owner == me) {
            self.surpassed(digest.boot, now);
        }
    }

    fn put_off(&mut self, peer: Option<NodeId>, now: Duration) {
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
