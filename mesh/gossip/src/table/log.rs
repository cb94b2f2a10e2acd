//! One owner's log, as one node has it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use imbl::OrdMap;
use portolan_model::NodeId;

use crate::{
    codec::records::{Change, Digest, Part},
    view::Owner,
};

/// Keys that begin with this byte belong to gossip itself and are not shown.
pub(crate) const RESERVED: u8 = 0;
/// The member's name.
pub(crate) const NAME: Bytes = Bytes::from_static(b"\0name");
/// The last record of the first set that an owner publishes in a life.
pub(crate) const READY: Bytes = Bytes::from_static(b"\0ready");
/// The owner left; nothing of this life counts any more.
pub(crate) const LEFT: Bytes = Bytes::from_static(b"\0left");
/// The owner has ended, and its next life follows: for how many milliseconds its records count meanwhile, 4 bytes,
/// the highest first.
pub(crate) const AWAY: Bytes = Bytes::from_static(b"\0away");

#[derive(Debug, Clone)]
struct Entry {
    seq: u64,
    prev: u64,
    value: Option<Bytes>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// It is new here.
    Fresh,
    /// It was known, or something later is.
    Stale,
    /// The owner or the table has as many as the limits allow.
    Full,
}

/// An owner's records and how much of its history they cover.
///
/// Only the owner writes, so `seq` orders everything and no clock is needed. Whatever is numbered
/// at most `contig` is either here or was superseded, hence a change at or below it is stale and
/// nothing can be resurrected.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) boot: u64,
    contig: u64,
    /// Deletes up to here may be forgotten; a peer that is behind it needs a snapshot.
    floor: u64,
    keys: BTreeMap<Bytes, Entry>,
    by_seq: BTreeMap<u64, Bytes>,
    /// Deletes by number, with the time at which they may be forgotten.
    deleted: BTreeMap<u64, Duration>,
    content: u64,
    departed: bool,
    /// What was shown of the life before, until this one is complete or the time has come.
    previous: Option<(Arc<Owner>, Duration)>,
    /// What of `keys` is shown.
    records: OrdMap<Bytes, Bytes>,
    shown: Option<Arc<Owner>>,
}

impl Log {
    pub(crate) fn new(boot: u64) -> Self {
        Self {
            boot,
            contig: 0,
            floor: 0,
            keys: BTreeMap::new(),
            by_seq: BTreeMap::new(),
            deleted: BTreeMap::new(),
            content: 0,
            departed: false,
            previous: None,
            records: OrdMap::new(),
            shown: None,
        }
    }

    /// A later life of an owner. What the earlier one had stays on show until `until`, or until the
    /// new life is complete: a restart would otherwise look like a loss of all records.
    pub(crate) fn succeed(mut self, boot: u64, until: Option<Duration>) -> Self {
        let mut next = Self::new(boot);
        if let Some(until) = until.filter(|_| !self.departed) {
            let shown = self.show(true);
            // A life that ended before it was complete passes on what it stood in for.
            let until = self
                .previous
                .map_or(until, |(_, earlier)| earlier.min(until));
            if !shown.records.is_empty() {
                next.previous = Some((shown, until));
            }
        }
        next
    }

    pub(crate) fn departed(&self) -> bool {
        self.departed
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn value(&self, key: &Bytes) -> Option<&Bytes> {
        self.keys.get(key)?.value.as_ref()
    }

    /// The keys that have a value, reserved ones included.
    pub(crate) fn live(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.keys
            .iter()
            .filter_map(|(key, entry)| Some((key, entry.value.as_ref()?)))
    }

    /// All keys by their last change, deletes included.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &Bytes> {
        self.by_seq.values()
    }

    pub(crate) fn digest(&self, owner: NodeId) -> Digest {
        Digest {
            owner,
            boot: self.boot,
            contig: self.contig,
            content: self.content,
        }
    }

    /// Equal for two logs of one owner exactly if they agree.
    pub(crate) fn hash(&self, owner: NodeId) -> u64 {
        if self.contig == 0 && self.keys.is_empty() {
            // Some know that this life has begun and some do not, and neither misses anything.
            return 0;
        }
        let place = mix(hash_bytes(owner.as_bytes()) ^ mix(self.boot));
        mix(place ^ mix(self.contig) ^ self.content.rotate_left(32))
    }

    /// For how long the records count after the owner's end, if it said so.
    pub(crate) fn away(&self) -> Option<Duration> {
        let ms: [u8; 4] = self.value(&AWAY)?.as_ref().try_into().ok()?;
        Some(Duration::from_millis(u32::from_be_bytes(ms).into()))
    }

    /// Takes one change.
    pub(crate) fn apply(&mut self, change: Change, limit: usize, keep: Duration) -> Applied {
        if change.seq <= self.contig || self.departed {
            return Applied::Stale;
        }
        if change.key == LEFT {
            self.depart(change);
            return Applied::Fresh;
        }
        let (seq, prev) = (change.seq, change.prev);
        let outcome = match self.keys.get(&change.key) {
            Some(entry) if entry.seq >= seq => Applied::Stale,
            None if self.keys.len() >= limit => return Applied::Full,
            _ => {
                self.put(&change, keep);
                Applied::Fresh
            }
        };
        if prev <= self.contig {
            self.contig = seq;
        }
        self.advance();
        outcome
    }

    /// Takes a stretch of the log. `owned` says that the owner itself sent it: then it also repairs
    /// what it finds different. Returns what was new, and whether some did not fit.
    pub(crate) fn merge(
        &mut self,
        part: Part,
        owned: bool,
        limit: usize,
        keep: Duration,
    ) -> (Vec<Bytes>, bool) {
        let mut fresh = Vec::new();
        let mut full = false;
        if self.departed {
            return (fresh, full);
        }
        let before = (self.contig, self.content);
        let repair = owned && part.base == 0 && part.contig >= self.contig;
        self.drop_missing(&part);
        for change in part.changes {
            if change.key == LEFT {
                self.depart(change);
                return (vec![LEFT], full);
            }
            let known = self.keys.get(&change.key).map(|entry| entry.seq);
            let stale = known.is_some_and(|seq| seq >= change.seq);
            if !repair && (stale || change.seq <= self.contig) {
                continue;
            }
            if known.is_none() && self.keys.len() >= limit {
                full = true;
                continue;
            }
            let same = known == Some(change.seq)
                && self.keys.get(&change.key).map(|entry| &entry.value) == Some(&change.value);
            if !same {
                fresh.push(change.key.clone());
                self.put(&change, keep);
            }
        }
        if part.base <= self.contig && part.contig > self.contig {
            self.contig = part.contig;
        }
        self.floor = self.floor.max(part.floor.min(self.contig));
        self.advance();
        if fresh.is_empty() && before != (self.contig, self.content) {
            self.shown = None;
        }
        (fresh, full)
    }

    /// The part is complete in `(base, contig]`, so what it does not name there no longer counts.
    fn drop_missing(&mut self, part: &Part) {
        let named: std::collections::BTreeSet<u64> =
            part.changes.iter().map(|change| change.seq).collect();
        let gone: Vec<u64> = self
            .by_seq
            .range(part.base.saturating_add(1)..=part.contig.max(part.base.saturating_add(1)))
            .map(|(seq, _)| *seq)
            .filter(|seq| *seq <= part.contig && !named.contains(seq))
            .collect();
        for seq in gone {
            if let Some(key) = self.by_seq.get(&seq).cloned() {
                self.take(&key);
            }
        }
    }

    /// Everything above `base` that a peer lacks, up to `budget` bytes; a snapshot if deletes since
    /// `base` may have been forgotten.
    pub(crate) fn part(&self, owner: NodeId, base: u64, budget: &mut usize) -> Part {
        let base = if base < self.floor { 0 } else { base };
        let mut changes = Vec::new();
        // A peer that is ahead gets only what it may lack beyond.
        let mut contig = self.contig.max(base);
        for (seq, key) in self.by_seq.range(base.saturating_add(1)..) {
            let Some(entry) = self.keys.get(key) else {
                continue;
            };
            let size = 32 + key.len() + entry.value.as_ref().map_or(0, Bytes::len);
            if *budget < size {
                contig = contig.min(seq - 1).max(base);
                break;
            }
            *budget -= size;
            changes.push(self.change(key, entry));
        }
        Part {
            owner,
            boot: self.boot,
            base,
            contig,
            floor: self.floor,
            changes,
        }
    }

    /// The newest that is known of a key, for a delta.
    pub(crate) fn latest(&self, key: &Bytes) -> Option<Change> {
        let entry = self.keys.get(key)?;
        Some(self.change(key, entry))
    }

    fn change(&self, key: &Bytes, entry: &Entry) -> Change {
        // Where this log has no gap it knows that nothing between two entries still matters; where
        // it has one, it knows only what it was told.
        let prev = if entry.seq <= self.contig {
            let before = self.by_seq.range(..entry.seq).next_back();
            before.map_or(0, |(seq, _)| *seq).max(self.floor)
        } else {
            entry.prev
        };
        Change {
            seq: entry.seq,
            prev: prev.min(entry.seq - 1),
            key: key.clone(),
            value: entry.value.clone(),
        }
    }

    /// Writes to the node's own log.
    pub(crate) fn write(&mut self, key: Bytes, value: Option<Bytes>, keep: Duration) {
        let prev = self.contig;
        let change = Change {
            seq: prev + 1,
            prev,
            key,
            value,
        };
        self.apply(change, usize::MAX, keep);
    }

    /// Forgets deletes that are old enough, and the life before when its time is up.
    pub(crate) fn expire(&mut self, now: Duration) -> bool {
        while let Some((&seq, &at)) = self.deleted.first_key_value() {
            if at > now || seq > self.contig {
                break;
            }
            self.deleted.pop_first();
            self.floor = self.floor.max(seq);
            if let Some(key) = self.by_seq.remove(&seq) {
                self.keys.remove(&key);
            }
        }
        self.previous.take_if(|(_, until)| *until <= now).is_some()
    }

    /// What readers see. The same `Arc` as long as nothing changed.
    pub(crate) fn show(&mut self, visible: bool) -> Arc<Owner> {
        if let Some((previous, _)) = &mut self.previous {
            if previous.visible != visible {
                let mut owner = Owner::clone(previous);
                owner.visible = visible;
                *previous = Arc::new(owner);
            }
            return Arc::clone(previous);
        }
        match &self.shown {
            Some(shown) if shown.visible == visible => Arc::clone(shown),
            _ => {
                let owner = Arc::new(Owner {
                    boot: self.boot,
                    visible,
                    records: self.records.clone(),
                });
                self.shown = Some(Arc::clone(&owner));
                owner
            }
        }
    }

    fn put(&mut self, change: &Change, keep: Duration) {
        self.take(&change.key);
        // What was received is part of its whole message, which must not live as long as a record.
        let key = Bytes::copy_from_slice(&change.key);
        let value = change.value.as_deref().map(Bytes::copy_from_slice);
        match &value {
            Some(value) => {
                self.content ^= hash_record(&key, change.seq, value);
                if key.first() != Some(&RESERVED) {
                    self.records.insert(key.clone(), value.clone());
                }
            }
            None => {
                self.deleted.insert(change.seq, keep);
            }
        }
        self.by_seq.insert(change.seq, key.clone());
        let entry = Entry {
            seq: change.seq,
            prev: change.prev,
            value,
        };
        self.keys.insert(key, entry);
        self.shown = None;
    }

    fn take(&mut self, key: &Bytes) {
        if let Some(old) = self.keys.remove(key) {
            self.by_seq.remove(&old.seq);
            self.deleted.remove(&old.seq);
            if let Some(value) = old.value {
                self.content ^= hash_record(key, old.seq, &value);
                self.records.remove(key);
                self.shown = None;
            }
        }
    }

    /// Moves `contig` over what is here without a gap.
    fn advance(&mut self) {
        while let Some((&seq, key)) = self.by_seq.range(self.contig.saturating_add(1)..).next() {
            match self.keys.get(key) {
                Some(entry) if entry.prev <= self.contig => self.contig = seq,
                _ => break,
            }
        }
        let ready = self
            .keys
            .get(&READY)
            .is_some_and(|entry| entry.seq <= self.contig);
        if ready && self.previous.take().is_some() {
            self.shown = None;
        }
    }

    fn depart(&mut self, change: Change) {
        let seq = change.seq;
        *self = Self {
            departed: true,
            contig: seq,
            floor: seq,
            ..Self::new(self.boot)
        };
        self.by_seq.insert(seq, change.key.clone());
        let entry = Entry {
            seq,
            prev: change.prev,
            value: change.value,
        };
        self.keys.insert(change.key, entry);
    }
}

fn hash_record(key: &Bytes, seq: u64, value: &Bytes) -> u64 {
    mix(hash_bytes(key) ^ mix(seq) ^ hash_bytes(value).rotate_left(17))
}

/// FNV-1a: nodes of different versions must agree, and every key holder is trusted anyway.
fn hash_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finaliser of splitmix64: every input bit reaches every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A hash of an identity's place in membership.
pub(crate) fn hash_member(node: NodeId, boot: u64, bump: u32) -> u64 {
    mix(hash_bytes(node.as_bytes()) ^ mix(boot ^ mix(u64::from(bump))))
}
