//! The thread that programs the overlay: netlink sockets belong to the namespace of their thread, and
//! programming blocks.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use ipnetwork::Ipv4Network;
use portolan_model::{INGRESS_NETWORK, Snapshot, TaskId};
use portolan_overlay::{Around, Attachment, Counters, Overlay, OverlayError, Plug};
use tokio::sync::{oneshot, watch};

/// How often the kernel is looked at for what goes wrong by itself.
const LOOK: Duration = Duration::from_millis(500);
/// How soon programming that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

enum Request {
    Reconcile(Arc<Snapshot>),
    Attach(Attachment, oneshot::Sender<Result<(), String>>),
    Plug(Plug, oneshot::Sender<Result<String, String>>),
    Detach(TaskId, oneshot::Sender<Result<(), String>>),
    Clean(oneshot::Sender<Result<(), Vec<String>>>),
}

/// How the overlay stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct OverlayStanding {
    /// Whether a snapshot has been programmed, and nothing keeps the ingress network from working.
    pub programmed: bool,
    pub mtu: u32,
    pub problems: Vec<String>,
    /// Operations that failed since the start.
    pub failed_total: u64,
    pub counters: Counters,
    /// Attachments whose namespace is gone.
    pub vanished: BTreeSet<TaskId>,
    /// Attachments that an earlier agent left.
    pub adopted: BTreeSet<TaskId>,
    /// Why tasks of this node cannot have IPv6 addresses, if so.
    pub no_ipv6: Option<String>,
    /// Where containers are that other software has put on bridges.
    pub containers: BTreeSet<Ipv4Network>,
    /// What the kernel has of the overlay, and around it; `None` until a snapshot has been programmed.
    pub around: Option<Around>,
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(super) struct OverlayHandle {
    requests: mpsc::Sender<Request>,
    standing: watch::Receiver<OverlayStanding>,
}

/// Starts the thread. It ends when the last handle is dropped.
pub(super) fn start(
    config: portolan_overlay::Config,
) -> Result<(OverlayHandle, JoinHandle<()>), OverlayError> {
    let (requests, inbox) = mpsc::channel();
    let (standing, watcher) = watch::channel(OverlayStanding::default());
    let (ready, opened) = mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || match Overlay::open(config) {
        Ok(overlay) => {
            standing.send_modify(|standing| {
                standing.adopted = overlay.attachments();
                standing.no_ipv6 = overlay.no_ipv6();
            });
            drop(ready.send(Ok(())));
            Worker {
                overlay,
                standing,
                snapshot: None,
                unfinished: false,
                all_known: false,
            }
            .run(&inbox);
        }
        Err(error) => drop(ready.send(Err(error))),
    });
    if let Ok(Err(error)) = opened.recv() {
        return Err(error);
    }
    Ok((
        OverlayHandle {
            requests,
            standing: watcher,
        },
        thread,
    ))
}

impl OverlayHandle {
    /// Has a snapshot programmed; of several that wait only the last one is.
    pub(super) fn reconcile(&self, snapshot: Arc<Snapshot>) {
        self.send(Request::Reconcile(snapshot));
    }

    /// Attaches a namespace, after the snapshots given before.
    pub(super) async fn attach(&self, attachment: Attachment) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Attach(attachment, reply));
        answer.await.unwrap_or_else(|_| Err(ENDED.to_owned()))
    }

    /// Makes a place for a namespace that somebody else makes, and gives the link to be moved there.
    pub(super) async fn plug(&self, plug: Plug) -> Result<String, String> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Plug(plug, reply));
        answer.await.unwrap_or_else(|_| Err(ENDED.to_owned()))
    }

    /// Detaches a namespace.
    pub(super) async fn detach(&self, id: TaskId) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Detach(id, reply));
        answer.await.unwrap_or_else(|_| Err(ENDED.to_owned()))
    }

    /// Removes everything of the overlay from the kernel.
    pub(super) async fn clean(&self) -> Result<(), Vec<String>> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Clean(reply));
        answer.await.unwrap_or_else(|_| Err(vec![ENDED.to_owned()]))
    }

    /// How the overlay stands.
    pub(super) fn standing(&self) -> watch::Receiver<OverlayStanding> {
        self.standing.clone()
    }

    fn send(&self, request: Request) {
        // A thread that has ended closes `standing`, which takes the agent down; its requests go nowhere.
        drop(self.requests.send(request));
    }
}

const ENDED: &str = "the overlay's thread has ended";

struct Worker {
    overlay: Overlay,
    standing: watch::Sender<OverlayStanding>,
    snapshot: Option<Arc<Snapshot>>,
    /// Whether some of the snapshot could not be programmed.
    unfinished: bool,
    /// Whether a synced snapshot has been programmed: only then what is not there is not wanted.
    all_known: bool,
}

impl Worker {
    fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        loop {
            let wait = if self.unfinished { RETRY } else { LOOK };
            let mut next = match inbox.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            let mut dirty = self.unfinished;
            while let Some(request) = next.take().or_else(|| inbox.try_recv().ok()) {
                match request {
                    Request::Reconcile(snapshot) => {
                        self.snapshot = Some(snapshot);
                        dirty = true;
                    }
                    other => {
                        if std::mem::take(&mut dirty) {
                            self.reconcile();
                        }
                        self.answer(other);
                    }
                }
            }
            if dirty {
                self.reconcile();
            }
            self.look();
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Reconcile(_) => {}
            // Looking first, so that who gets the answer does not read of the time before it that a
            // namespace has vanished.
            Request::Attach(attachment, reply) => {
                let attached = self.overlay.attach(&attachment);
                self.look();
                drop(reply.send(attached.map_err(|e| super::with_causes(&e))));
            }
            Request::Plug(plug, reply) => {
                let plugged = self.overlay.plug(&plug);
                self.look();
                drop(reply.send(plugged.map_err(|e| super::with_causes(&e))));
            }
            Request::Detach(id, reply) => {
                let detached = self.overlay.detach(&id);
                self.look();
                drop(reply.send(detached.map_err(|e| super::with_causes(&e))));
            }
            Request::Clean(reply) => {
                self.snapshot = None;
                let cleaned = self.overlay.clean();
                let worded = |errors: Vec<OverlayError>| {
                    errors.iter().map(|e| super::with_causes(e)).collect()
                };
                drop(reply.send(cleaned.map_err(worded)));
            }
        }
    }

    fn reconcile(&mut self) {
        let Some(snapshot) = self.snapshot.clone() else {
            return;
        };
        let failures = self.overlay.reconcile(&snapshot);
        self.unfinished = !failures.is_empty();
        self.all_known |= snapshot.synced;
        // Networks fail under their own names, and what is common to all under the overlay's.
        let vital = |object: &str| object == INGRESS_NETWORK || object == "overlay";
        self.standing.send_modify(|standing| {
            standing.programmed = failures.iter().all(|failure| !vital(&failure.object));
            standing.failed_total += failures.len() as u64;
            let problems: Vec<String> = failures
                .iter()
                .map(|f| format!("overlay: {}: {}", f.object, super::with_causes(&f.error)))
                .collect();
            log_changes(&standing.problems, &problems);
            standing.problems = problems;
        });
    }

    fn look(&mut self) {
        let vanished: BTreeSet<TaskId> = self.overlay.vanished().into_iter().collect();
        let (counters, mtu, problems, no_ipv6) = (
            self.overlay.counters(),
            self.overlay.mtu(),
            self.overlay.problems(),
            self.overlay.no_ipv6(),
        );
        // What cannot be read now stays as it was.
        let around = self.overlay.around().ok();
        self.standing.send_if_modified(|standing| {
            let before = standing.clone();
            standing.problems.retain(|p| p.starts_with("overlay: "));
            standing.problems.extend(problems);
            (standing.counters, standing.mtu, standing.vanished) = (counters, mtu, vanished);
            standing.no_ipv6 = no_ipv6;
            if let Some(around) = around {
                standing.containers.clone_from(&around.containers);
                standing.around = Some(around).filter(|_| self.all_known);
            }
            *standing != before
        });
    }
}

/// Logs each failure when it begins and when it is over, however often it is tried in between.
fn log_changes(before: &[String], now: &[String]) {
    for problem in now.iter().filter(|problem| !before.contains(problem)) {
        tracing::warn!("{problem}; it is tried again");
    }
    let over = before
        .iter()
        .filter(|problem| problem.starts_with("overlay: "));
    for problem in over.filter(|problem| !now.contains(problem)) {
        tracing::info!("no longer: {problem}");
    }
}
