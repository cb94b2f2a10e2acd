//! Which changes still have to be passed on, and how often.

use std::{cmp::Reverse, collections::BTreeMap};

use bytes::Bytes;
use portolan_model::NodeId;

use crate::{
    codec::{
        datagram::{HEAD, MAX_BODY},
        records::{Change, GROUP_HEAD, change_size},
    },
    table::Table,
};

/// Own changes queued at most. A larger first set comes to the others by pulls.
pub(crate) const MAX_OWN: usize = 1024;
/// Relayed changes queued at most: beyond, relaying costs more than the pulls that replace it.
pub(crate) const MAX_RELAYED: usize = 256;

/// A key and its owner.
type Id = (NodeId, Bytes);
/// What is sent first stands first: what was sent the least, and of that the newest.
type Rank = (Reverse<u32>, Reverse<u64>);

/// Keys in the order of their sending.
#[derive(Debug, Default)]
struct Lane {
    ranks: BTreeMap<Id, Rank>,
    order: BTreeMap<Rank, Id>,
}

impl Lane {
    fn len(&self) -> usize {
        self.ranks.len()
    }

    fn insert(&mut self, id: Id, rank: Rank) {
        if let Some(old) = self.ranks.insert(id.clone(), rank) {
            self.order.remove(&old);
        }
        self.order.insert(rank, id);
    }

    fn remove(&mut self, id: &Id) {
        if let Some(rank) = self.ranks.remove(id) {
            self.order.remove(&rank);
        }
    }
}

/// A queue of keys. The value is read when a datagram is filled, so that the newest one travels.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    own: Lane,
    relayed: Lane,
    count: u64,
    overflows: u64,
}

/// Changes for one datagram, by owner and boot.
pub(crate) type Groups = BTreeMap<(NodeId, u64), Vec<Change>>;

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.own.len() + self.relayed.len()
    }

    pub(crate) fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Whether so much is waiting that a pull is the cheaper way.
    pub(crate) fn is_overfull(&self) -> bool {
        self.relayed.len() >= MAX_RELAYED / 2
    }

    /// Wants `key` of `owner` sent `times` times, from now on.
    pub(crate) fn push(&mut self, owner: NodeId, key: Bytes, times: u32, own: bool) {
        let (lane, most) = if own {
            (&mut self.own, MAX_OWN)
        } else {
            (&mut self.relayed, MAX_RELAYED)
        };
        let id = (owner, key);
        if lane.len() >= most && !lane.ranks.contains_key(&id) {
            self.overflows += 1;
            return;
        }
        self.count += 1;
        lane.insert(id, (Reverse(times), Reverse(self.count)));
    }

    /// Forgets what an earlier life of this node wanted sent.
    pub(crate) fn clear_own(&mut self) {
        self.own = Lane::default();
    }

    /// Fills one datagram, with own changes first. Only what fitted counts as sent.
    pub(crate) fn fill(&mut self, table: &Table) -> Groups {
        let mut groups = Groups::new();
        let mut room = MAX_BODY - HEAD;
        for lane in [&mut self.own, &mut self.relayed] {
            let (mut sent, mut gone) = (Vec::new(), Vec::new());
            for (rank, id) in &lane.order {
                let Some((boot, change)) = table.latest(id.0, &id.1) else {
                    gone.push(id.clone());
                    continue;
                };
                let known = groups.contains_key(&(id.0, boot));
                let size = change_size(&change) + if known { 0 } else { GROUP_HEAD };
                if size > room {
                    // The rest is of much the same size; the next datagram begins with it.
                    break;
                }
                room -= size;
                groups.entry((id.0, boot)).or_default().push(change);
                sent.push((*rank, id.clone()));
            }
            for id in &gone {
                lane.remove(id);
            }
            for ((Reverse(left), order), id) in sent {
                if left > 1 {
                    lane.insert(id, (Reverse(left - 1), order));
                } else {
                    lane.remove(&id);
                }
            }
        }
        for changes in groups.values_mut() {
            changes.sort_unstable_by_key(|change| change.seq);
        }
        groups
    }
}
