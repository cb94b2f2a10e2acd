//! The CPU time of the whole machine.
//!
//! Of the machine and not of the processes, as forwarding is done in softirq, in the name of whichever
//! process happens to run. Client, nodes and task are all in the figure, for all contenders alike.

use std::fs;

use anyhow::{Context, Result};

/// `/proc/stat` counts in `USER_HZ`, which is 100 on every architecture that Linux runs on here.
const TICKS_PER_SECOND: f64 = 100.0;

/// The seconds that all CPUs together have been busy since the machine started: user, nice, system, irq
/// and softirq (proc(5)).
pub(crate) fn busy_seconds() -> Result<f64> {
    parse(&fs::read_to_string("/proc/stat")?).context("/proc/stat has no line of all CPUs")
}

fn parse(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    // The fourth and fifth are idle and waiting for I/O, those after the seventh are the hypervisor's.
    let busy = ticks.get(..3)?.iter().chain(ticks.get(5..7)?);
    Some(busy.sum::<u64>() as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_and_the_hypervisors_are_not_busy() {
        let stat = "cpu  100 20 3 9999 8888 400 5000 777 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse(stat), Some(55.23));
        assert_eq!(parse("cpu 1 2\n"), None);
    }
}
