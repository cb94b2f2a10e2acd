//! Tasks as clients: of virtual addresses, and of published ports.

use super::*;

const VIP: [u8; 4] = [10, 208, 255, 1];
/// A task of this node, of the same network as the others.
const CALLER: End = ([10, 208, 1, 3], 40_000);
/// One of another network.
const STRANGER: End = ([10, 20, 1, 3], 40_000);
const HTTP: End = (VIP, 80);

/// Both callers, each on a link of its own.
fn with_callers(rig: &mut Rig) {
    for name in ["caller", "stranger", "vx2"] {
        link(name);
    }
    let other: NetworkName = "other".parse().unwrap();
    let around = &mut rig.plane.surroundings;
    let other_mesh = mesh("vx2", 4097, [10, 20, 0, 0], 16);
    around.networks.insert(other.clone(), other_mesh);
    for (task, network, link, last) in [
        (CALLER, ingress(), "caller", 7),
        (STRANGER, other, "stranger", 8),
    ] {
        let entry = TaskLink {
            network,
            link: link.into(),
            mac: MacAddress([2, 0, 0, 0, 1, last]),
            gateway_mac: MacAddress([2, 0, 0, 0, 0, 2]),
        };
        around.tasks.insert(task.0.into(), entry);
    }
    rig.plane.write_surroundings().unwrap();
}

fn serve_vip(rig: &mut Rig, protocol: Protocol, backends: &[[u8; 4]]) -> FrontendSpec {
    let ends: Vec<End> = backends.iter().map(|ip| (*ip, 0)).collect();
    let mut spec = spec(protocol, &ends);
    spec.frontend.address = FrontendAddress::Vip(ingress(), VIP.into());
    spec.frontend.port = 0;
    for backend in &mut spec.backends {
        backend.port = 0;
        backend.local |= backend.ip == IpAddr::from(CALLER.0);
    }
    rig.plane.upsert(&Arc::new(spec.clone())).unwrap();
    spec
}

impl Rig {
    /// The packet that a task's link brings and a program redirects, its checksums judged.
    fn redirected_by(&mut self, link: &str, packet: &[u8]) -> Vec<u8> {
        let (verdict, out) = self.run_by(link, FROM_TASK, packet);
        assert_eq!(verdict, REDIRECT);
        assert_checksums(&out);
        out
    }
}

#[test]
fn a_virtual_address_leads_to_a_task_of_another_node_on_the_port_dialled() {
    on_rig(|rig| {
        with_callers(rig);
        // That node has no fast path, and needs none.
        rig.plane.surroundings.peers.clear();
        serve_vip(rig, Protocol::Tcp, &[REMOTE.0]);
        for port in [80, 5432] {
            let syn = tcp(CALLER, (VIP, port), SYN, &mss_after(0), b"");
            let out = rig.redirected_by("caller", &syn);
            assert_eq!(ends(&out), (CALLER, (REMOTE.0, port)));
            let flow = rig.flow(CALLER, (VIP, port), 6).unwrap();
            assert_eq!(flow.node, crate::layout::ROUTED, "by the kernel's way");
            let reply = tcp((REMOTE.0, port), CALLER, SYN | ACK, &[], b"");
            let back = rig.redirected(FROM_MESH, &reply);
            assert_eq!(ends(&back), ((VIP, port), CALLER));
            assert_eq!(back[..6], [2, 0, 0, 0, 1, 7], "handed to the caller");
        }
        let data = tcp(CALLER, HTTP, ACK, &[], b"GET /");
        assert_eq!(ends(&rig.redirected_by("caller", &data)).1, (REMOTE.0, 80));
        assert_eq!(rig.count("new_flow"), 2);
    });
}

#[test]
fn a_virtual_address_leads_to_a_task_of_this_node() {
    on_rig(|rig| {
        with_callers(rig);
        serve_vip(rig, Protocol::Udp, &[LOCAL.0]);
        let out = rig.redirected_by("caller", &udp(CALLER, HTTP, b"x", true));
        assert_eq!(ends(&out), (CALLER, LOCAL));
        assert_eq!(out[..6], [2, 0, 0, 0, 0, 1]);
        let back = rig.redirected(FROM_TASK, &udp(LOCAL, CALLER, b"y", true));
        assert_eq!(ends(&back), (HTTP, CALLER));
        assert_eq!(back[..6], [2, 0, 0, 0, 1, 7]);
        let error = too_big(CALLER.0, &back);
        let error = rig.redirected_by("caller", &error);
        assert_eq!(inner_ends(&error), (LOCAL, CALLER));
    });
}

#[test]
fn a_virtual_address_is_for_its_own_network_alone() {
    on_rig(|rig| {
        with_callers(rig);
        serve_vip(rig, Protocol::Tcp, &[LOCAL.0]);
        let strange = tcp(STRANGER, HTTP, SYN, &[], b"");
        let left = |rig: &mut Rig, link, program, packet: &[u8]| {
            assert_eq!(rig.run_by(link, program, packet), (NEXT, packet.to_vec()));
        };
        left(rig, "stranger", FROM_TASK, &strange);
        left(rig, "lo", FROM_OUTSIDE, &tcp(CLIENT, HTTP, SYN, &[], b""));
        left(
            rig,
            "lo",
            FROM_OUTSIDE,
            &tcp(CLIENT, (VIP, 0), SYN, &[], b""),
        );
        let forged = tcp(CALLER, HTTP, SYN, &[], b"");
        rig.judged(FROM_TASK, &forged, NEXT, "to_relay_source");
        assert_eq!(rig.count("new_flow"), 0);
    });
}

#[test]
fn a_task_that_calls_itself_is_left_to_the_relay() {
    on_rig(|rig| {
        with_callers(rig);
        serve_vip(rig, Protocol::Tcp, &[CALLER.0]);
        let syn = tcp(CALLER, HTTP, SYN, &[], b"");
        rig.judged_by("caller", FROM_TASK, &syn, NEXT, "to_relay_self");
        // The relay has it from now on, also when it would be another's turn.
        serve_vip(rig, Protocol::Tcp, &[LOCAL.0, CALLER.0]);
        for flags in [SYN, ACK] {
            let packet = tcp(CALLER, HTTP, flags, &[], b"");
            assert_eq!(rig.run_by("caller", FROM_TASK, &packet), (NEXT, packet));
        }
    });
}

#[test]
fn a_task_reaches_published_ports_of_its_node() {
    on_rig(|rig| {
        with_callers(rig);
        let gateway = ([10, 208, 0, 1], FRONTEND.1);
        rig.plane.surroundings.own.insert(gateway.0.into());
        rig.plane.write_surroundings().unwrap();
        rig.serve(Protocol::Tcp, &[REMOTE]);
        for (link, caller, node) in [("caller", CALLER, true), ("stranger", STRANGER, false)] {
            let out = rig.redirected_by(link, &tcp(caller, FRONTEND, SYN, &[], b""));
            assert_eq!(ends(&out), (caller, REMOTE));
            let flow = rig.flow(caller, FRONTEND, 6).unwrap();
            assert_eq!(
                flow.node == crate::layout::ROUTED,
                node,
                "routed within a network"
            );
            let back = rig.redirected(FROM_MESH, &tcp(REMOTE, caller, SYN | ACK, &[], b""));
            assert_eq!(ends(&back), (FRONTEND, caller));
        }
        let again = (CALLER.0, 40_001);
        let out = rig.redirected_by("caller", &tcp(again, gateway, SYN, &[], b""));
        assert_eq!(ends(&out), (again, REMOTE));
    });
}

#[test]
fn the_resolver_of_a_network_is_not_a_published_port() {
    on_rig(|rig| {
        with_callers(rig);
        rig.plane.surroundings.own.insert([10, 208, 0, 1].into());
        rig.plane.write_surroundings().unwrap();
        let mut published = spec(Protocol::Udp, &[LOCAL]);
        published.frontend.port = 53;
        rig.plane.upsert(&Arc::new(published)).unwrap();
        let question = udp(CALLER, ([10, 208, 0, 1], 53), b"web", true);
        assert_eq!(rig.run_by("caller", FROM_TASK, &question), (NEXT, question));
        let elsewhere = udp(CALLER, (FRONTEND.0, 53), b"web", true);
        assert_eq!(ends(&rig.redirected_by("caller", &elsewhere)).1, LOCAL);
    });
}

#[test]
fn a_virtual_address_is_adopted() {
    on_rig(|rig| {
        with_callers(rig);
        let spec = serve_vip(rig, Protocol::Tcp, &[LOCAL.0, REMOTE.0]);
        let known = rig.plane.dump().unwrap();
        rig.plane.served.clear();
        rig.plane.adopt().unwrap();
        assert_eq!(rig.plane.dump().unwrap(), known);
        rig.plane.remove(&spec.frontend).unwrap();
        let syn = tcp(CALLER, HTTP, SYN, &[], b"");
        assert_eq!(rig.run_by("caller", FROM_TASK, &syn), (NEXT, syn));
    });
}
