//! Ending a TCP connection: a RST to each end that looks as if it came from the other.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

const TCP: u8 = 6;
const RST: u8 = 4;
const TCP_HEADER: u16 = 20;

/// Sends packets whose source is not this node's.
pub(crate) struct Resets {
    v4: OwnedFd,
    /// `None` where the kernel has no IPv6, and so no connection of it.
    v6: Option<OwnedFd>,
}

impl Resets {
    /// Needs the privilege of raw sockets, as loading the programs does.
    pub(crate) fn open() -> io::Result<Self> {
        let open = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))
        };
        Ok(Self {
            v4: open(AddressFamily::INET)?,
            v6: open(AddressFamily::INET6).ok(),
        })
    }

    /// Resets the connection at `to`, which has acknowledged all up to `acknowledged`: at that very place a RST is
    /// obeyed (RFC 5961, section 3.2), elsewhere it is asked about.
    pub(crate) fn send(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        acknowledged: u32,
    ) -> io::Result<()> {
        let socket = if to.is_ipv4() {
            &self.v4
        } else {
            self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?
        };
        let packet = packet(from, to, acknowledged);
        // A raw socket of IPv6 takes a port for a protocol.
        sendto(
            socket,
            &packet,
            SendFlags::empty(),
            &SocketAddr::new(to.ip(), 0),
        )?;
        Ok(())
    }
}

/// A RST of IPv6 with an Ethernet header, whose addresses say nothing.
pub(crate) fn frame(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    // Of no group: the kernel takes none for a source.
    let mac = [2, 0, 0, 0, 0, 0];
    let header = [&mac[..], &mac, &[0x86, 0xdd]].concat();
    [header, packet(from, to, sequence)].concat()
}

/// IP and TCP headers; the kernel fills in the checksum and the identification of IPv4.
fn packet(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    let addresses = [octets(from.ip()), octets(to.ip())].concat();
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 5 << 4, RST, 0, 0, 0, 0, 0, 0]);
    let pseudo = [&addresses[..], &[0, TCP], &TCP_HEADER.to_be_bytes()].concat();
    let check = checksum(&[pseudo, segment.clone()].concat()).to_be_bytes();
    for (to, byte) in segment.iter_mut().skip(16).zip(check) {
        *to = byte;
    }
    let mut packet = match to {
        SocketAddr::V4(_) => vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0],
        SocketAddr::V6(_) => vec![0x60, 0, 0, 0, 0, 20, TCP, 64],
    };
    packet.extend(addresses);
    packet.extend(segment);
    packet
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_at_the_place_acknowledged_and_its_checksum_is_right() {
        for (from, to, ip) in [
            ("10.77.0.11:8080", "10.77.0.99:40000", 20),
            ("[fd77::11]:8080", "[fd77::99]:40000", 40),
        ] {
            let packet = packet(from.parse().unwrap(), to.parse().unwrap(), 0xdead_beef);
            assert_eq!(packet.len(), ip + 20);
            assert_eq!(packet[ip + 4..ip + 8], [0xde, 0xad, 0xbe, 0xef]);
            let addresses = if ip == 20 { 12 } else { 8 };
            let pseudo = [&packet[addresses..ip], &[0, 6, 0, 20], &packet[ip..]].concat();
            assert_eq!(checksum(&pseudo), 0);
        }
    }
}
