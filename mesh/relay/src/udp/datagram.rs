//! Datagrams with the addresses that they came to and leave from.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
        recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use rustix::io::Errno;
use socket2::Socket;

/// What the kernel may keep for a socket that is read too slowly: a burst of some thousand datagrams.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A datagram that came in; the payload is in the buffer given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    pub(crate) length: usize,
    pub(crate) client: SocketAddr,
    /// The address that the client asked, if the kernel told. The port is 0 unless the socket is
    /// transparent, and then the one asked.
    pub(crate) asked: Option<SocketAddr>,
    /// The index of the interface that it came by, for link-local addresses.
    pub(crate) interface: u32,
}

/// Makes a socket that is not bound yet tell the addresses that were asked, and gives it room for bursts.
pub(crate) fn prepare(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    room_for_bursts(socket)
}

/// The same for a transparent socket, which tells address and port.
pub(crate) fn prepare_transparent(socket: &Socket) -> io::Result<()> {
    setsockopt(socket, sockopt::Ipv4OrigDstAddr, &true)?;
    room_for_bursts(socket)
}

fn room_for_bursts(socket: &Socket) -> io::Result<()> {
    // Beyond net.core.rmem_max it takes a privilege; with less there is less room, no more.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    Ok(())
}

/// Receives one datagram, without waiting.
pub(crate) fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo, libc::sockaddr_in);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let client = message
        .address
        .as_ref()
        .and_then(address)
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut received = Received {
        length: message.bytes,
        client,
        asked: None,
        interface: 0,
    };
    for control in message.cmsgs()? {
        match control {
            // The local address, which for a datagram to one address is that one: ip(7).
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let ip = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                received.asked = Some(SocketAddr::new(ip.into(), 0));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                received.asked = Some(SocketAddr::new(ip.into(), 0));
                received.interface = info.ipi6_ifindex;
            }
            ControlMessageOwned::Ipv4OrigDstAddr(asked) => {
                let asked = SockaddrIn::from(asked);
                received.asked = Some(SocketAddrV4::from(asked).into());
            }
            _ => {}
        }
    }
    Ok(received)
}

/// Sends one datagram to a client from the address that it asked, without waiting.
pub(crate) fn reply(
    socket: &impl AsFd,
    bytes: &[u8],
    to: SocketAddr,
    from: IpAddr,
    interface: u32,
) -> io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    let (parts, flags) = ([IoSlice::new(bytes)], MsgFlags::MSG_DONTWAIT);
    match (from, to) {
        (IpAddr::V4(from), SocketAddr::V4(to)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(from.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(socket, &parts, &control, flags, Some(&SockaddrIn::from(to)))?;
        }
        (IpAddr::V6(from), SocketAddr::V6(to)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.octets(),
                },
                // A link-local address is one only together with its interface.
                ipi6_ifindex: if from.is_unicast_link_local() {
                    interface
                } else {
                    0
                },
            };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(
                socket,
                &parts,
                &control,
                flags,
                Some(&SockaddrIn6::from(to)),
            )?;
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    Ok(())
}

/// The most datagrams in a train: `UDP_MAX_SEGMENTS` of kernels before 6.9.
const LONGEST_TRAIN: usize = 64;
/// The most bytes in one: what an IPv4 packet holds beside its headers.
const LARGEST_TRAIN: usize = 65_507;

/// How many of these make a train: datagrams of one size, of which only the last may be shorter, and none is
/// empty. At least one, if there is one.
pub(super) fn train(datagrams: &[&[u8]]) -> usize {
    let size = datagrams.first().map_or(0, |first| first.len());
    let longest = LARGEST_TRAIN.checked_div(size).unwrap_or(1);
    let longest = longest.clamp(1, LONGEST_TRAIN);
    let equal = datagrams.iter().take(longest);
    let equal = equal.take_while(|bytes| bytes.len() == size).count();
    let shorter = |bytes: &&[u8]| (1..size).contains(&bytes.len());
    let last = equal < longest && datagrams.get(equal).is_some_and(shorter);
    equal + usize::from(last)
}

/// Sends a train to the peer of a connected socket, without waiting. The kernel takes it through the network
/// as one packet, and parts it where it leaves the machine or arrives (`UDP_SEGMENT` of udp(7)).
pub(super) fn send_train(socket: &impl AsFd, datagrams: &[&[u8]]) -> rustix::io::Result<usize> {
    let size = datagrams.first().map_or(0, |first| first.len());
    let size = u16::try_from(size).map_err(|_| Errno::MSGSIZE)?;
    let parts: Vec<IoSlice<'_>> = datagrams.iter().map(|bytes| IoSlice::new(bytes)).collect();
    sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &parts,
        &[ControlMessage::UdpGsoSegments(&size)],
        MsgFlags::MSG_DONTWAIT,
        None,
    )
    .map_err(|errno| Errno::from_raw_os_error(errno as i32))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_train_is_of_one_size_and_may_end_with_a_shorter_one() {
        let train_of = |sizes: &[usize]| {
            let datagrams: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
            let datagrams: Vec<&[u8]> = datagrams.iter().map(Vec::as_slice).collect();
            train(&datagrams)
        };
        assert_eq!(train_of(&[]), 0);
        assert_eq!(train_of(&[64]), 1);
        assert_eq!(train_of(&[64, 64, 64]), 3);
        assert_eq!(train_of(&[64, 64, 10, 64]), 3);
        assert_eq!(train_of(&[64, 65]), 1);
        assert_eq!(train_of(&[64, 0]), 1, "an empty one would be none");
        assert_eq!(train_of(&[0, 0]), 1);
        assert_eq!(train_of(&[1; 100]), LONGEST_TRAIN);
        assert_eq!(train_of(&[30_000, 30_000, 30_000]), 2);
        assert_eq!(train_of(&[30_000, 30_000, 5_000]), 2);
        assert_eq!(train_of(&[65_507, 1]), 1);
    }
}
