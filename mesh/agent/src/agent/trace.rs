//! Tracing: what the fast path's programs do with a client's packets, as long as someone listens.

mod words;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use portolan_ebpf::{EbpfError, TraceFilter, Tracer};
use portolan_plane::{Frontend, FrontendAddress, FrontendSpec};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Interval, MissedTickBehavior, interval},
};

use super::shared::Shared;
use crate::api::{TraceClient, TraceFrontend, TraceLine, TraceStart, TracedFrontend};
use words::Names;

/// How often the programs are told to go on, and the listener gets a sign of life.
const BEAT: Duration = Duration::from_secs(1);
/// The most packets in one piece of an answer.
const BATCH: usize = 256;

/// The one trace that may run on a node at a time, as the programs have one filter.
#[derive(Debug, Clone, Default)]
pub(super) struct Tracing(Arc<Mutex<Option<TraceClient>>>);

impl Tracing {
    fn begin(&self, client: TraceClient) -> Result<Turn, Untraceable> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = *running {
            return Err(Untraceable::Busy(other));
        }
        *running = Some(client);
        Ok(Turn(self.clone()))
    }
}

/// Held while a trace runs.
struct Turn(Tracing);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untraceable {
    #[error("another trace runs on this node, of client {0}; there is one at a time")]
    Busy(TraceClient),
    #[error(
        "the fast path does not serve on this node: {0}; the relay has every flow, see `portolan flows`"
    )]
    NoFastPath(String),
    #[error("trace the fast path")]
    Failed(#[source] EbpfError),
    #[error("wait for what the fast path tells")]
    Wait(#[source] io::Error),
}

/// Begins a trace. It ends when the stream is dropped, or with the agent.
///
/// # Errors
/// See [`Untraceable`].
pub(super) fn start(
    shared: Shared,
    client: TraceClient,
    frontend: Option<TraceFrontend>,
) -> Result<impl Stream<Item = Result<Bytes, serde_json::Error>>, Untraceable> {
    let begin = begun(&shared, frontend)?;
    let turn = shared.tracing.begin(client)?;
    let filter = TraceFilter {
        client: client.ip,
        client_port: client.port.map(Into::into),
        frontend: frontend.and_then(|frontend| frontend.ip),
        frontend_port: frontend.map(|frontend| frontend.port.into()),
        protocol: frontend.and_then(|frontend| frontend.protocol),
    };
    let tracer = Tracer::start(&shared.config.bpf_dir, filter).map_err(Untraceable::Failed)?;
    // SAFETY: the descriptor is that of a map which the tracer owns, and closes when it is dropped.
    #[expect(unsafe_code, reason = "tokio cannot know whose a descriptor is")]
    let tracer = unsafe { AsyncFd::register_with_interest(tracer, Interest::READABLE) };
    let tracer = tracer.map_err(|error| Untraceable::Wait(error.into()))?;
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let listener = Listener {
        begin: Some(begin),
        tracer,
        beat,
        lost: 0,
        names: Names::new(&shared),
        shared,
        _turn: turn,
    };
    Ok(stream::unfold(listener, |mut listener| async {
        let piece = listener.next().await?;
        Some((piece, listener))
    }))
}

struct Listener {
    begin: Option<TraceStart>,
    tracer: AsyncFd<Tracer>,
    beat: Interval,
    /// How many lost packets were told.
    lost: u64,
    names: Names,
    shared: Shared,
    _turn: Turn,
}

impl Listener {
    /// The next piece of the answer; `None` is its end.
    async fn next(&mut self) -> Option<Result<Bytes, serde_json::Error>> {
        if let Some(begin) = self.begin.take() {
            return Some(written(&[TraceLine::Start(begin)]));
        }
        let read = tokio::select! {
            ready = self.tracer.readable_mut() => {
                let mut ready = ready.ok()?;
                let read = events(ready.get_inner_mut());
                if read.len() < BATCH {
                    ready.clear_ready();
                }
                read
            }
            _ = self.beat.tick() => {
                // The runner drops its end when the agent ends.
                if self.shared.beat.has_changed().is_err() {
                    return None;
                }
                let tracer = self.tracer.get_mut();
                if let Err(error) = tracer.keep() {
                    tracing::warn!(%error, "a trace has ended");
                    return None;
                }
                events(tracer)
            }
        };
        self.names.renew(&self.shared);
        let mut lines: Vec<TraceLine> = read
            .into_iter()
            .map(|event| TraceLine::Hop(Box::new(self.names.hop(event))))
            .collect();
        // A count that cannot be read now may be read later.
        let lost = self.tracer.get_ref().lost().unwrap_or(self.lost);
        if lost > self.lost {
            let packets = lost - self.lost;
            lines.push(TraceLine::Lost { packets });
            self.lost = lost;
        }
        Some(written(&lines))
    }
}

fn events(tracer: &mut Tracer) -> Vec<portolan_ebpf::TraceEvent> {
    std::iter::from_fn(|| tracer.next_event())
        .take(BATCH)
        .collect()
}

/// Lines of JSON; without any an empty line, by which a listener that is gone is noticed.
fn written(lines: &[TraceLine]) -> Result<Bytes, serde_json::Error> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    if text.is_empty() {
        text.push(b'\n');
    }
    Ok(text.into())
}

/// The first line, if there is a fast path to trace.
fn begun(shared: &Shared, asked: Option<TraceFrontend>) -> Result<TraceStart, Untraceable> {
    let fast = shared.plane_standing().unwrap_or_default().fast;
    if !fast.serves {
        let reason = fast.reason;
        return Err(Untraceable::NoFastPath(
            reason.unwrap_or_else(|| "it has not begun yet".to_owned()),
        ));
    }
    let wanted = portolan_plane::frontends(&shared.snapshot());
    let frontends = wanted
        .values()
        .filter(|spec| asked.is_some_and(|asked| is_asked(asked, &spec.frontend)));
    let traced = |spec: &Arc<FrontendSpec>| TracedFrontend {
        frontend: spec.frontend.to_string(),
        service: spec.service_name.clone(),
        relay_reason: fast.left.get(&spec.frontend).cloned(),
    };
    Ok(TraceStart {
        node: shared.config.name.clone(),
        frontends: frontends.map(traced).collect(),
    })
}

fn is_asked(asked: TraceFrontend, frontend: &Frontend) -> bool {
    let address = match (&frontend.address, asked.ip) {
        (_, None) | (FrontendAddress::Node, _) => true,
        (FrontendAddress::Ip(ip) | FrontendAddress::Vip(_, ip), Some(asked)) => *ip == asked,
    };
    let port = frontend.port == asked.port.get() || frontend.port == 0 && asked.ip.is_some();
    address && port && asked.protocol.is_none_or(|p| p == frontend.protocol)
}
