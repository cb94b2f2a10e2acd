//! What can be set.

use std::{io, num::NonZero, thread, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits and times of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// TCP connections of clients at a time; further ones are refused by RST and counted as `limit`. Each
    /// takes two file descriptors.
    pub tcp_connections: usize,
    /// UDP flows at a time; datagrams that would begin a further one are dropped and counted as `limit`.
    /// Each takes one file descriptor, of a virtual address two.
    pub udp_flows: usize,
    /// How long a backend has to answer a connect. It is longer than the second in which the kernel
    /// repeats a lost SYN.
    pub connect_timeout: Duration,
    /// After how long without an answer from the first backend the second one is asked too, while the
    /// first can still win.
    pub patience: Duration,
    /// Pipes of 1 MiB for splice(2), one per direction of a flow in bulk transfer; further flows are
    /// copied through buffers.
    pub pipes: usize,
    /// Threads that move the bytes of TCP connections.
    pub tcp_threads: usize,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            tcp_connections: 100_000,
            udp_flows: 65_536,
            connect_timeout: Duration::from_millis(1250),
            patience: Duration::from_millis(250),
            pipes: 256,
            tcp_threads: thread::available_parallelism().map_or(1, NonZero::get),
        }
    }
}

impl RelayConfig {
    /// Lowers the limits of flows to what this many open files carry, so that clients beyond are refused rather
    /// than left waiting, and descriptors remain for the rest of the process: three quarters are for TCP, an
    /// eighth is for UDP.
    #[must_use]
    pub fn within(mut self, files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        self.tcp_connections = self.tcp_connections.min(files / 8 * 3);
        self.udp_flows = self.udp_flows.min(files / 16);
        self
    }
}

/// Raises this process's limit of open files to the most that is allowed, and returns it. Whoever starts
/// the process calls this once, before it serves.
///
/// # Errors
/// The kernel refused; the limit is as it was.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_open_files_carry_few_flows_and_many_do_not_raise_a_limit() {
        let config = RelayConfig::default().within(20_000);
        assert_eq!((config.tcp_connections, config.udp_flows), (7_500, 1_250));
        assert_eq!(
            RelayConfig::default().within(u64::MAX),
            RelayConfig::default()
        );
    }
}
