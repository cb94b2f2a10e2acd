//! Whether a flow lives, told from its two entries at the node that the client came to.

use crate::layout::{Flow, Tuple};

/// Flags of TCP, as `closing` has them.
const FIN: u8 = 1;
pub(super) const RST: u8 = 4;
/// ns.
const MS: u64 = 1_000_000;

/// How a flow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It goes on.
    Live,
    /// Nothing has passed for the frontend's time.
    Idle,
    /// Its backend is gone.
    Gone,
    /// Both of its ends know that it is over.
    Over,
}

impl Life {
    /// Of the client's direction; `back` reads the other one and is asked where it matters. An entry that the
    /// kernel lost is as if nothing had ever passed.
    pub(super) fn of(flow: &Flow, back: impl Fn() -> Flow, current: bool, now: u64) -> Self {
        if flow.closing & RST != 0 || (flow.closing & FIN != 0 && back().closing != 0) {
            return Self::Over;
        }
        if !current {
            return Self::Gone;
        }
        let idle = u64::from(flow.idle_ms) * MS;
        let quiet = |flow: &Flow| now.saturating_sub(flow.seen) > idle;
        if idle > 0 && quiet(flow) && quiet(&back()) {
            return Self::Idle;
        }
        Self::Live
    }
}

/// The way of the replies to a client's packets.
pub(super) fn way_back(tuple: &Tuple, flow: &Flow) -> Tuple {
    Tuple {
        saddr: flow.ip,
        daddr: tuple.saddr,
        sport: flow.port,
        dport: tuple.sport,
        ..*tuple
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(closing: u8, seen_ms: u64) -> Flow {
        Flow {
            closing,
            seen: seen_ms * MS,
            idle_ms: 100,
            ..Flow::default()
        }
    }

    #[test]
    fn a_flow_lives_until_both_ends_or_time_or_its_backend_end_it() {
        let now = 1000 * MS;
        let life = |there, back: Flow, current| Life::of(&there, || back, current, now);
        let (open, shut, reset) = (flow(0, 990), flow(FIN, 990), flow(RST, 990));
        let quiet = flow(0, 800);
        assert_eq!(life(open, open, true), Life::Live);
        assert_eq!(life(open, shut, true), Life::Live, "half closed");
        assert_eq!(life(shut, open, true), Life::Live, "half closed");
        assert_eq!(life(shut, shut, true), Life::Over);
        assert_eq!(life(reset, open, true), Life::Over);
        assert_eq!(life(reset, open, false), Life::Over, "and nothing to do");
        assert_eq!(life(open, open, false), Life::Gone);
        assert_eq!(life(quiet, open, true), Life::Live, "it receives");
        assert_eq!(life(open, quiet, true), Life::Live, "it sends");
        assert_eq!(life(quiet, quiet, true), Life::Idle);
        assert_eq!(life(quiet, Flow::default(), true), Life::Idle);
        let for_ever = Flow {
            idle_ms: 0,
            ..quiet
        };
        assert_eq!(life(for_ever, for_ever, true), Life::Live);
    }
}
