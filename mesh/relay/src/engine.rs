//! What all frontends of a relay share.

use std::sync::Arc;

use tokio::{runtime::Handle, sync::Semaphore, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    RelayConfig,
    flows::Flows,
    lanes::Lanes,
    passed_over::PassedOver,
    pool::{BUFFER, Buffers, Pipes},
    sources::Turns,
};

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: RelayConfig,
    pub(crate) runtime: Handle,
    /// Where TCP connections run; everything else does on the runtime.
    pub(crate) lanes: Lanes,
    pub(crate) passed_over: PassedOver,
    pub(crate) flows: Arc<Flows>,
    pub(crate) buffers: Buffers,
    /// For the datagrams that are taken from a listener at once.
    pub(crate) bursts: Buffers,
    pub(crate) pipes: Pipes,
    /// A permit per TCP connection.
    pub(crate) connections: Arc<Semaphore>,
    /// A permit per UDP flow.
    pub(crate) udp_flows: Arc<Semaphore>,
    pub(crate) source_turns: Turns,
    /// The tasks that are of no one frontend.
    pub(crate) tasks: TaskTracker,
    start: Instant,
}

impl Engine {
    pub(crate) fn new(config: RelayConfig, runtime: Handle) -> Self {
        Self {
            connections: permits(config.tcp_connections),
            udp_flows: permits(config.udp_flows),
            pipes: Pipes::new(config.pipes),
            lanes: Lanes::start(config.tcp_threads, &runtime),
            config,
            runtime,
            passed_over: PassedOver::default(),
            flows: Arc::default(),
            buffers: Buffers::new(BUFFER),
            bursts: Buffers::new(2 * BUFFER),
            source_turns: Turns::default(),
            tasks: TaskTracker::new(),
            start: Instant::now(),
        }
    }

    /// Milliseconds since the relay began, for marks of activity that fit into an atomic.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The instant of such a mark.
    pub(crate) fn at_ms(&self, ms: u64) -> Instant {
        self.start + std::time::Duration::from_millis(ms)
    }
}

fn permits(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
}
