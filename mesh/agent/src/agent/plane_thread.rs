//! The thread that drives a plane: kernel programming blocks, and belongs to the thread's namespace.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use portolan_model::Snapshot;
use portolan_plane::{DataPlane, FlowView, Frontend, PlaneKind, PlaneStats, Reconciler, Standing};
use tokio::sync::{oneshot, watch};

enum Request {
    Reconcile(Arc<Snapshot>),
    Stats(oneshot::Sender<PlaneStats>),
    Flows(usize, oneshot::Sender<Vec<FlowView>>),
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(super) struct PlaneHandle {
    pub kind: PlaneKind,
    requests: mpsc::Sender<Request>,
    standing: watch::Receiver<Option<Standing>>,
}

/// Starts the thread. It ends when the last handle is dropped, and the plane with it.
pub(super) fn start<P: DataPlane + Send + 'static>(
    plane: P,
    snapshot: Arc<Snapshot>,
) -> (PlaneHandle, JoinHandle<()>) {
    let kind = plane.kind();
    let (requests, inbox) = mpsc::channel();
    let (standing, watcher) = watch::channel(None);
    let thread =
        std::thread::spawn(move || run(Reconciler::new(plane, snapshot), &inbox, &standing));
    (
        PlaneHandle {
            kind,
            requests,
            standing: watcher,
        },
        thread,
    )
}

impl PlaneHandle {
    /// Has a snapshot served; of several that wait only the last one is.
    pub(super) fn reconcile(&self, snapshot: Arc<Snapshot>) {
        self.send(Request::Reconcile(snapshot));
    }

    /// The plane's counters.
    pub(super) async fn stats(&self) -> PlaneStats {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Stats(reply));
        answer.await.unwrap_or_default()
    }

    /// The plane's live flows, at most `limit`.
    pub(super) async fn flows(&self, limit: usize) -> Vec<FlowView> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Flows(limit, reply));
        answer.await.unwrap_or_default()
    }

    /// How the plane stands; `None` until it was given a snapshot.
    pub(super) fn standing(&self) -> watch::Receiver<Option<Standing>> {
        self.standing.clone()
    }

    fn send(&self, request: Request) {
        // A thread that has ended closes `standing`, which takes the agent down; its requests go nowhere.
        drop(self.requests.send(request));
    }
}

/// Hands every snapshot to the plane, until the snapshots or the plane end.
pub(super) async fn follow(
    plane: PlaneHandle,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> anyhow::Result<()> {
    let mut standing = plane.standing();
    snapshots.mark_changed();
    loop {
        tokio::select! {
            changed = snapshots.changed() => match changed {
                Ok(()) => plane.reconcile(Arc::clone(&snapshots.borrow_and_update())),
                Err(_) => return Ok(()),
            },
            changed = standing.changed() => changed.map_err(|_| anyhow::anyhow!("the plane's thread has ended"))?,
        }
    }
}

fn run<P: DataPlane>(
    mut reconciler: Reconciler<P>,
    inbox: &mpsc::Receiver<Request>,
    standing: &watch::Sender<Option<Standing>>,
) {
    let mut retry_at: Option<Instant> = None;
    loop {
        let wait = retry_at.map_or(Duration::from_hours(1), |at| {
            at.saturating_duration_since(Instant::now())
        });
        let mut next = match inbox.recv_timeout(wait) {
            Ok(request) => Some(request),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        let mut newest = None;
        while let Some(request) = next.take().or_else(|| inbox.try_recv().ok()) {
            match request {
                Request::Reconcile(snapshot) => newest = Some(snapshot),
                Request::Stats(reply) => drop(reply.send(reconciler.plane().stats())),
                Request::Flows(limit, reply) => drop(reply.send(reconciler.plane().flows(limit))),
            }
        }
        let due = retry_at.is_some_and(|at| at <= Instant::now());
        let wait = match newest {
            Some(snapshot) => reconciler.update(snapshot),
            None if due => reconciler.step(),
            None => continue,
        };
        retry_at = wait.map(|wait| Instant::now() + wait);
        standing.send_if_modified(|present| {
            let new = reconciler.standing();
            log_changes(present.as_ref(), new);
            let changed = present.as_ref() != Some(new);
            *present = Some(new.clone());
            changed
        });
    }
}

/// Logs each failure when it begins and when it is over, however often it is tried in between.
fn log_changes(before: Option<&Standing>, now: &Standing) {
    let known = |frontend: &Frontend| before.and_then(|standing| standing.failures.get(frontend));
    for (frontend, error) in &now.failures {
        if known(frontend) != Some(error) {
            tracing::warn!(%frontend, error, "not served; it is tried again");
        }
    }
    let over = before
        .into_iter()
        .flat_map(|standing| standing.failures.keys());
    for frontend in over.filter(|frontend| !now.failures.contains_key(frontend)) {
        tracing::info!(%frontend, "no longer failing");
    }
}
