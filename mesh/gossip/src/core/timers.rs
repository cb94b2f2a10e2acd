//! What is due when.

use std::{collections::BTreeMap, time::Duration};

/// Timers in the order of their time, then rank, then setting.
#[derive(Debug)]
pub(super) struct Timers<T> {
    due: BTreeMap<(Duration, u8, u64), T>,
    count: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            due: BTreeMap::new(),
            count: 0,
        }
    }
}

impl<T> Timers<T> {
    pub(super) fn set(&mut self, at: Duration, rank: u8, timer: T) {
        self.count += 1;
        self.due.insert((at, rank, self.count), timer);
    }

    pub(super) fn first(&self) -> Option<Duration> {
        self.due.first_key_value().map(|((at, ..), _)| *at)
    }

    /// The next timer that is due.
    pub(super) fn pop(&mut self, now: Duration) -> Option<T> {
        let entry = self.due.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// Puts all timers off.
    pub(super) fn shift(&mut self, by: Duration) {
        self.due = std::mem::take(&mut self.due)
            .into_iter()
            .map(|((at, rank, count), timer)| ((at + by, rank, count), timer))
            .collect();
    }
}
