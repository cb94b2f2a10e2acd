//! Policies where they differ from what one node and one agent would do: callers that are tasks, an agent that is away,
//! and tasks that say nothing.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use portolan_model::{Protocol, claims};
use portolan_plane::{DataPlane, FrontendAddress, FrontendSpec, Op, Plan};
use portolan_testbed::{Namespace, wait_until};

use crate::{
    cluster::{Cluster, spec},
    life::connect,
};

const SECOND: Duration = Duration::from_secs(1);
const VIP: &str = "10.208.255.1";

pub(crate) fn serve(cluster: &Cluster, n: usize, spec: FrontendSpec) {
    cluster.threads[n - 1].run(move |inside| {
        let failures = inside.plane().apply(&Plan {
            ops: vec![Op::Upsert(Arc::new(spec))],
        });
        assert!(failures.is_empty(), "{failures:?}");
    });
}

/// A connection by which a byte has gone each way.
pub(crate) fn open(
    client: &Namespace,
    task: &TcpListener,
    to: SocketAddr,
) -> Result<[TcpStream; 2]> {
    let mut there = connect(client, to)?;
    let mut here = task.accept()?.0;
    here.set_read_timeout(Some(Duration::from_secs(5)))?;
    there.write_all(b"x")?;
    here.read_exact(&mut [0])?;
    here.write_all(b"y")?;
    there.read_exact(&mut [0])?;
    Ok([there, here])
}

/// Sweeps until both ends are reset.
pub(crate) fn are_reset(cluster: &Cluster, ends: &[TcpStream; 2]) -> Result<()> {
    let reset = |stream: &TcpStream| -> Result<bool> {
        stream.set_nonblocking(true)?;
        let read = stream.peek(&mut [0]);
        Ok(matches!(read, Err(error) if error.kind() == ErrorKind::ConnectionReset))
    };
    let mut seen = [false; 2];
    wait_until(Duration::from_secs(5), "both ends are reset", || {
        let swept = cluster.threads[0].run(|inside| inside.plane().sweep().unwrap());
        ensure!(swept.untold == 0, "{swept:?}");
        for (seen, end) in seen.iter_mut().zip(ends) {
            *seen = *seen || reset(end)?;
        }
        Ok((seen == [true; 2]).then_some(()))
    })
}

pub(crate) fn listener(task: &Namespace, address: &str) -> Result<TcpListener> {
    task.enter(|| Ok(TcpListener::bind((address, 80))?))
}

#[test]
fn an_idle_call_of_a_task_is_reset_at_both_ends() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let caller = cluster.task(1, "caller", "10.208.1.2")?;
    let tasks = [(1, "10.208.1.3"), (2, "10.208.2.2")];
    for (n, address) in tasks {
        let task = cluster.task(n, &format!("t{n}"), address)?;
        let listener = listener(&task, address)?;
        let mut spec = spec(1, 0, Protocol::Tcp, &[(n, address)]);
        let network = claims::ingress_network().name;
        spec.frontend.address = FrontendAddress::Vip(network, VIP.parse()?);
        spec.backends[0].port = 0;
        spec.policy.tcp_idle_ms = Some(300);
        serve(&cluster, 1, spec);
        let ends = open(&caller, &listener, format!("{VIP}:80").parse()?)?;
        are_reset(&cluster, &ends)?;
    }
    Ok(())
}

#[test]
fn a_connection_of_an_earlier_agent_is_idle_under_the_next() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    let listener = listener(&task, "10.208.2.2")?;
    let mut spec = spec(1, 8080, Protocol::Tcp, &[(2, "10.208.2.2")]);
    spec.policy.tcp_idle_ms = Some(300);
    serve(&cluster, 1, spec);
    let client = cluster.lab.client("c1")?;
    let ends = open(&client, &listener, cluster.nodes[0].at(8080))?;
    cluster.threads[0].run(|inside| {
        inside.plane = None;
        inside.open();
        inside.surround();
    });
    are_reset(&cluster, &ends)?;
    let stats = cluster.threads[0].run(|inside| inside.plane().stats());
    assert_eq!(stats.frontends[0].idle_timeouts, 1);
    Ok(())
}

/// The first of a connection's resets is lost: what comes then makes each end reset the other.
#[test]
fn an_end_that_missed_the_reset_learns_it_from_the_other() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    let listener = listener(&task, "10.208.2.2")?;
    let mut spec = spec(1, 8080, Protocol::Tcp, &[(2, "10.208.2.2")]);
    spec.policy.tcp_idle_ms = Some(300);
    serve(&cluster, 1, spec);
    let client = cluster.lab.client("c1")?;
    let [mut there, here] = open(&client, &listener, cluster.nodes[0].at(8080))?;
    client.run([
        "nft",
        "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; \
         add rule ip deaf in tcp flags rst drop",
    ])?;
    wait_until(Duration::from_secs(5), "the connection is idle", || {
        let swept = cluster.threads[0].run(|inside| inside.plane().sweep().unwrap());
        Ok((swept.idle == 1).then_some(()))
    })?;
    client.run(["nft", "delete", "table", "ip", "deaf"])?;
    there.write_all(b"still there?")?;
    let read = there.read(&mut [0]).unwrap_err();
    assert_eq!(read.kind(), ErrorKind::ConnectionReset);
    let read = here.peek(&mut [0]).unwrap_err();
    assert_eq!(read.kind(), ErrorKind::ConnectionReset);
    Ok(())
}

/// A task's UDP socket that answers, or does not.
fn datagrams(task: &Namespace, address: &str, answers: bool) -> Result<UdpSocket> {
    let socket = task.enter(|| Ok(UdpSocket::bind((address, 80))?))?;
    if answers {
        let socket = socket.try_clone()?;
        // It ends with the test's process.
        thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                let _ = socket.send_to(b"y", from);
            }
        });
    }
    Ok(socket)
}

fn client_of(client: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    client.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SECOND))?;
        Ok(socket)
    })
}

/// How often it has to ask until it is answered, at most three times.
fn tries(socket: &UdpSocket) -> Result<Option<u32>> {
    for asked in 1..=3 {
        socket.send(b"x")?;
        match socket.recv(&mut [0]) {
            Ok(_) => return Ok(Some(asked)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

const PAIR: [(usize, &str); 2] = [(2, "10.208.2.2"), (2, "10.208.2.3")];

#[test]
fn a_silent_udp_task_costs_one_repetition_and_then_nothing() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [
        cluster.task(2, "t1", PAIR[0].1)?,
        cluster.task(2, "t2", PAIR[1].1)?,
    ];
    let _sockets = [
        datagrams(&tasks[0], PAIR[0].1, true)?,
        datagrams(&tasks[1], PAIR[1].1, false)?,
    ];
    cluster.publish(8080, Protocol::Udp, &PAIR);
    let client = cluster.lab.client("c1")?;
    let to = cluster.nodes[0].at(8080);
    let mut needed = Vec::new();
    for _ in 0..6 {
        needed.push(tries(&client_of(&client, to)?)?);
    }
    needed.sort_unstable();
    assert_eq!(needed[..5], [Some(1); 5]);
    assert_eq!(needed[5], Some(2));
    let stats = cluster.threads[0].run(|inside| inside.plane().stats());
    assert_eq!(stats.frontends[0].retries, 1);
    Ok(())
}

#[test]
fn a_service_of_which_no_task_answers_keeps_its_clients_where_they_are() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [
        cluster.task(2, "t1", PAIR[0].1)?,
        cluster.task(2, "t2", PAIR[1].1)?,
    ];
    let sockets = [
        datagrams(&tasks[0], PAIR[0].1, false)?,
        datagrams(&tasks[1], PAIR[1].1, false)?,
    ];
    cluster.publish(8080, Protocol::Udp, &PAIR);
    let client = cluster.lab.client("c1")?;
    let asked = tries(&client_of(&client, cluster.nodes[0].at(8080))?)?;
    assert_eq!(asked, None);
    let mut got = Vec::new();
    for socket in &sockets {
        socket.set_nonblocking(true)?;
        got.push(std::iter::from_fn(|| socket.recv(&mut [0; 16]).ok()).count());
    }
    got.sort_unstable();
    assert_eq!(got, [0, 3]);
    Ok(())
}

#[test]
fn a_closed_udp_port_is_not_the_clients_affair() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [
        cluster.task(2, "t1", PAIR[0].1)?,
        cluster.task(2, "t2", PAIR[1].1)?,
    ];
    let _socket = datagrams(&tasks[0], PAIR[0].1, true)?;
    cluster.publish(8080, Protocol::Udp, &PAIR);
    let client = cluster.lab.client("c1")?;
    let to = cluster.nodes[0].at(8080);
    // Whoever met the closed port gets no error, and an answer the next time.
    for _ in 0..4 {
        let needed = tries(&client_of(&client, to)?)?;
        ensure!(needed.is_some_and(|tries| tries <= 2), "{needed:?}");
    }
    ensure!(cluster.counter(1, "drop_refused") == 1);
    Ok(())
}
