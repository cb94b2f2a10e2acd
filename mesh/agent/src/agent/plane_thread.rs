//! The thread that drives the planes: kernel programming blocks, and belongs to the thread's namespace.

mod log;

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use portolan_ebpf::{Counter, EbpfPlane};
use portolan_model::Snapshot;
use portolan_plane::{
    Actual, DataPlane, FlowView, Frontend, FrontendSpec, PlaneKind, PlaneStats, Planes, Standing,
};
use portolan_relay::Relay;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use super::{
    fast_path::{FastPath, FastStanding},
    overlay_thread::OverlayStanding,
    swarm_mesh,
};
use crate::config::Config;

/// How often the fast path is looked at for what goes wrong by itself.
const LOOK: Duration = Duration::from_secs(1);

enum Request {
    Reconcile(Arc<Snapshot>),
    Surround(Option<oneshot::Sender<()>>),
    Stats(oneshot::Sender<PlanesStats>),
    Flows(FlowFilter, oneshot::Sender<Vec<ServiceFlow>>),
    TakeDown(oneshot::Sender<Result<(), String>>),
}

/// Which flows are asked for.
#[derive(Debug, Clone)]
pub(super) struct FlowFilter {
    /// At most so many of each plane.
    pub limit: usize,
    /// Only those of the service of this name or id.
    pub service: Option<String>,
}

impl FlowFilter {
    /// Flows of all services.
    pub(super) const fn any(limit: usize) -> Self {
        Self {
            limit,
            service: None,
        }
    }
}

/// A flow, and the name of the service behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ServiceFlow {
    pub service: String,
    #[serde(flatten)]
    pub flow: FlowView,
}

/// The counters of all planes.
#[derive(Debug, Clone, Default)]
pub(super) struct PlanesStats {
    pub planes: Vec<(PlaneKind, PlaneStats)>,
    /// What the fast path's programs counted, by reason.
    pub packets: Vec<(Counter, u64)>,
}

/// How the planes stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PlanesStanding {
    /// What they were told to serve, and have tried to; the newest snapshot may ask for more.
    pub told: Actual,
    pub relay: Standing,
    pub fast: FastStanding,
    /// Frontends that Docker itself serves too.
    pub shared: BTreeSet<Frontend>,
    /// Whether another process may have some of these, as the agent cannot see it.
    pub guessed: bool,
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(super) struct PlaneHandle {
    requests: mpsc::Sender<Request>,
    standing: watch::Receiver<Option<PlanesStanding>>,
}

/// Starts the thread. It ends when the last handle is dropped, and the relay with it; the fast path's programs stay
/// at work, unless they were taken down.
pub(super) fn start(
    config: Arc<Config>,
    relay: Relay,
    snapshot: Arc<Snapshot>,
    overlay: watch::Receiver<OverlayStanding>,
) -> (PlaneHandle, JoinHandle<()>) {
    let (requests, inbox) = mpsc::channel();
    let (standing, watcher) = watch::channel(None);
    let thread = std::thread::spawn(move || {
        let worker = Worker {
            planes: Planes::new(relay, &snapshot),
            fast: FastPath::new(&config),
            snapshot,
            overlay,
            standing,
            guessed: false,
        };
        worker.run(&inbox);
    });
    let handle = PlaneHandle {
        requests,
        standing: watcher,
    };
    (handle, thread)
}

impl PlaneHandle {
    /// Has a snapshot served; of several that wait only the last one is.
    pub(super) fn reconcile(&self, snapshot: Arc<Snapshot>) {
        self.send(Request::Reconcile(snapshot));
    }

    /// Has the fast path told what the overlay sees now.
    pub(super) fn surround(&self) {
        self.send(Request::Surround(None));
    }

    /// As [`Self::surround`], and waits until it is done, or cannot be done.
    pub(super) async fn surrounded(&self) {
        let (reply, done) = oneshot::channel();
        self.send(Request::Surround(Some(reply)));
        // A thread that has ended takes the agent down; nobody has to be told here.
        let _ended = done.await;
    }

    /// The planes' counters.
    pub(super) async fn stats(&self) -> PlanesStats {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Stats(reply));
        answer.await.unwrap_or_default()
    }

    /// The planes' live flows.
    pub(super) async fn flows(&self, filter: FlowFilter) -> Vec<ServiceFlow> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Flows(filter, reply));
        answer.await.unwrap_or_default()
    }

    /// Takes the fast path down for good.
    pub(super) async fn take_down(&self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::TakeDown(reply));
        let ended = || Err("the planes' thread has ended".to_owned());
        answer.await.unwrap_or_else(|_| ended())
    }

    /// How the planes stand; `None` until they were given a snapshot.
    pub(super) fn standing(&self) -> watch::Receiver<Option<PlanesStanding>> {
        self.standing.clone()
    }

    fn send(&self, request: Request) {
        // A thread that has ended closes `standing`, which takes the agent down; its requests go nowhere.
        drop(self.requests.send(request));
    }
}

/// Hands every snapshot to the planes, and tells the fast path of what is new around it, until the snapshots or the
/// planes end.
pub(super) async fn follow(
    plane: PlaneHandle,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut overlay: watch::Receiver<OverlayStanding>,
) -> anyhow::Result<()> {
    let mut standing = plane.standing();
    let mut around = None;
    snapshots.mark_changed();
    loop {
        tokio::select! {
            changed = snapshots.changed() => match changed {
                Ok(()) => plane.reconcile(Arc::clone(&snapshots.borrow_and_update())),
                Err(_) => return Ok(()),
            },
            changed = overlay.changed() => {
                changed.map_err(|_| anyhow::anyhow!("the overlay's thread has ended"))?;
                let now = overlay.borrow_and_update().around.clone();
                if now != around {
                    around = now;
                    plane.surround();
                }
            }
            changed = standing.changed() => changed.map_err(|_| anyhow::anyhow!("the planes' thread has ended"))?,
        }
    }
}

struct Worker {
    planes: Planes<Relay, EbpfPlane>,
    fast: FastPath,
    snapshot: Arc<Snapshot>,
    overlay: watch::Receiver<OverlayStanding>,
    standing: watch::Sender<Option<PlanesStanding>>,
    /// As [`PlanesStanding::guessed`].
    guessed: bool,
}

impl Worker {
    fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        let mut retry_at: Option<Instant> = None;
        let mut look_at = Instant::now() + LOOK;
        let mut sweep_at: Option<Instant> = None;
        loop {
            let dues = [retry_at, sweep_at].into_iter().flatten();
            let next = dues.fold(look_at, Instant::min);
            let mut next = match inbox.recv_timeout(next.saturating_duration_since(Instant::now()))
            {
                Ok(request) => Some(request),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            let (mut newest, mut look, mut told) = (None, false, Vec::new());
            while let Some(request) = next.take().or_else(|| inbox.try_recv().ok()) {
                match request {
                    Request::Reconcile(snapshot) => newest = Some(snapshot),
                    Request::Surround(reply) => {
                        look = true;
                        told.extend(reply);
                    }
                    Request::TakeDown(reply) => {
                        look = true;
                        // Whoever asked may have gone.
                        drop(reply.send(self.fast.take_down(&mut self.planes)));
                    }
                    other => self.answer(other),
                }
            }
            let fresh = newest.is_some();
            self.snapshot = newest.unwrap_or(self.snapshot);
            let mut step = retry_at.is_some_and(|at| at <= Instant::now());
            // Before the frontends: they may lead to nodes and tasks that were not known.
            look |= fresh || look_at <= Instant::now();
            if look {
                let around = self.overlay.borrow().around.clone();
                step |= self
                    .fast
                    .look(&mut self.planes, &self.snapshot, around.as_ref());
                look_at = Instant::now() + LOOK;
            }
            if fresh || step {
                let wait = if fresh {
                    self.planes.update(&self.snapshot)
                } else {
                    self.planes.step()
                };
                let wait = if self.share() {
                    self.planes.step()
                } else {
                    wait
                };
                retry_at = wait.map(|wait| Instant::now() + wait);
            }
            self.fast.settle(&mut self.planes);
            if self.snapshot.synced && self.fast.begin() {
                look_at = Instant::now();
            }
            sweep_at = self.fast.sweep(&mut self.planes);
            let begun = fresh || self.standing.borrow().is_some();
            if begun && (look || step) {
                self.tell();
            }
            for reply in told {
                // Whoever waited may have gone.
                let _unheard = reply.send(());
            }
        }
    }

    /// Looks whether what the relay cannot hold is held by Docker. Returns whether that is news.
    fn share(&mut self) -> bool {
        let failed = self.planes.slow_standing().failures.keys();
        let held = swarm_mesh::held(failed, self.planes.told(), &self.snapshot);
        let news = self.guessed != held.guessed;
        self.guessed = held.guessed;
        self.planes.share(held.frontends) || news
    }

    fn answer(&mut self, request: Request) {
        // An answer that cannot be delivered is one that no one waits for any more.
        match request {
            Request::Reconcile(_) | Request::Surround(_) | Request::TakeDown(_) => {}
            Request::Stats(reply) => drop(reply.send(self.stats())),
            Request::Flows(filter, reply) => drop(reply.send(self.flows(&filter))),
        }
    }

    fn stats(&self) -> PlanesStats {
        let relay = (PlaneKind::Relay, self.planes.slow().stats());
        let fast = self.planes.fast();
        let counters = fast.and_then(|fast| fast.counters().ok());
        PlanesStats {
            planes: [relay]
                .into_iter()
                .chain(fast.map(|fast| (PlaneKind::Ebpf, fast.stats())))
                .collect(),
            packets: counters.unwrap_or_default(),
        }
    }

    fn flows(&self, filter: &FlowFilter) -> Vec<ServiceFlow> {
        let relay = flows_of(self.planes.slow(), filter);
        let fast = self.planes.fast().map(|fast| flows_of(fast, filter));
        relay
            .into_iter()
            .chain(fast.into_iter().flatten())
            .collect()
    }

    fn tell(&self) {
        let now = PlanesStanding {
            told: self.planes.told().clone(),
            relay: self.planes.slow_standing().clone(),
            fast: self.fast.standing(&self.planes),
            shared: self.planes.shared().clone(),
            guessed: self.guessed,
        };
        self.standing.send_if_modified(|present| {
            log::changes(present.as_ref(), &now);
            let changed = present.as_ref() != Some(&now);
            *present = Some(now);
            changed
        });
    }
}

fn flows_of(plane: &impl DataPlane, filter: &FlowFilter) -> Vec<ServiceFlow> {
    let served = plane.dump().unwrap_or_default();
    let wanted = |spec: &FrontendSpec| match &filter.service {
        Some(service) => spec.service.as_str() == service || spec.service_name == *service,
        None => true,
    };
    // A filter needs all flows to choose from.
    let asked = if filter.service.is_some() {
        usize::MAX
    } else {
        filter.limit
    };
    let flows = plane.flows(asked).into_iter().filter_map(|flow| {
        let spec = served.get(&flow.frontend).filter(|spec| wanted(spec))?;
        Some(ServiceFlow {
            service: spec.service_name.clone(),
            flow,
        })
    });
    flows.take(filter.limit).collect()
}
