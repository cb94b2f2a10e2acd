//! Connecting to a backend, and to the next one if it does not answer.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use portolan_model::Protocol;
use portolan_plane::Sources;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{sleep_until, timeout},
};

use crate::{
    candidates::Candidates,
    engine::Engine,
    passed_over::Fault,
    served::{Live, Refusal, Reserved, Route, Served},
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
    // Who is being waited for, so that the one that was overtaken is known.
    let mut waiting: Vec<Arc<Live>> = Vec::new();
    let mut next = Some(first);
    let mut patience = engine.config.patience;
    let mut give_up_on_last = tokio::time::Instant::now();
    let mut tried = 0_u64;
    let mut exhausted = false;
    loop {
        if let Some(reserved) = next.take() {
            tried += 1;
            waiting.push(Arc::clone(reserved.backend()));
            pending.push(attempt(engine, Arc::clone(&route), reserved, asked_port));
            give_up_on_last = tokio::time::Instant::now() + patience;
            patience = LATER_PATIENCE.min(engine.config.patience);
        }
        tokio::select! {
            Some(attempt) = pending.next() => match attempt.result {
                Ok(stream) => {
                    let winner = attempt.reserved;
                    engine.passed_over.answered(&winner.backend().spec, Protocol::Tcp);
                    for slow in &waiting {
                        if !Arc::ptr_eq(slow, winner.backend()) {
                            failed(engine, slow, Some(Fault::Silent));
                        }
                    }
                    served.counters.retries.fetch_add(u64::from(tried > 1), Ordering::Relaxed);
                    return Ok(Connected { stream, address: attempt.address, reserved: winner, route });
                }
                Err(error) => {
                    failed(engine, attempt.reserved.backend(), fault(&error));
                    waiting.retain(|live| !Arc::ptr_eq(live, attempt.reserved.backend()));
                    next = candidates.next();
                }
            },
            () = sleep_until(give_up_on_last), if !exhausted => {
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

/// What an error tells of the backend; nothing if the fault is this node's own, as when it is out of
/// descriptors.
fn fault(error: &io::Error) -> Option<Fault> {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Some(Fault::Refused),
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Some(Fault::Silent)
        }
        _ => None,
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

/// Connects from one source address after the other. To one backend each has some 28,000 ports, which a
/// busy minute uses up.
async fn dial(engine: &Engine, sources: Option<&Sources>, to: SocketAddr) -> io::Result<TcpStream> {
    let addresses = match (sources, to.ip()) {
        (Some(sources), IpAddr::V4(ip)) if sources.within.contains(ip) => &sources.addresses[..],
        _ => &[],
    };
    if !addresses.is_empty() {
        let turn = engine.next_source.fetch_add(1, Ordering::Relaxed);
        let (later, sooner) = addresses.split_at(turn.checked_rem(addresses.len()).unwrap_or(0));
        for from in sooner.iter().chain(later) {
            match dial_from(Some((*from).into()), to).await {
                // Not configured yet, or out of ports.
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
                result => return result,
            }
        }
    }
    dial_from(None, to).await
}

async fn dial_from(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(from) = from {
        // The port is then chosen by connect(2), which knows the whole 4-tuple: ip(7).
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.connect(to).await
}
