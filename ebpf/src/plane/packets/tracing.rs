//! What the programs tell of packets while someone listens.

use super::*;
use crate::{Program, TraceEvent, TraceFilter, Tracer, Verdict, Way};

const NODE_2: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);

fn all_of_the_client() -> TraceFilter {
    TraceFilter {
        client: CLIENT.0.into(),
        client_port: None,
        frontend: None,
        frontend_port: None,
        protocol: None,
    }
}

fn listen(rig: &Rig, filter: TraceFilter) -> Tracer {
    Tracer::start(rig.plane.pins.parent().unwrap(), filter).unwrap()
}

/// The one event that a packet makes.
fn told(rig: &mut Rig, tracer: &mut Tracer, program: &str, packet: &[u8]) -> TraceEvent {
    let (verdict, after) = rig.run(program, packet);
    let event = tracer.next_event().expect("an event");
    assert_eq!(tracer.next_event(), None, "one packet, one event");
    if verdict == REDIRECT && !event.icmp_error {
        assert_eq!(as_ends(event.after), ends(&after));
    }
    event
}

fn as_ends(ends: crate::Ends) -> (End, End) {
    let end = |at: std::net::SocketAddr| match at.ip() {
        IpAddr::V4(ip) => (ip.octets(), at.port()),
        IpAddr::V6(ip) => panic!("{ip}"),
    };
    (end(ends.from), end(ends.to))
}

fn left(event: &TraceEvent) -> &'static str {
    match event.verdict {
        Verdict::Left(reason) => reason.map_or("", |counter| counter.name),
        ref other => panic!("{other:?}"),
    }
}

fn dropped(event: &TraceEvent) -> &'static str {
    match event.verdict {
        Verdict::Dropped(Some(counter)) => counter.name,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_flow_through_the_tunnel_is_told_there_and_back() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let mut tracer = listen(rig, all_of_the_client());
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
        let event = told(rig, &mut tracer, FROM_OUTSIDE, &syn);
        assert_eq!(
            (event.program, event.link.as_str(), event.protocol),
            (Program::FromOutside, "lo", Some(Protocol::Tcp))
        );
        assert_eq!(as_ends(event.before), (CLIENT, FRONTEND));
        assert_eq!(as_ends(event.after), (CLIENT, REMOTE));
        assert_eq!(
            (event.length, event.tcp_flags, event.first),
            ((syn.len() - IP) as u32, SYN, true)
        );
        assert!(event.at.as_secs().abs_diff(now.cast_unsigned()) <= 2);
        let Verdict::Forwarded { target, way } = event.verdict else {
            panic!("{event:?}");
        };
        let spec = spec(Protocol::Tcp, &[REMOTE]);
        assert_eq!(way, Way::Tunnel(NODE_2));
        assert_eq!(
            (target.service, target.name, target.task.as_str()),
            (
                spec.service_name.clone(),
                spec.backends[0].name.clone(),
                spec.backends[0].task.as_str()
            )
        );

        let reply = tcp(REMOTE, CLIENT, SYN | ACK, &[], b"");
        let event = told(rig, &mut tracer, FROM_MESH, &reply);
        assert_eq!(as_ends(event.before), (REMOTE, CLIENT));
        assert_eq!(as_ends(event.after), (FRONTEND, CLIENT));
        assert!(event.first);
        assert!(
            matches!(event.verdict, Verdict::GivenBack { way: Way::Tunnel(NODE_2), ref target } if target.name == spec.backends[0].name)
        );
        let more = tcp(CLIENT, FRONTEND, ACK, &[], b"more");
        let event = told(rig, &mut tracer, FROM_OUTSIDE, &more);
        assert!(!event.first && matches!(event.verdict, Verdict::Forwarded { .. }));
        assert_eq!(tracer.lost().unwrap(), 0);
    });
}

#[test]
fn a_local_task_is_told_without_a_tunnel() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[LOCAL]);
        let mut tracer = listen(rig, all_of_the_client());
        let event = told(
            rig,
            &mut tracer,
            FROM_OUTSIDE,
            &udp(CLIENT, FRONTEND, b"x", true),
        );
        assert_eq!((event.protocol, event.tcp_flags), (Some(Protocol::Udp), 0));
        assert!(matches!(
            event.verdict,
            Verdict::Forwarded { way: Way::Here, .. }
        ));
        let event = told(rig, &mut tracer, FROM_TASK, &udp(LOCAL, CLIENT, b"x", true));
        assert_eq!(event.program, Program::FromTask);
        assert_eq!(as_ends(event.after), (FRONTEND, CLIENT));
        assert!(matches!(
            event.verdict,
            Verdict::GivenBack { way: Way::Here, .. }
        ));
    });
}

#[test]
fn a_task_that_calls_a_service_is_a_client() {
    on_rig(|rig| {
        let mut spec = spec(Protocol::Tcp, &[(REMOTE.0, 0)]);
        let vip = ([10, 208, 255, 1], 80);
        spec.frontend.address = FrontendAddress::Vip(ingress(), vip.0.into());
        spec.frontend.port = 0;
        rig.plane.upsert(&Arc::new(spec)).unwrap();
        let caller = (LOCAL.0, 50_000);
        let filter = |port| TraceFilter {
            client: LOCAL.0.into(),
            frontend: Some(vip.0.into()),
            frontend_port: Some(port),
            ..all_of_the_client()
        };
        let syn = tcp(caller, vip, SYN, &[], b"");
        let mut tracer = listen(rig, filter(81));
        rig.run(FROM_TASK, &syn);
        assert_eq!(tracer.next_event(), None, "of another frontend");
        drop(tracer);
        let mut tracer = listen(rig, filter(vip.1));
        let event = told(rig, &mut tracer, FROM_TASK, &syn);
        assert_eq!(as_ends(event.after), (caller, REMOTE));
        assert!(matches!(
            event.verdict,
            Verdict::Forwarded {
                way: Way::Routed,
                ..
            }
        ));
        let reply = tcp(REMOTE, caller, SYN | ACK, &[], b"");
        let event = told(rig, &mut tracer, FROM_MESH, &reply);
        assert_eq!(as_ends(event.after), (vip, caller));
        assert!(matches!(
            event.verdict,
            Verdict::GivenBack {
                way: Way::Routed,
                ..
            }
        ));
    });
}

#[test]
fn the_tasks_node_tells_its_part() {
    on_rig(|rig| {
        let node = host_order(NODE_2);
        // The tunnel's key is not to be had here: the way back alone.
        let back = Flow {
            kind: crate::layout::FLOW_BACK,
            node,
            network: 1,
            ifindex: 1,
            ..Flow::default()
        };
        rig.put(LOCAL, CLIENT, 6, back);
        let mut tracer = listen(rig, all_of_the_client());
        let reply = tcp(LOCAL, CLIENT, SYN | ACK, &[], b"");
        let event = told(rig, &mut tracer, FROM_TASK, &reply);
        assert_eq!(event.verdict, Verdict::SentBack { node: NODE_2 });
        assert!(event.first);
        let to_task = tcp(CLIENT, LOCAL, ACK, &[], b"x");
        let event = told(rig, &mut tracer, FROM_MESH, &to_task);
        assert_eq!(dropped(&event), "drop_not_member");
    });
}

#[test]
fn what_is_left_to_the_relay_is_told_with_the_reason() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[]);
        let mut tracer = listen(rig, all_of_the_client());
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        let event = told(rig, &mut tracer, FROM_OUTSIDE, &syn);
        assert_eq!(left(&event), "to_relay_no_backend");
        assert_eq!(event.before, event.after);

        rig.serve(Protocol::Tcp, &[REMOTE]);
        let mut fragment = syn.clone();
        fragment[IP + 7] = 100;
        let event = told(rig, &mut tracer, FROM_OUTSIDE, &fragment);
        assert_eq!(left(&event), "to_relay_fragment");
        let bare = |end: End| (end.0, 0);
        assert_eq!(
            as_ends(event.before),
            (bare(CLIENT), bare(FRONTEND)),
            "a later fragment has no ports"
        );
        let mut options = syn.clone();
        options[IP] = 0x46;
        let event = told(rig, &mut tracer, FROM_OUTSIDE, &options);
        assert_eq!(
            (left(&event), event.protocol),
            ("to_relay_options", Some(Protocol::Tcp))
        );

        rig.put(
            CLIENT,
            FRONTEND,
            6,
            Flow {
                kind: crate::layout::FLOW_RELAY,
                ..Flow::default()
            },
        );
        let more = tcp(CLIENT, FRONTEND, ACK, &[], b"x");
        let event = told(rig, &mut tracer, FROM_OUTSIDE, &more);
        assert_eq!(event.verdict, Verdict::Relayed);
    });
}

#[test]
fn drops_are_told_with_the_reason() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let mut tracer = listen(rig, all_of_the_client());
        let reset = tcp(CLIENT, FRONTEND, RST, &[], b"");
        assert_eq!(
            dropped(&told(rig, &mut tracer, FROM_OUTSIDE, &reset)),
            "drop_no_flow"
        );
        let reply = tcp(REMOTE, CLIENT, ACK, &[], b"x");
        assert_eq!(
            dropped(&told(rig, &mut tracer, FROM_MESH, &reply)),
            "drop_no_return"
        );
        let own_reply = tcp(LOCAL, CLIENT, ACK, &[], b"x");
        assert_eq!(
            dropped(&told(rig, &mut tracer, FROM_TASK, &own_reply)),
            "drop_no_back"
        );
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        assert!(tracer.next_event().is_some());
        rig.serve(Protocol::Tcp, &[LOCAL]);
        let ack = tcp(CLIENT, FRONTEND, ACK, &[], b"x");
        assert_eq!(left(&told(rig, &mut tracer, FROM_OUTSIDE, &ack)), "ended");
        assert_eq!(
            dropped(&told(rig, &mut tracer, FROM_MESH, &reply)),
            "drop_gone"
        );
    });
}

#[test]
fn an_icmp_error_is_told_by_the_flow_that_it_is_about() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE]);
        rig.redirected(FROM_OUTSIDE, &udp(CLIENT, FRONTEND, b"x", true));
        let back = rig.redirected(FROM_MESH, &udp(REMOTE, CLIENT, b"x", true));
        let mut tracer = listen(rig, all_of_the_client());
        let error = too_big(octets("10.77.0.1"), &back);
        let event = told(rig, &mut tracer, FROM_OUTSIDE, &error);
        assert!(event.icmp_error);
        assert_eq!(as_ends(event.before), (CLIENT, FRONTEND));
        assert_eq!(as_ends(event.after), (CLIENT, REMOTE));
        assert!(matches!(event.verdict, Verdict::Forwarded { .. }));
    });
}

#[test]
fn only_what_is_asked_for_is_told() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        let reply = tcp(REMOTE, CLIENT, SYN | ACK, &[], b"");
        let ssh = tcp(CLIENT, (FRONTEND.0, 22), SYN, &[], b"");
        let mut seen = |filter: TraceFilter| {
            let mut tracer = listen(rig, filter);
            for (program, packet) in [
                (FROM_OUTSIDE, &syn),
                (FROM_MESH, &reply),
                (FROM_OUTSIDE, &ssh),
            ] {
                rig.run(program, packet);
            }
            std::iter::from_fn(|| tracer.next_event()).count()
        };
        let any = all_of_the_client();
        let client = |ip: &str| TraceFilter {
            client: ip.parse().unwrap(),
            ..any
        };
        let client_port = |port| TraceFilter {
            client_port: Some(port),
            ..any
        };
        let frontend = |ip: [u8; 4], port| TraceFilter {
            frontend: Some(ip.into()),
            frontend_port: Some(port),
            ..any
        };
        let protocol = |protocol| TraceFilter {
            protocol: Some(protocol),
            ..any
        };
        assert_eq!(seen(any), 2, "not what is not ours");
        assert_eq!(seen(client("10.77.0.98")), 0);
        assert_eq!(seen(client_port(CLIENT.1)), 2);
        assert_eq!(seen(client_port(1)), 0);
        assert_eq!(seen(frontend(FRONTEND.0, FRONTEND.1)), 2);
        assert_eq!(seen(frontend(FRONTEND.0, 22)), 1, "named, it is told");
        assert_eq!(seen(frontend([10, 77, 0, 12], FRONTEND.1)), 0);
        assert_eq!(seen(protocol(Protocol::Tcp)), 2);
        assert_eq!(seen(protocol(Protocol::Udp)), 0);
    });
}

#[test]
fn nothing_is_told_when_nobody_listens() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        rig.run(FROM_OUTSIDE, &syn);
        drop(listen(rig, all_of_the_client()));
        rig.run(FROM_OUTSIDE, &syn);
        // What one did not read is not for the next.
        let unread = listen(rig, all_of_the_client());
        rig.run(FROM_OUTSIDE, &syn);
        drop(unread);
        let mut tracer = listen(rig, all_of_the_client());
        assert_eq!(tracer.next_event(), None);
        rig.run(FROM_OUTSIDE, &syn);
        assert!(tracer.next_event().is_some());
        // One that was killed: its lease is over, and the first packet after that switches it off.
        tracer.set(1).unwrap();
        rig.run(FROM_OUTSIDE, &syn);
        assert_eq!(tracer.next_event(), None);
        assert_eq!(tracer.traced.get(&0, 0).unwrap().until, 0);
    });
}

#[test]
fn what_there_is_no_room_for_is_counted() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        let mut tracer = listen(rig, all_of_the_client());
        let data = tcp(CLIENT, (FRONTEND.0, 8080), ACK, &[], b"x");
        // A megabyte of events of 120 bytes with 8 before each.
        for _ in 0..14_000 {
            rig.run(FROM_OUTSIDE, &data);
        }
        let read = std::iter::from_fn(|| tracer.next_event()).count();
        let lost = tracer.lost().unwrap();
        assert_eq!(read as u64 + lost, 14_000);
        assert!(lost > 0, "{read} fitted");
        assert_eq!(rig.count("trace_lost"), lost);
        assert_eq!(listen(rig, all_of_the_client()).lost().unwrap(), 0);
    });
}
