//! Clients of IPv6.

use std::net::Ipv6Addr;

use portolan_model::ipv6_of;

use super::{
    ACK, Arc, BTreeSet, CLIENT, DROP, DataPlane, End, FLOW_FORWARD, FROM_MESH, FROM_OUTSIDE,
    FROM_TASK, FRONTEND, Flow, FrontendAddress, FrontendSpec, IP, IpAddr, Ipv4Addr, LOCAL,
    MacAddress, NEXT, Protocol, REDIRECT, REMOTE, RST, Rig, SYN, TaskLink, bytes, host_order,
    ingress, ipv6_bytes,
    ipv6_bytes::{End as End6, ends, error, extended, inner_ends, message, tcp, udp},
    link, mss_after, on_rig, spec, tuple,
};
use crate::{TraceFilter, Tracer, Verdict};

/// That of the test's network, as of one with the usual tunnel.
const MSS6: u16 = 1390;
pub(super) const CLIENT6: End6 = (Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x99), 40_000);
pub(super) const FRONTEND6: End6 = (Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11), 8080);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

pub(super) fn of(task: End) -> End6 {
    (ipv6_of(4096, task.0.into()), task.1)
}

/// The frontend with backends that all have IPv6 addresses.
fn spec6(protocol: Protocol, backends: &[End]) -> FrontendSpec {
    let mut spec = spec(protocol, backends);
    for backend in &mut spec.backends {
        let IpAddr::V4(ip) = backend.ip else {
            panic!("{backend:?}");
        };
        backend.ipv6 = Some(ipv6_of(4096, ip));
    }
    spec
}

pub(super) fn serve6(rig: &mut Rig, protocol: Protocol, backends: &[End]) {
    let spec = Arc::new(spec6(protocol, backends));
    rig.plane.upsert(&spec).unwrap();
}

/// A node that has an IPv6 address, too.
fn on_rig6<T: Send>(test: impl FnOnce(&mut Rig) -> T + Send) -> T {
    on_rig(|rig| {
        let own = &mut rig.plane.surroundings.own;
        own.insert(FRONTEND6.0.into());
        rig.plane.write_surroundings().unwrap();
        test(rig)
    })
}

fn syn(client: End6) -> Vec<u8> {
    tcp(client, FRONTEND6, SYN, &[], b"")
}

fn mss_of(frame: &[u8]) -> u16 {
    let at = ipv6_bytes::L4 + 20 + 2;
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn a_client_is_sent_to_a_remote_task_and_the_reply_comes_from_the_frontend() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Tcp, &[REMOTE]);
        let syn = tcp(CLIENT6, FRONTEND6, SYN, &mss_after(0), b"");
        let out = rig.redirected(FROM_OUTSIDE, &syn);
        assert_eq!(ends(&out), (CLIENT6, of(REMOTE)));
        assert_eq!((mss_of(&out), out[IP + 7]), (MSS6, 64));
        assert_eq!(rig.count("new_flow"), 1);

        let reply = tcp(of(REMOTE), CLIENT6, SYN | ACK, &mss_after(0), b"");
        let reply = rig.redirected(FROM_MESH, &reply);
        assert_eq!(ends(&reply), (FRONTEND6, CLIENT6));
        assert_eq!(mss_of(&reply), MSS6);

        let data = rig.redirected(FROM_OUTSIDE, &tcp(CLIENT6, FRONTEND6, ACK, &[], b"odd"));
        assert_eq!(ends(&data), (CLIENT6, of(REMOTE)));
        let flow = rig.flow(CLIENT6, FRONTEND6, 6).unwrap();
        assert_eq!((flow.kind, flow.packets, flow.bytes), (FLOW_FORWARD, 2, 3));
        let view = &rig.plane.live_flows(9)[0];
        assert_eq!(view.client, CLIENT6.into());
        assert_eq!(view.backend, of(REMOTE).into());
    });
}

#[test]
fn a_local_task_gets_the_frame_and_replies_by_its_own_link() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Tcp, &[LOCAL]);
        let syn = tcp(CLIENT6, FRONTEND6, SYN, &mss_after(0), b"");
        let out = rig.redirected(FROM_OUTSIDE, &syn);
        assert_eq!(ends(&out), (CLIENT6, of(LOCAL)));
        assert_eq!(out[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        assert_eq!(mss_of(&out), 1460, "no tunnel, no clamp");
        let reply = tcp(of(LOCAL), CLIENT6, SYN | ACK, &[], b"");
        assert_eq!(rig.run(FROM_MESH, &reply).0, DROP, "not by the tunnel");
        let reply = rig.redirected(FROM_TASK, &reply);
        assert_eq!(ends(&reply), (FRONTEND6, CLIENT6));
    });
}

#[test]
fn one_round_is_for_both_families() {
    on_rig6(|rig| {
        let third = ([10, 208, 2, 3], 80);
        serve6(rig, Protocol::Tcp, &[LOCAL, REMOTE, third]);
        let mut round = Vec::new();
        for port in 1..=6 {
            let to = if port % 2 == 0 {
                let packet = bytes::tcp((CLIENT.0, port), FRONTEND, SYN, &[], b"");
                let to = bytes::ends(&rig.redirected(FROM_OUTSIDE, &packet)).1.0;
                ipv6_of(4096, to.into())
            } else {
                let out = rig.redirected(FROM_OUTSIDE, &syn((CLIENT6.0, port)));
                ends(&out).1.0
            };
            round.push(to);
        }
        assert_eq!(round[..3], round[3..]);
        round.sort_unstable();
        round.dedup();
        assert_eq!(round.len(), 3);
    });
}

#[test]
fn a_datagrams_checksum_is_renewed_and_never_none() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Udp, &[REMOTE]);
        // One of these has a sum of 0, for which all ones is written.
        let has_sum_0 = (0..=u16::MAX).any(|number| {
            let datagram = udp(CLIENT6, FRONTEND6, &number.to_be_bytes());
            let out = rig.redirected(FROM_OUTSIDE, &datagram);
            out[ipv6_bytes::L4 + 6..][..2] == [0xff; 2]
        });
        assert!(has_sum_0);
        let answer = rig.redirected(FROM_MESH, &udp(of(REMOTE), CLIENT6, b"answer"));
        assert_eq!(ends(&answer), (FRONTEND6, CLIENT6));
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Tcp, &[REMOTE]);
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let packets = [
            // Neighbours, routers and groups.
            message(CLIENT6.0, ip("ff02::1:ff00:11"), 135),
            message(CLIENT6.0, FRONTEND6.0, 135),
            message(ip("fe80::1"), ip("ff02::1"), 134),
            extended(&message(ip("fe80::1"), ip("ff02::16"), 143), 0),
            message(CLIENT6.0, FRONTEND6.0, 128),
            syn((ip("fe80::99"), 1)),
            tcp(CLIENT6, (ip("fe80::11"), 8080), SYN, &[], b""),
            udp(CLIENT6, (ip("ff02::fb"), 5353), b"x"),
            // IPv4 in disguise.
            tcp(
                (ip("::ffff:10.77.0.99"), 40_000),
                (ip("::ffff:10.77.0.11"), 8080),
                SYN,
                &[],
                b"",
            ),
            tcp(CLIENT6, (FRONTEND6.0, 22), SYN, &[], b""),
            tcp(CLIENT6, (ip("fd77::12"), 8080), SYN, &[], b""),
        ];
        for packet in &packets {
            assert_eq!(rig.run(FROM_OUTSIDE, packet), (NEXT, packet.clone()));
        }
        for packet in &packets[..9] {
            for program in [FROM_MESH, FROM_TASK] {
                assert_eq!(rig.run(program, packet), (NEXT, packet.clone()));
            }
        }
        assert_eq!(rig.count("new_flow"), 0);
    });
}

#[test]
fn what_is_not_carried_is_left_to_the_relay_and_counted() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Tcp, &[]);
        let syn = syn(CLIENT6);
        rig.judged(FROM_OUTSIDE, &syn, NEXT, "to_relay_no_backend");
        serve6(rig, Protocol::Tcp, &[REMOTE]);
        let fragment = extended(&syn, 44);
        rig.judged(FROM_OUTSIDE, &fragment, NEXT, "to_relay_fragment");
        for header in [0, 43, 51, 60, 135] {
            let options = extended(&syn, header);
            rig.judged(FROM_OUTSIDE, &options, NEXT, "to_relay_options");
        }
        let reply = udp(of(LOCAL), CLIENT6, b"long");
        for header in [44, 60] {
            let reply = extended(&reply, header);
            rig.judged(FROM_TASK, &reply, DROP, "drop_not_carried");
        }
        let to_node = extended(&udp(of(LOCAL), FRONTEND6, b"long"), 44);
        assert_eq!(rig.run(FROM_TASK, &to_node).0, NEXT);
    });
}

/// Not even a turn of IPv4's is taken.
#[test]
fn a_frontend_whose_backends_do_not_all_have_ipv6_is_the_relays() {
    on_rig6(|rig| {
        let mut some = spec6(Protocol::Tcp, &[LOCAL, REMOTE]);
        some.backends[0].ipv6 = None;
        rig.plane.upsert(&Arc::new(some.clone())).unwrap();
        let turn = |rig: &mut Rig, port| {
            let packet = bytes::tcp((CLIENT.0, port), FRONTEND, SYN, &[], b"");
            bytes::ends(&rig.redirected(FROM_OUTSIDE, &packet)).1
        };
        let first = turn(rig, 1);
        rig.judged(FROM_OUTSIDE, &syn(CLIENT6), NEXT, "to_relay_no_ipv6");
        let more = tcp(CLIENT6, FRONTEND6, ACK, &[], b"x");
        rig.judged(FROM_OUTSIDE, &more, NEXT, "to_relay_no_ipv6");
        assert_ne!(turn(rig, 2), first);
        assert_eq!(turn(rig, 3), first);
        // Of one address of IPv6 it would have no clients.
        some.frontend.address = FrontendAddress::Ip(FRONTEND6.0.into());
        let refused = rig.plane.upsert(&Arc::new(some)).unwrap_err();
        assert!(refused.to_string().contains("IPv6"), "{refused}");
    });
}

#[test]
fn one_address_of_ipv6_is_published() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Tcp, &[REMOTE]);
        let mut one = spec6(Protocol::Tcp, &[LOCAL]);
        one.frontend.address = FrontendAddress::Ip(FRONTEND6.0.into());
        rig.plane.upsert(&Arc::new(one.clone())).unwrap();
        let out = rig.redirected(FROM_OUTSIDE, &syn(CLIENT6));
        assert_eq!(ends(&out).1, of(LOCAL));
        let packet = bytes::tcp(CLIENT, FRONTEND, SYN, &[], b"");
        let out = rig.redirected(FROM_OUTSIDE, &packet);
        assert_eq!(bytes::ends(&out).1, REMOTE);
        rig.plane.served.clear();
        rig.plane.adopt().unwrap();
        assert_eq!(*rig.plane.dump().unwrap()[&one.frontend], one);
    });
}

#[test]
fn icmp_errors_are_translated_both_ways() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Tcp, &[REMOTE]);
        let forward = rig.redirected(FROM_OUTSIDE, &syn(CLIENT6));
        let reply = tcp(of(REMOTE), CLIENT6, SYN | ACK, &[], b"");
        let back = rig.redirected(FROM_MESH, &reply);
        for (kind, code) in [(1, 4), (2, 0), (3, 0), (4, 1)] {
            // About the reply, from a router on the client's side: to the task, about what the task sent.
            let out = rig.redirected(FROM_OUTSIDE, &error(ROUTER6, &back, kind, code));
            assert_eq!((ends(&out).0.0, ends(&out).1.0), (ROUTER6, of(REMOTE).0));
            assert_eq!(inner_ends(&out), (of(REMOTE), CLIENT6));
            // About the client's packet, from the task itself: as if from the frontend. And from a router before it.
            let about = error(of(REMOTE).0, &forward, kind, code);
            let out = rig.redirected(FROM_MESH, &about);
            assert_eq!((ends(&out).0.0, ends(&out).1.0), (FRONTEND6.0, CLIENT6.0));
            assert_eq!(inner_ends(&out), (CLIENT6, FRONTEND6));
            let out = rig.redirected(FROM_MESH, &error(ROUTER6, &forward, kind, code));
            assert_eq!((ends(&out).0.0, ends(&out).1.0), (ROUTER6, CLIENT6.0));
        }
        assert_eq!(rig.count("icmp_translated"), 12);
        let strange = error(ROUTER6, &udp((FRONTEND6.0, 9), CLIENT6, b"x"), 2, 0);
        assert_eq!(rig.run(FROM_OUTSIDE, &strange), (NEXT, strange.clone()));
    });
}

#[test]
fn a_refused_datagram_is_the_last_to_that_backend() {
    on_rig6(|rig| {
        let other = ([10, 208, 2, 3], 80);
        serve6(rig, Protocol::Udp, &[REMOTE, other]);
        let packet = udp(CLIENT6, FRONTEND6, b"x");
        let sent = rig.redirected(FROM_OUTSIDE, &packet);
        let task = ends(&sent).1;
        let size = error(ROUTER6, &sent, 2, 0);
        rig.redirected(FROM_MESH, &size);
        let refusal = error(task.0, &sent, 1, 4);
        rig.judged(FROM_MESH, &refusal, DROP, "drop_refused");
        assert_ne!(ends(&rig.redirected(FROM_OUTSIDE, &packet)).1, task);
    });
}

#[test]
fn only_clients_on_the_list_begin_flows() {
    on_rig6(|rig| {
        let mut listed = spec6(Protocol::Tcp, &[REMOTE]);
        let allow = |rig: &mut Rig, spec: &mut FrontendSpec, prefix: &str| {
            spec.policy.allow = vec![prefix.parse().unwrap()];
            rig.plane.upsert(&Arc::new(spec.clone())).unwrap();
            rig.plane.served.clear();
            rig.plane.adopt().unwrap();
            assert_eq!(*rig.plane.dump().unwrap()[&spec.frontend], *spec);
        };
        let v4 = bytes::tcp(CLIENT, FRONTEND, SYN, &[], b"");
        allow(rig, &mut listed, "2001:db8::/32");
        rig.judged(FROM_OUTSIDE, &syn(CLIENT6), NEXT, "to_relay_not_allowed");
        let other = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
        rig.redirected(FROM_OUTSIDE, &syn((other, 1)));
        // All of IPv6 is nothing of IPv4, though its addresses are mapped into it; and the other way round.
        allow(rig, &mut listed, "::/0");
        rig.judged(FROM_OUTSIDE, &v4, NEXT, "to_relay_not_allowed");
        rig.redirected(FROM_OUTSIDE, &syn(CLIENT6));
        allow(rig, &mut listed, "0.0.0.0/0");
        rig.redirected(FROM_OUTSIDE, &v4);
        let next = syn((CLIENT6.0, 2));
        rig.judged(FROM_OUTSIDE, &next, NEXT, "to_relay_not_allowed");
    });
}

#[test]
fn what_no_one_knows_is_dropped() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Tcp, &[REMOTE]);
        let reset = tcp(CLIENT6, FRONTEND6, RST, &[], b"");
        rig.judged(FROM_OUTSIDE, &reset, DROP, "drop_no_flow");
        let reply = tcp(of(REMOTE), CLIENT6, ACK, &[], b"x");
        rig.judged(FROM_MESH, &reply, DROP, "drop_no_return");
        let own_reply = tcp(of(LOCAL), CLIENT6, ACK, &[], b"x");
        rig.judged(FROM_TASK, &own_reply, DROP, "drop_no_back");
        let to_task = tcp(CLIENT6, of(LOCAL), ACK, &[], b"x");
        rig.judged(FROM_MESH, &to_task, DROP, "drop_not_member");
        let forged = syn((ipv6_of(4096, Ipv4Addr::new(10, 208, 3, 3)), 1));
        rig.judged(FROM_OUTSIDE, &forged, NEXT, "to_relay_source");
    });
}

#[test]
fn a_task_replies_through_the_node_that_the_client_came_by() {
    on_rig6(|rig| {
        let back = Flow {
            kind: 4,
            node: host_order(Ipv4Addr::new(10, 77, 0, 12)),
            network: 1,
            ifindex: 1,
            ..Flow::default()
        };
        rig.put(of(LOCAL), CLIENT6, 6, back);
        let reply = tcp(of(LOCAL), CLIENT6, SYN | ACK, &mss_after(0), b"");
        let out = rig.redirected(FROM_TASK, &reply);
        assert_eq!(
            ends(&out),
            (of(LOCAL), CLIENT6),
            "the ingress node rewrites it"
        );
        assert_eq!(mss_of(&out), MSS6);
        assert_eq!(rig.flow(of(LOCAL), CLIENT6, 6).unwrap().packets, 1);
    });
}

#[test]
fn a_connection_is_found_again_and_else_goes_where_every_node_sends_it() {
    on_rig6(|rig| {
        let far = [REMOTE, ([10, 208, 2, 3], 80), ([10, 208, 2, 4], 80)];
        serve6(rig, Protocol::Tcp, &far);
        let mut seen = BTreeSet::new();
        for port in 1..=30 {
            let client = (CLIENT6.0, port);
            let begun = ends(&rig.redirected(FROM_OUTSIDE, &syn(client))).1;
            let there = tuple(client, FRONTEND6, 6);
            rig.plane.maps.flows.remove(&there).unwrap();
            let more = tcp(client, FRONTEND6, ACK, &[], b"x");
            let found = ends(&rig.redirected(FROM_OUTSIDE, &more)).1;
            assert_eq!(found, begun);
            let unknown = tcp((CLIENT6.0, 100 + port), FRONTEND6, ACK, &[], b"x");
            seen.insert(ends(&rig.redirected(FROM_OUTSIDE, &unknown)).1);
        }
        assert_eq!((rig.count("recovered"), rig.count("maglev")), (30, 30));
        assert_eq!(seen.len(), 3);
    });
}

/// The kernel has no ways of IPv6 between nodes, as it has of IPv4.
#[test]
fn a_task_that_calls_a_published_port_is_a_client() {
    on_rig6(|rig| {
        link("caller");
        let caller = ([10, 208, 1, 3], 40_000);
        let entry = TaskLink {
            network: ingress(),
            link: "caller".into(),
            mac: MacAddress([2, 0, 0, 0, 1, 7]),
            gateway_mac: MacAddress([2, 0, 0, 0, 0, 2]),
        };
        let tasks = &mut rig.plane.surroundings.tasks;
        tasks.insert(caller.0.into(), entry);
        rig.plane.write_surroundings().unwrap();
        serve6(rig, Protocol::Tcp, &[REMOTE]);
        let caller = of(caller);
        let (verdict, out) = rig.run_by("caller", FROM_TASK, &syn(caller));
        assert_eq!((verdict, ends(&out)), (REDIRECT, (caller, of(REMOTE))));
        let node = rig.flow(caller, FRONTEND6, 6).unwrap().node;
        assert_eq!(node, host_order(Ipv4Addr::new(10, 77, 0, 12)));
        let reply = tcp(of(REMOTE), caller, SYN | ACK, &[], b"");
        let back = rig.redirected(FROM_MESH, &reply);
        assert_eq!(ends(&back), (FRONTEND6, caller));
        assert_eq!(back[..6], [2, 0, 0, 0, 1, 7], "handed to the caller");
        // At the other node it is a client like those outside: here with no tunnel's key.
        let to_task = tcp(
            (ipv6_of(4096, [10, 208, 2, 9].into()), 9),
            of(LOCAL),
            SYN,
            &[],
            b"",
        );
        rig.judged(FROM_MESH, &to_task, DROP, "drop_not_member");
        let forged = syn((caller.0, 1));
        rig.judged(FROM_TASK, &forged, NEXT, "to_relay_source");
    });
}

#[test]
fn packets_are_told() {
    on_rig6(|rig| {
        serve6(rig, Protocol::Tcp, &[REMOTE]);
        let filter = TraceFilter {
            client: CLIENT6.0.into(),
            client_port: Some(CLIENT6.1),
            frontend: Some(FRONTEND6.0.into()),
            frontend_port: Some(FRONTEND6.1),
            protocol: Some(Protocol::Tcp),
        };
        let pins = rig.plane.pins.parent().unwrap().to_owned();
        let mut tracer = Tracer::start(&pins, filter).unwrap();
        let sent = rig.redirected(FROM_OUTSIDE, &syn(CLIENT6));
        let event = tracer.next_event().unwrap();
        assert_eq!(event.before.from, CLIENT6.into());
        assert_eq!(event.before.to, FRONTEND6.into());
        assert_eq!(event.after.to, of(REMOTE).into());
        assert!(matches!(event.verdict, Verdict::Forwarded { .. }));
        rig.run(FROM_OUTSIDE, &extended(&syn(CLIENT6), 44));
        let event = tracer.next_event().unwrap();
        assert_eq!(event.before.from, (CLIENT6.0, 0).into());
        assert!(
            matches!(event.verdict, Verdict::Left(Some(reason)) if reason.name == "to_relay_fragment")
        );
        rig.redirected(FROM_MESH, &error(of(REMOTE).0, &sent, 2, 0));
        let event = tracer.next_event().unwrap();
        assert!(event.icmp_error);
        assert_eq!(event.before.from, of(REMOTE).into());
        assert_eq!(event.after.from, FRONTEND6.into());
    });
}
