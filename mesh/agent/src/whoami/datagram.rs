//! The answers over UDP. A machine may have many addresses; the one that a client asked is told in the
//! answer, and is where the answer comes from.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
        setsockopt, sockopt,
    },
};
use socket2::Socket;
use tokio::{io::Interest, net::UdpSocket};
use tokio_util::sync::CancellationToken;

use super::Answer;

/// Has the kernel tell where each datagram was sent to.
pub(crate) fn tell_destinations(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    Ok(())
}

/// Answers every datagram, empty ones too, until it is told to stop.
pub(crate) async fn serve(socket: UdpSocket, name: String, stop: CancellationToken) {
    let Ok(port) = socket.local_addr().map(|bound| bound.port()) else {
        return;
    };
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.async_io(Interest::READABLE, || receive(&socket)) => received,
        };
        // An error is an ICMP answer to an earlier datagram of ours, or one that was no datagram.
        let Ok((client, asked)) = received else {
            continue;
        };
        let answer = Answer::new(&name, SocketAddr::new(asked, port), client).text();
        // A client that is gone by now does not wait for it.
        let _ = socket
            .async_io(Interest::WRITABLE, || {
                reply(&socket, answer.as_bytes(), client, asked)
            })
            .await;
    }
}

/// Receives a datagram: from whom, and at which address of ours. What it says does not matter.
fn receive(socket: &UdpSocket) -> io::Result<(SocketAddr, IpAddr)> {
    let mut control = cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
    let mut payload = [0];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let client = message.address.as_ref().and_then(address);
    let asked = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let bytes = info.ipi_addr.s_addr.to_ne_bytes();
            Some(IpAddr::V4(Ipv4Addr::from(bytes)))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
        }
        _ => None,
    });
    client.zip(asked).ok_or(io::ErrorKind::InvalidData.into())
}

fn reply(socket: &UdpSocket, bytes: &[u8], to: SocketAddr, from: IpAddr) -> io::Result<()> {
    let parts = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let socket = socket.as_raw_fd();
    let to = SockaddrStorage::from(to);
    match from {
        IpAddr::V4(from) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(from.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(socket, &parts, &control, flags, Some(&to))?;
        }
        IpAddr::V6(from) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.octets(),
                },
                // The scope of a link-local client says the interface.
                ipi6_ifindex: 0,
            };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(socket, &parts, &control, flags, Some(&to))?;
        }
    }
    Ok(())
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage
        .as_sockaddr_in()
        .map(|v4| SocketAddrV4::from(*v4).into());
    let v6 = || {
        storage
            .as_sockaddr_in6()
            .map(|v6| SocketAddrV6::from(*v6).into())
    };
    v4.or_else(v6)
}
