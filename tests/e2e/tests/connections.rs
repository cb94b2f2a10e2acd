//! What a connection is, it stays on its way through a node to a task on another one.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    panic::resume_unwind,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use portolan_e2e::{
    Cluster, Options, Plane, Task,
    answers::each,
    on_both_planes,
    stream::{both_ends, connect, echo, echo_server, listen},
};
use portolan_testbed::{Protocol, output_within};
use socket2::SockRef;

/// A service whose task, on the second node, is the test itself, and the first node's address of it.
struct Fixture {
    cluster: Cluster,
    to: SocketAddr,
    task: Task,
    listener: TcpListener,
}

impl Fixture {
    fn start(prefix: &str, plane: Plane, options: &str) -> Result<Self> {
        let cluster = Cluster::start(prefix, Options::nodes(2).plane(plane))?;
        let stack =
            format!("services:\n  raw:\n    ports: ['9000:90']\n    x-portolan: {{{options}}}\n");
        cluster.apply(0, &stack)?;
        let netns = cluster.lab.task("r1")?;
        let listener = listen(&netns, 90)?;
        let task = cluster.add_task(netns, 1, "raw")?;
        cluster.wait_served("raw", 1)?;
        let to = cluster.node(0).at(9000);
        Ok(Self {
            cluster,
            to,
            task,
            listener,
        })
    }

    /// A new connection through the first node, from both sides.
    fn connection(&self) -> Result<(TcpStream, TcpStream)> {
        let (client, task) = both_ends(&self.cluster.client, self.to, &self.listener)?;
        // So the other plane cannot stand in for this one.
        let itself = task.peer_addr()? == client.local_addr()?;
        ensure!(
            itself == self.cluster.keeps_clients(self.to),
            "the task sees {}",
            task.peer_addr()?
        );
        Ok((client, task))
    }
}

/// That a stream was reset, as opposed to closed in order.
fn is_reset(stream: &mut TcpStream) -> Result<()> {
    match stream.read(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("must be reset"),
        Ok(0) => bail!("must be reset, and was closed in order"),
        Ok(_) => bail!("must be reset, and got bytes"),
    }
}

/// Ends a stream by a reset.
fn abort(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

on_both_planes! {
    either_side_may_close_first_and_still_receive,
    a_reset_is_passed_on_either_way,
    an_idle_connection_ends_in_a_reset_and_a_busy_one_does_not,
    a_draining_task_keeps_its_connections_for_the_chosen_time,
}

fn either_side_may_close_first_and_still_receive(plane: Plane) -> Result<()> {
    let fixture = Fixture::start("half", plane, "")?;
    let bulk = vec![b'x'; 3 << 20];
    for client_first in [true, false] {
        let (client, task) = fixture.connection()?;
        let (mut first, mut second) = if client_first {
            (client, task)
        } else {
            (task, client)
        };
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| -> Result<()> {
                first.write_all(&bulk)?;
                Ok(first.shutdown(Shutdown::Write)?)
            });
            let mut got = Vec::new();
            second.read_to_end(&mut got)?;
            ensure!(
                got == bulk,
                "client first: {client_first}: {} bytes",
                got.len()
            );
            sent.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        // It has closed long ago, and is answered all the same.
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| -> Result<()> {
                second.write_all(&bulk)?;
                Ok(second.shutdown(Shutdown::Write)?)
            });
            let mut got = Vec::new();
            first.read_to_end(&mut got)?;
            ensure!(
                got == bulk,
                "client first: {client_first}: {} bytes back",
                got.len()
            );
            sent.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
    }
    Ok(())
}

fn a_reset_is_passed_on_either_way(plane: Plane) -> Result<()> {
    let fixture = Fixture::start("reset", plane, "")?;
    for from_client in [true, false] {
        let (mut client, mut task) = fixture.connection()?;
        client.write_all(b"ping")?;
        task.read_exact(&mut [0; 4])?;
        let (one, mut other) = if from_client {
            (client, task)
        } else {
            (task, client)
        };
        abort(one)?;
        is_reset(&mut other).with_context(|| format!("from the client: {from_client}"))?;
    }
    // Also when the side that is to hear of it has sent its last byte already.
    let (mut client, mut task) = fixture.connection()?;
    client.write_all(b"ping")?;
    client.shutdown(Shutdown::Write)?;
    task.read_to_end(&mut Vec::new())?;
    abort(task)?;
    is_reset(&mut client)
}

fn an_idle_connection_ends_in_a_reset_and_a_busy_one_does_not(plane: Plane) -> Result<()> {
    let idle = Duration::from_millis(800);
    let fixture = Fixture::start("idle", plane, "idle_timeout: 800ms")?;
    let (mut busy_client, mut busy_task) = fixture.connection()?;
    let (mut client, mut task) = fixture.connection()?;
    client.write_all(b"ping")?;
    let begin = Instant::now();
    task.read_exact(&mut [0; 4])?;
    client.set_nonblocking(true)?;
    // Bytes one way are enough to keep the busy one, and reading them paces the loop.
    let ended = loop {
        busy_client.write_all(b"tick")?;
        busy_task.set_read_timeout(Some(Duration::from_millis(100)))?;
        busy_task
            .read_exact(&mut [0; 4])
            .context("the busy connection ended")?;
        let more = busy_task.read_exact(&mut [0; 1]);
        ensure!(more.is_err(), "no byte was sent");
        match client.read(&mut [0; 1]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break begin.elapsed(),
            other => bail!("must be reset: {other:?}"),
        }
        ensure!(
            begin.elapsed() < 10 * idle,
            "still there after {:?}",
            begin.elapsed()
        );
    };
    // The fast path looks for them once a second.
    let late = match plane {
        Plane::Ebpf => Duration::from_secs(2),
        Plane::Relay => idle,
    };
    ensure!(
        ended >= idle && ended < idle + late,
        "reset after {ended:?}"
    );
    is_reset(&mut task).context("the task's side")?;
    busy_client.write_all(b"tick")?;
    busy_task
        .read_exact(&mut [0; 4])
        .context("the busy connection ended")?;
    Ok(())
}

fn a_draining_task_keeps_its_connections_for_the_chosen_time(plane: Plane) -> Result<()> {
    let stack = "
services:
  web:
    ports: ['8080:80', '9000:90']
    x-portolan: {drain: 2s}
";
    let chosen = Duration::from_secs(2);
    let mut cluster = Cluster::start("drain", Options::nodes(2).plane(plane))?;
    cluster.apply(0, stack)?;
    let old = cluster.whoami("a1", 1, "web")?;
    let _echo = echo_server(&old.netns, 90)?;
    cluster.wait_served("web", 1)?;
    let mut held = connect(&cluster.client, cluster.node(0).at(9000))?;
    echo(&mut held, b"before")?;
    let _new = cluster.whoami("a2", 0, "web")?;
    cluster.wait_served("web", 2)?;

    let begin = Instant::now();
    cluster.cli(1, &["task", "drain", &old.id])?;
    cluster.wait_served("web", 1)?;
    for node in 0..2 {
        let seen = cluster.answers(cluster.node(node).at(8080), Protocol::Tcp, 6)?;
        ensure!(seen == each(&["a2"], 6), "n{}: {seen:?}", node + 1);
    }
    let mut last_answer = begin.elapsed();
    let mut exchange = || -> Result<()> {
        echo(&mut held, b"while it drains")?;
        last_answer = begin.elapsed();
        Ok(())
    };
    while exchange().is_ok() {
        ensure!(
            begin.elapsed() < 4 * chosen,
            "the connection outlives the drain"
        );
    }
    // Begun a little after `begin`, and told to the other node; the rest is what two cores may take.
    let late = chosen + Duration::from_secs(1);
    ensure!(
        (chosen..late).contains(&last_answer),
        "kept for {last_answer:?} of {chosen:?}"
    );
    cluster.wait_for(0, "one task left", &["tasks"], |rows| {
        rows.as_array().is_some_and(|rows| rows.len() == 1)
    })?;
    Ok(())
}

/// On the fast path `fast_path_bulk.rs` has the like, at other sizes of packets.
#[test]
fn a_gibibyte_arrives_whole_through_the_relay_of_another_node() -> Result<()> {
    // The same bytes at each run: zeros under a cipher.
    const STREAM: &str =
        "openssl enc -aes-128-ctr -K 00 -iv 00 -in /dev/zero 2>/dev/null | head -c 1073741824";
    let fixture = Fixture::start("gib", Plane::Relay, "")?;
    drop(fixture.listener);
    let mut source = fixture.task.netns.command("socat");
    source.args([
        "-u",
        "-b1048576",
        &format!("SYSTEM:{STREAM}"),
        "TCP-LISTEN:90,reuseaddr",
    ]);
    let _source = fixture.task.netns.spawn(&mut source)?.listening(90)?;
    let limit = Duration::from_mins(1);
    let sum = |command: &mut std::process::Command| -> Result<String> {
        Ok(output_within(command, limit)?.success()?.stdout)
    };
    let receive = format!("socat -u -b1048576 TCP:{} STDOUT | sha256sum", fixture.to);
    let client = &fixture.cluster.client;
    let received = sum(client.command("sh").args(["-c", &receive]))?;
    let sent = sum(client
        .command("sh")
        .args(["-c", &format!("{STREAM} | sha256sum")]))?;
    ensure!(received == sent, "received {received}, sent {sent}");
    Ok(())
}
