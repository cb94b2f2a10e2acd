//! The fast path with 10,000 services of 10 tasks each: what it takes to fill the maps, to change one task, and what
//! clients notice of maps that are full. Prints a page for `bench/results`.
//!
//! `cargo bench -p portolan-ebpf --bench scale`, as root; it takes about two minutes.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark that fails may panic, and prints what it measured"
)]

mod clients;
#[path = "../../tests/fast_path/cluster.rs"]
mod cluster;
mod maps;
#[path = "../../tests/fast_path/reach.rs"]
mod reach;
mod world;

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

fn main() -> Result<()> {
    // cargo hands its own flags to every benchmark.
    println!(
        "# The fast path at scale: {} services of {} tasks\n",
        world::SERVICES,
        world::TASKS
    );
    maps::measure()?;
    clients::measure()
}

/// What took its time: by the clock, and of this thread's processor time, which other work on the machine does not
/// lengthen.
#[derive(Default)]
struct Times {
    clock: Vec<Duration>,
    processor: Vec<Duration>,
}

impl Times {
    fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (begun, used) = (Instant::now(), processor());
        let result = work();
        self.clock.push(begun.elapsed());
        self.processor.push(processor().saturating_sub(used));
        result
    }

    /// Medians, and the longest, of both.
    fn row(mut self, what: &str) {
        self.clock.sort_unstable();
        self.processor.sort_unstable();
        let middle = self.clock.len() / 2;
        let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
        println!(
            "| {what} | {} | {} | {} | {} |",
            ms(self.clock[middle]),
            ms(self.clock[self.clock.len() - 1]),
            ms(self.processor[middle]),
            ms(self.processor[self.processor.len() - 1])
        );
    }
}

fn processor() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}
