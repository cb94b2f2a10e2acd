//! Connections.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use portolan_model::{Balancing, INGRESS_NETWORK, Protocol};
use portolan_plane::{FrontendAddress, FrontendSpec, Sources, contract};
use rustix::{
    net::{AddressFamily, SocketType, connect, socket, sockopt::set_ipv6_v6only},
    thread::UnshareFlags,
};

use super::{
    PORT,
    host::{GATEWAY, OWN, OWN6, TASKS, VIP, accepted, ip, isolate, listen, on_host},
};

fn dial(to: &str) -> std::io::Result<TcpStream> {
    TcpStream::connect(to.parse::<SocketAddr>().unwrap())
}

#[test]
fn a_process_reaches_a_task_by_every_address_of_its_node() {
    on_host(|host| {
        let task = listen(TASKS[0], 80);
        host.serve(Protocol::Tcp, &TASKS[..1]);
        let own6 = format!("[{OWN6}]:{PORT}");
        let own = format!("{OWN}:{PORT}");
        let ways = [
            "127.0.0.1:8080",
            "127.1.2.3:8080",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:8080",
            &own,
            &own6,
        ];
        for way in ways {
            let stream = dial(way).unwrap();
            assert_eq!(
                stream.peer_addr().unwrap().to_string(),
                way,
                "the peer is who was dialled"
            );
            assert_eq!(accepted(&task), 1, "{way}");
        }
        // Whoever dials no address means the loopback.
        for (way, peer) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
        ] {
            let stream = dial(way).unwrap();
            assert_eq!(stream.peer_addr().unwrap().to_string(), peer);
            assert_eq!(accepted(&task), 1, "{way}");
        }
        assert_eq!(host.count("socket_flow"), 8);
        let stats = portolan_plane::DataPlane::stats(&host.plane);
        assert_eq!(stats.frontends[0].backends[0].2.flows, 8);
    });
}

#[test]
fn what_is_no_frontend_of_the_node_is_left_alone() {
    on_host(|host| {
        let task = listen(TASKS[0], 80);
        let other = listen(Ipv4Addr::UNSPECIFIED, 8081);
        host.serve(Protocol::Tcp, &TASKS[..1]);
        host.serve(Protocol::Udp, &TASKS[..1]);
        let stream = dial("127.0.0.1:8081").unwrap();
        assert_eq!(stream.peer_addr().unwrap().to_string(), "127.0.0.1:8081");
        assert_eq!((accepted(&other), accepted(&task)), (1, 0));
        // The port at an address that is not the node's.
        ip("address add 10.9.9.9/32 dev lo");
        ip("address add fd00::9/128 dev lo");
        for foreign in ["10.9.9.9:8080", "[fd00::9]:8080"] {
            assert!(dial(foreign).is_err(), "{foreign}");
        }
        assert_eq!((accepted(&task), host.count("socket_flow")), (0, 0));
    });
}

#[test]
fn turns_are_exact_however_many_connect_at_once() {
    const EACH: usize = 100;
    on_host(|host| {
        let tasks = TASKS.map(|task| listen(task, 80));
        host.serve(Protocol::Tcp, &TASKS);
        let mut seen = [0; 2];
        thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..EACH {
                            dial("127.0.0.1:8080").unwrap();
                        }
                    })
                })
                .collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                for (seen, task) in seen.iter_mut().zip(&tasks) {
                    *seen += accepted(task);
                }
                thread::yield_now();
            }
        });
        for (seen, task) in seen.iter_mut().zip(&tasks) {
            *seen += accepted(task);
        }
        assert_eq!(seen, [8 * EACH / 2; 2]);
        assert_eq!(host.count("socket_flow"), 8 * EACH as u64);
    });
}

#[test]
fn another_namespace_is_left_alone() {
    on_host(|host| {
        let task = listen(TASKS[0], 80);
        host.serve(Protocol::Tcp, &TASKS[..1]);
        thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                isolate(UnshareFlags::NEWNET);
                ip("link set lo up");
                let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
                let stream = dial("127.0.0.1:8080").unwrap();
                listener.accept().unwrap();
                stream.peer_addr().unwrap()
            });
            assert_eq!(elsewhere.join().unwrap().to_string(), "127.0.0.1:8080");
        });
        assert_eq!((accepted(&task), host.count("socket_flow")), (0, 0));
    });
}

/// The service's virtual address.
fn virtual_address(protocol: Protocol) -> FrontendSpec {
    let mut spec = contract::spec(PORT, protocol, &TASKS);
    let network = INGRESS_NETWORK.parse().unwrap();
    spec.frontend.address = FrontendAddress::Vip(network, VIP.into());
    spec.frontend.port = 0;
    for backend in &mut spec.backends {
        backend.port = 0;
    }
    spec
}

#[test]
fn a_virtual_address_leads_to_tasks_on_every_port() {
    on_host(|host| {
        let tasks = [listen(TASKS[0], 5432), listen(TASKS[1], 5432)];
        // Of the address itself, which is the node's too, and of a published port.
        let other = listen(VIP, 5433);
        host.around.own.insert(VIP.into());
        host.surround();
        host.serve(Protocol::Tcp, &[]);
        host.upsert(virtual_address(Protocol::Tcp));
        for _ in 0..2 {
            let to = format!("{VIP}:5432");
            let stream = dial(&to).unwrap();
            assert_eq!(stream.peer_addr().unwrap().to_string(), to);
        }
        assert_eq!(tasks.each_ref().map(accepted), [1, 1]);
        // The tasks have nothing on other ports, and no one else is asked.
        for port in [5433, PORT] {
            assert!(dial(&format!("{VIP}:{port}")).is_err());
        }
        assert_eq!(accepted(&other), 0);
    });
}

#[test]
fn connections_begin_at_any_of_the_nodes_source_addresses() {
    on_host(|host| {
        let task = TcpListener::bind((TASKS[0], 80)).unwrap();
        let addresses: Vec<Ipv4Addr> = (1..4).map(|n| Ipv4Addr::new(10, 208, 1, 250 + n)).collect();
        let mut spec = contract::spec(PORT, Protocol::Tcp, &TASKS[..1]);
        spec.sources = Some(Sources {
            within: "10.208.0.0/12".parse().unwrap(),
            addresses: addresses.clone(),
        });
        host.upsert(spec);
        host.surround();
        let from = |to: &str| {
            let stream = dial(to).unwrap();
            let (_, from) = task.accept().unwrap();
            assert_eq!(stream.peer_addr().unwrap().to_string(), to);
            from.ip()
        };
        // One that the node has not got yet is passed over.
        assert_eq!(from("127.0.0.1:8080"), TASKS[0]);
        for address in &addresses {
            ip(&format!("address add {address}/32 dev lo"));
        }
        let seen: BTreeSet<_> = (0..50)
            .flat_map(|_| [from("127.0.0.1:8080"), from("[::1]:8080")])
            .collect();
        assert_eq!(seen, addresses.into_iter().map(IpAddr::V4).collect());
    });
}

#[test]
fn the_gateways_resolver_is_not_shadowed() {
    on_host(|host| {
        let (task, resolver) = (listen(TASKS[0], 80), listen(GATEWAY, 53));
        let mut dns = contract::spec(53, Protocol::Tcp, &TASKS[..1]);
        dns.service_name = "dns".into();
        host.upsert(dns);
        dial(&format!("{GATEWAY}:53")).unwrap();
        assert_eq!((accepted(&task), accepted(&resolver)), (0, 1));
        dial(&format!("{OWN}:53")).unwrap();
        host.serve(Protocol::Tcp, &TASKS[..1]);
        dial(&format!("{GATEWAY}:8080")).unwrap();
        assert_eq!((accepted(&task), accepted(&resolver)), (2, 0));
    });
}

#[test]
fn other_policies_are_the_relays_to_keep() {
    on_host(|host| {
        let (task, relay) = (listen(TASKS[0], 80), relay());
        let plain = contract::spec(PORT, Protocol::Tcp, &TASKS[..1]);
        let mut listed = plain.clone();
        listed.policy.allow = vec!["127.0.0.0/8".parse().unwrap()];
        let mut idle = plain.clone();
        idle.policy.tcp_idle_ms = Some(60_000);
        let mut least = plain.clone();
        least.policy.balancing = Balancing::LeastConnections;
        let mut source = plain.clone();
        source.policy.balancing = Balancing::SourceHash;
        for (spec, expected) in [
            (listed, (0, 1)),
            (idle, (0, 1)),
            (least, (0, 1)),
            (source, (0, 1)),
            (plain, (1, 0)),
        ] {
            host.upsert(spec);
            dial("127.0.0.1:8080").unwrap();
            assert_eq!((accepted(&task), accepted(&relay)), expected);
        }
        assert_eq!(host.count("socket_to_relay_policy"), 4);
    });
}

/// A listener of the node, as the relay holds one for every frontend.
fn relay() -> TcpListener {
    let listener = TcpListener::bind("[::]:8080").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

#[test]
fn a_socket_that_is_bound_is_the_relays() {
    on_host(|host| {
        let (task, relay) = (listen(TASKS[0], 80), relay());
        host.serve(Protocol::Tcp, &TASKS[..1]);
        let to: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        connect(&bound, &to).unwrap();
        let narrow = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
        set_ipv6_v6only(&narrow, true).unwrap();
        let to: SocketAddr = "[::1]:8080".parse().unwrap();
        connect(&narrow, &to).unwrap();
        assert_eq!(TcpStream::from(narrow).peer_addr().unwrap(), to);
        assert_eq!((accepted(&task), accepted(&relay)), (0, 2));
        assert_eq!(host.count("socket_to_relay_bound"), 2);
        // Bound to a port alone it is as any other.
        let port = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
        set_ipv6_v6only(&port, false).unwrap();
        rustix::net::bind(&port, &"[::]:0".parse::<SocketAddr>().unwrap()).unwrap();
        connect(&port, &to).unwrap();
        assert_eq!((accepted(&task), accepted(&relay)), (1, 0));
    });
}

#[test]
fn without_a_backend_that_answers_the_relay_is_asked() {
    on_host(|host| {
        let (task, relay) = (listen(TASKS[0], 80), relay());
        host.serve(Protocol::Tcp, &[]);
        dial("127.0.0.1:8080").unwrap();
        host.serve(Protocol::Tcp, &TASKS[..1]);
        host.pass_over_all();
        dial("127.0.0.1:8080").unwrap();
        assert_eq!((accepted(&task), accepted(&relay)), (0, 2));
        assert_eq!(host.count("socket_to_relay_no_backend"), 2);
    });
}
