//! Packets that do not fit the tunnel: their senders are told.

use super::*;

/// Of the test's network.
const MTU: u16 = 1450;
const UDP: u8 = 17;

/// What a program makes of a packet that is to be cut into segments of this size; 0 is not at all.
fn cut(rig: &mut Rig, program: &str, packet: &[u8], segment: u32) -> Vec<u8> {
    let mut out = vec![0; packet.len()];
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&1_u32.to_ne_bytes());
    context[176..180].copy_from_slice(&segment.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let result = rig.program(program).test_run(options).unwrap();
    assert_eq!(result.return_value, REDIRECT);
    out.truncate(result.data_size_out as usize);
    out
}

/// That an answer tells the sender of a packet which size fits.
fn tells(answer: &[u8], about: &[u8], from: [u8; 4]) {
    assert_checksums(answer);
    let (client, frontend) = ends(about);
    assert_eq!((ends(answer).0.0, ends(answer).1.0), (from, client.0));
    assert_eq!(answer[bytes::L4..bytes::L4 + 2], [3, 4]);
    assert_eq!(answer[bytes::L4 + 6..bytes::L4 + 8], MTU.to_be_bytes());
    let quoted = &answer[bytes::L4 + 8..];
    assert_eq!(quoted, &about[IP..IP + quoted.len()], "as it was sent");
    assert_eq!(inner_ends(answer), (client, frontend));
    assert_eq!((&answer[..6], &answer[6..12]), (&about[6..12], &about[..6]));
}

fn without_df(mut packet: Vec<u8>) -> Vec<u8> {
    packet[IP + 6] = 0;
    let sum = u16::from_be_bytes([packet[IP + 10], packet[IP + 11]]);
    let sum = u32::from(sum) + 0x4000;
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    packet[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn a_client_whose_packet_does_not_fit_is_told_the_size_that_does() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE]);
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let data = [7; 3000];
        let fits = |headers: usize| &data[..usize::from(MTU) - headers];
        let over = |headers: usize| &data[..=usize::from(MTU) - headers];
        let datagram = udp(CLIENT, FRONTEND, fits(28), true);
        assert_eq!(ends(&cut(rig, FROM_OUTSIDE, &datagram, 0)).1, REMOTE);
        let datagram = udp(CLIENT, FRONTEND, over(28), true);
        tells(&cut(rig, FROM_OUTSIDE, &datagram, 0), &datagram, FRONTEND.0);
        assert_eq!(rig.flow(CLIENT, FRONTEND, UDP).unwrap().packets, 1);
        let may = without_df(datagram);
        assert_eq!(ends(&cut(rig, FROM_OUTSIDE, &may, 0)).1, REMOTE);

        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        let segment = tcp(CLIENT, FRONTEND, ACK, &[1; 12], over(52));
        tells(&cut(rig, FROM_OUTSIDE, &segment, 0), &segment, FRONTEND.0);
        // What the card put together is judged by its pieces.
        let many = tcp(CLIENT, FRONTEND, ACK, &[1; 12], &data);
        let whole = cut(rig, FROM_OUTSIDE, &many, u32::from(MTU) - 52);
        assert_eq!(ends(&whole).1, REMOTE);
        tells(
            &cut(rig, FROM_OUTSIDE, &many, u32::from(MTU) - 51),
            &many,
            FRONTEND.0,
        );
        assert_eq!(rig.count("too_big"), 3);
    });
}

#[test]
fn a_task_of_this_node_gets_packets_of_every_size() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[LOCAL]);
        let datagram = udp(CLIENT, FRONTEND, &[7; 3000], true);
        assert_eq!(ends(&cut(rig, FROM_OUTSIDE, &datagram, 0)).1, LOCAL);
    });
}

#[test]
fn a_task_whose_packet_does_not_fit_is_told_the_size_that_does() {
    on_rig(|rig| {
        let back = Flow {
            kind: 4,
            node: 1,
            network: 1,
            ifindex: 1,
            ..Flow::default()
        };
        rig.put(LOCAL, CLIENT, UDP, back);
        let datagram = udp(LOCAL, CLIENT, &[7; 1430], true);
        tells(
            &cut(rig, FROM_TASK, &datagram, 0),
            &datagram,
            [10, 208, 0, 1],
        );
        assert_eq!(rig.flow(LOCAL, CLIENT, UDP).unwrap().packets, 0);
    });
}

/// What of IPv6 does not fit is never cut, unless the tunnel takes less than every link has to.
#[test]
fn a_sender_of_ipv6_is_told_the_size_that_fits() {
    on_rig(|rig| {
        let (client, frontend) = (ipv6::CLIENT6, ipv6::FRONTEND6);
        let own = &mut rig.plane.surroundings.own;
        own.insert(frontend.0.into());
        rig.plane.write_surroundings().unwrap();
        ipv6::serve6(rig, Protocol::Udp, &[REMOTE]);
        ipv6::serve6(rig, Protocol::Tcp, &[REMOTE]);
        let data = [7; 3000];
        let fits = |mtu: u16, headers: usize| &data[..usize::from(mtu) - headers];
        let over = |mtu: u16, headers: usize| &data[..=usize::from(mtu) - headers];
        let datagram = |data| ipv6_bytes::udp(client, frontend, data);
        let sent = cut(rig, FROM_OUTSIDE, &datagram(fits(MTU, 48)), 0);
        assert_eq!(ipv6_bytes::ends(&sent).1, ipv6::of(REMOTE));
        let too_big = datagram(over(MTU, 48));
        let answer = cut(rig, FROM_OUTSIDE, &too_big, 0);
        tells_v6(&answer, &too_big, frontend.0, MTU);

        let syn = ipv6_bytes::tcp(client, frontend, SYN, &[], b"");
        rig.redirected(FROM_OUTSIDE, &syn);
        let many = ipv6_bytes::tcp(client, frontend, ACK, &[1; 12], &data);
        let whole = cut(rig, FROM_OUTSIDE, &many, u32::from(MTU) - 72);
        assert_eq!(ipv6_bytes::ends(&whole).1, ipv6::of(REMOTE));
        let answer = cut(rig, FROM_OUTSIDE, &many, u32::from(MTU) - 71);
        tells_v6(&answer, &many, frontend.0, MTU);

        let back = Flow {
            kind: 4,
            node: 1,
            network: 1,
            ifindex: 1,
            ..Flow::default()
        };
        rig.put(ipv6::of(LOCAL), client, UDP, back);
        let reply = ipv6_bytes::udp(ipv6::of(LOCAL), client, &data[..1430]);
        let gateway = ipv6::of(([10, 208, 0, 1], 0)).0;
        tells_v6(&cut(rig, FROM_TASK, &reply, 0), &reply, gateway, MTU);
        assert_eq!(rig.count("too_big"), 3);

        let network = rig.plane.surroundings.networks.get_mut(&ingress());
        network.unwrap().mtu = 1200;
        rig.plane.write_surroundings().unwrap();
        let sent = cut(rig, FROM_OUTSIDE, &datagram(fits(1280, 48)), 0);
        assert_eq!(ipv6_bytes::ends(&sent).1, ipv6::of(REMOTE));
        let too_big = datagram(over(1280, 48));
        let answer = cut(rig, FROM_OUTSIDE, &too_big, 0);
        tells_v6(&answer, &too_big, frontend.0, 1280);
    });
}

fn tells_v6(answer: &[u8], about: &[u8], from: std::net::Ipv6Addr, mtu: u16) {
    assert_checksums(answer);
    let (client, frontend) = ipv6_bytes::ends(about);
    let (told_by, told) = ipv6_bytes::ends(answer);
    assert_eq!((told_by.0, told.0), (from, client.0));
    let message = &answer[ipv6_bytes::L4..];
    assert_eq!((message[0], message[1]), (2, 0));
    assert_eq!(message[4..8], u32::from(mtu).to_be_bytes());
    let quoted = &message[8..];
    assert_eq!(quoted, &about[IP..IP + quoted.len()], "as it was sent");
    assert_eq!(ipv6_bytes::inner_ends(answer), (client, frontend));
    assert_eq!((&answer[..6], &answer[6..12]), (&about[6..12], &about[..6]));
}
