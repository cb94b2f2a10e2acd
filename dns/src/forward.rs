//! Names that are not ours: asked for at the node's resolvers, and kept for their TTL.

mod cache;
mod exchange;
mod upstreams;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use tokio::sync::Semaphore;

use crate::{
    DnsConfig,
    message::Request,
    stats::{Counters, count},
};
use cache::{Cache, Key};
use upstreams::Source;

/// How many attempts fit into the time given.
const ATTEMPTS: u32 = 3;

/// Asks the node's resolvers.
#[derive(Debug)]
pub(crate) struct Forwarder {
    source: Source,
    servers: ArcSwap<Vec<SocketAddr>>,
    /// The one that answered last is asked first.
    preferred: AtomicUsize,
    permits: Semaphore,
    cache: Cache,
    timeout: Duration,
}

impl Forwarder {
    pub(crate) fn new(config: &DnsConfig) -> Self {
        Self {
            source: Source::new(config.upstreams.clone()),
            servers: ArcSwap::default(),
            preferred: AtomicUsize::new(0),
            permits: Semaphore::new(config.max_forwards),
            cache: Cache::new(config.cache_entries),
            timeout: config.forward_timeout,
        }
    }

    /// Reads the list of upstreams again if it may have changed, and leaves out our own listeners.
    ///
    /// # Errors
    /// Why there is no upstream, worded for the user. The list is empty then.
    pub(crate) async fn refresh(&self, own: &BTreeSet<SocketAddr>) -> Result<(), String> {
        let read = self.source.read().await;
        let servers = match &read {
            Ok(servers) => servers
                .iter()
                .filter(|s| !own.contains(s))
                .copied()
                .collect(),
            Err(_) => Vec::new(),
        };
        let none = servers.is_empty();
        if **self.servers.load() != servers {
            tracing::debug!(?servers, "resolvers of the node");
            self.servers.store(servers.into());
            self.preferred.store(0, Ordering::Relaxed);
            self.cache.clear();
        }
        match read {
            Err(problem) => Err(problem),
            Ok(_) if none => Err(format!("{} names no resolver to forward to", self.source)),
            Ok(_) => Ok(()),
        }
    }

    /// The reply to a query that is not ours: what an upstream says, or SERVFAIL.
    pub(crate) async fn forward(&self, request: &Request, counters: &Counters) -> Message {
        count(&counters.forwarded);
        let key = Key::of(request);
        if let Some(kept) = self.cache.get(&key, Instant::now()) {
            count(&counters.cache_hits);
            return adopt(request, kept);
        }
        let asked = match self.permits.try_acquire() {
            Ok(_permit) => self.ask(request).await,
            Err(_) => None,
        };
        let Some((message, bytes)) = asked else {
            count(&counters.forward_failures);
            let mut failure = request.reply(ResponseCode::ServFail);
            failure.metadata.recursion_available = true;
            return failure;
        };
        self.cache.insert(key, &message, bytes, Instant::now());
        adopt(request, message)
    }

    /// The first good answer, with its length; a bad one (SERVFAIL, REFUSED and the like) only if no
    /// upstream has a good one.
    async fn ask(&self, request: &Request) -> Option<(Message, usize)> {
        let servers = self.servers.load_full();
        let preferred = self.preferred.load(Ordering::Relaxed);
        let order: Vec<(usize, SocketAddr)> = servers
            .iter()
            .copied()
            .enumerate()
            .cycle()
            .skip(preferred)
            .take(servers.len() * ATTEMPTS as usize)
            .collect();
        let deadline = Instant::now() + self.timeout;
        let mut bad = None;
        let mut refusing = BTreeSet::new();
        for (at, server) in order {
            if Instant::now() >= deadline {
                break;
            }
            if refusing.contains(&server) {
                continue;
            }
            match exchange::exchange(server, request, self.timeout / ATTEMPTS).await {
                Ok(answer) if is_good(&answer.0) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Some(answer);
                }
                Ok(answer) => {
                    refusing.insert(server);
                    bad = Some(answer);
                }
                Err(error) => tracing::debug!(%server, %error, "an upstream failed"),
            }
        }
        bad
    }
}

fn is_good(message: &Message) -> bool {
    matches!(
        message.metadata.response_code,
        ResponseCode::NoError | ResponseCode::NXDomain
    )
}

/// An upstream's answer as the reply to a query: the question as the client spelt it, the rest as it came.
fn adopt(request: &Request, answer: Message) -> Message {
    let mut reply = request.reply(answer.metadata.response_code);
    reply.metadata.recursion_available = true;
    reply.metadata.authentic_data = answer.metadata.authentic_data;
    reply.metadata.truncation = answer.metadata.truncation;
    reply.answers = answer.answers;
    reply.authorities = answer.authorities;
    reply.additionals = answer.additionals;
    let name = request.query.name();
    for record in reply.answers.iter_mut().filter(|r| r.name == *name) {
        record.name.clone_from(name);
    }
    reply
}
