//! Running the parts of the agent: the first one to end takes the others down, and so does being told to.

use std::{collections::HashMap, future::Future, time::Duration};

use portolan_relay::Relay;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, Id, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    command::Command,
    fast_path,
    plane_thread::FlowFilter,
    shared::{LeaveRequest, Shared},
    state::StateDir,
};

/// How long the parts have to end once they are told.
const GRACE: Duration = Duration::from_secs(5);

/// For how long others count on a node whose agent has ended for the next one. Docker takes some seconds to replace a
/// container, on a slow machine or with many of them more.
const NEXT: Duration = Duration::from_secs(30);

/// How an agent ended that was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has left the cluster (SIGTERM, SIGINT, `portolan leave`).
    Left,
    /// It is still a member, and its fast path at work, for whoever starts the next one soon (SIGQUIT).
    Stayed,
    /// As [`End::Stayed`], and it wants to be started again at once, maybe from a newer file (SIGHUP).
    Again,
}

/// The parts that run, by name.
pub(super) struct Parts {
    tasks: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, (&'static str, AbortHandle)>,
    ends: CancellationToken,
}

impl Parts {
    /// No parts; `ends` tells those that are added to end.
    pub(super) fn new(ends: CancellationToken) -> Self {
        Self {
            tasks: JoinSet::new(),
            names: HashMap::new(),
            ends,
        }
    }

    /// Starts a part.
    pub(super) fn add(
        &mut self,
        name: &'static str,
        part: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(part);
        self.names.insert(handle.id(), (name, handle));
    }

    /// Runs until a signal, a request to leave, or the end of a part; then leaves the cluster, if that is what
    /// it was told, and ends the other parts.
    pub(super) async fn run_until_told(
        mut self,
        shared: Shared,
        mut leave: mpsc::Receiver<LeaveRequest>,
    ) -> anyhow::Result<End> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let request = tokio::select! {
            () = told(&mut terminate, &mut interrupt) => None,
            request = leave.recv() => request,
            _ = quit.recv() => return Ok(self.stay(shared, End::Stayed).await),
            _ = hang_up.recv() => return Ok(self.stay(shared, End::Again).await),
            ended = self.next() => return Err(ended),
        };
        tracing::info!("leaving the cluster");
        // Before the drain: a unit that is stopping may take its time.
        tell(&[sd_notify::NotifyState::Stopping]);
        tokio::select! {
            () = drain(&shared) => {}
            () = told(&mut terminate, &mut interrupt) => tracing::info!("told again: not waiting for connections to end"),
            ended = self.next() => return Err(ended),
        }
        tokio::select! {
            () = shared.gossip.leave() => {}
            () = told(&mut terminate, &mut interrupt) => tracing::info!("told again: not waiting for the others"),
        }
        // Nobody would tell it any more of tasks that come and go.
        let mut failed: Vec<String> = shared.plane.take_down().await.err().into_iter().collect();
        if let Some(request) = request {
            if request.clean {
                // It would set up again what is removed.
                self.stop("the runner").await;
                failed.extend(clean(&shared).await);
            }
            // Whoever asked may have gone.
            drop(request.done.send(failed.clone()));
        }
        for error in &failed {
            tracing::warn!(error, "not removed");
        }
        drop(shared);
        self.end().await;
        Ok(End::Left)
    }

    /// Ends all parts and leaves the cluster, the overlay and the fast path as they are, for the agent that follows.
    async fn stay(mut self, shared: Shared, end: End) -> End {
        tracing::info!("ending without leaving the cluster: the fast path goes on");
        tell(&[match end {
            End::Again => sd_notify::NotifyState::Reloading,
            End::Left | End::Stayed => sd_notify::NotifyState::Stopping,
        }]);
        // Else they would take the node for dead in two or three seconds, with all its tasks.
        shared.gossip.pause(NEXT).await;
        drop(shared);
        self.end().await;
        end
    }

    /// The end of the next part, as an error that names it.
    async fn next(&mut self) -> anyhow::Error {
        let Some(ended) = self.tasks.join_next_with_id().await else {
            return anyhow::anyhow!("there is nothing to run");
        };
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(anyhow::anyhow!("it died: {error}"))),
        };
        let name = self.names.get(&id).map_or("a part", |(name, _)| *name);
        self.end().await;
        match result {
            Ok(()) => anyhow::anyhow!("{name} ended"),
            Err(error) => error.context(format!("{name} ended")),
        }
    }

    /// Ends one part at once, whatever it was about to do. The others that end meanwhile have been told to.
    async fn stop(&mut self, part: &str) {
        let handles = self.names.values();
        let Some((_, handle)) = handles.into_iter().find(|(name, _)| *name == part) else {
            return;
        };
        let handle = handle.clone();
        handle.abort();
        while !handle.is_finished() && self.tasks.join_next().await.is_some() {}
    }

    async fn end(&mut self) {
        self.ends.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            tracing::warn!("some parts of the agent did not end in time");
        }
        self.tasks.shutdown().await;
    }
}

/// Waits for SIGTERM or SIGINT.
async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
}

/// Tells the others that the node leaves, and waits until its tasks have drained. Where no one can have
/// connections to them there is nothing to wait for.
async fn drain(shared: &Shared) {
    let (reply, answer) = oneshot::channel();
    if shared.commands.send(Command::Leave(reply)).await.is_err() {
        return;
    }
    let drain = Duration::from_millis(u64::from(answer.await.unwrap_or(0)));
    let until = Instant::now() + drain;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let stats = shared.gossip.stats();
    let others = stats.members_alive + stats.members_suspect > 1;
    while Instant::now() < until {
        look.tick().await;
        if !others && shared.plane.flows(FlowFilter::any(1)).await.is_empty() {
            return;
        }
    }
}

async fn clean(shared: &Shared) -> Vec<String> {
    let mut failed = shared.overlay.clean().await.err().unwrap_or_default();
    match tokio::task::spawn_blocking(Relay::clean).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => failed.push(super::with_causes(&error)),
        Err(error) => failed.push(super::with_causes(&error)),
    }
    let dir = shared.config.bpf_dir.clone();
    match tokio::task::spawn_blocking(move || fast_path::clean(&dir)).await {
        Ok(done) => failed.extend(done.err()),
        Err(error) => failed.push(super::with_causes(&error)),
    }
    if let Err(error) = StateDir::remove(&shared.config.state_dir) {
        failed.push(super::with_causes(&error));
    }
    failed
}

/// Tells systemd when the agent is ready, and that it is alive while the runner's heart beats.
pub(super) async fn notify(
    shared: Shared,
    mut beat: watch::Receiver<()>,
    ends: CancellationToken,
) -> anyhow::Result<()> {
    let mut watchdog_usec = 0;
    let watchdog = sd_notify::watchdog_enabled(false, &mut watchdog_usec);
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let mut ready = false;
    loop {
        tokio::select! {
            () = ends.cancelled() => return Ok(()),
            changed = beat.changed(), if ready => {
                changed?;
                if watchdog {
                    tell(&[sd_notify::NotifyState::Watchdog]);
                }
            }
            _ = look.tick(), if !ready => {
                if shared.starting().is_empty() {
                    ready = true;
                    tracing::info!("ready");
                    tell(&[sd_notify::NotifyState::Ready]);
                }
            }
        }
    }
}

fn tell(state: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
