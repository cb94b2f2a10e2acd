//! IPv6 at a task's end. Its clients are an address on the node's loopback, and their packets come by the
//! network's bridge, to which the test gives for it what the fast path does without: IPv6, the gateway's
//! address and a route.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portolan_model::{Protocol, ipv6_of};
use portolan_overlay::{Overlay, PortRange};
use portolan_testbed::Namespace;

use crate::{
    cluster::{Cluster, ip},
    lifecycle::{assert_same, state},
    outside::like_docker,
};

const CLIENT: &str = "2001:db8::7";
const PORT: u16 = 5300;
const ON: [(&str, &str); 1] = [("ingress", "10.208.1.2")];
const SOON: Duration = Duration::from_secs(2);

fn own() -> Ipv6Addr {
    ipv6_of(4096, ip(ON[0].1))
}

/// A node, and a namespace as containers have it: with IPv6 disabled.
fn node() -> Result<(Cluster, Namespace)> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let task = cluster.lab.task("t1")?;
    task.run(
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
            .split(' '),
    )?;
    Ok((cluster, task))
}

/// Attaches the namespace to the ingress network, and has the bridge carry IPv6.
fn attach(cluster: &Cluster, task: &Namespace, ipv6: bool) -> Result<()> {
    let mut request = cluster.attachment(1, task, "t1", &ON);
    if ipv6 {
        let served = [Protocol::Tcp, Protocol::Udp].map(|protocol| PortRange {
            protocol,
            first: PORT,
            last: PORT + 1,
        });
        request.endpoints[0].ipv6.extend(served);
    }
    cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    let gateway = ipv6_of(4096, ip("10.208.1.0"));
    for command in [
        "sysctl -qw net.ipv6.conf.ptbr4096.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0",
        &format!("ip -6 addr replace {gateway}/96 dev ptbr4096 nodad"),
        &format!("ip -6 addr replace {CLIENT}/128 dev lo nodad"),
    ] {
        cluster.nodes[0].run(command.split(' '))?;
    }
    Ok(())
}

/// A server bound to no address, that answers as many bytes as a datagram says, and tells each connection
/// whom it sees.
fn serve(task: &Namespace) -> Result<()> {
    let (udp, tcp) = task.enter(|| {
        let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        Ok((udp, TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))
    })?;
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

fn asks_udp(at: &Namespace, from: &str, to: Ipv6Addr, bytes: usize) -> Result<bool> {
    let socket = at.enter(|| Ok(UdpSocket::bind((from.parse::<Ipv6Addr>()?, 0))?))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    // Connected, it takes nothing from another address.
    socket.connect((to, PORT))?;
    socket.send(bytes.to_string().as_bytes())?;
    let mut answer = vec![0; 1 << 16];
    Ok(socket.recv(&mut answer).is_ok_and(|length| length == bytes))
}

fn asks_tcp(at: &Namespace) -> Result<String> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let mut stream = at.enter(|| {
        let socket = socket(AddressFamily::INET6, SocketType::STREAM, None)?;
        bind(&socket, &SocketAddr::new(CLIENT.parse()?, 0))?;
        connect(&socket, &SocketAddr::new(own().into(), PORT)).context("connect")?;
        Ok(TcpStream::from(socket))
    })?;
    stream.set_read_timeout(Some(SOON))?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    Ok(seen)
}

fn answered(cluster: &Cluster) -> Result<()> {
    ensure!(asks_tcp(&cluster.nodes[0])? == CLIENT);
    for bytes in [5, 1400, 9000] {
        let answered = asks_udp(&cluster.nodes[0], CLIENT, own(), bytes)?;
        ensure!(answered, "{bytes} bytes are not answered");
    }
    Ok(())
}

#[test]
fn a_task_answers_clients_that_speak_ipv6() -> Result<()> {
    let (cluster, task) = node()?;
    attach(&cluster, &task, true)?;
    serve(&task)?;
    answered(&cluster)?;
    let addresses = task.run(["ip", "-6", "-o", "addr"])?.stdout;
    ensure!(addresses.lines().count() == 1, "{addresses}");
    Ok(())
}

#[test]
fn one_with_other_links_answers_by_the_overlay_what_came_by_it() -> Result<()> {
    let (cluster, task) = node()?;
    let host = like_docker(&cluster, &task)?;
    for (at, command) in [
        (&task, "sysctl -qw net.ipv6.conf.dock0.disable_ipv6=0"),
        (&task, "ip -6 addr add fd00:17::2/64 dev dock0 nodad"),
        (&host, "ip -6 addr add fd00:17::1/64 dev far0 nodad"),
        (&task, "ip -6 route add default via fd00:17::1"),
    ] {
        at.run(command.split(' '))?;
    }
    attach(&cluster, &task, true)?;
    serve(&task)?;
    answered(&cluster)?;
    // Who asks by the other way is answered by it.
    ensure!(asks_udp(&host, "fd00:17::1", "fd00:17::2".parse()?, 5)?);
    // What it sends of its own accord goes there too.
    let way = task
        .run(["ip", "-6", "route", "get", "2001:db8::9"])?
        .stdout;
    ensure!(way.contains("via fd00:17::1"), "{way}");
    Ok(())
}

#[test]
fn a_service_may_come_to_want_it_and_no_longer() -> Result<()> {
    let (cluster, task) = node()?;
    attach(&cluster, &task, false)?;
    let without = state(&task)?;
    ensure!(!without.contains("inet6"), "{without}");
    attach(&cluster, &task, true)?;
    serve(&task)?;
    let with = state(&task)?;
    answered(&cluster)?;
    // By an overlay that finds it as it is.
    attach(&cluster, &task, true)?;
    assert_same(&with, &state(&task)?);
    attach(&cluster, &task, false)?;
    assert_same(&without, &state(&task)?);
    Ok(())
}

#[test]
fn what_someone_took_away_is_mended() -> Result<()> {
    let (cluster, task) = node()?;
    attach(&cluster, &task, true)?;
    serve(&task)?;
    let before = state(&task)?;
    for command in [
        "sysctl -qw net.ipv6.conf.pt0.disable_ipv6=1",
        "ip -6 rule del ipproto udp sport 5300-5301",
    ] {
        task.run(command.split(' '))?;
    }
    ensure!(!asks_udp(&cluster.nodes[0], CLIENT, own(), 5)?);
    attach(&cluster, &task, true)?;
    assert_same(&before, &state(&task)?);
    answered(&cluster)
}

#[test]
fn detached_nothing_of_it_stays_in_the_task() -> Result<()> {
    let (mut cluster, task) = node()?;
    let _host = like_docker(&cluster, &task)?;
    task.run("ip link set lo up".split(' '))?;
    let before = state(&task)?;
    attach(&cluster, &task, true)?;
    ensure!(state(&task)?.contains("ip6 portolan_task"));
    // By an overlay that knows of it by nothing but the kernel.
    cluster.restart(1)?;
    cluster.overlays[0].run(|overlay: &mut Overlay| overlay.detach(&"t1".parse().unwrap()))?;
    assert_same(&before, &state(&task)?);
    Ok(())
}

/// Programs try the addresses of a name one after the other: one that leads nowhere must not hold them up.
#[test]
fn connections_of_its_own_accord_fail_at_once() -> Result<()> {
    let (cluster, task) = node()?;
    attach(&cluster, &task, true)?;
    let (connected, took) = task.enter(|| {
        let to = SocketAddr::new("2001:db8::9".parse()?, 443);
        let began = Instant::now();
        let connected = TcpStream::connect_timeout(&to, Duration::from_secs(5));
        Ok((connected.map(drop), began.elapsed()))
    })?;
    ensure!(connected.is_err() && took < Duration::from_millis(500));
    Ok(())
}

#[test]
fn a_link_too_narrow_for_ipv6_is_told() -> Result<()> {
    let (cluster, _task) = node()?;
    let why = || {
        cluster.overlays[0].run(|overlay| {
            overlay.around()?;
            anyhow::Ok(overlay.no_ipv6())
        })
    };
    ensure!(why()?.is_none());
    cluster.nodes[0].set_mtu(1300)?;
    ensure!(why()?.is_some_and(|why| why.contains("MTU of 1250")));
    Ok(())
}
