//! Flows that get in one another's way, and what cannot be carried. What only the task's node sees needs the tunnel's
//! header, which no test run has: that is in `tests/fast_path`.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use super::*;
use crate::layout::FLOW_RELAY;

const OTHER: End = ([10, 208, 2, 3], 80);

/// The same two backends at three ports: from one address and port of a client there is one connection to each.
fn at_three_ports(rig: &mut Rig) -> [End; 3] {
    [8080, 8081, 8082].map(|port| {
        let mut served = spec(Protocol::Tcp, &[REMOTE, OTHER]);
        served.frontend.port = port;
        rig.plane.upsert(&Arc::new(served)).unwrap();
        (FRONTEND.0, port)
    })
}

fn syn(to: End) -> Vec<u8> {
    tcp(CLIENT, to, SYN, &[], b"")
}

#[test]
fn a_backend_that_has_a_flow_of_the_same_ends_is_not_given_another() {
    on_rig(|rig| {
        let [first, second, _] = at_three_ports(rig);
        let (_, one) = ends(&rig.redirected(FROM_OUTSIDE, &syn(first)));
        assert_eq!(rig.count("collision"), 0);
        let (_, other) = ends(&rig.redirected(FROM_OUTSIDE, &syn(second)));
        assert_ne!(one, other);
        // Both ports begin their rounds with the same one.
        assert_eq!(rig.count("collision"), 1);
        for (frontend, task) in [(first, one), (second, other)] {
            let reply = tcp(task, CLIENT, SYN | ACK, &[], b"");
            assert_eq!(ends(&rig.redirected(FROM_MESH, &reply)), (frontend, CLIENT));
        }
    });
}

#[test]
fn a_flow_that_no_backend_can_take_is_the_relays_from_then_on() {
    on_rig(|rig| {
        let [first, second, third] = at_three_ports(rig);
        for frontend in [first, second] {
            rig.redirected(FROM_OUTSIDE, &syn(frontend));
        }
        rig.judged(FROM_OUTSIDE, &syn(third), NEXT, "to_relay_collision");
        assert_eq!(rig.flow(CLIENT, third, 6).unwrap().kind, FLOW_RELAY);
        let known = rig.count("collision");
        assert!(known > 1);
        // Also when a backend could take it by now: the relay has it.
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, first, RST | ACK, &[], b""));
        for flags in [ACK, SYN] {
            let packet = tcp(CLIENT, third, flags, &[], b"");
            assert_eq!(rig.run(FROM_OUTSIDE, &packet), (NEXT, packet));
        }
        assert_eq!(rig.count("to_relay_collision"), 1);
        assert_eq!(rig.count("collision"), known);
        // Another port of the client is nobody's yet.
        let elsewhere = tcp((CLIENT.0, 1), third, SYN, &[], b"");
        rig.redirected(FROM_OUTSIDE, &elsewhere);
    });
}

#[test]
fn a_connection_that_a_socket_of_the_node_has_is_the_relays() {
    on_rig(|rig| {
        ip("link set lo up");
        ip("address add 10.77.0.11/24 dev lo");
        let frontend = SocketAddr::from(FRONTEND);
        let listener = TcpListener::bind(frontend).unwrap();
        let mut client = TcpStream::connect(frontend).unwrap();
        let (mut relayed, from) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        relayed.read_exact(&mut [0]).unwrap();
        // The fast path comes when the relay has served for long.
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let data = |from: End| tcp(from, FRONTEND, ACK, &[], b"y");
        let its_own = (FRONTEND.0, from.port());
        rig.judged(FROM_OUTSIDE, &data(its_own), NEXT, "to_relay_flow");
        assert!(rig.flow(its_own, FRONTEND, 6).is_none());
        // The listener has none, and what is no connection of the relay's may be another node's.
        rig.redirected(FROM_OUTSIDE, &data(CLIENT));
        assert_eq!(rig.count("to_relay_flow"), 1);
    });
}

#[test]
fn a_packet_for_which_there_is_no_network_any_more_is_dropped() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        rig.redirected(FROM_OUTSIDE, &syn(FRONTEND));
        let flow = rig.flow(CLIENT, FRONTEND, 6).unwrap();
        let network = u32::MAX;
        rig.put(CLIENT, FRONTEND, 6, Flow { network, ..flow });
        let data = tcp(CLIENT, FRONTEND, ACK, &[], b"x");
        rig.judged(FROM_OUTSIDE, &data, DROP, "drop_failed");
    });
}
