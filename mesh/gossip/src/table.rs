//! The replicated records: one log per owner, hashes of the whole, and what a peer lacks of it.

pub(crate) mod log;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use portolan_model::NodeId;

use crate::{
    codec::{
        records::{Change, Delta, Digest, Part},
        stream::{BUCKETS, Buckets},
    },
    config::Limits,
    view::Owner,
};
use log::{AWAY, Applied, LEFT, Log, NAME, READY, RESERVED};

/// How long things are kept that nobody sees any more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Deletes, hidden owners, and departed ones.
    pub(crate) gone: Duration,
    /// What was shown of an owner's life before, while the new one is not complete.
    pub(crate) previous: Duration,
}

#[derive(Debug)]
struct Slot {
    log: Log,
    /// Since when the owner is no living member; `None` while it is one, or is away.
    hidden: Option<Duration>,
    /// Until when an owner counts that is no living member, as it said that it comes back.
    away: Option<Duration>,
}

impl Slot {
    /// The records of an owner that left begin to be forgotten at once. That one comes back may be heard after its
    /// end.
    fn settle(&mut self, now: Duration) {
        if self.log.departed() {
            self.hidden.get_or_insert(now);
        } else if let (Some(since), Some(time)) = (self.hidden, self.log.away())
            && since + time > now
        {
            (self.hidden, self.away) = (None, Some(since + time));
        }
    }

    fn hash(&self, owner: NodeId) -> u64 {
        if self.hidden.is_none() && !self.log.departed() {
            self.log.hash(owner)
        } else {
            0
        }
    }
}

/// All logs that a node has, its own included.
#[derive(Debug)]
pub(crate) struct Table {
    me: NodeId,
    limits: Limits,
    keep: Keep,
    slots: BTreeMap<NodeId, Slot>,
    living: BTreeSet<NodeId>,
    buckets: Buckets,
    hash: u64,
    changed: bool,
}

impl Table {
    pub(crate) fn new(me: NodeId, boot: u64, limits: Limits, keep: Keep) -> Self {
        let mut table = Self {
            me,
            limits,
            keep,
            slots: BTreeMap::new(),
            living: BTreeSet::from([me]),
            buckets: [0; BUCKETS],
            hash: 0,
            changed: true,
        };
        table.reboot(boot, Duration::ZERO);
        table
    }

    /// Equal at two nodes exactly if they show the same records of the same living owners.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// A bit for each bucket that is not as in `theirs`.
    pub(crate) fn differing(&self, theirs: &Buckets) -> u64 {
        self.buckets
            .iter()
            .zip(theirs)
            .zip(0..)
            .filter(|((ours, theirs), _)| ours != theirs)
            .fold(0, |mask, (_, index)| mask | 1 << index)
    }

    /// Whether anything that readers see changed since the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Owners, records and bytes of values, as kept.
    pub(crate) fn size(&self) -> (usize, usize, usize) {
        self.slots.values().fold((0, 0, 0), |sum, slot| {
            let bytes: usize = slot.log.live().map(|(k, v)| k.len() + v.len()).sum();
            (sum.0 + 1, sum.1 + slot.log.len(), sum.2 + bytes)
        })
    }

    /// The highest life of an owner that is known, and whether it left.
    pub(crate) fn life(&self, owner: NodeId) -> Option<(u64, bool)> {
        let slot = self.slots.get(&owner)?;
        Some((slot.log.boot, slot.log.departed()))
    }

    /// The name that an owner gave itself.
    pub(crate) fn name(&self, owner: NodeId) -> Option<&Bytes> {
        self.slots.get(&owner)?.log.value(&NAME)
    }

    /// What is shown under a key of an owner, but for what stands in for a life not complete.
    #[cfg(feature = "sim")]
    pub(crate) fn visible(&self, owner: NodeId, key: &Bytes) -> Option<&Bytes> {
        let slot = self.slots.get(&owner)?;
        slot.log.value(key).filter(|_| slot.hidden.is_none())
    }

    /// Begins the own log anew under a later boot number, with what it held.
    pub(crate) fn reboot(&mut self, boot: u64, now: Duration) {
        let held: Vec<(Bytes, Bytes)> = self.slots.get(&self.me).map_or_else(Vec::new, |slot| {
            let live = slot.log.live();
            live.map(|(k, v)| (k.clone(), v.clone())).collect()
        });
        let gone = now + self.keep.gone;
        self.update(self.me, |slot| {
            slot.hidden = None;
            slot.log = Log::new(boot);
            for (key, value) in held {
                slot.log.write(key, Some(value), gone);
            }
        });
        self.changed = true;
    }

    /// Makes the own records these, and returns the keys that changed in the order of their change.
    pub(crate) fn set_own(
        &mut self,
        name: &str,
        records: BTreeMap<Bytes, Bytes>,
        now: Duration,
    ) -> Vec<Bytes> {
        let gone = now + self.keep.gone;
        let mut changed = Vec::new();
        self.update(self.me, |slot| {
            let log = &mut slot.log;
            let stale: Vec<Bytes> = log
                .live()
                .map(|(key, _)| key)
                .filter(|key| key.first() != Some(&RESERVED) && !records.contains_key(*key))
                .cloned()
                .collect();
            let name = (NAME, Bytes::copy_from_slice(name.as_bytes()));
            // The name comes first and the mark of completeness last.
            let wanted = [name].into_iter().chain(records);
            let wanted = wanted.chain([(READY, Bytes::new())]);
            for (key, value) in wanted {
                if log.value(&key) != Some(&value) {
                    changed.push(key.clone());
                    log.write(key, Some(value), gone);
                }
            }
            for key in stale {
                changed.push(key.clone());
                log.write(key, None, gone);
            }
        });
        self.changed |= !changed.is_empty();
        changed
    }

    /// The keys of the own log, in the order of their writing.
    pub(crate) fn own_keys(&self) -> Vec<Bytes> {
        let slot = self.slots.get(&self.me);
        slot.map_or_else(Vec::new, |slot| slot.log.in_order().cloned().collect())
    }

    /// Ends the own log: this node leaves.
    pub(crate) fn leave(&mut self) {
        self.update(self.me, |slot| {
            slot.log.write(LEFT, Some(Bytes::new()), Duration::MAX);
        });
        self.changed = true;
    }

    /// Ends the own log for now: for so long this life's records count until the next one follows.
    pub(crate) fn pause(&mut self, time: Duration) {
        let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        self.update(self.me, |slot| {
            let value = Bytes::copy_from_slice(&ms.to_be_bytes());
            slot.log.write(AWAY, Some(value), Duration::MAX);
        });
        self.changed = true;
    }

    /// Takes a delta from a peer.
    pub(crate) fn apply(&mut self, delta: Delta, now: Duration) -> Applied {
        let Delta {
            owner,
            boot,
            change,
        } = delta;
        if !self.admit(owner, boot, now) {
            return if self.slots.contains_key(&owner) {
                Applied::Stale
            } else {
                Applied::Full
            };
        }
        let (limit, gone) = (self.limits.records_per_owner, now + self.keep.gone);
        let applied = self.update(owner, |slot| {
            let applied = slot.log.apply(change, limit, gone);
            slot.settle(now);
            applied
        });
        self.changed |= applied == Applied::Fresh;
        applied
    }

    /// Takes a part from a peer's pull; `owned` if the peer is the owner. Returns the keys that
    /// were new, and whether some did not fit.
    pub(crate) fn merge(&mut self, part: Part, owned: bool, now: Duration) -> (Vec<Bytes>, bool) {
        let owner = part.owner;
        if !self.admit(owner, part.boot, now) {
            return (Vec::new(), !self.slots.contains_key(&owner));
        }
        let (limit, gone) = (self.limits.records_per_owner, now + self.keep.gone);
        let hash = self.hash();
        let merged = self.update(owner, |slot| {
            let merged = slot.log.merge(part, owned, limit, gone);
            slot.settle(now);
            merged
        });
        self.changed |= !merged.0.is_empty() || hash != self.hash();
        merged
    }

    /// Whether changes of this life may be taken; makes room for a new owner or a later life.
    fn admit(&mut self, owner: NodeId, boot: u64, now: Duration) -> bool {
        if owner == self.me {
            return false;
        }
        match self.slots.get(&owner).map(|slot| slot.log.boot) {
            Some(known) if boot < known => false,
            Some(known) if boot == known => true,
            Some(_) => {
                let living = self.living.contains(&owner);
                let previous = now + self.keep.previous;
                self.update(owner, |slot| {
                    let counts = living || slot.away.is_some();
                    let log = std::mem::replace(&mut slot.log, Log::new(boot));
                    slot.log = log.succeed(boot, counts.then_some(previous));
                    slot.hidden = if counts {
                        None
                    } else {
                        slot.hidden.or(Some(now))
                    };
                });
                true
            }
            None if self.slots.len() >= self.limits.owners => false,
            None => {
                let hidden = (!self.living.contains(&owner)).then_some(now);
                self.update(owner, |slot| {
                    slot.log = Log::new(boot);
                    slot.hidden = hidden;
                });
                true
            }
        }
    }

    /// The owner is a living member, in this life: its records count. Those of an earlier life
    /// stand in for a while, unless the owner was gone in between.
    pub(crate) fn show(&mut self, owner: NodeId, boot: u64, now: Duration) {
        self.living.insert(owner);
        let keep = self.keep.previous;
        let Some((known, departed)) = self.life(owner) else {
            return;
        };
        if known == boot && departed {
            return;
        }
        self.update(owner, |slot| {
            if known < boot {
                let held = slot.hidden.is_none();
                let log = std::mem::replace(&mut slot.log, Log::new(boot));
                slot.log = log.succeed(boot, held.then_some(now + keep));
            }
            (slot.hidden, slot.away) = (None, None);
        });
        self.changed = true;
    }

    /// The owner is down: its records are kept, and hidden, unless it said that it comes back.
    pub(crate) fn hide(&mut self, owner: NodeId, now: Duration) {
        if owner == self.me {
            return;
        }
        self.living.remove(&owner);
        if self.slots.contains_key(&owner) {
            self.update(owner, |slot| match slot.log.away() {
                Some(time) if slot.hidden.is_none() => {
                    slot.away.get_or_insert(now + time);
                }
                _ => {
                    slot.hidden.get_or_insert(now);
                }
            });
            self.changed = true;
        }
    }

    /// How far this node has the owners in the buckets of `mask`.
    pub(crate) fn digests(&self, mask: u64) -> Vec<Digest> {
        self.in_buckets(mask)
            .map(|(owner, slot)| slot.log.digest(*owner))
            .collect()
    }

    /// What a peer with `theirs` lacks in the buckets of `mask`, at most `budget` bytes of it.
    pub(crate) fn parts(&self, theirs: &[Digest], mask: u64, mut budget: usize) -> Vec<Part> {
        let theirs: BTreeMap<NodeId, &Digest> = theirs.iter().map(|d| (d.owner, d)).collect();
        let mut parts = Vec::new();
        for (&owner, slot) in self.in_buckets(mask) {
            if slot.hidden.is_some() && !slot.log.departed() {
                continue;
            }
            let ours = slot.log.digest(owner);
            let base = match theirs.get(&owner) {
                Some(their) if their.boot > ours.boot || **their == ours => continue,
                Some(their) if their.boot == ours.boot => {
                    // Equal logs that differ are repaired by their owner.
                    let broken = owner == self.me && their.contig >= ours.contig;
                    if broken { 0 } else { their.contig }
                }
                _ => 0,
            };
            let part = slot.log.part(owner, base, &mut budget);
            if !part.changes.is_empty() || part.contig > base {
                parts.push(part);
            }
            if budget == 0 {
                break;
            }
        }
        parts
    }

    /// The newest that is known of a key.
    pub(crate) fn latest(&self, owner: NodeId, key: &Bytes) -> Option<(u64, Change)> {
        let log = &self.slots.get(&owner)?.log;
        Some((log.boot, log.latest(key)?))
    }

    /// Forgets what was kept long enough.
    pub(crate) fn expire(&mut self, now: Duration) {
        let mut shown = false;
        let late = |slot: &Slot| slot.away.is_some_and(|until| until <= now);
        let late: Vec<NodeId> = self
            .slots
            .iter()
            .filter(|(_, slot)| late(slot))
            .map(|(owner, _)| *owner)
            .collect();
        for owner in late {
            self.update(owner, |slot| {
                (slot.hidden, slot.away) = (Some(now), None);
            });
            shown = true;
        }
        for slot in self.slots.values_mut() {
            shown |= slot.log.expire(now);
        }
        let keep = self.keep.gone;
        let before = self.slots.len();
        // A hidden log is in no hash, so dropping it needs no bookkeeping.
        self.slots
            .retain(|_, slot| slot.hidden.is_none_or(|since| since + keep > now));
        self.changed |= shown || self.slots.len() < before;
    }

    /// What readers see of all owners.
    pub(crate) fn owners(&mut self) -> BTreeMap<NodeId, Arc<Owner>> {
        self.slots
            .iter_mut()
            .filter(|(_, slot)| !slot.log.departed())
            .map(|(owner, slot)| (*owner, slot.log.show(slot.hidden.is_none())))
            .collect()
    }

    fn in_buckets(&self, mask: u64) -> impl Iterator<Item = (&NodeId, &Slot)> {
        self.slots
            .iter()
            .filter(move |(owner, _)| mask & (1 << bucket(**owner)) != 0)
    }

    /// Changes a slot and keeps the hashes right.
    fn update<T>(&mut self, owner: NodeId, change: impl FnOnce(&mut Slot) -> T) -> T {
        // A new slot begins hidden, where it is in no hash.
        let slot = self.slots.entry(owner).or_insert_with(|| Slot {
            log: Log::new(0),
            hidden: Some(Duration::ZERO),
            away: None,
        });
        let before = slot.hash(owner);
        let result = change(slot);
        let after = slot.hash(owner);
        if let Some(hash) = self.buckets.get_mut(bucket(owner)) {
            *hash ^= before ^ after;
        }
        self.hash ^= before ^ after;
        result
    }
}

fn bucket(owner: NodeId) -> usize {
    let [first, ..] = *owner.as_bytes();
    usize::from(first) % BUCKETS
}

#[cfg(test)]
mod tests;
