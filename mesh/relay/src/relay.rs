//! The plane itself: what it was told, made true.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use portolan_model::Protocol;
use portolan_plane::{
    Actual, DataPlane, Failure, FlowView, Frontend, FrontendSpec, FrontendStats, Op, OpError, Plan,
    PlaneKind, PlaneStats, Unavailable,
};
use socket2::Socket;
use tokio::{net::UdpSocket, runtime::Handle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    RelayConfig,
    engine::Engine,
    flows::Flows,
    listener,
    served::{Served, lock},
    tcp, udp,
    vips::{self, Vips, nft},
};

/// How long a removal waits for the tasks of a frontend, which have nothing left to do but end.
const END_WAIT: Duration = Duration::from_secs(1);

type Table = BTreeMap<Frontend, Arc<Served>>;

/// The userspace plane.
///
/// Its methods are for a plain thread: they open sockets in the network namespace of that thread, and they
/// wait for tasks of the runtime, so they panic when called from one of these. Dropping it ends everything.
#[derive(Debug)]
pub struct Relay {
    engine: Arc<Engine>,
    table: Arc<RwLock<Table>>,
    /// What the frontends of the table were told.
    specs: Actual,
    vips: Mutex<Vips>,
    /// The virtual frontends that the last step left undone.
    unsettled: Vec<Frontend>,
    ended: CancellationToken,
}

/// The counters and flows of a relay, for any thread or task, while the relay itself belongs to its
/// reconciler.
#[derive(Debug, Clone)]
pub struct RelayView {
    flows: Arc<Flows>,
    table: Arc<RwLock<Table>>,
}

impl Relay {
    /// A relay that serves nothing yet. Datagrams are moved on `runtime`, TCP connections on threads that are
    /// started here: both connect to the backends, and so have to be in the network namespace of the node too.
    pub fn new(config: RelayConfig, runtime: Handle) -> Self {
        Self {
            engine: Arc::new(Engine::new(config, runtime)),
            table: Arc::default(),
            specs: Actual::new(),
            vips: Mutex::default(),
            unsettled: Vec::new(),
            ended: CancellationToken::new(),
        }
    }

    /// Where its counters and flows can be read.
    pub fn view(&self) -> RelayView {
        RelayView {
            flows: Arc::clone(&self.engine.flows),
            table: Arc::clone(&self.table),
        }
    }

    /// Removes from the kernel what a relay that was killed left there. One that runs in this network
    /// namespace loses its virtual addresses.
    ///
    /// # Errors
    /// The rules could not be removed.
    pub fn clean() -> Result<(), OpError> {
        nft::remove().map_err(|error| error.for_frontend())
    }

    /// Takes no new flows from now on, lets those that are open run for `grace`, and then ends them.
    /// Afterwards the relay is not used again.
    ///
    /// # Errors
    /// The rules for virtual addresses are still in the kernel; all else is done.
    pub fn shutdown(&self, grace: Duration) -> Result<(), OpError> {
        let cleared = lock(&self.vips).clear();
        self.engine.tasks.close();
        let frontends: Vec<_> = read(&self.table).values().cloned().collect();
        for served in &frontends {
            served.closing.cancel();
            served.tasks.close();
        }
        let all = async {
            for served in &frontends {
                served.tasks.wait().await;
            }
            self.engine.tasks.wait().await;
        };
        self.engine.runtime.block_on(async {
            tokio::pin!(all);
            if timeout(grace, &mut all).await.is_err() {
                self.ended.cancel();
                // Cancelled tasks end at their next step; should one not, the runtime ends it.
                let _ = timeout(END_WAIT, all).await;
            }
        });
        self.ended.cancel();
        cleared.map_err(|error| error.for_frontend())
    }

    fn upsert(&mut self, spec: &Arc<FrontendSpec>) -> Result<(), OpError> {
        let present = read(&self.table).get(&spec.frontend).cloned();
        if let Some(served) = present {
            served.update(spec);
            self.specs.insert(spec.frontend.clone(), Arc::clone(spec));
            return Ok(());
        }
        if vips::address(&spec.frontend).is_some_and(|ip| ip.is_ipv6()) {
            return Err(OpError::Unsupported(format!(
                "{}: virtual addresses are IPv4 only",
                spec.frontend
            )));
        }
        let served = Arc::new(Served::new(spec, &self.ended));
        let sockets = listener::open(&spec.frontend)?;
        let listening = sockets
            .into_iter()
            .try_for_each(|socket| self.listen(&served, socket));
        if let Err(error) = listening {
            // All of its sockets or none.
            self.end(&served);
            return Err(error);
        }
        write(&self.table).insert(spec.frontend.clone(), served);
        self.specs.insert(spec.frontend.clone(), Arc::clone(spec));
        Ok(())
    }

    fn listen(&self, served: &Arc<Served>, socket: Socket) -> Result<(), OpError> {
        let engine = Arc::clone(&self.engine);
        let whose = Arc::clone(served);
        let refused = |source| OpError::Kernel {
            operation: format!("watch {}", served.frontend),
            source,
        };
        match served.frontend.protocol {
            Protocol::Tcp => {
                let lane = self.engine.lanes.next();
                let _runtime = lane.runtime.enter();
                let listener = tcp::listener(socket).map_err(refused)?;
                let accept = tcp::accept(engine, lane.clone(), listener, move |_| {
                    Some(Arc::clone(&whose))
                });
                spawn(served, accept, &lane.runtime);
            }
            Protocol::Udp => {
                let _runtime = self.engine.runtime.enter();
                let inlet = UdpSocket::from_std(socket.into()).map_err(refused)?;
                let receive = udp::receive(engine, inlet, move |_| Some(Arc::clone(&whose)));
                spawn(served, receive, &self.engine.runtime);
            }
        }
        Ok(())
    }

    fn remove(&mut self, frontend: &Frontend) {
        self.specs.remove(frontend);
        let removed = write(&self.table).remove(frontend);
        if let Some(served) = removed {
            self.end(&served);
        }
    }

    /// Has the kernel lead the virtual addresses here that are served now.
    fn settle_vips(&mut self, plan: &Plan) -> Vec<Failure> {
        let table = read(&self.table).clone();
        let virtual_ones = table
            .values()
            .filter(|s| vips::address(&s.frontend).is_some());
        let Err(error) = lock(&self.vips).settle(&self.engine, virtual_ones) else {
            self.unsettled.clear();
            return Vec::new();
        };
        // Those that are served already stay so.
        let concerned = plan.ops.iter().map(Op::frontend).filter(|frontend| {
            let served = table.contains_key(frontend);
            vips::address(frontend).is_some_and(|ip| !(served && lock(&self.vips).leads_here(ip)))
        });
        self.unsettled.extend(concerned.cloned());
        self.unsettled.sort();
        self.unsettled.dedup();
        let mut failures = Vec::new();
        for frontend in self.unsettled.clone() {
            // Not served as long as no packet comes here, so that it is asked for again.
            self.remove(&frontend);
            failures.push(Failure {
                frontend,
                error: error.for_frontend(),
            });
        }
        failures
    }

    /// Ends a frontend's listeners and flows. When this returns its port is free.
    fn end(&self, served: &Served) {
        served.ended.cancel();
        served.tasks.close();
        let ended = self
            .engine
            .runtime
            .block_on(async { timeout(END_WAIT, served.tasks.wait()).await });
        if ended.is_err() {
            tracing::warn!(frontend = %served.frontend, "tasks of a removed frontend are slow to end");
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.cancel();
        // Whoever wants to hear of an error calls `shutdown`; a new relay replaces what is left.
        let _ = lock(&self.vips).clear();
    }
}

impl DataPlane for Relay {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Relay
    }

    fn probe(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn dump(&self) -> Result<Actual, OpError> {
        Ok(self.specs.clone())
    }

    fn apply(&mut self, plan: &Plan) -> Vec<Failure> {
        let mut failures = Vec::new();
        for op in &plan.ops {
            match op {
                Op::Upsert(spec) => {
                    if let Err(error) = self.upsert(spec) {
                        failures.push(Failure {
                            frontend: spec.frontend.clone(),
                            error,
                        });
                    }
                }
                Op::Remove(frontend) => self.remove(frontend),
            }
        }
        failures.extend(self.settle_vips(plan));
        let routes: Vec<_> = read(&self.table).values().map(|s| s.route()).collect();
        let known = |ip: IpAddr| {
            let mut backends = routes.iter().flat_map(|route| &route.spec.backends);
            backends.any(|backend| backend.ip == ip)
        };
        self.engine.passed_over.retain(known);
        failures
    }

    fn stats(&self) -> PlaneStats {
        self.view().stats()
    }

    fn flows(&self, limit: usize) -> Vec<FlowView> {
        self.view().flows(limit)
    }
}

/// Starts a listener, which runs until the frontend closes.
fn spawn(served: &Served, listener: impl Future<Output = ()> + Send + 'static, on: &Handle) {
    let closing = served.closing.clone();
    served.tasks.spawn_on(
        async move { closing.run_until_cancelled(listener).await },
        on,
    );
}

impl RelayView {
    /// All counters.
    pub fn stats(&self) -> PlaneStats {
        let frontends: Vec<FrontendStats> = read(&self.table).values().map(|s| s.stats()).collect();
        PlaneStats { frontends }
    }

    /// At most `limit` of the open flows.
    pub fn flows(&self, limit: usize) -> Vec<FlowView> {
        self.flows.views(limit)
    }
}

/// No code panics while it holds the table.
fn read(table: &RwLock<Table>) -> std::sync::RwLockReadGuard<'_, Table> {
    table.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(table: &RwLock<Table>) -> std::sync::RwLockWriteGuard<'_, Table> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}
