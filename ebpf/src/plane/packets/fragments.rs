//! Packets in fragments: the first one says whose they are, and the others follow it.

use super::*;

/// IP: more fragments follow, and the place of this one, in units of 8 bytes.
const MORE: u8 = 0x20;
const PLACE: u8 = 185;

/// A fragment of a datagram of this number; its IP checksum is right.
fn fragment(from: End, to: End, id: u8, more: u8, place: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = udp(from, to, payload, false);
    packet[IP + 5] = id;
    packet[IP + 6] = more;
    packet[IP + 7] = place;
    packet[IP + 10..IP + 12].fill(0);
    let check = header_checksum(&packet);
    packet[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
    packet
}

fn header_checksum(packet: &[u8]) -> u16 {
    let words = packet[IP..IP + 20].chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn addresses(packet: &[u8]) -> ([u8; 4], [u8; 4]) {
    let at = |from: usize| packet[IP + from..IP + from + 4].try_into().unwrap();
    (at(12), at(16))
}

/// That a later fragment goes from one address to the other, and is what it was but for its IP header.
fn follows(rig: &mut Rig, program: &str, packet: &[u8], from: End, to: End) {
    let (verdict, out) = rig.run(program, packet);
    assert_eq!(verdict, REDIRECT, "{program}");
    assert_eq!(addresses(&out), (from.0, to.0));
    assert_eq!(header_checksum(&out), 0, "checksum of the IP header");
    assert_eq!(out[IP + 20..], packet[IP + 20..]);
}

#[test]
fn fragments_follow_the_first_there_and_back() {
    for (task, program) in [(REMOTE, FROM_MESH), (LOCAL, FROM_TASK)] {
        on_rig(|rig| {
            rig.serve(Protocol::Udp, &[task]);
            for id in 1..3 {
                let first = fragment(CLIENT, FRONTEND, id, MORE, 0, &[7; 1000]);
                let (verdict, out) = rig.run(FROM_OUTSIDE, &first);
                assert_eq!((verdict, ends(&out)), (REDIRECT, (CLIENT, task)));
                // What would be ports in another packet is data in these.
                for place in [PLACE, PLACE + 60] {
                    let rest = fragment((CLIENT.0, 9), (FRONTEND.0, 9), id, MORE, place, &[7; 900]);
                    follows(rig, FROM_OUTSIDE, &rest, CLIENT, task);
                }
                let first = fragment(task, CLIENT, id, MORE, 0, &[8; 1000]);
                let (verdict, out) = rig.run(program, &first);
                assert_eq!((verdict, ends(&out)), (REDIRECT, (FRONTEND, CLIENT)));
                let rest = fragment((task.0, 9), (CLIENT.0, 9), id, 0, PLACE, b"end");
                follows(rig, program, &rest, FRONTEND, CLIENT);
            }
            let flow = rig.flow(CLIENT, FRONTEND, 17).unwrap();
            assert_eq!((flow.packets, flow.bytes), (6, 2 * (1000 + 2 * 908)));
            assert_eq!(
                (rig.count("new_flow"), rig.count("to_relay_fragment")),
                (1, 0)
            );
        });
    }
}

/// Of a packet whose first fragment is not there yet, and of another packet.
#[test]
fn a_fragment_before_its_first_is_the_kernels() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE]);
        let rest = |id| fragment(CLIENT, FRONTEND, id, 0, PLACE, b"end");
        rig.judged(FROM_OUTSIDE, &rest(1), NEXT, "to_relay_fragment");
        rig.run(
            FROM_OUTSIDE,
            &fragment(CLIENT, FRONTEND, 1, MORE, 0, &[7; 800]),
        );
        rig.judged(FROM_OUTSIDE, &rest(2), NEXT, "to_relay_fragment");
        assert_eq!(rig.run(FROM_OUTSIDE, &rest(1)).0, REDIRECT);
        // None of a flow that was forgotten begins one.
        rig.plane
            .maps
            .flows
            .remove(&tuple(CLIENT, FRONTEND, 17))
            .unwrap();
        assert_eq!(rig.run(FROM_OUTSIDE, &rest(1)).0, NEXT);
        assert_eq!(rig.count("new_flow"), 1);
    });
}

/// What the relay gets it gets whole.
#[test]
fn fragments_follow_the_first_to_the_relay() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[]);
        let first = fragment(CLIENT, FRONTEND, 1, MORE, 0, &[7; 800]);
        rig.judged(FROM_OUTSIDE, &first, NEXT, "to_relay_no_backend");
        let rest = fragment(CLIENT, FRONTEND, 1, 0, PLACE, b"end");
        rig.judged(FROM_OUTSIDE, &rest, NEXT, "to_relay_fragment");
    });
}
