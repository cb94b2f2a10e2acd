//! Packets of IPv6 as bytes, as in `bytes`.

use std::net::Ipv6Addr;

use super::bytes::{IP, checksum};

/// Where things are in an Ethernet frame with IPv6.
pub(super) const L4: usize = 54;
const INNER: usize = L4 + 8;

/// One end of a flow.
pub(super) type End = (Ipv6Addr, u16);

fn frame(next: u8, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let mut frame = vec![2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0xbb, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, high, low, next, 64]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}

fn pseudo(next: u8, from: Ipv6Addr, to: Ipv6Addr, length: usize) -> Vec<u8> {
    let mut header = [from.octets(), to.octets()].concat();
    header.extend((length as u32).to_be_bytes());
    header.extend([0, 0, 0, next]);
    header
}

/// A frame with this behind the header, whose checksum is at `at`.
fn checked(next: u8, from: Ipv6Addr, to: Ipv6Addr, mut payload: Vec<u8>, at: usize) -> Vec<u8> {
    let check = match checksum(&[&pseudo(next, from, to, payload.len()), &payload]) {
        0 if next == 17 => u16::MAX,
        check => check,
    };
    payload[at..at + 2].copy_from_slice(&check.to_be_bytes());
    frame(next, from, to, &payload)
}

/// A TCP segment; the length of its options is a multiple of 4.
pub(super) fn tcp(from: End, to: End, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2]);
    let words = (5 + options.len() / 4) as u8;
    segment.extend([words << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    segment.extend(options.iter().chain(payload));
    checked(6, from.0, to.0, segment, 16)
}

/// A UDP datagram.
pub(super) fn udp(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let ends = [from.1.to_be_bytes(), to.1.to_be_bytes()];
    let mut datagram = [&ends.concat()[..], &length.to_be_bytes(), &[0; 2]].concat();
    datagram.extend(payload);
    checked(17, from.0, to.0, datagram, 6)
}

/// An ICMP error (RFC 4443) about a packet, from a router or whoever else, with the size 1400.
pub(super) fn error(router: Ipv6Addr, about: &[u8], kind: u8, code: u8) -> Vec<u8> {
    let mut error = vec![kind, code, 0, 0, 0, 0, 0x05, 0x78];
    error.extend(&about[IP..]);
    let source = ends(about).0.0;
    checked(58, router, source, error, 2)
}

/// An ICMP message that is no error.
pub(super) fn message(from: Ipv6Addr, to: Ipv6Addr, kind: u8) -> Vec<u8> {
    checked(58, from, to, [&[kind, 0, 0, 0][..], &[0; 60]].concat(), 2)
}

/// A packet with an extension header of eight bytes before its payload.
pub(super) fn extended(packet: &[u8], header: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[IP + 5] += 8;
    let next = std::mem::replace(&mut packet[IP + 6], header);
    packet.splice(L4..L4, [next, 0, 0, 1, 0, 0, 0, 9]);
    packet
}

/// From where to where.
pub(super) fn ends(frame: &[u8]) -> (End, End) {
    at(frame, IP)
}

/// The ends of the packet that an ICMP error is about.
pub(super) fn inner_ends(frame: &[u8]) -> (End, End) {
    at(frame, INNER)
}

fn at(frame: &[u8], ip: usize) -> (End, End) {
    let address = |at: usize| {
        let octets: [u8; 16] = frame[at..at + 16].try_into().unwrap();
        Ipv6Addr::from(octets)
    };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (
        (address(ip + 8), port(ip + 40)),
        (address(ip + 24), port(ip + 42)),
    )
}

/// Fails unless the checksum in the frame is right, and is one.
pub(super) fn assert_checksum(frame: &[u8]) {
    let ((from, _), (to, _)) = ends(frame);
    let (next, body) = (frame[IP + 6], &frame[L4..]);
    let sum = checksum(&[&pseudo(next, from, to, body.len()), body]);
    assert_eq!(sum, 0, "checksum of protocol {next}");
    if next == 17 {
        assert_ne!(body[6..8], [0, 0], "a UDP checksum of 0");
    }
}
