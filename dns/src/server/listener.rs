//! One address: its sockets, and the two loops that serve them.

use std::{io, net::SocketAddr, sync::Arc};

use portolan_model::NetworkName;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::{DnsServer, tcp, udp};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The sockets of one address.
pub(super) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// A socket that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}/{protocol}: {source}")]
pub(super) struct BindError {
    address: SocketAddr,
    protocol: &'static str,
    source: io::Error,
}

/// Binds both sockets of an address, or none.
pub(super) fn bind(address: SocketAddr) -> Result<Sockets, BindError> {
    let failed = |protocol| {
        move |source| BindError {
            address,
            protocol,
            source,
        }
    };
    let udp = socket(address, Type::DGRAM)
        .and_then(|socket| UdpSocket::from_std(socket.into()))
        .map_err(failed("udp"))?;
    let tcp = socket(address, Type::STREAM)
        .and_then(|socket| {
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        })
        .map_err(failed("tcp"))?;
    Ok(Sockets { udp, tcp })
}

fn socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    // The overlay may configure the address a moment after the snapshot names it.
    socket.set_freebind_v4(true)?;
    // For TCP this lets a restarted agent bind beside connections in TIME_WAIT. For UDP it would let
    // two agents share the port, each with half of the queries.
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Serves an address until told otherwise.
///
/// # Errors
/// A socket failed for good; both are closed.
pub(super) async fn serve(
    server: &Arc<DnsServer>,
    network: &NetworkName,
    sockets: Sockets,
    cancel: &CancellationToken,
) -> io::Result<()> {
    let (udp, tcp) = (sockets.udp, sockets.tcp);
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        ended = udp::serve(server, network, udp) => ended,
        ended = tcp::serve(server, network, tcp) => ended,
    }
}
