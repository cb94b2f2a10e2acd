//! Names that are not ours: asked for at the node's resolvers by hickory's client, and kept for their TTL
//! in its cache.
//!
//! Which resolver is asked is decided here, as resolv.conf(5) has it: in their order, and the next one
//! where one fails. A [`NameServerPool`] of them all would ask two at once, which node-local resolvers
//! for private domains do not survive, and would take the first SERVFAIL for the answer. Its layer is
//! also the lowest that keeps response codes, DNSSEC flags and signatures; hickory's `Resolver`, and
//! so its `ForwardZoneHandler`, drops them.

mod upstreams;

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use hickory_server::{
    net::{
        DnsError, NetError,
        runtime::TokioRuntimeProvider,
        xfer::{DnsHandle, FirstAnswer},
    },
    proto::op::{DnsRequest, DnsRequestOptions, Message, Query, ResponseCode},
    resolver::{
        NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig,
        config::{ConnectionConfig, NameServerConfig, ResolverOpts},
    },
    server::Request,
};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    DnsConfig,
    reply::Reply,
    stats::{Counters, count},
};
use upstreams::Source;

/// How many attempts fit into the time given.
const ATTEMPTS: u32 = 3;
/// How long an answer is kept at most: who changes a record with a TTL of a week is glad.
const MAX_TTL: Duration = Duration::from_hours(1);
/// How long absence is kept at most (RFC 2308, section 5, allows three hours).
const MAX_NEGATIVE_TTL: Duration = Duration::from_mins(5);
/// The longest answer kept, in bytes, so that the number of entries bounds the memory.
const MAX_KEPT: usize = 4096;

/// Asks the node's resolvers.
pub(crate) struct Forwarder {
    source: Source,
    resolvers: ArcSwapOption<Resolvers>,
    permits: Semaphore,
    timeout: Duration,
    options: ResolverOpts,
}

/// The resolvers at one time, and what they answered.
struct Resolvers {
    addresses: Vec<SocketAddr>,
    /// One for each address.
    pools: Vec<NameServerPool<TokioRuntimeProvider>>,
    /// The one that answered last is asked first.
    preferred: AtomicUsize,
    cache: ResponseCache,
}

/// What came of a query.
type Outcome = Result<Message, NetError>;

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Forwarder");
        fields.field("source", &self.source).finish_non_exhaustive()
    }
}

impl Forwarder {
    pub(crate) fn new(config: &DnsConfig) -> Self {
        let mut options = ResolverOpts::default();
        options.timeout = config.forward_timeout / ATTEMPTS;
        options.cache_size = config.cache_entries as u64;
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        options.max_active_requests = config.max_forwards;
        // The kernel keeps to its range, hickory would take any port from 1024 on: one to be published too.
        options.os_port_selection = true;
        Self {
            source: Source::new(config.upstreams.clone()),
            resolvers: ArcSwapOption::empty(),
            permits: Semaphore::new(config.max_forwards),
            timeout: config.forward_timeout,
            options,
        }
    }

    /// Reads the list of upstreams again and leaves out our own listeners.
    ///
    /// # Errors
    /// Why there is no upstream, worded for the user. None is asked then.
    pub(crate) async fn refresh(&self, own: &BTreeSet<SocketAddr>) -> Result<(), String> {
        let used = self.use_those_of(self.source.read().await, own);
        if used.is_err() {
            self.resolvers.store(None);
        }
        used
    }

    fn use_those_of(
        &self,
        listed: Result<Vec<SocketAddr>, String>,
        own: &BTreeSet<SocketAddr>,
    ) -> Result<(), String> {
        let listed = listed?;
        let others = listed.iter().copied().filter(|one| !own.contains(one));
        let addresses: Vec<SocketAddr> = others.collect();
        if addresses.is_empty() {
            return Err(match listed.first() {
                None => format!("{} names no resolver to forward to", self.source),
                Some(first) => format!(
                    "{} names no resolver but {}, which is this agent: give it one to forward to with \
                     --dns-upstream",
                    self.source,
                    first.ip()
                ),
            });
        }
        let current = self.resolvers.load();
        if current
            .as_ref()
            .is_none_or(|now| now.addresses != addresses)
        {
            tracing::debug!(?addresses, "resolvers of the node");
            let resolvers = Resolvers::new(addresses, &self.options);
            let resolvers = resolvers.map_err(|error| error.to_string())?;
            self.resolvers.store(Some(Arc::new(resolvers)));
        }
        Ok(())
    }

    /// The reply to a query that is not ours.
    pub(crate) async fn forward(
        &self,
        request: &Request,
        query: &Query,
        counters: &Counters,
    ) -> Reply {
        count(&counters.forwarded);
        let outcome = match self.resolvers.load_full() {
            Some(resolvers) => self.ask(&resolvers, request, query, counters).await,
            None => None,
        };
        let Some(outcome) = outcome else {
            count(&counters.forward_failures);
            let mut failure = Reply::new(request, ResponseCode::ServFail);
            failure.metadata.recursion_available = true;
            return failure;
        };
        adopt(request, query, outcome)
    }

    /// From the cache or an upstream. What asks for more than the plain answer is not kept: the cache
    /// knows questions only.
    async fn ask(
        &self,
        resolvers: &Resolvers,
        request: &Request,
        query: &Query,
        counters: &Counters,
    ) -> Option<Outcome> {
        let metadata = &request.metadata;
        let plain =
            metadata.recursion_desired && !metadata.checking_disabled && !is_dnssec_ok(request);
        if plain && let Some(kept) = resolvers.cache.get(query, Instant::now()) {
            count(&counters.cache_hits);
            return Some(kept);
        }
        let _permit = self.permits.try_acquire().ok()?;
        let upstream = upstream_request(request, query);
        let answered = timeout(self.timeout, resolvers.ask(&upstream)).await;
        let (outcome, length) = answered.ok()??;
        if plain && length <= MAX_KEPT {
            // Failures are not kept.
            let kept = outcome.clone();
            resolvers.cache.insert(query.clone(), kept, Instant::now());
        }
        Some(outcome)
    }
}

impl Resolvers {
    fn new(addresses: Vec<SocketAddr>, options: &ResolverOpts) -> Result<Self, NetError> {
        let context = Arc::new(PoolContext::new(options.clone(), TlsConfig::new()?));
        let pool = |address: &SocketAddr| {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (address.port(), address.port());
            let server = NameServerConfig::new(address.ip(), true, vec![udp, tcp]);
            NameServerPool::from_config([server], Arc::clone(&context), TokioRuntimeProvider::new())
        };
        Ok(Self {
            pools: addresses.iter().map(pool).collect(),
            addresses,
            preferred: AtomicUsize::new(0),
            cache: ResponseCache::new(options.cache_size, TtlConfig::from_opts(options)),
        })
    }

    /// The first answer, with its length in bytes; an error code (SERVFAIL, REFUSED and the like) only if
    /// no upstream has an answer. Silence is worth another try, an error is not.
    async fn ask(&self, request: &DnsRequest) -> Option<(Outcome, usize)> {
        let mut asked: Vec<_> = self.pools.iter().enumerate().collect();
        asked.rotate_left(self.preferred.load(Ordering::Relaxed));
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            let mut silent = Vec::new();
            for (at, pool) in asked {
                match pool.send(request.clone()).first_answer().await {
                    Err(error @ NetError::Dns(DnsError::ResponseCode(_))) => {
                        failure = Some((Err(error), 0));
                    }
                    Err(error) if !error.is_no_records_found() => {
                        tracing::debug!(server = ?self.addresses.get(at), %error, "no answer");
                        silent.push((at, pool));
                    }
                    answer => {
                        self.preferred.store(at, Ordering::Relaxed);
                        let length = answer.as_ref().map_or(0, |a| a.as_buffer().len());
                        return Some((answer.map(Into::into), length));
                    }
                }
            }
            asked = silent;
        }
        failure
    }
}

fn is_dnssec_ok(request: &Request) -> bool {
    let edns = request.edns.as_ref();
    edns.is_some_and(|edns| edns.flags().dnssec_ok)
}

/// What an upstream is asked. AD is always asked for, and left out again where the client did not ask for
/// it (RFC 6840, section 5.7), so that one answer in the cache is good for both.
fn upstream_request(request: &Request, query: &Query) -> DnsRequest {
    let mut options = DnsRequestOptions::default();
    options.recursion_desired = request.metadata.recursion_desired;
    options.edns_set_dnssec_ok = is_dnssec_ok(request);
    let mut upstream = DnsRequest::from_query(query.clone(), options);
    upstream.metadata.checking_disabled = request.metadata.checking_disabled;
    upstream.metadata.authentic_data = true;
    upstream
}

/// An upstream's answer as the reply to a query: the question as the client spelt it, the rest as it came.
fn adopt(request: &Request, query: &Query, outcome: Outcome) -> Reply {
    let mut reply = Reply::new(request, ResponseCode::ServFail);
    reply.metadata.recursion_available = true;
    match outcome {
        Ok(answer) => {
            reply.metadata.response_code = answer.metadata.response_code;
            reply.metadata.authentic_data = answer.metadata.authentic_data
                && (request.metadata.authentic_data || is_dnssec_ok(request));
            reply.answers = answer.answers;
            reply.authorities = answer.authorities;
            reply.additionals = answer.additionals;
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(absence))) => {
            reply.metadata.response_code = absence.response_code;
            reply.authorities = absence.authorities.map(|a| a.to_vec()).unwrap_or_default();
        }
        Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused))) => {
            reply.metadata.response_code = ResponseCode::Refused;
        }
        Err(_) => {}
    }
    let name = query.name();
    for record in reply.answers.iter_mut().filter(|r| r.name == *name) {
        record.name.clone_from(name);
    }
    reply
}
