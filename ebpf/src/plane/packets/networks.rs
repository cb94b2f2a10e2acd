//! Several networks on one node, kept apart.

use super::*;

/// A second network, on links of its own.
fn with_second_network(rig: &mut Rig) {
    for name in ["vx2", "task2"] {
        link(name);
    }
    let around = &mut rig.plane.surroundings;
    around
        .networks
        .insert(second(), mesh("vx2", 4097, [10, 20, 0, 0], 16));
    let entry = around.tasks[&Ipv4Addr::from(LOCAL.0)].clone();
    around.tasks.insert(
        SECOND_LOCAL.0.into(),
        TaskLink {
            network: second(),
            link: "task2".into(),
            ..entry
        },
    );
    rig.plane.write_surroundings().unwrap();
}

fn second() -> NetworkName {
    "second".parse().unwrap()
}

const SECOND_LOCAL: End = ([10, 20, 1, 2], 80);

#[test]
fn a_flow_takes_its_own_networks_links_and_no_others() {
    on_rig(|rig| {
        with_second_network(rig);
        rig.serve(Protocol::Tcp, &[REMOTE]);
        let out = rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        assert_eq!(ends(&out).1, REMOTE);
        let reply = tcp(REMOTE, CLIENT, SYN | ACK, &[], b"");
        rig.judged_by("vx2", FROM_MESH, &reply, DROP, "drop_misdirected");
        rig.redirected(FROM_MESH, &reply);
    });
}

#[test]
fn a_task_replies_by_its_own_link_and_by_no_other() {
    on_rig(|rig| {
        with_second_network(rig);
        let back = Flow {
            kind: 4,
            node: 1,
            network: 2,
            ifindex: links::index("task2").unwrap(),
            ..Flow::default()
        };
        rig.put(SECOND_LOCAL, CLIENT, 6, back);
        let reply = tcp(SECOND_LOCAL, CLIENT, ACK, &[], b"");
        rig.judged(FROM_TASK, &reply, DROP, "drop_misdirected");
        assert_eq!(rig.run_by("task2", FROM_TASK, &reply).0, REDIRECT);

        rig.serve(Protocol::Tcp, &[LOCAL]);
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, SYN, &[], b""));
        let reply = tcp(LOCAL, CLIENT, SYN | ACK, &[], b"");
        rig.judged_by("task2", FROM_TASK, &reply, DROP, "drop_misdirected");
        rig.redirected(FROM_TASK, &reply);
    });
}

#[test]
fn what_comes_by_one_network_is_not_for_another() {
    on_rig(|rig| {
        with_second_network(rig);
        let to_second = tcp(CLIENT, SECOND_LOCAL, SYN, &[], b"");
        // Without a tunnel key, as here, it is no member's; with one, from the wrong network, no one's.
        rig.judged_by("vx2", FROM_MESH, &to_second, DROP, "drop_not_member");
        let within = tcp(([10, 20, 2, 2], 9), SECOND_LOCAL, SYN, &[], b"");
        assert_eq!(rig.run_by("vx2", FROM_MESH, &within).0, NEXT);
        let across = tcp(LOCAL, SECOND_LOCAL, ACK, &[], b"");
        rig.judged(FROM_TASK, &across, DROP, "drop_no_back");
        // A link of no network: not ours.
        link("other");
        assert_eq!(rig.run_by("other", FROM_TASK, &across).0, NEXT);
    });
}

#[test]
fn a_node_that_is_beside_the_subnet_is_answered() {
    const BESIDE: End = ([10, 224, 16, 7], 40000);
    on_rig(|rig| {
        with_second_network(rig);
        let around = &mut rig.plane.surroundings;
        around.networks.get_mut(&second()).unwrap().gateway = BESIDE.0.into();
        around.own.insert(Ipv4Addr::from(BESIDE.0).into());
        rig.plane.write_surroundings().unwrap();
        let elsewhere = ([10, 20, 2, 2], 80);
        let answer = tcp(elsewhere, BESIDE, SYN | ACK, &[], b"");
        assert_eq!(rig.run_by("vx2", FROM_MESH, &answer).0, NEXT);
        let answer = tcp(SECOND_LOCAL, BESIDE, SYN | ACK, &[], b"");
        assert_eq!(rig.run_by("task2", FROM_TASK, &answer).0, NEXT);
        let other = ([10, 224, 16, 8], 40000);
        let astray = tcp(elsewhere, other, SYN | ACK, &[], b"");
        rig.judged_by("vx2", FROM_MESH, &astray, DROP, "drop_no_return");
    });
}

#[test]
fn networks_keep_their_places() {
    on_rig(|rig| {
        with_second_network(rig);
        assert_eq!(rig.plane.places, BTreeMap::from([(4096, 1), (4097, 2)]));
        let ingress = rig.plane.surroundings.networks.remove(&ingress()).unwrap();
        rig.plane.surroundings.tasks.remove(&LOCAL.0.into());
        rig.plane.write_surroundings().unwrap();
        rig.plane.places.clear();
        rig.plane.adopt_networks().unwrap();
        assert_eq!(rig.plane.places, BTreeMap::from([(4097, 2)]));
        rig.plane
            .surroundings
            .networks
            .insert(super::ingress(), ingress);
        rig.plane.write_surroundings().unwrap();
        assert_eq!(rig.plane.places, BTreeMap::from([(4096, 1), (4097, 2)]));
    });
}

#[test]
fn a_task_of_a_network_that_is_not_known_is_an_error() {
    on_rig(|rig| {
        rig.plane.surroundings.networks.clear();
        let error = rig.plane.write_surroundings().unwrap_err();
        assert!(matches!(error, EbpfError::NoNetwork { .. }), "{error}");
    });
}
