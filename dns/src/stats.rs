//! Counters, and what is wrong at the moment.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use hickory_server::proto::{op::ResponseCode, rr::RecordType};

/// The query types that are counted by name; the last stands for all others.
const QTYPES: [&str; 13] = [
    "A", "AAAA", "ANY", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT", "other",
];
/// The response codes that are counted by name; the last stands for all others.
const RCODES: [&str; 7] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other",
];

/// How often queries of one type got one response code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryCount {
    /// The type asked for: one of a fixed set of names, or `other`.
    pub qtype: &'static str,
    /// The response code: one of a fixed set of names, or `other`.
    pub rcode: &'static str,
    /// Replies since the start.
    pub count: u64,
}

/// The server's counters since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsStats {
    /// Replies by type and response code, forwarded ones included; only those that occurred. What cannot
    /// be decoded gets FORMERR before it comes to be counted.
    pub queries: Vec<QueryCount>,
    /// Queries that were not ours to answer and that an upstream or the cache was asked for.
    pub forwarded: u64,
    /// Those of them that the cache answered.
    pub cache_hits: u64,
    /// Those of them that no upstream answered, or that were too many at once.
    pub forward_failures: u64,
    /// Addresses listened on, UDP and TCP counted once.
    pub listeners: u64,
}

/// The counters as they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    queries: [[AtomicU64; RCODES.len()]; QTYPES.len()],
    pub(crate) forwarded: AtomicU64,
    pub(crate) cache_hits: AtomicU64,
    pub(crate) forward_failures: AtomicU64,
    pub(crate) listeners: AtomicU64,
}

/// Adds one to a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Counts a reply.
    pub(crate) fn reply(&self, qtype: Option<RecordType>, code: ResponseCode) {
        let other = QTYPES.len() - 1;
        let qtype = qtype.map_or(other, |qtype| {
            let name: &str = qtype.into();
            QTYPES.iter().position(|q| *q == name).unwrap_or(other)
        });
        let rcode = usize::from(u16::from(code)).min(RCODES.len() - 1);
        if let Some(counter) = self.queries.get(qtype).and_then(|row| row.get(rcode)) {
            count(counter);
        }
    }

    /// The counters as they stand.
    pub(crate) fn read(&self) -> DnsStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let cells = self.queries.iter().zip(QTYPES).flat_map(|(row, qtype)| {
            row.iter()
                .zip(RCODES)
                .map(move |(counter, rcode)| QueryCount {
                    qtype,
                    rcode,
                    count: get(counter),
                })
        });
        DnsStats {
            queries: cells.filter(|cell| cell.count > 0).collect(),
            forwarded: get(&self.forwarded),
            cache_hits: get(&self.cache_hits),
            forward_failures: get(&self.forward_failures),
            listeners: get(&self.listeners),
        }
    }
}

/// What is wrong at the moment, by the object that it is wrong with. Each is logged when it appears or
/// changes, and not again.
#[derive(Debug, Default)]
pub(crate) struct Problems(Mutex<BTreeMap<String, String>>);

impl Problems {
    /// Reports a problem of an object.
    pub(crate) fn set(&self, object: &str, problem: String) {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.get(object) != Some(&problem) {
            tracing::warn!("{object}: {problem}");
            problems.insert(object.to_owned(), problem);
        }
    }

    /// The object is well, or gone.
    pub(crate) fn clear(&self, object: &str) {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.remove(object).is_some() {
            tracing::info!("{object}: well again");
        }
    }

    /// All of them, worded for users.
    pub(crate) fn list(&self) -> Vec<String> {
        let problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let worded = problems.iter().map(|(object, p)| format!("{object}: {p}"));
        worded.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let counters = Counters::default();
        counters.reply(Some(RecordType::A), ResponseCode::NXDomain);
        counters.reply(Some(RecordType::Unknown(65_000)), ResponseCode::BADVERS);
        counters.reply(None, ResponseCode::FormErr);
        let cell = |qtype, rcode| QueryCount {
            qtype,
            rcode,
            count: 1,
        };
        assert_eq!(
            counters.read().queries,
            [
                cell("A", "NXDOMAIN"),
                cell("other", "FORMERR"),
                cell("other", "other")
            ]
        );
    }

    #[test]
    fn a_problem_is_there_until_cleared() {
        let problems = Problems::default();
        problems.set("network prod", "cannot listen".into());
        assert_eq!(problems.list(), ["network prod: cannot listen"]);
        problems.clear("network prod");
        assert!(problems.list().is_empty());
    }
}
