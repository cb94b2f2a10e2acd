//! Connecting to a backend, and to the next one if it does not answer.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use portolan_model::Protocol;
use portolan_plane::Sources;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant as Deadline, sleep_until, timeout},
};

use crate::{
    candidates::Candidates,
    engine::Engine,
    passed_over::Fault,
    served::{Live, Refusal, Reserved, Route, Served},
    sources,
};

/// How long the second backend and each later one is waited for alone.
const LATER_PATIENCE: Duration = Duration::from_millis(100);

/// A backend that answered.
pub(super) struct Connected {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) reserved: Reserved,
    pub(super) route: Arc<Route>,
}

/// An attempt that is over.
struct Attempt {
    reserved: Reserved,
    address: SocketAddr,
    result: io::Result<TcpStream>,
}

/// Asks one backend after the other until one answers, each at most once. One that is slow is not given
/// up for the next but raced against it, so that a dead node costs its clients a short delay, and a slow
/// answer is still one.
pub(super) async fn to_backend(
    engine: &Engine,
    served: &Served,
    client: IpAddr,
    asked_port: u16,
) -> Result<Connected, Refusal> {
    let mut candidates = Candidates::new(served, &engine.passed_over, client);
    let first = candidates.next().ok_or(Refusal::NoBackend)?;
    let route = Arc::clone(candidates.route());
    let mut pending = FuturesUnordered::new();
    // Who is waited for, and until when alone, so that those that were overtaken are known.
    let mut waiting: Vec<(Arc<Live>, Deadline)> = Vec::new();
    let mut next = Some(first);
    let mut patience = engine.config.patience;
    let mut alone_until = Deadline::now();
    let mut tried = 0_u64;
    let mut exhausted = false;
    loop {
        if let Some(reserved) = next.take() {
            tried += 1;
            alone_until = Deadline::now() + patience;
            waiting.push((Arc::clone(reserved.backend()), alone_until));
            pending.push(attempt(engine, Arc::clone(&route), reserved, asked_port));
            patience = LATER_PATIENCE.min(engine.config.patience);
        }
        tokio::select! {
            Some(attempt) = pending.next() => match attempt.result {
                Ok(stream) => {
                    let winner = attempt.reserved;
                    engine.passed_over.answered(&winner.backend().spec, Protocol::Tcp);
                    let now = Deadline::now();
                    for (live, alone_until) in &waiting {
                        if *alone_until <= now && !Arc::ptr_eq(live, winner.backend()) {
                            failed(engine, live, Some(Fault::Silent));
                        }
                    }
                    served.counters.retries.fetch_add(u64::from(tried > 1), Ordering::Relaxed);
                    return Ok(Connected { stream, address: attempt.address, reserved: winner, route });
                }
                Err(error) => {
                    failed(engine, attempt.reserved.backend(), Fault::of(&error));
                    waiting.retain(|(live, _)| !Arc::ptr_eq(live, attempt.reserved.backend()));
                    next = candidates.next();
                }
            },
            () = sleep_until(alone_until), if !exhausted => {
                next = candidates.next();
                exhausted = next.is_none();
            }
            else => return Err(Refusal::AllBackendsFailed),
        }
        if next.is_none() && pending.is_empty() {
            return Err(Refusal::AllBackendsFailed);
        }
    }
}

fn failed(engine: &Engine, live: &Live, fault: Option<Fault>) {
    live.counters
        .connect_failures
        .fetch_add(1, Ordering::Relaxed);
    if let Some(fault) = fault {
        engine
            .passed_over
            .failed(&live.spec, Protocol::Tcp, fault, Instant::now());
    }
}

async fn attempt(
    engine: &Engine,
    route: Arc<Route>,
    reserved: Reserved,
    asked_port: u16,
) -> Attempt {
    let backend = &reserved.backend().spec;
    let port = match backend.port {
        0 => asked_port,
        port => port,
    };
    let address = SocketAddr::new(backend.ip, port);
    let dial = dial(engine, route.spec.sources.as_ref(), address);
    let result = timeout(engine.config.connect_timeout, dial)
        .await
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    Attempt {
        reserved,
        address,
        result,
    }
}

/// Connects from one source address after the other.
async fn dial(engine: &Engine, sources: Option<&Sources>, to: SocketAddr) -> io::Result<TcpStream> {
    for from in engine.source_turns.of(sources, to) {
        match dial_from(from, to).await {
            // Not configured yet, or out of ports.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && from.is_some() => {}
            result => return result,
        }
    }
    Err(ErrorKind::AddrNotAvailable.into())
}

async fn dial_from(from: Option<Ipv4Addr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(from) = from {
        sources::bind(&SockRef::from(&socket), from)?;
    }
    socket.connect(to).await
}
