//! Datagrams from other members.

use std::time::Duration;

use bytes::Bytes;
use portolan_model::NodeId;

use super::Core;
use crate::{
    codec::{
        DecodeError,
        datagram::{self, Body, Header},
        members::Membership as Packet,
        records::Delta,
    },
    membership::Refused,
    table::log::{Applied, LEFT},
};

impl Core {
    pub(super) fn datagram(&mut self, sender: NodeId, bytes: Bytes, now: Duration) {
        if self.leaving {
            return;
        }
        let (header, body) = match datagram::decode(bytes) {
            Ok(decoded) => decoded,
            Err(DecodeError::Unknown {
                what: "datagram", ..
            }) => {
                self.stats.drops.version += 1;
                return;
            }
            Err(_) => {
                self.stats.drops.malformed += 1;
                return;
            }
        };
        match body {
            Body::Notice(known) => self.notice(sender, known, now),
            _ if sender == self.membership.me().node => self.stats.drops.misdirected += 1,
            Body::Membership(packet) => {
                self.membership_packet(sender, packet, now);
                self.compare(sender, header, now);
            }
            Body::Deltas(deltas) => {
                if let Some(known) = self.membership.known().get(&sender)
                    && known.identity.boot > header.boot
                {
                    self.stats.drops.stale += 1;
                    return;
                }
                for delta in deltas {
                    self.delta(delta, now);
                }
                self.compare(sender, header, now);
            }
        }
    }

    pub(super) fn membership_packet(&mut self, sender: NodeId, packet: Packet, now: Duration) {
        let src = packet.header.src;
        match self.membership.receive(sender, packet, now) {
            Ok(()) | Err(Refused::Protocol) => {}
            Err(Refused::Misdirected) => self.stats.drops.misdirected += 1,
            Err(Refused::Limit) => self.stats.drops.limit += 1,
            Err(Refused::Superseded(known)) => {
                self.stats.drops.stale += 1;
                self.send(src.addr, datagram::notice(self.header(now), &known));
            }
        }
    }

    fn delta(&mut self, delta: Delta, now: Duration) {
        let (owner, boot) = (delta.owner, delta.boot);
        let key = delta.change.key.clone();
        match self.table.apply(delta, now) {
            Applied::Stale => {}
            Applied::Full => self.full(owner),
            Applied::Fresh => {
                if key == LEFT {
                    self.membership.departed(owner, boot, now);
                }
                self.queue.push(owner, key, self.times(), false);
            }
        }
    }

    /// Something did not fit.
    pub(super) fn full(&mut self, owner: NodeId) {
        if self.stats.drops.limit == 0 {
            tracing::warn!(%owner, "more members, owners or records than the limits allow; the rest is dropped and counted");
        }
        self.stats.drops.limit += 1;
    }

    /// Hashes that differ while nothing is on its way mean that something was missed.
    fn compare(&mut self, sender: NodeId, header: Header, now: Duration) {
        if (header.table, header.members) == self.hashes {
            return;
        }
        let quiet = self.timing.quiet;
        let ours = now.saturating_sub(self.hashes_since);
        if Duration::from_millis(u64::from(header.quiet)) > quiet && ours > quiet {
            self.stats.hash_mismatches += 1;
            self.want_pull(sender, now);
        } else if self.queue.is_overfull() {
            self.want_pull(sender, now);
        }
    }
}
