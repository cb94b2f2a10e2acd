//! Upstream answers, kept for as long as they allow.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{RData, Record},
};
use tokio::time::{Duration, Instant};

use crate::message::Request;

/// Seconds that an answer is kept at most: who changes a record with a TTL of a week is glad.
const MAX_TTL: u32 = 3600;
/// Seconds that absence is kept at most (RFC 2308, section 5, allows three hours).
const MAX_NEGATIVE_TTL: u32 = 300;
/// The longest answer kept, so that entries bound the memory: 4096 of them are less than 20 MiB.
const MAX_BYTES: usize = 4096;

/// What makes two queries the same to an upstream. Names compare without case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    query: Query,
    recursion_desired: bool,
    checking_disabled: bool,
    authentic_data: bool,
    dnssec_ok: Option<bool>,
}

impl Key {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            query: request.query.clone(),
            recursion_desired: request.metadata.recursion_desired,
            checking_disabled: request.metadata.checking_disabled,
            authentic_data: request.metadata.authentic_data,
            dnssec_ok: request.edns.map(|edns| edns.dnssec_ok),
        }
    }
}

/// A map of two generations: the young one becomes the old one when it is half of what is allowed, and
/// what is used comes back. So it is bounded, and forgets what was not asked for longest.
#[derive(Debug)]
pub(super) struct Cache {
    generation: usize,
    entries: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    message: Message,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// A cache of so many entries.
    pub(super) fn new(entries: usize) -> Self {
        Self {
            generation: entries / 2,
            entries: Mutex::default(),
        }
    }

    /// An answer that is still good, its TTLs counted down.
    pub(super) fn get(&self, key: &Key) -> Option<Message> {
        let now = Instant::now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, entry)) = entries.old.remove_entry(key) {
            self.put(&mut entries, key, entry);
        }
        let entry = entries.young.get(key).filter(|entry| now < entry.until)?;
        let age = now.duration_since(entry.since).as_secs();
        let mut message = entry.message.clone();
        let sections = [
            &mut message.answers,
            &mut message.authorities,
            &mut message.additionals,
        ];
        for record in sections.into_iter().flatten() {
            record.decrement_ttl(u32::try_from(age).unwrap_or(u32::MAX));
        }
        Some(message)
    }

    /// Keeps an answer of that length, if it may be kept.
    pub(super) fn insert(&self, key: Key, message: &Message, bytes: usize) {
        let Some(ttl) = lifetime(message) else {
            return;
        };
        if self.generation == 0 || ttl == 0 || bytes > MAX_BYTES {
            return;
        }
        let since = Instant::now();
        let entry = Entry {
            message: message.clone(),
            since,
            until: since + Duration::from_secs(ttl.into()),
        };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&mut entries, key, entry);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        *entries = Generations::default();
    }

    fn put(&self, entries: &mut Generations, key: Key, entry: Entry) {
        if entries.young.len() >= self.generation {
            entries.old = std::mem::take(&mut entries.young);
        }
        entries.young.insert(key, entry);
    }
}

/// Seconds that an answer may be kept; `None` if it may not.
fn lifetime(message: &Message) -> Option<u32> {
    if message.metadata.truncation {
        return None;
    }
    let positive = !message.answers.is_empty();
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain if positive => {
            let ttls = message.answers.iter().map(|record| record.ttl);
            Some(ttls.min()?.min(MAX_TTL))
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let negative = |record: &Record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            };
            let ttl = message.authorities.iter().find_map(negative)?;
            Some(ttl.min(MAX_NEGATIVE_TTL))
        }
        _ => None,
    }
}
