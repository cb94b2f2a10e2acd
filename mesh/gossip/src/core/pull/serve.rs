//! The answering side of a stream.

use std::time::Duration;

use bytes::Bytes;

use super::{BUDGET, Served};
use crate::{
    codec::{
        datagram::{self, Body},
        stream::Message,
    },
    core::{Core, Output, StreamId},
    identity::Identity,
};

/// Pulls answered at one time.
const MAX_SERVED: usize = 4;

impl Core {
    pub(super) fn serve(&mut self, stream: StreamId, message: Message, now: Duration) {
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
                let differing = if full {
                    u64::MAX
                } else {
                    self.table.differing(&buckets)
                };
                let answer = Message::Digest {
                    from: self.membership.me(),
                    known: self.life_of(from),
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
                self.reply(stream, &Message::Parts(parts));
                self.outputs.push(Output::Close { stream });
            }
            Message::Digest { .. } | Message::Parts(_) | Message::Busy => {
                self.stats.drops.malformed += 1;
                self.close(stream, now);
            }
        }
    }

    /// The latest life of whoever asks that is known here, and whether it is held for alive.
    fn life_of(&self, from: Identity) -> Option<(Identity, bool)> {
        let me = self.membership.me();
        if from.node == me.node {
            return Some((me, true));
        }
        let known = self.membership.known().get(&from.node);
        let known = known.map(|known| (known.identity, known.state.is_active()));
        // Records may outlive what membership knows.
        let boot = self.table.life(from.node).map(|(boot, _)| boot);
        match (known, boot) {
            (Some((id, alive)), Some(boot)) if boot > id.boot => {
                Some((Identity { boot, ..id }, alive))
            }
            (None, Some(boot)) => Some((Identity { boot, ..from }, false)),
            (known, _) => known,
        }
    }

    /// Whether whoever asks may be taken for the member that it says it is.
    pub(super) fn accepts(&self, from: Identity) -> bool {
        let me = self.membership.me();
        let known = self.membership.known().get(&from.node);
        from.node != me.node
            && known.is_none_or(|known| {
                from.life() >= known.identity.life()
                    && (from.addr == known.identity.addr || !known.state.is_active())
            })
    }

    /// Tells somebody who it is that this node holds for its node.
    pub(super) fn tell_superseded(&mut self, from: Identity, now: Duration) {
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
}
