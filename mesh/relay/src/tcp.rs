//! TCP: accepting clients, and the life of a connection.

mod connect;
mod pump;

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};

use crate::{
    engine::Engine,
    lanes::Lane,
    proxy_protocol,
    served::{Refusal, Served},
};

/// How long to wait when the process or the machine is out of descriptors or memory.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(50);
/// How long until that is logged once more.
const TELL_AGAIN: Duration = Duration::from_mins(1);
/// A peer that says nothing for so long is asked whether it is still there.
const KEEPALIVE_TIME: Duration = Duration::from_mins(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// A listening socket, made ready for the runtime of its lane, which is that of the caller.
#[expect(
    unsafe_code,
    reason = "tokio cannot see that a socket keeps its descriptor"
)]
pub(crate) fn listener(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // Accepted sockets inherit it. It cannot fail on one that is open, and without it all still works.
    let _ = prepare(&socket);
    // SAFETY: a `Socket` owns its descriptor, which stays the same until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Accepts clients until the frontend closes. `served` finds the frontend of an accepted connection, which
/// with one socket for all virtual addresses is not known before; a client of none is refused.
pub(crate) async fn accept(
    engine: Arc<Engine>,
    lane: Lane,
    listener: AsyncFd<Socket>,
    served: impl Fn(&Socket) -> Option<Arc<Served>>,
) {
    let mut told: Option<Instant> = None;
    loop {
        match listener.async_io(Interest::READABLE, accept_one).await {
            Ok((client, peer)) => match served(&client) {
                Some(served) => admit(&engine, &lane, &served, client, peer),
                None => reset(&client),
            },
            Err(error) if is_exhaustion(&error) => {
                if told.is_none_or(|at| at.elapsed() > TELL_AGAIN) {
                    tracing::warn!(%error, "cannot accept connections for now; raise the limit of open files");
                    told = Some(Instant::now());
                }
                tokio::time::sleep(EXHAUSTED_WAIT).await;
            }
            // A client that is gone before it was accepted; accept(2) lists more of the kind.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn accept_one(listener: &Socket) -> io::Result<(Socket, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (client, peer) = acceptfrom_with(listener, flags)?;
    let peer = peer.ok_or(ErrorKind::InvalidData)?.try_into()?;
    Ok((client.into(), peer))
}

fn is_exhaustion(error: &io::Error) -> bool {
    let exhaustion = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhaustion.contains(&errno))
}

fn admit(
    engine: &Arc<Engine>,
    lane: &Lane,
    served: &Arc<Served>,
    client: Socket,
    peer: SocketAddr,
) {
    if !served.allows(peer.ip()) {
        return refuse(served, &client, Refusal::NotAllowed);
    }
    let Ok(permit) = Arc::clone(&engine.connections).try_acquire_owned() else {
        return refuse(served, &client, Refusal::Limit);
    };
    let connection = serve(Arc::clone(engine), Arc::clone(served), client, peer, permit);
    let connection = served.tasks.track_future(connection);
    engine.lanes.place(lane).spawn(connection);
}

async fn serve(
    engine: Arc<Engine>,
    served: Arc<Served>,
    client: Socket,
    peer: SocketAddr,
    _permit: OwnedSemaphorePermit,
) {
    // Here and not where it was accepted: it belongs to the lane's own runtime.
    let Ok(client) = TcpStream::from_std(client.into()) else {
        return served.refuse(Refusal::Limit);
    };
    let Ok(asked_port) = asked_port(&served, &client) else {
        return reset(&client);
    };
    let connected = tokio::select! {
        connected = connect::to_backend(&engine, &served, peer.ip(), asked_port) => connected,
        () = served.ended.cancelled() => return reset(&client),
    };
    let connected = match connected {
        Ok(connected) => connected,
        Err(why) => return refuse(&served, &client, why),
    };
    let upstream = connected.stream;
    let policy = &connected.route.spec.policy;
    let _ = prepare(&SockRef::from(&upstream));
    if let Some(version) = policy.proxy_protocol {
        let Ok(asked) = client.local_addr() else {
            return reset(&client);
        };
        let header = proxy_protocol::for_tcp(version, peer, asked);
        // The first bytes of a new connection always fit into its empty send buffer.
        if pump::write_all(&upstream, &header).await.is_err() {
            return reset(&client);
        }
    }
    let flow = engine
        .flows
        .begin(&served, peer, connected.address, connected.reserved);
    let idle = policy
        .tcp_idle_ms
        .map(|ms| Duration::from_millis(ms.into()));
    let gone = flow.reserved().backend().gone.clone();
    let end = tokio::select! {
        end = pump::both_ways(&engine, &flow, &client, &upstream, idle) => end,
        () = gone.cancelled() => pump::End::Broken,
    };
    if end == pump::End::Idle {
        served
            .counters
            .idle_timeouts
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    if end != pump::End::Finished {
        reset(&client);
        reset(&upstream);
    }
}

/// The port that the client asked. Only a virtual address is served on every port.
fn asked_port(served: &Served, client: &TcpStream) -> io::Result<u16> {
    match served.frontend.port {
        0 => Ok(client.local_addr()?.port()),
        port => Ok(port),
    }
}

fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)
}

fn refuse(served: &Served, client: &impl AsFd, why: Refusal) {
    served.refuse(why);
    reset(client);
}

/// Makes the close of the stream, which follows, a RST. It cannot fail on an open socket.
fn reset(stream: &impl AsFd) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
