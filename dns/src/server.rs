//! The server: zones that follow the snapshot, and listeners that follow the zones.

mod listener;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use portolan_model::{NetworkName, NodeId, Snapshot};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use crate::{
    DnsConfig, DnsError, DnsStats,
    answer::{self, Action, Asker, Reply},
    forward::Forwarder,
    message::{Request, Transport},
    stats::{Counters, Problems, count},
    zone::{Rotation, Ttls, Zones},
};

/// How often a listener that could not be bound is tried again, and the list of upstreams read again.
const TICK: Duration = Duration::from_secs(1);

/// Answers the tasks of each network on this node's gateway address there.
#[derive(Debug)]
pub struct DnsServer {
    config: DnsConfig,
    ttls: Ttls,
    zones: ArcSwap<Zones>,
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
        let nothing = Snapshot::empty(NodeId::from_bytes([0; 16]));
        Ok(Self {
            ttls,
            zones: ArcSwap::from_pointee(Zones::new(&nothing, ttls)),
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

    /// Follows the snapshot and answers until `cancel`: on each network on which this node has a
    /// gateway address, UDP and TCP. An address need not be configured yet (`IP_FREEBIND`). One that
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
                Some(ended) = listeners.running.join_next() => {
                    if listeners.has_failed(&self, ended)? {
                        // The next tick binds it anew: what fails at once must not spin.
                        continue;
                    }
                }
                _ = tick.tick() => {}
            }
            listeners.reconcile(&self, &cancel);
            self.refresh_upstreams(&listeners).await;
        }
        listeners.running.shutdown().await;
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
        let own: BTreeSet<SocketAddr> = listeners.bound.keys().map(|key| key.1).collect();
        let object = "upstream resolvers";
        match self.forwarder.refresh(&own).await {
            Ok(()) => self.problems.clear(object),
            Err(problem) => self.problems.set(object, problem),
        }
    }

    /// Decides about a message from a client.
    fn answer(
        &self,
        network: &NetworkName,
        client: SocketAddr,
        transport: Transport,
        query: &[u8],
    ) -> Action {
        let asker = Asker {
            network,
            address: client.ip(),
            transport,
            allow: &self.config.allow,
        };
        let action = answer::answer(&self.zones.load(), asker, &self.rotation, query);
        match &action {
            Action::Drop => count(&self.counters.malformed),
            Action::Reply(reply) => {
                if reply.qtype.is_none() && reply.code == ResponseCode::FormErr {
                    count(&self.counters.malformed);
                }
                self.counters.reply(reply.qtype, reply.code);
            }
            Action::Forward(_) => {}
        }
        action
    }

    /// The reply to a query that is not ours.
    async fn forward(&self, request: &Request) -> Option<Reply> {
        let message = self.forwarder.forward(request, &self.counters).await;
        let reply = answer::encode(request, message)?;
        self.counters.reply(reply.qtype, reply.code);
        Some(reply)
    }
}

/// A listener's network and address.
type Key = (NetworkName, SocketAddr);

/// A listener that ended, and whether it had been told to.
struct Ended {
    key: Key,
    token: CancellationToken,
    result: io::Result<()>,
}

/// The listeners that are bound.
#[derive(Default)]
struct Listeners {
    bound: BTreeMap<Key, CancellationToken>,
    failing: BTreeSet<Key>,
    running: JoinSet<Ended>,
}

impl Listeners {
    /// Binds what is wanted and not there, closes what is there and not wanted.
    fn reconcile(&mut self, server: &Arc<DnsServer>, cancel: &CancellationToken) {
        let at = |ip: Ipv4Addr| SocketAddr::from((ip, server.config.port));
        let wanted: BTreeSet<Key> = server
            .zones
            .load()
            .served()
            .map(|(network, gateway)| (network.clone(), at(gateway)))
            .collect();
        self.bound.retain(|key, listener| {
            let keep = wanted.contains(key);
            if !keep {
                listener.cancel();
            }
            keep
        });
        for gone in self.failing.difference(&wanted) {
            server.problems.clear(&object(gone));
        }
        self.failing.clear();
        for key in wanted {
            if self.bound.contains_key(&key) {
                continue;
            }
            match listener::bind(key.1) {
                Ok(sockets) => {
                    tracing::info!("serving {}", object(&key));
                    server.problems.clear(&object(&key));
                    let token = cancel.child_token();
                    self.bound.insert(key.clone(), token.clone());
                    let server = Arc::clone(server);
                    self.running.spawn(async move {
                        let result = listener::serve(&server, &key.0, sockets, &token).await;
                        Ended { key, token, result }
                    });
                }
                Err(error) => {
                    server.problems.set(&object(&key), error.to_string());
                    self.failing.insert(key);
                }
            }
        }
        let bound = self.bound.len() as u64;
        server.counters.listeners.store(bound, Ordering::Relaxed);
    }

    /// Notes the end of a listener, and returns whether it was by an error and not by our will.
    fn has_failed(
        &mut self,
        server: &DnsServer,
        ended: Result<Ended, JoinError>,
    ) -> Result<bool, DnsError> {
        let ended = ended.map_err(|e| DnsError::Task(e.into()))?;
        match ended.result {
            Err(error) if !ended.token.is_cancelled() => {
                server.problems.set(&object(&ended.key), error.to_string());
                self.bound.remove(&ended.key);
                self.failing.insert(ended.key);
                Ok(true)
            }
            Ok(()) | Err(_) => Ok(false),
        }
    }
}

fn object(key: &Key) -> String {
    format!("DNS of network {} on {}", key.0, key.1)
}
