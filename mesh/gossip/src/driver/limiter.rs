//! How many datagrams one source may send, before any of them costs a decryption.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Sources whose use is remembered.
const MAX_SOURCES: usize = 8192;

/// A bucket of tokens for each source.
#[derive(Debug)]
pub(super) struct Limiter {
    per_second: f64,
    sources: BTreeMap<IpAddr, (f64, Duration)>,
}

impl Limiter {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            per_second: f64::from(per_second),
            sources: BTreeMap::new(),
        }
    }

    /// Whether a datagram from there may be looked at.
    pub(super) fn admit(&mut self, source: IpAddr, now: Duration) -> bool {
        let (rate, burst) = (self.per_second, self.per_second * 2.0);
        let refilled = |(tokens, at): (f64, Duration)| {
            (tokens + now.saturating_sub(at).as_secs_f64() * rate).min(burst)
        };
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            // A source with a full bucket is as good as unknown. Forged addresses cannot make more
            // room for themselves than this.
            self.sources.retain(|_, bucket| refilled(*bucket) < burst);
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let bucket = self.sources.entry(source).or_insert((burst, now));
        let tokens = refilled(*bucket);
        let admitted = tokens >= 1.0;
        *bucket = (if admitted { tokens - 1.0 } else { tokens }, now);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_flood_from_one_source_leaves_the_others_alone() {
        let mut limiter = Limiter::new(100);
        let flood = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        let other = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
        let admitted = (0..1000).filter(|_| limiter.admit(flood, Duration::ZERO));
        assert_eq!(admitted.count(), 200);
        assert!(limiter.admit(other, Duration::ZERO));
        let later = Duration::from_secs(1);
        assert_eq!(
            (0..1000).filter(|_| limiter.admit(flood, later)).count(),
            100
        );
    }
}
