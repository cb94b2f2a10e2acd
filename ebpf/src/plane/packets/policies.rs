//! Who may begin a flow, when one is over, and who is taken for dead.

use std::time::Duration;

use super::{
    bytes::{RST, unreachable},
    *,
};

const OTHER: End = ([10, 208, 2, 3], 80);
const UDP: u8 = 17;

/// Lets a flow have begun, and last moved, so much earlier.
fn age(rig: &mut Rig, from: End, to: End, proto: u8, by: Duration) {
    let by = by.as_nanos() as u64;
    let flow = rig.flow(from, to, proto).unwrap();
    let older = Flow {
        created: flow.created - by,
        seen: flow.seen - by,
        ..flow
    };
    rig.put(from, to, proto, older);
}

fn asks(rig: &mut Rig, client: End) -> End {
    ends(&rig.redirected(FROM_OUTSIDE, &udp(client, FRONTEND, b"x", true))).1
}

fn answers(rig: &mut Rig, task: End, client: End) {
    rig.redirected(FROM_MESH, &udp(task, client, b"y", true));
}

fn failures(rig: &Rig) -> u64 {
    let backends = 0..3;
    backends
        .map(|index| rig.plane.backend_stats(index).connect_failures)
        .sum()
}

#[test]
fn only_clients_on_the_list_begin_flows() {
    on_rig(|rig| {
        let mut listed = spec(Protocol::Tcp, &[REMOTE]);
        let serve = |rig: &mut Rig, spec: &FrontendSpec| {
            rig.plane.upsert(&Arc::new(spec.clone())).unwrap();
        };
        let from = |ip: &str| tcp((octets(ip), 40_000), FRONTEND, SYN, &[], b"");
        listed.policy.allow = vec![
            "10.77.0.99/32".parse().unwrap(),
            "192.0.2.77/24".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ];
        serve(rig, &listed);
        rig.redirected(FROM_OUTSIDE, &from("10.77.0.99"));
        rig.redirected(FROM_OUTSIDE, &from("192.0.2.1"));
        for refused in ["10.77.0.98", "192.0.3.1"] {
            rig.judged(FROM_OUTSIDE, &from(refused), NEXT, "to_relay_not_allowed");
        }
        // Another frontend has no list, or its own.
        let mut other = listed.clone();
        other.frontend.port = 8081;
        other.policy.allow.clear();
        serve(rig, &other);
        let to_other = tcp(([192, 0, 3, 1], 1), (FRONTEND.0, 8081), SYN, &[], b"");
        rig.redirected(FROM_OUTSIDE, &to_other);

        listed.policy.allow = vec!["2001:db8::/32".parse().unwrap()];
        serve(rig, &listed);
        let open = tcp(CLIENT, FRONTEND, ACK, &[], b"x");
        rig.redirected(FROM_OUTSIDE, &open);
        let new = from("192.0.2.1");
        rig.redirected(FROM_OUTSIDE, &new);
        let next = tcp((octets("192.0.2.1"), 2), FRONTEND, SYN, &[], b"");
        rig.judged(FROM_OUTSIDE, &next, NEXT, "to_relay_not_allowed");

        listed.policy.allow.clear();
        serve(rig, &listed);
        rig.redirected(FROM_OUTSIDE, &from("192.0.3.1"));
        assert!(rig.plane.lists().unwrap().is_empty());
    });
}

/// What begins no connection begins no flow either, by which one could be begun that is not allowed.
#[test]
fn no_packet_but_one_of_a_client_on_the_list_begins_a_flow() {
    on_rig(|rig| {
        let mut listed = spec(Protocol::Tcp, &[REMOTE]);
        listed.policy.allow = vec!["192.0.2.0/24".parse().unwrap()];
        rig.plane.upsert(&Arc::new(listed)).unwrap();
        let packet = |from, flags| tcp(from, FRONTEND, flags, &[], b"");
        for flags in [0, ACK, FIN | ACK, SYN | ACK] {
            rig.judged(FROM_OUTSIDE, &packet(CLIENT, flags), DROP, "drop_no_flow");
        }
        let syn = packet(CLIENT, SYN);
        rig.judged(FROM_OUTSIDE, &syn, NEXT, "to_relay_not_allowed");
        let allowed = ([192, 0, 2, 1], 1);
        rig.redirected(FROM_OUTSIDE, &packet(allowed, ACK));
        // It is of no connection at all.
        let bare = packet(([192, 0, 2, 1], 2), FIN);
        rig.judged(FROM_OUTSIDE, &bare, DROP, "drop_no_flow");
    });
}

#[test]
fn a_list_outlives_the_agent_and_goes_with_its_frontend() {
    on_rig(|rig| {
        let mut listed = spec(Protocol::Udp, &[REMOTE]);
        listed.policy.allow = vec!["192.0.2.0/24".parse().unwrap()];
        listed.policy.tcp_idle_ms = Some(7);
        listed.policy.udp_idle_ms = 8;
        rig.plane.upsert(&Arc::new(listed.clone())).unwrap();
        rig.plane.served.clear();
        rig.plane.adopt().unwrap();
        let known = rig.plane.dump().unwrap();
        assert_eq!(*known[&listed.frontend], listed);
        rig.plane.remove(&listed.frontend).unwrap();
        assert!(rig.plane.lists().unwrap().is_empty());
    });
}

/// Else the relay's connection would get its first packet, and the old one's task the others.
#[test]
fn a_port_used_again_by_a_client_who_is_refused_is_all_the_relays() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        rig.redirected(FROM_OUTSIDE, &syn);
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, FIN | ACK, &[], b""));
        let mut listed = spec(Protocol::Tcp, &[REMOTE]);
        listed.policy.allow = vec!["192.0.2.0/24".parse().unwrap()];
        rig.plane.upsert(&Arc::new(listed)).unwrap();
        rig.judged(FROM_OUTSIDE, &syn, NEXT, "to_relay_not_allowed");
        assert!(rig.flow(CLIENT, FRONTEND, 6).is_none());
    });
}

#[test]
fn a_datagram_after_the_idle_time_begins_a_new_flow() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE, OTHER]);
        let idle = Duration::from_millis(spec(Protocol::Udp, &[]).policy.udp_idle_ms.into());
        let task = asks(rig, CLIENT);
        age(rig, CLIENT, FRONTEND, UDP, idle / 2);
        assert_eq!(asks(rig, CLIENT), task, "not for so long");
        age(rig, CLIENT, FRONTEND, UDP, idle * 2);
        answers(rig, task, CLIENT);
        assert_eq!(asks(rig, CLIENT), task, "replies are traffic too");
        age(rig, CLIENT, FRONTEND, UDP, idle * 2);
        age(rig, task, CLIENT, UDP, idle * 2);
        let late = udp(task, CLIENT, b"y", true);
        rig.judged(FROM_MESH, &late, DROP, "drop_idle");
        assert_ne!(asks(rig, CLIENT), task, "the next one's turn");
        assert_eq!(rig.count("new_flow"), 2);
    });
}

#[test]
fn acknowledgments_do_not_keep_a_connection_from_being_idle() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        let minute = Duration::from_mins(1);
        age(rig, CLIENT, FRONTEND, 6, minute);
        let seen = rig.flow(CLIENT, FRONTEND, 6).unwrap().seen;
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, ACK, &[], b""));
        let flow = rig.flow(CLIENT, FRONTEND, 6).unwrap();
        assert_eq!((flow.seen, flow.ack.to_ne_bytes()), (seen, [0, 0, 0, 2]));
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, ACK, &[], b"x"));
        assert!(rig.flow(CLIENT, FRONTEND, 6).unwrap().seen > seen);
    });
}

const REPEAT: Duration = Duration::from_millis(900);

#[test]
fn a_client_that_repeats_itself_unanswered_gets_another_backend() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE, OTHER]);
        // It is known that this service answers.
        let (first, second) = ((CLIENT.0, 1), (CLIENT.0, 2));
        let alive = asks(rig, first);
        answers(rig, alive, first);
        let silent = asks(rig, second);
        assert_ne!(silent, alive);
        assert_eq!(asks(rig, second), silent, "again at once");
        age(rig, second, FRONTEND, UDP, REPEAT);
        assert_eq!(asks(rig, second), alive);
        assert_eq!((rig.count("retried"), failures(rig)), (1, 1));
        for port in 10..14 {
            assert_eq!(
                asks(rig, (CLIENT.0, port)),
                alive,
                "the other is passed over"
            );
        }
        // Late, and welcome: to the client, and as a sign of life.
        answers(rig, silent, second);
        let next: Vec<End> = (20..22).map(|port| asks(rig, (CLIENT.0, port))).collect();
        assert!(next.contains(&silent), "{next:?}");
    });
}

#[test]
fn a_service_that_never_answers_is_left_as_it_is() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE, OTHER]);
        let task = asks(rig, CLIENT);
        for _ in 0..5 {
            age(rig, CLIENT, FRONTEND, UDP, REPEAT);
            assert_eq!(asks(rig, CLIENT), task);
        }
        assert_eq!((rig.count("retried"), failures(rig)), (0, 0));
    });
}

#[test]
fn a_client_whom_a_live_backend_ignores_stays_there() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE]);
        let (ignored, other) = ((CLIENT.0, 1), (CLIENT.0, 2));
        asks(rig, ignored);
        age(rig, ignored, FRONTEND, UDP, REPEAT);
        asks(rig, other);
        answers(rig, REMOTE, other);
        asks(rig, ignored);
        assert_eq!(rig.count("retried"), 0);
        // One that was answered once is not taken for unanswered later.
        age(rig, other, FRONTEND, UDP, REPEAT);
        asks(rig, other);
        assert_eq!((rig.count("retried"), rig.count("new_flow")), (0, 2));
    });
}

#[test]
fn a_refused_connection_is_tried_once_more_elsewhere() {
    on_rig(|rig| {
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        let refusal = |task| tcp(task, CLIENT, RST | ACK, &[], b"");
        rig.serve(Protocol::Tcp, &[REMOTE, OTHER]);
        let first = ends(&rig.redirected(FROM_OUTSIDE, &syn)).1;
        rig.judged(FROM_MESH, &refusal(first), DROP, "drop_refused");
        assert!(rig.plane.live_flows(9).is_empty(), "nobody has it now");
        let second = ends(&rig.redirected(FROM_OUTSIDE, &syn)).1;
        assert_ne!(second, first);
        assert_eq!((rig.count("retried"), failures(rig)), (1, 1));
        // That is an answer, and the client's to know.
        let told = rig.redirected(FROM_MESH, &refusal(second));
        assert_eq!(ends(&told), (FRONTEND, CLIENT));
        // Without another backend there is nothing to wait for.
        rig.serve(Protocol::Tcp, &[REMOTE]);
        rig.redirected(FROM_OUTSIDE, &syn);
        rig.redirected(FROM_MESH, &refusal(REMOTE));
        assert_eq!((rig.count("drop_refused"), failures(rig)), (1, 3));
    });
}

/// As by a packet filter on the way. The client is told, and may try again.
#[test]
fn an_error_about_a_connection_is_no_answer() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE, OTHER]);
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        let sent = rig.redirected(FROM_OUTSIDE, &syn);
        let task = ends(&sent).1;
        rig.redirected(FROM_MESH, &unreachable(task.0, &sent, 3));
        assert_eq!(rig.flow(task, CLIENT, 6).unwrap().packets, 0);
        age(rig, CLIENT, FRONTEND, 6, REPEAT);
        assert_ne!(ends(&rig.redirected(FROM_OUTSIDE, &syn)).1, task);
        assert_eq!((rig.count("retried"), failures(rig)), (1, 1));
    });
}

/// The client has to learn that its connection is not known: it repeats no SYN that could go elsewhere.
#[test]
fn a_connection_that_the_task_does_not_know_is_no_refusal() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE, OTHER]);
        let lost = tcp(CLIENT, FRONTEND, ACK, &[], b"x");
        let task = ends(&rig.redirected(FROM_OUTSIDE, &lost)).1;
        let told = rig.redirected(FROM_MESH, &tcp(task, CLIENT, RST, &[], b""));
        assert_eq!(ends(&told), (FRONTEND, CLIENT));
        assert_eq!((rig.count("drop_refused"), failures(rig)), (0, 0));
    });
}

#[test]
fn a_connection_that_was_answered_may_be_reset_at_any_time() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE, OTHER]);
        let syn = tcp(CLIENT, FRONTEND, SYN, &[], b"");
        let task = ends(&rig.redirected(FROM_OUTSIDE, &syn)).1;
        rig.redirected(FROM_MESH, &tcp(task, CLIENT, SYN | ACK, &[], b""));
        rig.redirected(FROM_MESH, &tcp(task, CLIENT, RST, &[], b""));
        assert_eq!(rig.count("drop_refused"), 0);
        assert!(rig.plane.live_flows(9).is_empty());
        rig.redirected(FROM_OUTSIDE, &syn);
        assert_eq!((rig.count("retried"), rig.count("new_flow")), (0, 2));
    });
}

#[test]
fn a_refused_datagram_is_the_last_to_that_backend() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &[REMOTE, OTHER]);
        let packet = udp(CLIENT, FRONTEND, b"x", true);
        let sent = rig.redirected(FROM_OUTSIDE, &packet);
        let task = ends(&sent).1;
        let refusal = unreachable(task.0, &sent, 3);
        rig.judged(FROM_MESH, &refusal, DROP, "drop_refused");
        assert_ne!(asks(rig, CLIENT), task);
        assert_eq!(failures(rig), 1);
    });
}
