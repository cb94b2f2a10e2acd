//! A frontend that is served: its backends as they are now, its counters, and the lives of its tasks.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use ipnetwork::IpNetwork;
use portolan_model::TaskId;
use portolan_plane::{Backend, BackendState, BackendStats, Frontend, FrontendSpec, FrontendStats};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::balance::schedule;

/// How many tasks that are gone keep their counters: a service that restarts for ever must not grow.
const GONE_ROWS: usize = 256;

/// A frontend's life.
pub(crate) struct Served {
    pub(crate) frontend: Frontend,
    route: ArcSwap<Route>,
    /// Whose turn it is; it survives updates, so that they give no one a second first turn.
    pub(crate) turn: AtomicUsize,
    /// Held while the least loaded backend is chosen and its load raised.
    pub(crate) choosing: Mutex<()>,
    rows: Mutex<BTreeMap<TaskId, Row>>,
    next_row: AtomicU64,
    pub(crate) counters: FrontendCounters,
    /// Ends the listeners.
    pub(crate) closing: CancellationToken,
    /// Ends the flows too.
    pub(crate) ended: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

struct Row {
    name: String,
    counters: Arc<BackendCounters>,
    /// The order in which rows were last in use.
    seen: u64,
}

/// A frontend's counters.
#[derive(Debug, Default)]
pub(crate) struct FrontendCounters {
    pub(crate) retries: AtomicU64,
    pub(crate) idle_timeouts: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

/// Why a flow was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoBackend,
    NotAllowed,
    AllBackendsFailed,
    Limit,
}

impl Refusal {
    const ALL: [(Self, &str); 4] = [
        (Self::NoBackend, "no_backend"),
        (Self::NotAllowed, "not_allowed"),
        (Self::AllBackendsFailed, "all_backends_failed"),
        (Self::Limit, "limit"),
    ];
}

/// A backend's counters, as in [`BackendStats`].
#[derive(Debug, Default)]
pub(crate) struct BackendCounters {
    pub(crate) flows: AtomicU64,
    pub(crate) active: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) connect_failures: AtomicU64,
}

/// A backend while it is one.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) spec: Backend,
    pub(crate) counters: Arc<BackendCounters>,
    /// Cancelled when its flows have to end.
    pub(crate) gone: CancellationToken,
}

/// A spec made ready for choices.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) spec: Arc<FrontendSpec>,
    pub(crate) backends: Vec<Arc<Live>>,
    /// Those that take new flows, in the order in which they are preferred.
    pub(crate) tiers: Vec<Tier>,
}

/// Backends among which the balancing decides.
#[derive(Debug)]
pub(crate) struct Tier {
    /// Indices into the backends.
    pub(crate) members: Vec<usize>,
    /// The order of turns, as indices into the backends.
    pub(crate) schedule: Vec<usize>,
}

/// A flow's place at a backend; it counts as active until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved(Arc<Live>);

impl Reserved {
    pub(crate) fn new(live: &Arc<Live>) -> Self {
        live.counters.active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(live))
    }

    pub(crate) fn backend(&self) -> &Arc<Live> {
        &self.0
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.counters.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Served {
    /// A frontend whose tasks end with `relay`.
    pub(crate) fn new(spec: &Arc<FrontendSpec>, relay: &CancellationToken) -> Self {
        let ended = relay.child_token();
        let served = Self {
            frontend: spec.frontend.clone(),
            route: ArcSwap::from_pointee(Route {
                spec: Arc::clone(spec),
                backends: Vec::new(),
                tiers: Vec::new(),
            }),
            turn: AtomicUsize::new(0),
            choosing: Mutex::new(()),
            rows: Mutex::default(),
            next_row: AtomicU64::new(0),
            counters: FrontendCounters::default(),
            closing: ended.child_token(),
            ended,
            tasks: TaskTracker::new(),
        };
        served.update(spec);
        served
    }

    /// The backends and the policy as they are now.
    pub(crate) fn route(&self) -> Arc<Route> {
        self.route.load_full()
    }

    /// Takes a new spec. Flows to a backend that is gone, or whose task has another address now, end.
    pub(crate) fn update(&self, spec: &Arc<FrontendSpec>) {
        let old = self.route();
        let backends: Vec<Arc<Live>> = spec
            .backends
            .iter()
            .map(|backend| self.live(backend, &old))
            .collect();
        self.route.store(Arc::new(Route {
            spec: Arc::clone(spec),
            tiers: tiers(spec),
            backends,
        }));
        for was in &old.backends {
            if same(&spec.backends, &was.spec).is_none() {
                was.gone.cancel();
            }
        }
        self.forget_rows(spec);
    }

    fn live(&self, backend: &Backend, old: &Route) -> Arc<Live> {
        let before = old
            .backends
            .iter()
            .find(|live| same(std::slice::from_ref(backend), &live.spec).is_some());
        Arc::new(Live {
            spec: backend.clone(),
            counters: self.row(backend),
            gone: before.map_or_else(|| self.ended.child_token(), |live| live.gone.clone()),
        })
    }

    fn row(&self, backend: &Backend) -> Arc<BackendCounters> {
        let mut rows = lock(&self.rows);
        let row = rows.entry(backend.task.clone()).or_insert_with(|| Row {
            name: String::new(),
            counters: Arc::default(),
            seen: 0,
        });
        row.name.clone_from(&backend.name);
        row.seen = self.next_row.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&row.counters)
    }

    fn forget_rows(&self, spec: &FrontendSpec) {
        let mut rows = lock(&self.rows);
        while rows.len() > spec.backends.len() + GONE_ROWS {
            let oldest = rows
                .iter()
                .min_by_key(|(_, row)| row.seen)
                .map(|(task, _)| task.clone());
            oldest.and_then(|task| rows.remove(&task));
        }
    }

    /// Whether a client may connect.
    pub(crate) fn allows(&self, client: IpAddr) -> bool {
        let route = self.route.load();
        let allow = &route.spec.policy.allow;
        allow.is_empty() || allow.iter().any(|network| contains(*network, client))
    }

    /// Counts a flow that was refused.
    pub(crate) fn refuse(&self, why: Refusal) {
        let counters = Refusal::ALL.iter().zip(&self.counters.refused);
        for ((reason, _), counter) in counters {
            if *reason == why {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The counters, for display.
    pub(crate) fn stats(&self) -> FrontendStats {
        let route = self.route.load();
        let refused = Refusal::ALL.iter().zip(&self.counters.refused);
        FrontendStats {
            frontend: self.frontend.clone(),
            service: route.spec.service.clone(),
            service_name: route.spec.service_name.clone(),
            backends: lock(&self.rows)
                .iter()
                .map(|(task, row)| (task.clone(), row.name.clone(), row.counters.read()))
                .collect(),
            retries: self.counters.retries.load(Ordering::Relaxed),
            refused: refused
                .map(|((_, name), counter)| (*name, counter.load(Ordering::Relaxed)))
                .collect(),
            idle_timeouts: self.counters.idle_timeouts.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Served({})", self.frontend)
    }
}

impl BackendCounters {
    fn read(&self) -> BackendStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BackendStats {
            flows: get(&self.flows),
            active: get(&self.active),
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            connect_failures: get(&self.connect_failures),
        }
    }
}

fn same<'a>(backends: &'a [Backend], like: &Backend) -> Option<&'a Backend> {
    backends.iter().find(|backend| {
        (&backend.task, backend.ip, backend.port) == (&like.task, like.ip, like.port)
    })
}

fn tiers(spec: &FrontendSpec) -> Vec<Tier> {
    let open = |backend: &Backend| backend.state == BackendState::Active && backend.weight > 0;
    let tier = |of: &dyn Fn(&Backend) -> bool| {
        let weights: Vec<u16> = spec
            .backends
            .iter()
            .map(|backend| {
                if open(backend) && of(backend) {
                    backend.weight
                } else {
                    0
                }
            })
            .collect();
        let members = (0..).zip(&weights).filter(|(_, weight)| **weight > 0);
        Tier {
            members: members.map(|(at, _)| at).collect(),
            schedule: schedule(&weights),
        }
    };
    if spec.policy.local_first {
        vec![
            tier(&|backend| backend.local),
            tier(&|backend| !backend.local),
        ]
    } else {
        vec![tier(&|_| true)]
    }
}

fn contains(network: IpNetwork, client: IpAddr) -> bool {
    match (network, client) {
        (IpNetwork::V4(network), IpAddr::V4(client)) => network.contains(client),
        (IpNetwork::V6(network), IpAddr::V6(client)) => network.contains(client),
        _ => false,
    }
}

/// No code panics while it holds one of these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
