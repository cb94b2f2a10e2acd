//! Clients' packets, and the replies to them.

use super::*;

#[test]
fn a_client_is_sent_to_a_remote_task_and_the_reply_comes_from_the_frontend() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let syn = tcp(CLIENT, FRONTEND, SYN, &mss_after(0), b"");
        let out = rig.redirected(FROM_OUTSIDE, &syn);
        assert_eq!(ends(&out), (CLIENT, REMOTE));
        assert_eq!(mss_in(&out, 0), MSS);
        assert_eq!(rig.count("new_flow"), 1);
        assert_eq!(rig.flow(CLIENT, FRONTEND, 6).unwrap().kind, FLOW_FORWARD);

        let reply = rig.redirected(
            FROM_MESH,
            &tcp(REMOTE, CLIENT, SYN | ACK, &mss_after(0), b""),
        );
        assert_eq!(ends(&reply), (FRONTEND, CLIENT));
        assert_eq!(mss_in(&reply, 0), MSS);

        let data = rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, ACK, &[], b"odd"));
        assert_eq!(ends(&data), (CLIENT, REMOTE));
        let flow = rig.flow(CLIENT, FRONTEND, 6).unwrap();
        assert_eq!((flow.packets, rig.count("new_flow")), (2, 1));
        assert_eq!(flow.bytes, 3, "of data");
    });
}

#[test]
fn a_local_task_gets_the_frame_and_replies_by_its_own_link() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[LOCAL]);
        let out = rig.redirected(
            FROM_OUTSIDE,
            &tcp(CLIENT, FRONTEND, SYN, &mss_after(0), b""),
        );
        assert_eq!(ends(&out), (CLIENT, LOCAL));
        assert_eq!(out[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        assert_eq!(mss_in(&out, 0), 1460, "no tunnel, no clamp");
        let reply = tcp(LOCAL, CLIENT, SYN | ACK, &[], b"");
        assert_eq!(rig.run(FROM_MESH, &reply).0, DROP, "not by the tunnel");
        assert_eq!(ends(&rig.redirected(FROM_TASK, &reply)), (FRONTEND, CLIENT));
    });
}

#[test]
fn the_segment_size_is_lowered_wherever_the_option_stands() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        for (port, before) in (1000..).zip([0, 1, 2, 3, 7, 36]) {
            let out = rig.redirected(
                FROM_OUTSIDE,
                &tcp((CLIENT.0, port), FRONTEND, SYN, &mss_after(before), b""),
            );
            assert_eq!(mss_in(&out, before), MSS, "behind {before} bytes");
        }
        // Without the option, with a broken one, and with one that is small enough.
        for (port, options) in
            (2000..).zip([vec![], vec![5, 0, 2, 4], vec![3, 3, 7, 0], vec![2, 4, 2, 0]])
        {
            let out = rig.redirected(
                FROM_OUTSIDE,
                &tcp((CLIENT.0, port), FRONTEND, SYN, &options, b""),
            );
            assert_eq!(out[bytes::L4 + 20..], options);
        }
        assert_eq!(rig.count("mss_clamped"), 6);
    });
}

#[test]
fn round_robin_is_exact_and_goes_on_through_a_change() {
    on_rig(|rig| {
        let third = ([10, 208, 2, 3], 80);
        rig.serve(Protocol::Tcp, &[LOCAL, REMOTE]);
        let turn = |rig: &mut Rig, port| {
            ends(&rig.redirected(
                FROM_OUTSIDE,
                &tcp((CLIENT.0, port), FRONTEND, SYN, &[], b""),
            ))
            .1
        };
        let first: Vec<End> = (0..4).map(|n| turn(rig, 1000 + n)).collect();
        assert_eq!((first[0], first[1]), (first[2], first[3]));
        assert_ne!(first[0], first[1]);
        rig.serve(Protocol::Tcp, &[LOCAL, REMOTE, third]);
        let mut then: Vec<End> = (0..6).map(|n| turn(rig, 2000 + n)).collect();
        assert_eq!(then[..3], then[3..]);
        then.sort_unstable();
        then.dedup();
        assert_eq!(then.len(), 3);
    });
}

#[test]
fn udp_has_its_checksum_renewed_and_one_without_stays_without() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE]);
        let out = rig.redirected(FROM_OUTSIDE, &udp(CLIENT, FRONTEND, b"question", true));
        assert_eq!(ends(&out), (CLIENT, REMOTE));
        let bare = rig.redirected(FROM_OUTSIDE, &udp(CLIENT, FRONTEND, b"question", false));
        assert_eq!(bare[bytes::L4 + 6..bytes::L4 + 8], [0, 0]);
        assert_eq!(
            ends(&rig.redirected(FROM_MESH, &udp(REMOTE, CLIENT, b"answer", true))),
            (FRONTEND, CLIENT)
        );
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let mut arp = vec![0xff; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        let elsewhere = tcp(CLIENT, (octets("10.77.0.12"), 8080), SYN, &[], b"");
        let ssh = tcp(CLIENT, (FRONTEND.0, 22), SYN, &[], b"");
        for packet in [&arp, &elsewhere, &ssh] {
            assert_eq!(rig.run(FROM_OUTSIDE, packet), (NEXT, packet.clone()));
        }
        let between_tasks = tcp(REMOTE, LOCAL, ACK, &[], b"x");
        for program in [FROM_MESH, FROM_TASK] {
            assert_eq!(
                rig.run(program, &between_tasks),
                (NEXT, between_tasks.clone())
            );
        }
        let by_itself = tcp(LOCAL, CLIENT, SYN, &[], b"");
        assert_eq!(rig.run(FROM_TASK, &by_itself).0, NEXT);
        let to_node = udp(LOCAL, (FRONTEND.0, 53), b"name", true);
        assert_eq!(rig.run(FROM_TASK, &to_node).0, NEXT);
    });
}

#[test]
fn what_is_not_carried_is_left_to_the_relay_and_counted() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[]);
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        rig.judged(FROM_OUTSIDE, &syn, NEXT, "to_relay_no_backend");
        rig.serve(Protocol::Tcp, &[REMOTE]);
        // Not the first one of its packet.
        let mut fragment = syn.clone();
        fragment[IP + 7] = 100;
        rig.judged(FROM_OUTSIDE, &fragment, NEXT, "to_relay_fragment");
        let mut options = syn.clone();
        options[IP] = 0x46;
        rig.judged(FROM_OUTSIDE, &options, NEXT, "to_relay_options");
        // A backend on a node without the fast path: the relay has all of the frontend.
        rig.plane.surroundings.peers.clear();
        rig.serve(Protocol::Tcp, &[LOCAL, REMOTE]);
        rig.judged(FROM_OUTSIDE, &syn, NEXT, "to_relay_no_backend");
        let frontend = spec(Protocol::Tcp, &[]).frontend;
        assert!(
            rig.plane
                .left_to_relay(&frontend)
                .unwrap()
                .contains("10.208.2.2")
        );
    });
}

#[test]
fn a_tasks_fragments_never_show_it_to_a_client() {
    on_rig(|rig| {
        let cut = |mut packet: Vec<u8>, more: u8, offset: u8| {
            packet[IP + 6] = more;
            packet[IP + 7] = offset;
            packet
        };
        let reply = udp(LOCAL, CLIENT, b"long", true);
        let mut options = reply.clone();
        options[IP] = 0x46;
        rig.judged(
            FROM_TASK,
            &cut(reply.clone(), 0x20, 0),
            DROP,
            "drop_no_back",
        );
        for packet in [cut(reply, 0, 185), options] {
            rig.judged(FROM_TASK, &packet, DROP, "drop_not_carried");
        }
        for to in [REMOTE, (FRONTEND.0, 53)] {
            let packet = cut(udp(LOCAL, to, b"long", true), 0x20, 0);
            assert_eq!(rig.run(FROM_TASK, &packet), (NEXT, packet.clone()));
        }
    });
}

/// Else what the backend sends to the task of that address would be taken for replies.
#[test]
fn a_client_outside_with_an_address_of_the_backends_network_gets_no_flow() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let task = ([10, 208, 3, 3], 40_000);
        let forged = tcp(task, FRONTEND, SYN, &[], b"");
        rig.judged(FROM_OUTSIDE, &forged, NEXT, "to_relay_source");
        let forged = tcp((task.0, 1), FRONTEND, ACK, &[], b"");
        rig.judged(FROM_OUTSIDE, &forged, DROP, "drop_no_flow");
        assert!(rig.flow(REMOTE, task, 6).is_none());
        assert!(rig.flow(REMOTE, (task.0, 1), 6).is_none());
    });
}

#[test]
fn what_no_one_knows_is_dropped() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let reset = tcp(CLIENT, FRONTEND, RST, &[], b"");
        rig.judged(FROM_OUTSIDE, &reset, DROP, "drop_no_flow");
        let reply = tcp(REMOTE, CLIENT, ACK, &[], b"x");
        rig.judged(FROM_MESH, &reply, DROP, "drop_no_return");
        let own_reply = tcp(LOCAL, CLIENT, ACK, &[], b"x");
        rig.judged(FROM_TASK, &own_reply, DROP, "drop_no_back");
        let to_task = tcp(CLIENT, LOCAL, ACK, &[], b"x");
        rig.judged(FROM_MESH, &to_task, DROP, "drop_not_member");
    });
}

#[test]
fn a_removed_backend_ends_its_flows() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        rig.serve(Protocol::Tcp, &[LOCAL]);
        rig.judged(
            FROM_OUTSIDE,
            &tcp(CLIENT, FRONTEND, ACK, &[], b"x"),
            NEXT,
            "ended",
        );
        rig.judged(
            FROM_MESH,
            &tcp(REMOTE, CLIENT, ACK, &[], b"x"),
            DROP,
            "drop_gone",
        );
        // The port's next connection, and any datagram, goes to a backend that is there.
        let out = rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        assert_eq!(ends(&out).1, LOCAL);
        rig.serve(Protocol::Udp, &[REMOTE]);
        rig.redirected(FROM_OUTSIDE, &udp(CLIENT, FRONTEND, b"x", true));
        rig.serve(Protocol::Udp, &[LOCAL]);
        assert_eq!(
            ends(&rig.redirected(FROM_OUTSIDE, &udp(CLIENT, FRONTEND, b"x", true))).1,
            LOCAL
        );
    });
}

#[test]
fn a_port_used_again_is_a_new_connection() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE, LOCAL]);
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        let first = ends(&rig.redirected(FROM_OUTSIDE, &syn)).1;
        // At once again it is a retransmission.
        assert_eq!(ends(&rig.redirected(FROM_OUTSIDE, &syn)).1, first);
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, FIN | ACK, &[], b""));
        assert_ne!(ends(&rig.redirected(FROM_OUTSIDE, &syn)).1, first);
        assert_eq!(rig.count("new_flow"), 2);
    });
}

#[test]
fn icmp_errors_are_translated_both_ways() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE]);
        let forward = rig.redirected(FROM_OUTSIDE, &udp(CLIENT, FRONTEND, b"x", true));
        let back = rig.redirected(FROM_MESH, &udp(REMOTE, CLIENT, b"x", true));
        // About the reply, from a router on the client's side: to the task, about what the task sent.
        let router = octets("10.77.0.1");
        let out = rig.redirected(FROM_OUTSIDE, &too_big(router, &back));
        assert_eq!((ends(&out).0.0, ends(&out).1.0), (router, REMOTE.0));
        assert_eq!(inner_ends(&out), (REMOTE, CLIENT));
        // About the client's packet, from the task itself: as if from the frontend.
        let out = rig.redirected(FROM_MESH, &too_big(REMOTE.0, &forward));
        assert_eq!((ends(&out).0.0, ends(&out).1.0), (FRONTEND.0, CLIENT.0));
        assert_eq!(inner_ends(&out), (CLIENT, FRONTEND));
        assert_eq!(rig.count("icmp_translated"), 2);
        let strange = too_big(router, &udp((FRONTEND.0, 9), CLIENT, b"x", true));
        assert_eq!(rig.run(FROM_OUTSIDE, &strange), (NEXT, strange.clone()));
    });
}

#[test]
fn a_task_replies_through_the_node_that_the_client_came_by() {
    on_rig(|rig| {
        let back = Flow {
            kind: 4,
            node: host_order(Ipv4Addr::new(10, 77, 0, 12)),
            network: 1,
            ifindex: 1,
            ..Flow::default()
        };
        rig.put(LOCAL, CLIENT, 6, back);
        let reply = tcp(LOCAL, CLIENT, SYN | ACK, &mss_after(1), b"");
        let out = rig.redirected(FROM_TASK, &reply);
        assert_eq!(ends(&out), (LOCAL, CLIENT), "the ingress node rewrites it");
        assert_eq!(mss_in(&out, 1), MSS);
        assert_eq!(rig.flow(LOCAL, CLIENT, 6).unwrap().packets, 1);
    });
}

#[test]
fn a_specific_address_goes_before_all_addresses() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let mut one = spec(Protocol::Tcp, &[LOCAL]);
        one.frontend.address = FrontendAddress::Ip(IpAddr::from(FRONTEND.0));
        rig.plane.upsert(&Arc::new(one)).unwrap();
        let out = rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        assert_eq!(ends(&out).1, LOCAL);
    });
}

#[test]
fn a_task_that_comes_again_elsewhere_ends_the_flows_to_its_old_place() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[LOCAL]);
        let datagram = udp(CLIENT, FRONTEND, b"x", true);
        rig.redirected(FROM_OUTSIDE, &datagram);
        let node = host_order(Ipv4Addr::new(10, 77, 0, 12));
        let deliver = |ifindex| Flow {
            kind: FLOW_DELIVER,
            node,
            ifindex,
            ..Flow::default()
        };
        rig.put(CLIENT, LOCAL, 17, deliver(1));
        rig.put(CLIENT, (LOCAL.0, 81), 17, deliver(9));

        let task = rig
            .plane
            .surroundings
            .tasks
            .get_mut(&Ipv4Addr::from(LOCAL.0))
            .unwrap();
        task.mac = MacAddress([2, 0, 0, 0, 0, 7]);
        assert!(rig.plane.write_surroundings().unwrap(), "something moved");
        rig.serve(Protocol::Udp, &[LOCAL]);
        let out = rig.redirected(FROM_OUTSIDE, &datagram);
        assert_eq!(out[..6], [2, 0, 0, 0, 0, 7]);
        assert_eq!(rig.count("new_flow"), 2);
        assert!(
            rig.flow(CLIENT, LOCAL, 17).is_some() && rig.flow(CLIENT, (LOCAL.0, 81), 17).is_none()
        );
    });
}
