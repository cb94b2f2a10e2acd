//! Opening the sockets of a frontend.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use portolan_model::Protocol;
use portolan_plane::{Frontend, FrontendAddress, OpError};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use crate::udp::datagram;

/// Connections that wait to be accepted; the kernel lowers it to net.core.somaxconn.
pub(crate) const BACKLOG: i32 = 65_535;

/// The sockets of a frontend, bound and listening, all of them or none. `FrontendAddress::Vip` has none of
/// its own.
pub(crate) fn open(frontend: &Frontend) -> Result<Vec<Socket>, OpError> {
    let port = frontend.port;
    let addresses = match frontend.address {
        FrontendAddress::Node => vec![
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ],
        FrontendAddress::Ip(ip) => vec![ip],
        FrontendAddress::Vip(..) => Vec::new(),
    };
    let every = frontend.address == FrontendAddress::Node;
    let mut sockets = Vec::new();
    for ip in addresses {
        match bind(SocketAddr::new(ip, port), frontend.protocol) {
            Ok(socket) => sockets.push(socket),
            // A machine may be without IPv6; every address of it is then an IPv4 one.
            Err(error) if every && ip.is_ipv6() && lacks_family(&error) => {}
            Err(error) => return Err(refusal(frontend, ip, error)),
        }
    }
    Ok(sockets)
}

fn bind(address: SocketAddr, protocol: Protocol) -> io::Result<Socket> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if !address.ip().is_unspecified() {
        // The address may come to the node later.
        if address.is_ipv6() {
            socket.set_freebind_v6(true)?;
        } else {
            socket.set_freebind_v4(true)?;
        }
    }
    if protocol == Protocol::Tcp {
        // Connections of an earlier agent may linger in TIME_WAIT. With UDP the same option would let two
        // processes share the port unnoticed.
        socket.set_reuse_address(true)?;
    } else {
        datagram::prepare(&socket, address.is_ipv6())?;
    }
    socket.bind(&address.into())?;
    if protocol == Protocol::Tcp {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

fn lacks_family(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno == Some(Errno::AFNOSUPPORT) || errno == Some(Errno::ADDRNOTAVAIL)
}

fn refusal(frontend: &Frontend, ip: IpAddr, source: io::Error) -> OpError {
    if source.kind() == ErrorKind::AddrInUse {
        return OpError::PortInUse {
            port: format!("{}/{}", frontend.port, frontend.protocol),
        };
    }
    OpError::Kernel {
        operation: format!(
            "bind {}/{}",
            SocketAddr::new(ip, frontend.port),
            frontend.protocol
        ),
        source,
    }
}
