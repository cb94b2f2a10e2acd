//! Ending a TCP connection: a RST to each end that looks as if it came from the other.

use std::{io, net::SocketAddrV4, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

const TCP: u8 = 6;
const RST: u8 = 4;
const TCP_HEADER: u16 = 20;

/// Sends packets whose source is not this node's.
pub(crate) struct Resets {
    socket: OwnedFd,
}

impl Resets {
    /// Needs the privilege of raw sockets, as loading the programs does.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(ipproto::RAW);
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, protocol)?;
        Ok(Self { socket })
    }

    /// Resets the connection at `to`, which has acknowledged all up to `acknowledged`: at that very place a RST is
    /// obeyed (RFC 5961, section 3.2), elsewhere it is asked about.
    pub(crate) fn send(
        &self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        acknowledged: u32,
    ) -> io::Result<()> {
        let packet = packet(from, to, acknowledged);
        sendto(&self.socket, &packet, SendFlags::empty(), &to)?;
        Ok(())
    }
}

/// IPv4 and TCP headers; the kernel fills in the IP checksum and the identification.
fn packet(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> Vec<u8> {
    let addresses = [from.ip().octets(), to.ip().octets()].concat();
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 5 << 4, RST, 0, 0, 0, 0, 0, 0]);
    let pseudo = [&addresses[..], &[0, TCP], &TCP_HEADER.to_be_bytes()].concat();
    let check = checksum(&[pseudo, segment.clone()].concat()).to_be_bytes();
    for (to, byte) in segment.iter_mut().skip(16).zip(check) {
        *to = byte;
    }
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
    packet.extend(addresses);
    packet.extend(segment);
    packet
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
        let from: SocketAddrV4 = "10.77.0.11:8080".parse().unwrap();
        let to: SocketAddrV4 = "10.77.0.99:40000".parse().unwrap();
        let packet = packet(from, to, 0xdead_beef);
        assert_eq!(packet.len(), 40);
        assert_eq!(packet[24..28], [0xde, 0xad, 0xbe, 0xef]);
        let pseudo = [&packet[12..20], &[0, 6, 0, 20], &packet[20..]].concat();
        assert_eq!(checksum(&pseudo), 0);
    }
}
