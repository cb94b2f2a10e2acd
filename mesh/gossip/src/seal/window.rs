//! Which of the last counters of a session were seen.

/// Counters behind the highest one that are told apart. Datagrams that come later than that are
/// taken for replays.
const SIZE: u64 = 1024;
const WORDS: usize = (SIZE / 64) as usize;

/// A sliding window over counters, as in RFC 6479.
#[derive(Debug, Default)]
pub(super) struct Window {
    highest: u64,
    seen: [u64; WORDS],
}

impl Window {
    /// Whether the counter is seen for the first time.
    pub(super) fn admit(&mut self, counter: u64) -> bool {
        if counter == 0 || self.highest.saturating_sub(counter) >= SIZE {
            return false;
        }
        if counter > self.highest {
            if counter - self.highest >= SIZE {
                self.seen = [0; WORDS];
            } else {
                for passed in self.highest + 1..counter {
                    *self.word(passed) &= !bit(passed);
                }
                *self.word(counter) &= !bit(counter);
            }
            self.highest = counter;
        }
        let word = self.word(counter);
        let fresh = *word & bit(counter) == 0;
        *word |= bit(counter);
        fresh
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the index is reduced to the array's length"
    )]
    fn word(&mut self, counter: u64) -> &mut u64 {
        &mut self.seen[(counter / 64) as usize % WORDS]
    }
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}
