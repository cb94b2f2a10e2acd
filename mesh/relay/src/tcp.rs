//! TCP: accepting clients, and the life of a connection.

mod connect;
mod pump;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
};

use crate::{
    engine::Engine,
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

/// Accepts clients until the frontend closes. `served` finds the frontend of an accepted connection, which
/// with one socket for all virtual addresses is not known before; a client of none is refused.
pub(crate) async fn accept(
    engine: Arc<Engine>,
    listener: TcpListener,
    served: impl Fn(&TcpStream) -> Option<Arc<Served>>,
) {
    // Accepted sockets inherit it. It cannot fail on one that is open, and without it all still works.
    let _ = prepare(&SockRef::from(&listener));
    let mut told: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((client, peer)) => match served(&client) {
                Some(served) => admit(&engine, &served, client, peer),
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

fn is_exhaustion(error: &io::Error) -> bool {
    let exhaustion = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhaustion.contains(&errno))
}

fn admit(engine: &Arc<Engine>, served: &Arc<Served>, client: TcpStream, peer: SocketAddr) {
    if !served.allows(peer.ip()) {
        return refuse(served, &client, Refusal::NotAllowed);
    }
    let Ok(permit) = Arc::clone(&engine.connections).try_acquire_owned() else {
        return refuse(served, &client, Refusal::Limit);
    };
    let connection = serve(Arc::clone(engine), Arc::clone(served), client, peer, permit);
    served.tasks.spawn_on(connection, &engine.runtime);
}

async fn serve(
    engine: Arc<Engine>,
    served: Arc<Served>,
    client: TcpStream,
    peer: SocketAddr,
    _permit: OwnedSemaphorePermit,
) {
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

fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)
}

fn refuse(served: &Served, client: &TcpStream, why: Refusal) {
    served.refuse(why);
    reset(client);
}

/// Makes the close of the stream, which follows, a RST. It cannot fail on an open socket.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
