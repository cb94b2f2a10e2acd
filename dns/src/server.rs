//! The server: zones that follow the snapshot, and listeners that follow the zones.

mod handler;
mod listeners;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use hickory_server::{proto::op::Query, server::Request};
use portolan_model::{NodeId, Snapshot};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    Askers, DnsConfig, DnsError, DnsStats,
    answer::{self, Action},
    forward::Forwarder,
    reply::Reply,
    stats::{Counters, Problems},
    zone::{Door, Rotation, Ttls, Zones},
};
use listeners::Listeners;

/// How often a listener that could not be bound is tried again, and the list of upstreams read again.
const TICK: Duration = Duration::from_secs(1);

/// Answers the tasks of each network on this node's gateway address there, and all who are on this node at an
/// address of its own.
#[derive(Debug)]
pub struct DnsServer {
    config: DnsConfig,
    ttls: Ttls,
    zones: ArcSwap<Zones>,
    askers: ArcSwap<Askers>,
    rotation: Rotation,
    forwarder: Forwarder,
    counters: Counters,
    problems: Problems,
}

impl DnsServer {
    /// A server that knows no network yet. Nothing is bound before [`Self::run`].
    ///
    /// # Errors
    /// [`DnsError::Config`]: the first setting that cannot work.
    pub fn new(config: DnsConfig) -> Result<Self, DnsError> {
        let wrong = |key, reason| Err(DnsError::Config { key, reason });
        if config.port == 0 {
            return wrong("port", "0 is no port; resolvers ask port 53");
        }
        if config.forward_timeout.is_zero() {
            return wrong(
                "forward_timeout",
                "no upstream answers in no time; 4500 ms is usual",
            );
        }
        // RFC 2181, section 8: a TTL has 31 bits.
        let seconds = |ttl: Duration| u32::try_from(ttl.as_secs()).ok().filter(|s| *s < 1 << 31);
        let Some(task) = seconds(config.task_ttl) else {
            return wrong("task_ttl", "it is longer than 2147483647 s");
        };
        let Some(vip) = seconds(config.vip_ttl) else {
            return wrong("vip_ttl", "it is longer than 2147483647 s");
        };
        let ttls = Ttls { task, vip };
        let nobody = Askers::default().with_own(config.node_address);
        let nothing = Snapshot::empty(NodeId::from_bytes([0; 16]));
        Ok(Self {
            ttls,
            zones: ArcSwap::from_pointee(Zones::new(&nothing, ttls)),
            askers: ArcSwap::from_pointee(nobody),
            rotation: Rotation::default(),
            forwarder: Forwarder::new(&config),
            counters: Counters::default(),
            problems: Problems::default(),
            config,
        })
    }

    /// Answers by this snapshot from now on. Queries under way are answered by the one before.
    /// [`Self::run`] calls it at each change.
    pub fn update(&self, snapshot: &Snapshot) {
        self.zones.store(Arc::new(Zones::new(snapshot, self.ttls)));
    }

    /// Tells who may ask at the node's own address from now on; before the first call only tasks on our
    /// networks, and processes of the node.
    pub fn set_askers(&self, askers: Askers) {
        let askers = askers.with_own(self.config.node_address);
        self.askers.store(Arc::new(askers));
    }

    /// Follows the snapshot and answers until `cancel`: on each network on which this node has a
    /// gateway address, and at the node's own, UDP and TCP. An address need not be configured yet (`IP_FREEBIND`). One that
    /// cannot be bound is a problem, tried again each second. When the sender of the snapshots goes,
    /// the last one stays in force.
    ///
    /// # Errors
    /// [`DnsError::Task`]: a listener or the building of a zone panicked. All listeners are closed.
    pub async fn run(
        self: Arc<Self>,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        cancel: CancellationToken,
    ) -> Result<(), DnsError> {
        let mut listeners = Listeners::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        snapshots.mark_changed();
        let mut following = true;
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = snapshots.changed(), if following => match changed {
                    Ok(()) => {
                        let snapshot = Arc::clone(&snapshots.borrow_and_update());
                        self.update_aside(snapshot).await?;
                    }
                    Err(_) => following = false,
                },
                Some(ended) = listeners.ended() => {
                    if listeners.has_failed(&self, ended)? {
                        // The next tick binds it anew: what fails at once must not spin.
                        continue;
                    }
                }
                _ = tick.tick() => {}
            }
            listeners.reconcile(&self);
            self.refresh_upstreams(&listeners).await;
        }
        listeners.close().await;
        self.counters.listeners.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// The counters since the start.
    pub fn stats(&self) -> DnsStats {
        self.counters.read()
    }

    /// What is wrong at the moment, worded for users.
    pub fn problems(&self) -> Vec<String> {
        self.problems.list()
    }

    /// [`Self::update`], which for ten thousand tasks takes a tenth of a second, off the threads that answer.
    async fn update_aside(self: &Arc<Self>, snapshot: Arc<Snapshot>) -> Result<(), DnsError> {
        let server = Arc::clone(self);
        let updated = tokio::task::spawn_blocking(move || server.update(&snapshot)).await;
        updated.map_err(|e| DnsError::Task(e.into()))
    }

    async fn refresh_upstreams(&self, listeners: &Listeners) {
        let object = "upstream resolvers";
        match self.forwarder.refresh(&listeners.addresses()).await {
            Ok(()) => self.problems.clear(object),
            Err(problem) => self.problems.set(object, problem),
        }
    }

    /// The reply to a query that came in by a door; `None` to one from outside. Only one that is not ours
    /// waits for anything.
    async fn reply(&self, door: &Door, request: &Request) -> Option<Reply> {
        let (zones, askers) = (self.zones.load_full(), self.askers.load_full());
        let (client, allow) = (request.src().ip(), &self.config.allow);
        let scope = match door {
            Door::Network(network) => zones.on(network, client, allow),
            Door::Node => Some(zones.at_node(&askers, client, allow)?),
        };
        let reply = match answer::answer(scope.as_ref(), &self.rotation, request) {
            Action::Reply(reply) => reply,
            Action::Forward(query) => self.forwarder.forward(request, query, &self.counters).await,
        };
        let qtype = answer::question(request).map(Query::query_type);
        self.counters.reply(qtype, reply.metadata.response_code);
        Some(reply)
    }
}
