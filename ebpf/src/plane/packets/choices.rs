//! Which backend a flow is given, and how it is found again.

use std::collections::BTreeSet;

use portolan_model::Balancing;
use portolan_plane::BackendState;

use super::{bytes::RST, *};

const FAR: [End; 3] = [REMOTE, ([10, 208, 2, 3], 80), ([10, 208, 2, 4], 80)];

fn serve(rig: &mut Rig, spec: &FrontendSpec) {
    rig.plane.upsert(&Arc::new(spec.clone())).unwrap();
}

/// Where a client's packet goes.
fn sent(rig: &mut Rig, client: End, flags: u8) -> End {
    ends(&rig.redirected(FROM_OUTSIDE, &tcp(client, FRONTEND, flags, &[], b""))).1
}

fn begun(rig: &mut Rig, port: u16) -> End {
    sent(rig, (CLIENT.0, port), SYN)
}

fn forget(rig: &mut Rig, from: End, to: End) {
    rig.plane.maps.flows.remove(&tuple(from, to, 6)).unwrap();
}

/// Failure mode 2.
#[test]
fn a_forgotten_way_there_is_found_by_the_way_back() {
    on_rig(|rig| {
        let mut served = spec(Protocol::Tcp, &FAR);
        serve(rig, &served);
        let before: Vec<End> = (0..6).map(|port| begun(rig, port)).collect();
        // One that drains keeps its flows.
        served.backends[0].state = BackendState::Draining;
        serve(rig, &served);
        for (port, task) in (0..).zip(&before) {
            let client = (CLIENT.0, port);
            let known = rig.flow(client, FRONTEND, 6).unwrap();
            forget(rig, client, FRONTEND);
            assert_eq!(sent(rig, client, ACK), *task);
            let found = rig.flow(client, FRONTEND, 6).unwrap();
            let what = |flow: Flow| (flow.ip_delta, flow.port_delta, flow.node, flow.backend);
            assert_eq!(what(found), what(known));
        }
        assert_eq!((rig.count("recovered"), rig.count("maglev")), (6, 0));
        assert_eq!(rig.count("new_flow"), 6);
    });
}

/// A client that speaks again after a silence gets its answer.
#[test]
fn a_forgotten_way_back_is_made_again_by_the_way_there() {
    on_rig(|rig| {
        for task in [REMOTE, LOCAL] {
            rig.serve(Protocol::Tcp, &[task]);
            let client = (CLIENT.0, task.0[2].into());
            sent(rig, client, SYN);
            let known = rig.flow(task, client, 6).unwrap();
            let program = if task == LOCAL { FROM_TASK } else { FROM_MESH };
            let answer = tcp(task, client, ACK, &[], b"answer");
            let ask = tcp(client, FRONTEND, ACK, &[], b"ask");
            forget(rig, task, client);
            rig.redirected(FROM_OUTSIDE, &ask);
            assert_eq!(rig.run(program, &answer).0, DROP, "no silence");
            let there = rig.flow(client, FRONTEND, 6).unwrap();
            let seen = there.seen - 2_000_000_000;
            rig.put(client, FRONTEND, 6, Flow { seen, ..there });
            rig.redirected(FROM_OUTSIDE, &ask);
            assert_eq!(ends(&rig.redirected(program, &answer)), (FRONTEND, client));
            let what = |f: Flow| (f.kind, f.ip_delta, f.port_delta, f.node, f.ifindex, f.macs);
            assert_eq!(what(rig.flow(task, client, 6).unwrap()), what(known));
        }
        assert_eq!(rig.count("recovered"), 2);
    });
}

/// A network card may have been replaced, or a route.
#[test]
fn answers_follow_the_nodes_links_after_a_silence() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        sent(rig, CLIENT, SYN);
        let known = rig.flow(REMOTE, CLIENT, 6).unwrap();
        let elsewhere = Flow {
            ifindex: known.ifindex + 7,
            ..known
        };
        rig.put(REMOTE, CLIENT, 6, elsewhere);
        let link = |rig: &mut Rig| {
            rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, ACK, &[], b"ask"));
            rig.flow(REMOTE, CLIENT, 6).unwrap().ifindex
        };
        assert_eq!(link(rig), elsewhere.ifindex, "no silence");
        let there = rig.flow(CLIENT, FRONTEND, 6).unwrap();
        let seen = there.seen - 2_000_000_000;
        rig.put(CLIENT, FRONTEND, 6, Flow { seen, ..there });
        assert_eq!(link(rig), known.ifindex);
    });
}

/// With a node all its tasks are silent, of which a client is to meet no more than one.
#[test]
fn who_is_not_answered_goes_to_another_node() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        on_rig(|rig| {
            let underlay = Ipv4Addr::new(10, 77, 0, 13);
            let third = NodeId::of_name("n3");
            rig.plane.surroundings.peers.insert(third, underlay);
            rig.plane.write_surroundings().unwrap();
            let mut served = spec(protocol, &FAR);
            served.backends[0].node = third;
            serve(rig, &served);
            let ask = |rig: &mut Rig, port| {
                let client = (CLIENT.0, port);
                let packet = match protocol {
                    Protocol::Tcp => tcp(client, FRONTEND, SYN, &[], b""),
                    Protocol::Udp => udp(client, FRONTEND, b"ask", true),
                };
                ends(&rig.redirected(FROM_OUTSIDE, &packet)).1
            };
            // Of a service that answers nobody no silence tells anything.
            assert_eq!(ask(rig, 1), FAR[0]);
            let answer = match protocol {
                Protocol::Tcp => tcp(FAR[0], (CLIENT.0, 1), SYN | ACK, &[], b""),
                Protocol::Udp => udp(FAR[0], (CLIENT.0, 1), b"answer", true),
            };
            rig.redirected(FROM_MESH, &answer);
            assert_eq!(ask(rig, 2), FAR[1]);
            let number = if protocol == Protocol::Tcp { 6 } else { 17 };
            let client = (CLIENT.0, 2);
            let there = rig.flow(client, FRONTEND, number).unwrap();
            let created = there.created - 1_000_000_000;
            rig.put(client, FRONTEND, number, Flow { created, ..there });
            assert_eq!(
                ask(rig, 2),
                FAR[0],
                "{protocol}: not the next of the same node"
            );
            assert_eq!(rig.count("retried"), 1);
        });
    }
}

/// It was answered, so the task's RST is no refusal.
#[test]
fn a_connection_whose_way_back_was_made_again_may_be_reset() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &FAR);
        let task = sent(rig, CLIENT, SYN);
        rig.redirected(FROM_MESH, &tcp(task, CLIENT, SYN | ACK, &[], b""));
        forget(rig, task, CLIENT);
        let there = rig.flow(CLIENT, FRONTEND, 6).unwrap();
        let seen = there.seen - 2_000_000_000;
        rig.put(CLIENT, FRONTEND, 6, Flow { seen, ..there });
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, ACK, &[], b"ask"));
        let reset = tcp(task, CLIENT, RST | ACK, &[], b"");
        assert_eq!(ends(&rig.redirected(FROM_MESH, &reset)), (FRONTEND, CLIENT));
    });
}

/// Failure mode 2, where nothing is left, or on another node.
#[test]
fn a_connection_of_which_nothing_is_known_goes_where_every_node_sends_it() {
    let decide = |first: &[End]| {
        on_rig(|rig| {
            // So that the backends have other places.
            let mut other = spec(Protocol::Tcp, first);
            other.frontend.port = 9;
            serve(rig, &other);
            rig.serve(Protocol::Tcp, &FAR);
            let to: Vec<End> = (0..60)
                .map(|port| sent(rig, (CLIENT.0, port), ACK))
                .collect();
            assert_eq!(rig.count("maglev"), 60);
            assert_eq!(sent(rig, (CLIENT.0, 0), ACK), to[0], "it is a flow now");
            assert_eq!(rig.count("maglev"), 60);
            to
        })
    };
    let here = decide(&[]);
    assert_eq!(here, decide(&[FAR[1], LOCAL]));
    assert_eq!(BTreeSet::from_iter(here).len(), 3);
}

#[test]
fn the_clients_address_decides_where_the_service_wants_it() {
    on_rig(|rig| {
        let mut served = spec(Protocol::Tcp, &FAR);
        served.policy.balancing = Balancing::SourceHash;
        serve(rig, &served);
        let mut seen = BTreeSet::new();
        for last in 0..40 {
            let client = [10, 77, 1, last];
            let to = sent(rig, (client, 1), SYN);
            assert_eq!(sent(rig, (client, 2), SYN), to);
            seen.insert(to);
        }
        assert_eq!(seen.len(), 3);
        assert_eq!(
            rig.plane.dump().unwrap()[&served.frontend].policy.balancing,
            Balancing::SourceHash
        );
    });
}

#[test]
fn the_one_with_the_fewest_flows_is_next_where_the_service_wants_it() {
    on_rig(|rig| {
        let mut served = spec(Protocol::Tcp, &FAR);
        served.policy.balancing = Balancing::LeastConnections;
        served.backends[2].weight = 2;
        serve(rig, &served);
        let to: Vec<End> = (0..8).map(|port| begun(rig, port)).collect();
        let share = |task: &End| to.iter().filter(|end| *end == task).count();
        assert_eq!(FAR.map(|task| share(&task)), [2, 2, 4]);
        // All of one end; the sweep notices.
        for (port, task) in (0..).zip(&to).filter(|(_, task)| **task == FAR[0]) {
            sent(rig, (CLIENT.0, port), FIN | ACK);
            rig.redirected(
                FROM_MESH,
                &tcp(*task, (CLIENT.0, port), FIN | ACK, &[], b""),
            );
        }
        rig.plane.sweep().unwrap();
        assert_eq!([begun(rig, 100), begun(rig, 101)], [FAR[0], FAR[0]]);
    });
}

#[test]
fn backends_of_this_node_go_first_where_the_service_wants_it() {
    on_rig(|rig| {
        let mut served = spec(Protocol::Tcp, &[LOCAL, REMOTE]);
        served.policy.local_first = true;
        serve(rig, &served);
        assert!((0..4).all(|port| begun(rig, port) == LOCAL));
        let known = rig.plane.dump().unwrap();
        rig.plane.served.clear();
        rig.plane.adopt().unwrap();
        assert_eq!(rig.plane.dump().unwrap(), known);
        served.backends.retain(|backend| !backend.local);
        serve(rig, &served);
        assert_eq!(begun(rig, 9), REMOTE);
    });
}

#[test]
fn weights_share_out_a_round() {
    on_rig(|rig| {
        let mut served = spec(Protocol::Tcp, &FAR);
        for (backend, weight) in served.backends.iter_mut().zip([300, 200, 100]) {
            backend.weight = weight;
        }
        serve(rig, &served);
        let to: Vec<End> = (0..12).map(|port| begun(rig, port)).collect();
        let share = |task: &End| to.iter().filter(|end| *end == task).count();
        assert_eq!(FAR.map(|task| share(&task)), [6, 4, 2]);
    });
}

/// A write that fails leaves the frontend as it was, or none of it.
#[test]
fn a_full_map_leaves_nothing_by_half() {
    for small in ["slots", "backend_labels", "chunks"] {
        // Enough for two backends, and not for two more. Of chunks there are five to a frontend.
        let room = if small == "chunks" { 9 } else { 3 };
        on_rig_with(&[("flows", 4096), (small, room)], |rig| {
            let served = spec(Protocol::Tcp, &FAR[..1]);
            serve(rig, &served);
            let to = begun(rig, 1);
            let before = rig.plane.dump().unwrap();
            let taken = rig.plane.free_backends.taken.clone();
            for _ in 0..3 {
                let mut wider = spec(Protocol::Tcp, &[FAR[0], FAR[1], FAR[2], LOCAL]);
                wider.service_name = "another".into();
                wider.policy.allow = vec!["192.0.2.0/24".parse().unwrap()];
                assert!(
                    rig.plane.upsert(&Arc::new(wider.clone())).is_err(),
                    "{small}"
                );
                wider.frontend.port = 81;
                assert!(rig.plane.upsert(&Arc::new(wider)).is_err(), "{small}");
            }
            assert_eq!(rig.plane.dump().unwrap(), before);
            assert_eq!(
                rig.plane.free_backends.taken, taken,
                "{small}: a place leaked"
            );
            assert_eq!(rig.plane.free_frontends.taken.len(), 1);
            rig.plane.served.clear();
            rig.plane.adopt().unwrap();
            assert_eq!(rig.plane.dump().unwrap(), before, "{small}: in the kernel");
            assert_eq!(
                sent(rig, (CLIENT.0, 1), ACK),
                to,
                "{small}: the flow goes on"
            );
            assert_eq!(begun(rig, 2), FAR[0]);
        });
    }
}
