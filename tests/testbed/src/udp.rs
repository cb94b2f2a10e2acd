//! One UDP question and its answer.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Namespace;

/// Sends one datagram from inside `from`, from a new port, and waits for the answer.
///
/// The socket is connected: an answer counts only if it comes from the very address asked.
///
/// # Errors
/// No answer within `timeout`, or an ICMP error.
pub fn udp_ask(
    from: &Namespace,
    to: SocketAddr,
    payload: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>> {
    Ok(udp_exchange(from, to, payload, timeout)?.1)
}

/// As [`udp_ask`]; also tells the address and port that it asked from.
pub fn udp_exchange(
    from: &Namespace,
    to: SocketAddr,
    payload: &[u8],
    timeout: Duration,
) -> Result<(SocketAddr, Vec<u8>)> {
    from.enter(|| ask(to, payload, timeout).with_context(|| format!("ask {to}/udp")))
}

fn ask(to: SocketAddr, payload: &[u8], timeout: Duration) -> Result<(SocketAddr, Vec<u8>)> {
    let socket = connected(to)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send(payload).context("send")?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    let length = socket
        .recv(&mut answer)
        .with_context(|| format!("no answer within {timeout:?}"))?;
    answer.truncate(length);
    Ok((socket.local_addr()?, answer))
}

/// A new socket in the calling thread's namespace that speaks with `to` alone.
pub(crate) fn connected(to: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket.connect(to).context("connect")?;
    Ok(socket)
}
