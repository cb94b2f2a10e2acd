//! Datagrams.

use std::{
    io::IoSlice,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use portolan_model::Protocol;
use portolan_plane::contract;

use super::{
    PORT,
    host::{OWN, TASKS, on_host, udp},
};

const FRONTEND: &str = "127.0.0.1:8080";

/// Servers of both tasks.
fn tasks() -> [UdpSocket; 2] {
    TASKS.map(|task| udp(&task.to_string(), 80))
}

/// Sends a datagram, has whoever gets it reply, and tells who that was, and from where the reply seems to come.
fn ask(client: &UdpSocket, to: &str, servers: &[UdpSocket]) -> (usize, SocketAddr) {
    client.send_to(b"question", to).unwrap();
    let mut datagram = [0; 100];
    let who = servers
        .iter()
        .position(|server| {
            server.set_nonblocking(true).unwrap();
            let Ok((length, from)) = server.recv_from(&mut datagram) else {
                return false;
            };
            server.send_to(&datagram[..length], from).unwrap();
            true
        })
        .expect("someone got it");
    let (_, from) = client.recv_from(&mut datagram).unwrap();
    (who, from)
}

#[test]
fn replies_come_from_the_address_that_was_asked() {
    on_host(|host| {
        let servers = tasks();
        host.serve(Protocol::Udp, &TASKS[..1]);
        let own = format!("{OWN}:8080");
        for to in [FRONTEND, &own] {
            assert_eq!(
                ask(&udp("0.0.0.0", 0), to, &servers),
                (0, to.parse().unwrap())
            );
        }
        // By an IPv6 socket to IPv4, and from elsewhere.
        let client = udp("::", 0);
        let mapped = "[::ffff:127.0.0.1]:8080";
        assert_eq!(ask(&client, mapped, &servers), (0, mapped.parse().unwrap()));
        let stranger = udp("127.0.0.1", 0);
        let port = client.local_addr().unwrap().port();
        stranger.send_to(b"hello", ("127.0.0.1", port)).unwrap();
        let (_, from) = client.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(from.port(), stranger.local_addr().unwrap().port());
    });
}

#[test]
fn sockets_stay_with_their_tasks_in_a_build_with_other_layouts() {
    on_host(|host| {
        let servers = tasks();
        host.serve(Protocol::Udp, &TASKS);
        let clients: Vec<_> = (0..4).map(|_| udp("0.0.0.0", 0)).collect();
        let ask = |client| ask(client, FRONTEND, &servers);
        let before: Vec<_> = clients.iter().map(ask).collect();
        host.follow();
        // From the last to the first, for whom it would be another's turn.
        let after: Vec<_> = clients.iter().rev().map(ask).collect();
        assert!(after.iter().rev().eq(&before), "{before:?}, {after:?}");
    });
}

#[test]
fn a_socket_stays_with_its_task_and_others_take_turns() {
    on_host(|host| {
        let servers = tasks();
        host.serve(Protocol::Udp, &TASKS);
        let clients: Vec<_> = (0..4).map(|_| udp("0.0.0.0", 0)).collect();
        let first: Vec<_> = clients
            .iter()
            .map(|client| ask(client, FRONTEND, &servers).0)
            .collect();
        assert_eq!(first.iter().sum::<usize>(), 2, "in turns: {first:?}");
        for _ in 0..3 {
            for (client, first) in clients.iter().zip(&first) {
                assert_eq!(ask(client, FRONTEND, &servers).0, *first);
            }
        }
        assert_eq!(host.count("socket_flow"), 4);
    });
}

#[test]
fn after_the_idle_timeout_it_is_a_new_flow() {
    on_host(|host| {
        let servers = tasks();
        let mut spec = contract::spec(PORT, Protocol::Udp, &TASKS);
        spec.policy.udp_idle_ms = 1;
        host.upsert(spec);
        let client = udp("0.0.0.0", 0);
        let first = ask(&client, FRONTEND, &servers).0;
        // Longer than the timeout, and than the clock's coarse steps.
        client
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        client.recv(&mut [0]).unwrap_err();
        assert_ne!(ask(&client, FRONTEND, &servers).0, first);
        assert_eq!(host.count("socket_flow"), 2);
    });
}

#[test]
fn datagrams_follow_at_once_when_their_task_goes_or_drains() {
    on_host(|host| {
        let servers = tasks();
        host.serve(Protocol::Udp, &TASKS[..1]);
        let client = udp("0.0.0.0", 0);
        assert_eq!(ask(&client, FRONTEND, &servers).0, 0);
        host.serve(Protocol::Udp, &TASKS[1..]);
        assert_eq!(
            ask(&client, FRONTEND, &servers),
            (1, FRONTEND.parse().unwrap())
        );
        host.drain(Protocol::Udp, TASKS[1]);
        assert_eq!(
            ask(&client, FRONTEND, &servers),
            (0, FRONTEND.parse().unwrap())
        );
        // What comes late from the old task is still its reply.
        servers[1]
            .send_to(
                b"late",
                client.local_addr().map(|at| (TASKS[0], at.port())).unwrap(),
            )
            .unwrap();
        let (_, from) = client.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(from, FRONTEND.parse().unwrap());
    });
}

#[test]
fn a_task_is_not_reached_by_two_addresses_at_once() {
    on_host(|host| {
        let servers: Vec<_> = tasks()
            .into_iter()
            .chain(["127.0.0.1", "10.77.0.11"].map(|relay| udp(relay, 8080)))
            .collect();
        host.serve(Protocol::Udp, &TASKS[..1]);
        let client = udp("0.0.0.0", 0);
        let own = format!("{OWN}:8080");
        assert_eq!(ask(&client, FRONTEND, &servers).0, 0);
        // The task's replies could not be told apart, so the relay has the second way.
        assert_eq!(ask(&client, &own, &servers), (3, own.parse().unwrap()));
        assert_eq!(
            ask(&client, FRONTEND, &servers),
            (0, FRONTEND.parse().unwrap())
        );
        // With a task more, the second way has a task, too.
        host.serve(Protocol::Udp, &TASKS);
        assert_eq!(ask(&client, &own, &servers), (1, own.parse().unwrap()));
        // The first way is over: its task may be reached by the second.
        host.serve(Protocol::Udp, &[]);
        host.serve(Protocol::Udp, &TASKS[..1]);
        assert_eq!(ask(&client, &own, &servers), (0, own.parse().unwrap()));
    });
}

#[test]
fn a_socket_that_is_connected_or_bound_is_the_relays() {
    on_host(|host| {
        let relay = udp("127.0.0.1", 8080);
        host.serve(Protocol::Udp, &TASKS);
        let connected = udp("0.0.0.0", 0);
        connected.connect(FRONTEND).unwrap();
        connected.send(b"question").unwrap();
        relay.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), FRONTEND.parse().unwrap());
        let bound = udp("127.0.0.1", 0);
        bound.send_to(b"question", FRONTEND).unwrap();
        relay.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(host.count("socket_to_relay_bound"), 1);
        // A source may be given for one datagram alone, too.
        let source = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes([127, 0, 0, 1]),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let free = udp("0.0.0.0", 0);
        sendmsg(
            free.as_raw_fd(),
            &[IoSlice::new(b"question")],
            &[ControlMessage::Ipv4PacketInfo(&source)],
            MsgFlags::empty(),
            Some(&SockaddrIn::new(127, 0, 0, 1, PORT)),
        )
        .unwrap();
        let (_, from) = relay.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(from.port(), free.local_addr().unwrap().port());
        assert_eq!(host.count("socket_to_relay_bound"), 2);
        assert_eq!(host.count("socket_flow"), 0);
    });
}
