//! Upstream answers, kept for as long as they allow.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{RData, Record},
};

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
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Message> {
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
    pub(super) fn insert(&self, key: Key, message: &Message, bytes: usize, now: Instant) {
        let Some(ttl) = lifetime(message) else {
            return;
        };
        if self.generation == 0 || ttl == 0 || bytes > MAX_BYTES {
            return;
        }
        let entry = Entry {
            message: message.clone(),
            since: now,
            until: now + Duration::from_secs(ttl.into()),
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

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{MessageType, OpCode},
        rr::{Name, RecordType, rdata::A},
    };

    use super::*;

    fn key(name: &str) -> Key {
        Key {
            query: Query::query(Name::from_ascii(name).unwrap(), RecordType::A),
            recursion_desired: true,
            checking_disabled: false,
            authentic_data: false,
            dnssec_ok: None,
        }
    }

    fn answer(ttl: u32) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        let a = RData::A(A([192, 0, 2, 1].into()));
        message.add_answer(Record::from_rdata(Name::root(), ttl, a));
        message
    }

    #[test]
    fn an_answer_ages_and_goes() {
        let cache = Cache::new(10);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        cache.insert(key("a."), &answer(30), 100, start);
        let aged = cache.get(&key("A."), after(12)).unwrap();
        assert_eq!(aged.answers[0].ttl, 18);
        assert!(cache.get(&key("a."), after(30)).is_none());
        assert!(cache.get(&key("b."), start).is_none());
    }

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let cache = Cache::new(10);
        let now = Instant::now();
        cache.insert(key("used."), &answer(3600), 100, now);
        for n in 0..100 {
            cache.insert(key(&format!("x{n}.")), &answer(3600), 100, now);
            assert!(cache.get(&key("used."), now).is_some(), "after {n}");
            let entries = cache.entries.lock().unwrap();
            assert!(entries.young.len() + entries.old.len() <= 10);
        }
        assert!(cache.get(&key("x0."), now).is_none());
        cache.clear();
        assert!(cache.get(&key("used."), now).is_none());
    }

    #[test]
    fn some_answers_are_not_kept() {
        let cache = Cache::new(10);
        let now = Instant::now();
        let mut cut = answer(30);
        cut.metadata.truncation = true;
        let mut failure = answer(30);
        failure.metadata.response_code = ResponseCode::ServFail;
        let mut endless = answer(30);
        endless.answers.clear();
        let wrong = [
            (cut, 9),
            (failure, 9),
            (endless, 9),
            (answer(0), 9),
            (answer(30), 5000),
        ];
        for (message, bytes) in wrong {
            cache.insert(key("a."), &message, bytes, now);
            assert!(cache.get(&key("a."), now).is_none(), "{message}");
        }
        let none = Cache::new(0);
        none.insert(key("a."), &answer(30), 9, now);
        assert!(none.get(&key("a."), now).is_none());
    }
}
