//! What the kernel says about the agent's own process, proc(5).

use std::fs;

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use super::{definitions as d, exposition::Exposition};

/// The agent's process.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Process {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    open_fds: usize,
    /// `None` is no limit.
    max_fds: Option<u64>,
    start_seconds: f64,
}

impl Process {
    /// Reads it; `None` where `/proc` is not there.
    pub(super) fn read() -> Option<Self> {
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
        // The directory's own descriptor is among them.
        let open_fds = fs::read_dir("/proc/self/fd")
            .ok()?
            .count()
            .saturating_sub(1);
        Some(Self {
            cpu_seconds: seconds(stat.cpu_ticks),
            resident_bytes: stat.resident_pages * page_size() as u64,
            virtual_bytes: stat.virtual_bytes,
            threads: stat.threads,
            open_fds,
            max_fds: getrlimit(Resource::Nofile).current,
            start_seconds: boot + seconds(stat.start_ticks),
        })
    }

    pub(super) fn expose(&self, to: &mut Exposition) {
        to.add(&d::PROCESS_CPU, &[], self.cpu_seconds);
        to.add(&d::PROCESS_RESIDENT, &[], self.resident_bytes);
        to.add(&d::PROCESS_VIRTUAL, &[], self.virtual_bytes);
        to.add(&d::PROCESS_THREADS, &[], self.threads);
        to.add(&d::PROCESS_OPEN_FDS, &[], self.open_fds);
        if let Some(max) = self.max_fds {
            to.add(&d::PROCESS_MAX_FDS, &[], max);
        }
        to.add(&d::PROCESS_START, &[], self.start_seconds);
    }
}

/// The fields of `/proc/self/stat` that count here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name, the second field, stands in parentheses and may hold anything; after it comes the third.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_confuse() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194304 9 0 0 0 7 5 0 0 20 0 3 0 1000 4096 12 18446744073709551615";
        let expected = Stat {
            cpu_ticks: 12,
            threads: 3,
            start_ticks: 1000,
            virtual_bytes: 4096,
            resident_pages: 12,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("42 (short) S 1"), None);
    }

    #[test]
    fn the_own_process_is_read() {
        let process = Process::read().unwrap();
        assert!(
            process.resident_bytes > 100_000 && process.virtual_bytes >= process.resident_bytes
        );
        assert!(process.open_fds >= 3 && process.threads >= 1);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!(process.start_seconds < now + 2.0 && process.start_seconds > now - 3600.0);
    }
}
