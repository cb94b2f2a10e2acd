//! What the programs count.

/// One counter, by its place in the kernel's array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Its name in metrics: `drop_no_back`.
    pub name: &'static str,
    /// What it counts.
    pub meaning: &'static str,
}

const TABLE: &[(&str, &str)] = include!(env!("FAST_PATH_COUNTERS"));

/// All counters, in the order of `bpf/counters.h`.
pub const COUNTERS: [Counter; TABLE.len()] = {
    let mut all = [Counter {
        name: "",
        meaning: "",
    }; TABLE.len()];
    let mut at = 0;
    while at < TABLE.len() {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            all[at] = Counter {
                name: TABLE[at].0,
                meaning: TABLE[at].1,
            };
        }
        at += 1;
    }
    all
};
