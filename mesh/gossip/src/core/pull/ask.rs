//! The asking side of a stream, once there is an answer.

use std::time::Duration;

use super::{Asked, BUDGET};
use crate::{
    codec::{
        datagram::{self, Body},
        stream::Message,
    },
    core::{Core, Output, StreamId},
    identity::Identity,
};

impl Core {
    pub(super) fn continue_asking(&mut self, id: u64, message: Message, now: Duration) {
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
                if !self.may_go_on(known, now) {
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
                self.welcome();
                self.set_synced(now);
            }
            _ => {
                self.close(stream, now);
            }
        }
    }

    /// Whether the answer to a pull lets this node be a member.
    fn may_go_on(&mut self, known: Option<(Identity, bool)>, now: Duration) -> bool {
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
}
