//! Packets as bytes: made, read and judged without the programs' own code.

use std::net::Ipv4Addr;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// Where things are in an Ethernet frame with IPv4.
pub(super) const IP: usize = 14;
pub(super) const L4: usize = 34;
const INNER: usize = L4 + 8;

/// One end of a flow.
pub(super) type End = ([u8; 4], u16);

/// What the Internet checksum (RFC 1071) of these bytes is; 0 over data that has a right one in it.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn ip(proto: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, proto, 0, 0];
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header.extend(from.iter().chain(&to));
    let check = checksum(&[&header]);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    [header, payload.to_vec()].concat()
}

fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0xbb, 8, 0];
    frame.extend(packet);
    frame
}

fn pseudo(proto: u8, from: [u8; 4], to: [u8; 4], length: usize) -> Vec<u8> {
    let mut header = [from, to].concat();
    header.extend([0, proto, (length >> 8) as u8, length as u8]);
    header
}

/// A TCP segment; the length of its options is a multiple of 4.
pub(super) fn tcp(from: End, to: End, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2]);
    segment.extend([
        ((5 + options.len() / 4) << 4) as u8,
        flags,
        0x20,
        0,
        0,
        0,
        0,
        0,
    ]);
    segment.extend(options.iter().chain(payload));
    let check = checksum(&[&pseudo(6, from.0, to.0, segment.len()), &segment]);
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    frame(&ip(6, from.0, to.0, &segment))
}

/// A UDP datagram; `checked` is whether it has a checksum.
pub(super) fn udp(from: End, to: End, payload: &[u8], checked: bool) -> Vec<u8> {
    let mut datagram = [
        from.1.to_be_bytes(),
        to.1.to_be_bytes(),
        ((8 + payload.len()) as u16).to_be_bytes(),
        [0; 2],
    ]
    .concat();
    datagram.extend(payload);
    if checked {
        let check = checksum(&[&pseudo(17, from.0, to.0, datagram.len()), &datagram]);
        datagram[6..8].copy_from_slice(&check.to_be_bytes());
    }
    frame(&ip(17, from.0, to.0, &datagram))
}

/// "Too big, the next link takes 1400" (RFC 1191), from a router about a packet.
pub(super) fn too_big(router: [u8; 4], about: &[u8]) -> Vec<u8> {
    unreachable(router, about, 4)
}

/// "Unreachable" (RFC 792) for this reason.
pub(super) fn unreachable(router: [u8; 4], about: &[u8], code: u8) -> Vec<u8> {
    let mut error = vec![3, code, 0, 0, 0, 0, 0x05, 0x78];
    error.extend(&about[IP..IP + 28]);
    let check = checksum(&[&error]);
    error[2..4].copy_from_slice(&check.to_be_bytes());
    let source = ends(about).0.0;
    frame(&ip(1, router, source, &error))
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
    let address = |at: usize| -> [u8; 4] { frame[at..at + 4].try_into().unwrap() };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (
        (address(ip + 12), port(ip + 20)),
        (address(ip + 16), port(ip + 22)),
    )
}

/// Fails unless every checksum in the frame is right.
pub(super) fn assert_checksums(frame: &[u8]) {
    if frame[12..14] == [0x86, 0xdd] {
        return super::ipv6_bytes::assert_checksum(frame);
    }
    assert_eq!(checksum(&[&frame[IP..L4]]), 0, "IP checksum");
    let body = &frame[L4..];
    let ((from, _), (to, _)) = ends(frame);
    match frame[IP + 9] {
        1 => {
            assert_eq!(checksum(&[body]), 0, "ICMP checksum");
            assert_eq!(
                checksum(&[&frame[INNER..INNER + 20]]),
                0,
                "inner IP checksum"
            );
        }
        17 if body[6..8] == [0, 0] => {}
        proto => {
            let sum = checksum(&[&pseudo(proto, from, to, body.len()), body]);
            assert_eq!(sum, 0, "checksum of protocol {proto}");
        }
    }
}

pub(super) fn octets(ip: &str) -> [u8; 4] {
    ip.parse::<Ipv4Addr>().unwrap().octets()
}
