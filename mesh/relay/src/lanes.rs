//! The threads that move the bytes of TCP connections.
//!
//! Each runs a runtime of its own, and a connection stays on the one that it was given: nothing that it does
//! wakes another thread, as it would on a runtime whose threads share their work. In exchange new connections
//! are spread by count.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// By how many connections a lane may be ahead of another before it hands one over, which wakes a thread: so
/// a client that connects again and again stays where it is.
const SLACK: usize = 1;
/// How long the connections of a lane that ends have for their last step.
const END_WAIT: Duration = Duration::from_secs(1);

/// All lanes of a relay. Their threads end when it is dropped.
#[derive(Debug)]
pub(crate) struct Lanes {
    all: Vec<Lane>,
    instead: Lane,
    next: AtomicUsize,
    ended: CancellationToken,
}

/// One of the threads.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    /// What runs on it.
    pub(crate) runtime: Handle,
    connections: TaskTracker,
}

impl Lanes {
    /// So many threads, in the network namespace of this one. Where the system gives none, all is done by
    /// `instead`.
    pub(crate) fn start(count: usize, instead: &Handle) -> Self {
        let ended = CancellationToken::new();
        let started = (0..count).map(|number| Lane::start(number, ended.clone()));
        let all = started.collect::<io::Result<_>>().unwrap_or_else(|error| {
            tracing::warn!(%error, "the relay has no threads of its own, and is slower without");
            Vec::new()
        });
        Self {
            all,
            instead: Lane::on(instead.clone()),
            next: AtomicUsize::new(0),
            ended,
        }
    }

    /// Where the next listener accepts.
    pub(crate) fn next(&self) -> &Lane {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let turn = turn.checked_rem(self.all.len()).unwrap_or(0);
        self.all.get(turn).unwrap_or(&self.instead)
    }

    /// Where a connection goes that was accepted on `here`.
    pub(crate) fn place<'a>(&'a self, here: &'a Lane) -> &'a Lane {
        let least = self.all.iter().min_by_key(|lane| lane.connections.len());
        least
            .filter(|least| here.connections.len() > least.connections.len() + SLACK)
            .unwrap_or(here)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Lane {
    fn start(number: usize, ended: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let lane = Self::on(runtime.handle().clone());
        let connections = lane.connections.clone();
        thread::Builder::new()
            .name(format!("relay-{number}"))
            .spawn(move || live(&runtime, &connections, &ended))?;
        Ok(lane)
    }

    fn on(runtime: Handle) -> Self {
        Self {
            runtime,
            connections: TaskTracker::new(),
        }
    }

    /// Runs a connection here.
    pub(crate) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        self.connections.spawn_on(connection, &self.runtime);
    }
}

fn live(runtime: &Runtime, connections: &TaskTracker, ended: &CancellationToken) {
    runtime.block_on(async {
        ended.cancelled().await;
        connections.close();
        // Those that are left end with the runtime.
        let _ = timeout(END_WAIT, connections.wait()).await;
    });
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc, time::Instant};

    use super::*;

    fn rig(count: usize) -> (Runtime, Lanes) {
        let runtime = Builder::new_current_thread().build().unwrap();
        let lanes = Lanes::start(count, runtime.handle());
        (runtime, lanes)
    }

    fn counts(lanes: &Lanes) -> Vec<usize> {
        let counts = lanes.all.iter().map(|lane| lane.connections.len());
        counts.collect()
    }

    #[test]
    fn connections_are_spread_and_a_single_one_stays() {
        let (_runtime, lanes) = rig(3);
        let here = lanes.next();
        lanes.place(here).spawn(pending());
        assert_eq!(counts(&lanes), [1, 0, 0]);
        for _ in 1..31 {
            lanes.place(here).spawn(pending());
        }
        assert_eq!(counts(&lanes), [11, 10, 10]);
    }

    #[test]
    fn listeners_take_turns() {
        let (_runtime, lanes) = rig(2);
        for _ in 0..4 {
            lanes.next().spawn(pending());
        }
        assert_eq!(counts(&lanes), [2, 2]);
    }

    #[test]
    fn without_threads_the_runtime_does_it() {
        let (runtime, lanes) = rig(0);
        let (done, wait) = tokio::sync::oneshot::channel();
        let connection = async { done.send(thread::current().id()).unwrap() };
        lanes.place(lanes.next()).spawn(connection);
        let on = runtime.block_on(wait).unwrap();
        assert_eq!(on, thread::current().id());
    }

    #[test]
    fn what_is_open_ends_with_the_lanes() {
        let (_runtime, lanes) = rig(1);
        let held = Arc::new(());
        let one = Arc::clone(&held);
        lanes.next().spawn(async move {
            pending::<()>().await;
            drop(one);
        });
        drop(lanes);
        let deadline = Instant::now() + 5 * END_WAIT;
        while Arc::strong_count(&held) > 1 {
            assert!(Instant::now() < deadline, "the thread lives on");
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}
