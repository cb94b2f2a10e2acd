//! Versions of declarations. They leave room below for what agents add to them (VIPs, removals), and none of
//! them is exceeded by a clock in milliseconds: whoever takes the greater of the clock and the next number
//! gets the next number, and so never puts a removal above what Docker says later.

/// So many bits are left to the agents.
const ROOM: u32 = 20;
/// Above every time: where both were counted, those of a Swarm would be older for ever.
const SWARM: u64 = 1 << 62;

/// The version of an object of a Swarm, which counts the changes of all its objects.
pub(super) fn of_swarm(index: u64) -> u64 {
    SWARM + (index.min((1 << (62 - ROOM)) - 1) << ROOM)
}

/// Whether a version is that of an object of a Swarm, or of what an agent has made of it: then the Swarm alone gives
/// its addresses.
pub fn is_of_swarm(version: u64) -> bool {
    version >= SWARM
}

/// Whether two versions are of the same state of an object: what differs has been added by agents.
pub fn is_same_state(one: u64, other: u64) -> bool {
    one >> ROOM == other >> ROOM
}

/// The version of an object of one engine, by the time at which it began, Unix milliseconds.
pub(super) fn of_time(ms: u64) -> u64 {
    ms.min((1 << (62 - ROOM)) - 1) << ROOM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_keep_their_order_and_stay_above_every_clock() {
        let now_ms = 1_800_000_000_000_u64;
        for of in [of_swarm, of_time] {
            assert!(of(59) + 1000 < of(60));
            assert!(of(u64::MAX) >= of(u64::MAX - 1));
            assert!(
                i64::try_from(of(u64::MAX)).is_ok(),
                "no one takes it for negative"
            );
        }
        assert!(of_swarm(1) > now_ms && of_time(now_ms) > now_ms * 1000);
        // Until the year 2109.
        assert!(of_time(4_398_000_000_000) < of_swarm(1));
    }
}
