//! What the agent sends as if it came from a client.

use std::{num::NonZeroU32, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, Protocol as Number, RecvFlags, SocketType, recv, socket,
    sockopt::{Timeout, set_socket_timeout},
};

use super::*;
use crate::{layout::ROUTED, links::FROM_AGENT};

const PASS: u32 = 0;
/// `ETH_P_ALL` (`linux/if_ether.h`), in the network's order.
const ALL: u32 = 0x0003_u16.to_be() as u32;

/// Hears all that any link of the test's namespace sends or receives.
fn listen() -> OwnedFd {
    let all = NonZeroU32::new(ALL).map(Number::from_raw);
    let socket = socket(AddressFamily::PACKET, SocketType::RAW, all).unwrap();
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5))).unwrap();
    socket
}

/// The next frame with TCP that is heard.
fn heard(by: &OwnedFd) -> Vec<u8> {
    loop {
        let mut frame = [0; 2048];
        let (length, _) = recv(by, &mut frame[..], RecvFlags::empty()).expect("nothing is heard");
        let frame = &frame[..length];
        if frame[12..14] == [8, 0] && frame[IP + 9] == 6 {
            return frame.to_vec();
        }
    }
}

#[test]
fn a_packet_of_the_agents_goes_the_way_of_its_flow() {
    on_rig(|rig| {
        ip("link set lo up");
        cable("task", "inside");
        let around = &mut rig.plane.surroundings;
        around.tasks.get_mut(&LOCAL.0.into()).unwrap().link = "task".into();
        rig.plane.write_surroundings().unwrap();
        rig.serve(Protocol::Tcp, &[LOCAL, REMOTE]);
        let tasks = [1, 2].map(|port| {
            let client = (CLIENT.0, port);
            let syn = tcp(client, FRONTEND, SYN, &[], b"");
            let (_, task) = ends(&rig.redirected(FROM_OUTSIDE, &syn));
            (client, task)
        });
        assert_ne!(tasks[0].1, tasks[1].1);
        for (client, task) in tasks {
            let ears = listen();
            let reset = tcp(client, FRONTEND, RST, &[], b"");
            let (verdict, _) = rig.run(FROM_AGENT, &reset);
            assert_eq!(verdict, PASS, "{task:?}");
            let frame = heard(&ears);
            assert_eq!(ends(&frame), (client, task));
            assert_checksums(&frame);
            if task == LOCAL {
                assert_eq!(frame[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
            }
        }
    });
}

#[test]
fn a_packet_of_the_agents_that_is_of_no_flow_of_a_client_goes_nowhere() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let reset = tcp(CLIENT, FRONTEND, RST, &[], b"");
        assert_eq!(rig.run(FROM_AGENT, &reset), (DROP, reset.clone()));
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        let flow = rig.flow(CLIENT, FRONTEND, 6).unwrap();
        let back = tcp(REMOTE, CLIENT, RST, &[], b"");
        assert_eq!(rig.run(FROM_AGENT, &back), (DROP, back.clone()));
        // What the kernel routes it can send by itself.
        for broken in [
            Flow {
                node: ROUTED,
                ..flow
            },
            Flow {
                network: u32::MAX,
                ..flow
            },
        ] {
            rig.put(CLIENT, FRONTEND, 6, broken);
            assert_eq!(rig.run(FROM_AGENT, &reset), (DROP, reset.clone()));
        }
    });
}
