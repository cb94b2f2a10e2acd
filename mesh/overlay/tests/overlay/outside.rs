//! Clients outside the overlay, whose own addresses a task sees: here addresses on the node's loopback,
//! so that no fast path is needed to bring their packets to the overlay.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portolan_overlay::Overlay;
use portolan_testbed::Namespace;

use crate::{
    cluster::{Cluster, ip},
    lifecycle::{assert_same, state},
};

const CLIENT: &str = "198.51.100.7";
const TASK: &str = "10.208.1.2";
const PORT: u16 = 5300;
const SOON: Duration = Duration::from_secs(2);

/// A node with a client's address, and an empty namespace.
fn node() -> Result<(Cluster, Namespace)> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    cluster.nodes[0].run(["ip", "addr", "add", &format!("{CLIENT}/32"), "dev", "lo"])?;
    let task = cluster.lab.task("t1")?;
    Ok((cluster, task))
}

/// Attaches the namespace to the ingress network.
fn attach(cluster: &Cluster, task: &Namespace) -> Result<()> {
    let request = cluster.attachment(1, task, "t1", &[("ingress", TASK)]);
    Ok(cluster.overlays[0].run(move |overlay| overlay.attach(&request))?)
}

/// Gives a namespace what Docker gives a container: a link of its own, and by it a default route. The
/// far end is in the namespace that is returned.
pub(crate) fn like_docker(cluster: &Cluster, task: &Namespace) -> Result<Namespace> {
    let host = cluster.lab.task("dk1")?;
    task.run([
        "ip",
        "link",
        "add",
        "dock0",
        "type",
        "veth",
        "peer",
        "name",
        "far0",
        "netns",
        host.name(),
    ])?;
    for (at, command) in [
        (task, "ip addr add 172.17.0.2/16 dev dock0"),
        (task, "ip link set dock0 up"),
        (&host, "ip addr add 172.17.0.1/16 dev far0"),
        (&host, "ip link set far0 up"),
        (task, "ip route add default via 172.17.0.1"),
    ] {
        at.run(command.split(' '))?;
    }
    Ok(host)
}

/// A server in a namespace that answers each datagram with as many bytes as it says, and each connection
/// with the address that it is from.
fn serve(task: &Namespace) -> Result<()> {
    let (udp, tcp) = task.enter(|| {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
        Ok((udp, TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?))
    })?;
    // The threads go with the test's process; the sockets keep nothing of the node.
    thread::spawn(move || {
        let mut request = [0; 16];
        while let Ok((length, from)) = udp.recv_from(&mut request) {
            let asked = std::str::from_utf8(&request[..length]).unwrap();
            drop(udp.send_to(&vec![b'x'; asked.parse().unwrap()], from));
        }
    });
    thread::spawn(move || {
        while let Ok((mut stream, from)) = tcp.accept() {
            drop(stream.write_all(from.ip().to_string().as_bytes()));
        }
    });
    Ok(())
}

/// Whether a datagram from one address to another is answered, from the address that was asked.
fn asks_udp(at: &Namespace, from: &str, to: &str, bytes: usize) -> Result<bool> {
    let socket = at.enter(|| Ok(UdpSocket::bind((from.parse::<Ipv4Addr>()?, 0))?))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    // Connected, it takes nothing from another address.
    socket.connect((to, PORT))?;
    socket.send(bytes.to_string().as_bytes())?;
    let mut answer = vec![0; 1 << 16];
    Ok(socket.recv(&mut answer).is_ok_and(|length| length == bytes))
}

/// Whom the server sees when the client connects.
fn asks_tcp(cluster: &Cluster) -> Result<String> {
    asks_tcp_at(cluster, TASK)
}

fn asks_tcp_at(cluster: &Cluster, task: &str) -> Result<String> {
    let mut stream = cluster.nodes[0].enter(|| connect_from(CLIENT, task))?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    Ok(seen)
}

fn connect_from(from: &str, to: &str) -> Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::new(from.parse()?, 0))?;
    connect(&socket, &SocketAddr::new(to.parse()?, PORT)).context("connect")?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn answered(cluster: &Cluster) -> Result<()> {
    ensure!(asks_tcp(cluster)? == CLIENT);
    // The last is longer than the overlay's MTU, but not than that of an Ethernet.
    for bytes in [5, 1400, 1460] {
        let answered = asks_udp(&cluster.nodes[0], CLIENT, TASK, bytes)?;
        ensure!(answered, "{bytes} bytes are not answered");
    }
    Ok(())
}

#[test]
fn a_task_with_no_other_way_out_answers() -> Result<()> {
    let (cluster, task) = node()?;
    attach(&cluster, &task)?;
    serve(&task)?;
    answered(&cluster)?;
    ensure!(
        !task
            .run(["nft", "list", "ruleset"])?
            .stdout
            .contains("portolan")
    );
    Ok(())
}

#[test]
fn a_task_with_another_way_out_answers_by_the_overlay() -> Result<()> {
    let (cluster, task) = node()?;
    let host = like_docker(&cluster, &task)?;
    attach(&cluster, &task)?;
    serve(&task)?;
    answered(&cluster)?;
    // More than fits one packet, summed by the kernel and not by the link.
    ensure!(asks_udp(&cluster.nodes[0], CLIENT, TASK, 9000)?);
    // Who asks by the other way is answered by it.
    ensure!(asks_udp(&host, "172.17.0.1", "172.17.0.2", 5)?);
    Ok(())
}

#[test]
fn one_client_that_asks_by_both_ways_is_answered_by_the_way_it_asked_last() -> Result<()> {
    let (cluster, task) = node()?;
    let host = like_docker(&cluster, &task)?;
    attach(&cluster, &task)?;
    serve(&task)?;
    host.run(["ip", "addr", "add", &format!("{CLIENT}/32"), "dev", "lo"])?;
    let at = |namespace: &Namespace| -> Result<UdpSocket> {
        let socket =
            namespace.enter(|| Ok(UdpSocket::bind((CLIENT.parse::<Ipv4Addr>()?, 4000))?))?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(socket)
    };
    let (inside, outside) = (at(&cluster.nodes[0])?, at(&host)?);
    inside.connect((TASK, PORT))?;
    outside.connect(("172.17.0.2", PORT))?;
    for socket in [&inside, &outside, &inside] {
        socket.send(b"5")?;
        ensure!(socket.recv(&mut [0; 16])? == 5);
    }
    Ok(())
}

#[test]
fn strict_source_checks_and_a_firewall_in_the_task_let_clients_in() -> Result<()> {
    let (cluster, task) = node()?;
    let _host = like_docker(&cluster, &task)?;
    task.run(
        "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1".split(' '),
    )?;
    // One that lets out only answers, and gives what leaves by the other way another source.
    task.run([
        "nft",
        "add table ip x; \
         add chain ip x i { type filter hook input priority 0; policy drop; }; \
         add rule ip x i ct state { new, established } accept; \
         add chain ip x o { type filter hook output priority 0; policy drop; }; \
         add rule ip x o ct state established accept; \
         add chain ip x p { type nat hook postrouting priority 100; }; \
         add rule ip x p oifname dock0 masquerade",
    ])?;
    attach(&cluster, &task)?;
    serve(&task)?;
    answered(&cluster)
}

#[test]
fn a_way_back_that_someone_took_away_is_mended() -> Result<()> {
    let (cluster, task) = node()?;
    let _host = like_docker(&cluster, &task)?;
    attach(&cluster, &task)?;
    serve(&task)?;
    let before = state(&task)?;
    attach(&cluster, &task)?;
    assert_same(&before, &state(&task)?);
    for command in [
        "ip rule del from 10.208.1.2",
        "ip route flush table 1909457154",
        "ip route del default via 10.208.1.0",
        "nft delete table ip portolan_task",
    ] {
        task.run(command.split(' '))?;
    }
    ensure!(!asks_udp(&cluster.nodes[0], CLIENT, TASK, 5)?);
    attach(&cluster, &task)?;
    assert_same(&before, &state(&task)?);
    answered(&cluster)
}

#[test]
fn detached_nothing_of_it_stays_in_the_task() -> Result<()> {
    let (mut cluster, task) = node()?;
    let _host = like_docker(&cluster, &task)?;
    task.run("ip link set lo up".split(' '))?;
    let before = state(&task)?;
    let detach = |cluster: &Cluster| {
        let id = "t1".parse().unwrap();
        cluster.overlays[0].run(move |overlay| overlay.detach(&id))
    };
    attach(&cluster, &task)?;
    ensure!(state(&task)?.contains("portolan_task"));
    detach(&cluster)?;
    assert_same(&before, &state(&task)?);
    // By an overlay that knows of it by nothing but the kernel.
    attach(&cluster, &task)?;
    cluster.restart(1)?;
    detach(&cluster)?;
    assert_same(&before, &state(&task)?);
    attach(&cluster, &task)?;
    cluster.overlays[0]
        .run(Overlay::clean)
        .map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    assert_same(&before, &state(&task)?);
    Ok(())
}

/// As in a pod. What each answers leaves by its own link: there its node looks for it.
#[test]
fn two_tasks_in_one_namespace_answer_by_their_own_links() -> Result<()> {
    const OTHER: &str = "10.208.1.3";
    let (cluster, task) = node()?;
    let on = [("t1", TASK), ("t2", OTHER)];
    task.run("ip link set lo up".split(' '))?;
    let before = state(&task)?;
    for (name, address) in on {
        let request = cluster.attachment(1, &task, name, &[("ingress", address)]);
        cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    }
    serve(&task)?;
    for (_, address) in on {
        ensure!(asks_tcp_at(&cluster, address)? == CLIENT);
        let way = format!("ip -o route get {CLIENT} from {address}");
        let way = task.run(way.split(' '))?.stdout;
        let links = task.run(["ip", "-o", "addr"])?.stdout;
        let link = links.lines().find(|line| line.contains(address));
        let link = link.and_then(|line| line.split_whitespace().nth(1));
        let link = link.context("no link")?;
        ensure!(way.contains(&format!("dev {link} ")), "{way}\n{links}");
    }
    for (name, _) in on {
        let id = name.parse()?;
        cluster.overlays[0].run(move |overlay| overlay.detach(&id))?;
        let both = name == "t2";
        ensure!(both || asks_tcp_at(&cluster, OTHER)? == CLIENT);
    }
    assert_same(&before, &state(&task)?);
    Ok(())
}

#[test]
fn what_failed_leaves_nothing_in_the_task() -> Result<()> {
    let (mut cluster, task) = node()?;
    let _host = like_docker(&cluster, &task)?;
    task.run("ip link set lo up".split(' '))?;
    cluster.add_network("red", 5001, "10.224.1.0/24");
    cluster.slice("red", 1, "10.224.1.16/28");
    let before = state(&task)?;
    let on = [("ingress", TASK), ("red", "10.224.1.17")];
    let mut request = cluster.attachment(1, &task, "t1", &on);
    // The kernel refuses a multicast address for a link.
    request.endpoints[1].mac.0[0] = 1;
    let attached = cluster.overlays[0].run(move |overlay| overlay.attach(&request));
    ensure!(attached.is_err());
    assert_same(&before, &state(&task)?);
    Ok(())
}

#[test]
fn where_answers_cannot_be_turned_it_is_told() -> Result<()> {
    let (cluster, task) = node()?;
    let _host = like_docker(&cluster, &task)?;
    // Somebody else's set of the name, so that ours cannot be made.
    task.run(["nft", "add table ip portolan_task"])?;
    task.run(["nft", "add set ip portolan_task asked { type mark; }"])?;
    attach(&cluster, &task)?;
    serve(&task)?;
    ensure!(asks_tcp(&cluster)? == CLIENT);
    let told = || {
        cluster.overlays[0].run(|overlay| {
            let answers = overlay.around()?.tasks[&ip(TASK)].answers_udp;
            let problem = overlay.problems().iter().any(|p| p.contains("task t1"));
            anyhow::Ok((answers, problem))
        })
    };
    assert_eq!(told()?, (false, true));
    task.run(["nft", "delete table ip portolan_task"])?;
    attach(&cluster, &task)?;
    assert_eq!(told()?, (true, false));
    answered(&cluster)
}

#[test]
fn what_a_task_sends_outside_of_its_own_accord_is_refused_at_once() -> Result<()> {
    let (cluster, task) = node()?;
    attach(&cluster, &task)?;
    let client = cluster.lab.client("c1")?;
    let listener = client.enter(|| Ok(TcpListener::bind(("0.0.0.0", PORT))?))?;
    listener.set_nonblocking(true)?;
    let node = &cluster.nodes[0];
    node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    client.run("ip route add 10.208.0.0/12 via 10.77.0.11".split(' '))?;
    for to in ["10.77.0.101", "192.0.2.1"] {
        let began = Instant::now();
        let connected = task.enter(|| {
            let to = SocketAddr::new(to.parse()?, PORT);
            Ok(TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop))
        })?;
        ensure!(connected.is_err() && began.elapsed() < Duration::from_millis(500));
    }
    ensure!(listener.accept().is_err(), "it was forwarded");
    Ok(())
}

#[test]
fn any_other_default_route_is_preferred() -> Result<()> {
    let (cluster, task) = node()?;
    attach(&cluster, &task)?;
    let way = || -> Result<String> { Ok(task.run(["ip", "route", "get", "192.0.2.1"])?.stdout) };
    ensure!(way()?.contains("via 10.208.1.0"));
    let _host = like_docker(&cluster, &task)?;
    ensure!(way()?.contains("via 172.17.0.1"));
    // It came after the task was attached; the next time it is seen.
    attach(&cluster, &task)?;
    serve(&task)?;
    answered(&cluster)
}
