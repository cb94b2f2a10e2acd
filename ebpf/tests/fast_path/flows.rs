//! What must go right when flows get in one another's way, or their entries are lost.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use portolan_model::Protocol;
use portolan_testbed::{Namespace, Node, http_get, udp_ask, wait_until};
use rustix::net::{AddressFamily, SocketType, sockopt::set_socket_reuseaddr};

use crate::{cluster::Cluster, reach::whoami};

/// Answers each datagram with the address that it came from, until one says so.
pub(crate) fn echo_clients(task: &Namespace, address: &str) -> Result<thread::JoinHandle<()>> {
    // Bound to the address, as the route of the replies is chosen by it.
    let socket = task.enter(|| Ok(UdpSocket::bind((address, 80))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            if &datagram[..length] == b"end" {
                return;
            }
            socket.send_to(from.to_string().as_bytes(), from).unwrap();
        }
    }))
}

#[test]
fn udp_keeps_the_client_too() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [
        cluster.task(1, "t1", "10.208.1.2")?,
        cluster.task(2, "t2", "10.208.2.2")?,
    ];
    let servers = [
        echo_clients(&tasks[0], "10.208.1.2")?,
        echo_clients(&tasks[1], "10.208.2.2")?,
    ];
    cluster.publish(8080, Protocol::Udp, &[(1, "10.208.1.2"), (2, "10.208.2.2")]);
    let client = cluster.lab.client("c1")?;
    for _ in 0..4 {
        let answer = udp_ask(
            &client,
            cluster.nodes[0].at(8080),
            b"who",
            Duration::from_secs(2),
        )?;
        let seen: SocketAddr = String::from_utf8(answer)?.parse()?;
        assert_eq!(seen.ip(), client.ipv4());
    }
    let stats = cluster.threads[0].run(|inside| portolan_plane::DataPlane::stats(inside.plane()));
    let backends = &stats.frontends[0].backends;
    for (_, name, stats) in backends {
        assert_eq!(stats.flows, 2, "{name}");
        assert!(
            stats.bytes_in > 0 && stats.bytes_out > 0,
            "{name}: {stats:?}"
        );
    }
    for (task, address) in tasks.iter().zip(["10.208.1.2:80", "10.208.2.2:80"]) {
        task.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"end", address)?))?;
    }
    for server in servers {
        server.join().unwrap();
    }
    Ok(())
}

/// Failure mode 1: one client address and port, by two published ports, to one task.
#[test]
fn the_same_client_address_twice_is_two_connections() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [
        cluster.task(2, "t1", "10.208.2.2")?,
        cluster.task(2, "t2", "10.208.2.3")?,
    ];
    let _nginx = [whoami(&tasks[0])?, whoami(&tasks[1])?];
    let both = [(2, "10.208.2.2"), (2, "10.208.2.3")];
    cluster.publish(8080, Protocol::Tcp, &both);
    cluster.publish(8081, Protocol::Tcp, &both);
    let client = cluster.lab.client("c1")?;
    // The second port's first turn is the same task's: it has to be the other one.
    let mut first = connect_from(&client, 40_000, cluster.nodes[0].at(8080))?;
    let mut second = connect_from(&client, 40_000, cluster.nodes[0].at(8081))?;
    let one = crate::life::ask(&mut first)?;
    let other = crate::life::ask(&mut second)?;
    assert_ne!(one, other);
    ensure!(cluster.counter(1, "collision") > 0);
    Ok(())
}

/// Failure mode 1 through two nodes: only the task's node can see it. It sends the second connection back, and the node
/// that it came by chooses again, without a retransmission; what no task can take the relay does.
#[test]
fn the_same_client_address_through_two_nodes_is_two_connections() -> Result<()> {
    let cluster = Cluster::new(3)?;
    let tasks = [
        cluster.task(3, "t1", "10.208.3.2")?,
        cluster.task(3, "t2", "10.208.3.3")?,
    ];
    let _nginx = [whoami(&tasks[0])?, whoami(&tasks[1])?];
    cluster.publish(8080, Protocol::Tcp, &[(3, "10.208.3.2"), (3, "10.208.3.3")]);
    let client = cluster.lab.client("c1")?;
    // On each node the first turn is the same task's.
    let mut first = connect_from(&client, 40_000, cluster.nodes[0].at(8080))?;
    let mut second = connect_from(&client, 40_000, cluster.nodes[1].at(8080))?;
    assert_ne!(
        crate::life::ask(&mut first)?,
        crate::life::ask(&mut second)?
    );
    assert_eq!(cluster.counter(3, "sent_back"), 1);
    assert_eq!(cluster.counter(2, "collision"), 1);
    assert_eq!(cluster.counter(2, "retried"), 0, "both tasks are well");

    let listener = cluster.nodes[2].enter(|| Ok(TcpListener::bind("0.0.0.0:8080")?))?;
    let begun = Instant::now();
    let mut third = connect_from(&client, 40_000, cluster.nodes[2].at(8080))?;
    let (mut relayed, _) = listener.accept()?;
    assert!(begun.elapsed() < Duration::from_millis(900), "at once");
    third.write_all(b"x")?;
    relayed.read_exact(&mut [0])?;
    assert!(cluster.counter(3, "to_relay_collision") > 0);

    let listener = cluster.nodes[1].enter(|| Ok(TcpListener::bind("0.0.0.0:8081")?))?;
    cluster.publish(8081, Protocol::Tcp, &[(3, "10.208.3.2"), (3, "10.208.3.3")]);
    let begun = Instant::now();
    let mut fourth = connect_from(&client, 40_000, cluster.nodes[1].at(8081))?;
    let (mut relayed, _) = listener.accept()?;
    assert!(begun.elapsed() < Duration::from_millis(900), "at once");
    fourth.write_all(b"x")?;
    relayed.read_exact(&mut [0])?;
    assert!(cluster.counter(2, "to_relay_collision") > 0);
    Ok(())
}

/// A connection from one port of the client, used already or not.
fn connect_from(client: &Node, port: u16, to: SocketAddr) -> Result<TcpStream> {
    client.enter(|| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddr::new(client.ipv4().into(), port))?;
        rustix::net::connect(&socket, &to)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    })
}

/// Failure mode 3: the task's node forgets by which node a flow came.
#[test]
fn a_lost_way_back_never_shows_a_task_to_the_client() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    cluster.publish(8080, Protocol::Udp, &[(2, "10.208.2.2")]);
    let client = cluster.lab.client("c1")?;
    let listener = client.enter(|| Ok(UdpSocket::bind("0.0.0.0:40000")?))?;
    listener.set_read_timeout(Some(Duration::from_millis(300)))?;
    let to = SocketAddr::new(client.ipv4().into(), 40_000);
    task.enter(|| {
        // A reply to nothing: from the task's address, for which there is no way back.
        let socket = UdpSocket::bind("10.208.2.2:80")?;
        socket.send_to(b"leak", to)?;
        Ok(())
    })?;
    ensure!(
        listener.recv(&mut [0; 16]).is_err(),
        "it reached the client"
    );
    assert_eq!(cluster.counter(2, "drop_no_back"), 1);
    Ok(())
}

/// A client that speaks again after a silence gets its answer, also when the task's node forgot the way back.
#[test]
fn a_way_back_that_the_tasks_node_lost_is_made_again() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    let server = echo_clients(&task, "10.208.2.2")?;
    cluster.publish(8080, Protocol::Udp, &[(2, "10.208.2.2")]);
    let client = cluster.lab.client("c1")?;
    let socket = client.enter(|| Ok(UdpSocket::bind((client.ipv4(), 40_000))?))?;
    socket.connect(cluster.nodes[0].at(8080))?;
    // With the datagram after it, a silence.
    socket.set_read_timeout(Some(Duration::from_millis(1200)))?;
    let ask = || {
        socket.send(b"who")?;
        Ok(socket.recv(&mut [0; 64]).ok())
    };
    wait_until(Duration::from_secs(5), "the first answer", ask)?;
    let mapped = |ip: Ipv4Addr| ip.to_ipv6_mapped().octets();
    let from = mapped(client.ipv4());
    cluster.threads[1].run(move |inside| {
        let map = MapData::from_pin(inside.pins.join("v2/flows")).unwrap();
        let mut flows: HashMap<_, [u8; 40], [u8; 112]> = Map::LruHashMap(map).try_into().unwrap();
        let way_back = [
            &mapped(Ipv4Addr::new(10, 208, 2, 2))[..],
            &from,
            &[0, 80, 0x9c, 0x40, 17, 0, 0, 0],
        ]
        .concat();
        flows.remove(&way_back.try_into().unwrap()).unwrap();
    });
    wait_until(Duration::from_secs(10), "another answer", ask)?;
    assert_eq!(cluster.counter(2, "recovered"), 1);
    socket.send(b"end")?;
    server.join().unwrap();
    Ok(())
}

/// A dead backend costs a new connection one retransmission, and later ones nothing.
#[test]
fn a_silent_backend_is_left_after_one_retransmission() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let live = cluster.task(2, "t1", "10.208.2.2")?;
    let _nginx = whoami(&live)?;
    // There is a task of this address, and it is deaf.
    let deaf = cluster.task(2, "t2", "10.208.2.3")?;
    deaf.run(["ip", "link", "set", "lo", "up"])?;
    deaf.run(["nft", "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; policy drop; }"])?;
    cluster.publish(8080, Protocol::Tcp, &[(2, "10.208.2.2"), (2, "10.208.2.3")]);
    let client = cluster.lab.client("c1")?;
    for _ in 0..6 {
        let answer = http_get(&client, &cluster.nodes[0].at(8080).to_string())?;
        assert!(answer.body.starts_with("10.208.2.2"));
    }
    assert_eq!(cluster.counter(1, "retried"), 1, "passed over from then on");
    Ok(())
}

/// Failure mode 7: the tunnel's port is no way in.
#[test]
fn a_tunnelled_packet_from_no_member_is_dropped() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    let _nginx = whoami(&task)?;
    cluster.publish(8080, Protocol::Tcp, &[(2, "10.208.2.2")]);
    let client = cluster.lab.client("c1")?;
    let node = cluster.nodes[0].at(8080).to_string();
    http_get(&client, &node)?;
    // Node 2 no longer counts node 1 among the members, and without the overlay's packet filter.
    cluster.nodes[1].run(["nft", "delete", "table", "inet", "portolan_overlay"])?;
    cluster.threads[1].run(|inside| {
        inside.surroundings.peers.clear();
        inside.surround();
    });
    ensure!(http_get(&client, &node).is_err());
    ensure!(cluster.counter(2, "drop_not_member") > 0);
    Ok(())
}
