//! UDP and TCP on one address and port.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use super::StartError;

/// What the kernel may hold for us while the process is busy. More than the kernel's limit is cut
/// to it.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How often another port is tried, when the one that TCP was given is taken for UDP.
const TRIES: usize = 16;

pub(super) async fn bind(
    addr: SocketAddr,
) -> Result<(TcpListener, UdpSocket, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { addr, source };
    let mut tries = if addr.port() == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        let tcp = TcpListener::bind(addr).await.map_err(failed)?;
        let local = tcp.local_addr().map_err(failed)?;
        match bind_udp(local) {
            Ok(udp) => return Ok((tcp, udp, local)),
            Err(error) if tries == 0 => return Err(failed(error)),
            Err(_) => {}
        }
    }
}

fn bind_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}
