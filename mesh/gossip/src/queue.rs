//! Which changes still have to be passed on, and how often.

use std::collections::BTreeMap;

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

#[derive(Debug, Clone, Copy)]
struct Item {
    left: u32,
    order: u64,
}

/// A queue of keys. The value is read when a datagram is filled, so that the newest one travels.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    own: BTreeMap<(NodeId, Bytes), Item>,
    relayed: BTreeMap<(NodeId, Bytes), Item>,
    order: u64,
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
        let (items, most) = if own {
            (&mut self.own, MAX_OWN)
        } else {
            (&mut self.relayed, MAX_RELAYED)
        };
        self.order += 1;
        let item = Item {
            left: times,
            order: self.order,
        };
        if items.len() >= most && !items.contains_key(&(owner, key.clone())) {
            self.overflows += 1;
            return;
        }
        items.insert((owner, key), item);
    }

    /// Forgets what an earlier life of this node wanted sent.
    pub(crate) fn clear_own(&mut self) {
        self.own.clear();
    }

    /// Fills one datagram: own changes first, then those sent the least, the newest first among
    /// them. Only what fitted counts as sent.
    pub(crate) fn fill(&mut self, table: &Table) -> Groups {
        let mut groups = Groups::new();
        let mut room = MAX_BODY - HEAD;
        for items in [&mut self.own, &mut self.relayed] {
            let mut wanted: Vec<_> = items
                .iter()
                .map(|((owner, key), item)| (item.left, item.order, *owner, key.clone()))
                .collect();
            wanted.sort_unstable_by_key(|(left, order, ..)| std::cmp::Reverse((*left, *order)));
            for (_, _, owner, key) in wanted {
                let id = (owner, key);
                let Some((boot, change)) = table.latest(id.0, &id.1) else {
                    items.remove(&id);
                    continue;
                };
                let head = if groups.contains_key(&(owner, boot)) {
                    0
                } else {
                    GROUP_HEAD
                };
                let size = head + change_size(&change);
                if size > room {
                    // The rest is of much the same size; the next datagram begins with it.
                    break;
                }
                room -= size;
                groups.entry((owner, boot)).or_default().push(change);
                if let Some(item) = items.get_mut(&id) {
                    item.left -= 1;
                    if item.left == 0 {
                        items.remove(&id);
                    }
                }
            }
        }
        for changes in groups.values_mut() {
            changes.sort_unstable_by_key(|change| change.seq);
        }
        groups
    }
}
