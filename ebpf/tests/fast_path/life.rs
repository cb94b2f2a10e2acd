//! Agents come and go, backends too, and flows stay where they are.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, ensure};
use portolan_ebpf::{EbpfError, EbpfPlane};
use portolan_model::Protocol;
use portolan_plane::{BackendState, DataPlane, Op, Plan};
use portolan_testbed::{Namespace, detach_link, http_get, wait_until};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    cluster::{Cluster, frontend, options, spec},
    reach::whoami,
};

const TASKS: [(usize, &str); 2] = [(1, "10.208.1.2"), (2, "10.208.2.2")];

/// A connection that stays open, from inside a namespace.
pub(crate) fn connect(from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    from.enter(|| {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    })
}

/// One request on it: which task answers.
pub(crate) fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    ensure!(length > 0, "closed");
    let body = text.rsplit("\r\n\r\n").next().unwrap_or_default();
    Ok(body.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
fn a_new_agent_adopts_what_an_old_one_left() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let a = cluster.task(1, "t1", TASKS[0].1)?;
    let b = cluster.task(2, "t2", TASKS[1].1)?;
    let _nginx = [whoami(&a)?, whoami(&b)?];
    cluster.publish(8080, Protocol::Tcp, &TASKS);
    let client = cluster.lab.client("c1")?;
    let to = cluster.nodes[0].at(8080);
    let mut open = [connect(&client, to)?, connect(&client, to)?];
    let before: Vec<String> = open.iter_mut().map(ask).collect::<Result<_>>()?;
    assert_ne!(before[0], before[1], "round robin");

    let known = cluster.threads[0].run(|inside| {
        let known = inside.plane().dump().unwrap();
        inside.plane = None;
        known
    });
    // No agent: old flows and new ones.
    assert_eq!(
        open.iter_mut().map(ask).collect::<Result<Vec<_>>>()?,
        before
    );
    http_get(&client, &to.to_string())?;

    let adopted = cluster.threads[0].run(|inside| {
        inside.open();
        inside.surround();
        inside.plane().dump().unwrap()
    });
    assert_eq!(adopted, known);
    assert_eq!(
        open.iter_mut().map(ask).collect::<Result<Vec<_>>>()?,
        before
    );
    let answers = [
        http_get(&client, &to.to_string())?,
        http_get(&client, &to.to_string())?,
    ];
    assert_ne!(answers[0].body, answers[1].body, "round robin goes on");
    // The last request's connection is closed by both ends a moment after its answer.
    let flows = wait_until(
        Duration::from_secs(5),
        "only what is open to be shown",
        || {
            let flows = cluster.threads[0].run(|inside| inside.plane().flows(10));
            Ok((flows.len() == 2).then_some(flows))
        },
    )?;
    assert!(
        flows
            .iter()
            .all(|flow| flow.client.ip() == client.ipv4() && flow.bytes_out > 0)
    );
    Ok(())
}

#[test]
fn a_link_that_was_detached_is_attached_again() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let task = cluster.task(1, "t1", TASKS[0].1)?;
    let _nginx = whoami(&task)?;
    cluster.publish(8080, Protocol::Tcp, &TASKS[..1]);
    let client = cluster.lab.client("c1")?;
    let get = || http_get(&client, &cluster.nodes[0].at(8080).to_string());
    get()?;
    cluster.threads[0].run(|inside| {
        for pin in EbpfPlane::pins(&inside.pins).unwrap() {
            if pin.to_string_lossy().contains("from_outside-") {
                std::fs::remove_file(pin).unwrap();
            }
        }
    });
    // The kernel detaches a little later.
    wait_until(Duration::from_secs(5), "the port is closed", || {
        Ok(get().is_err().then_some(()))
    })?;
    cluster.threads[0].run(super::cluster::Inside::surround);
    get()?;
    // And with its pin kept, which is told: a pin that is gone is seen from outside.
    let pin = cluster.threads[0].run(|inside| {
        assert!(inside.plane().take_detached().is_empty());
        let pins = EbpfPlane::pins(&inside.pins).unwrap();
        let mut pins = pins.into_iter();
        let pin = pins.find(|pin| pin.to_string_lossy().contains("from_outside-"));
        let pin = pin.expect("no pin");
        detach_link(&pin).map(|()| pin)
    })?;
    ensure!(get().is_err(), "it was not detached");
    cluster.threads[0].run(|inside| {
        inside.surround();
        assert_eq!(inside.plane().take_detached(), [pin]);
        inside.surround();
        assert!(inside.plane().take_detached().is_empty());
    });
    get()?;
    Ok(())
}

#[test]
fn clean_leaves_nothing() -> Result<()> {
    let cluster = Cluster::new(1)?;
    cluster.publish(8080, Protocol::Tcp, &[]);
    cluster.threads[0].run(|inside| {
        ensure!(EbpfPlane::pins(&inside.pins)?.len() > 10);
        inside.plane = None;
        EbpfPlane::clean(&inside.pins)?;
        ensure!(
            EbpfPlane::pins(&inside.pins).is_err(),
            "the directory is gone"
        );
        EbpfPlane::clean(&inside.pins)?;
        Ok(())
    })
}

/// Applies a change of the frontend's spec on node 1.
fn change(
    cluster: &Cluster,
    backends: &'static [(usize, &'static str)],
    draining: Option<&'static str>,
) {
    let mut spec = spec(1, 8080, Protocol::Tcp, backends);
    for backend in &mut spec.backends {
        if Some(backend.ip.to_string().as_str()) == draining {
            backend.state = BackendState::Draining;
        }
    }
    cluster.threads[0].run(move |inside| {
        let failures = inside.plane().apply(&Plan {
            ops: vec![Op::Upsert(Arc::new(spec))],
        });
        assert!(failures.is_empty(), "{failures:?}");
    });
}

#[test]
fn a_draining_backend_keeps_its_flows_and_a_removed_one_ends_them() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let a = cluster.task(1, "t1", TASKS[0].1)?;
    let b = cluster.task(2, "t2", TASKS[1].1)?;
    let _nginx = [whoami(&a)?, whoami(&b)?];
    cluster.publish(8080, Protocol::Tcp, &TASKS);
    let client = cluster.lab.client("c1")?;
    let to = cluster.nodes[0].at(8080);
    let mut open = [connect(&client, to)?, connect(&client, to)?];
    for stream in &mut open {
        ask(stream)?;
    }
    change(&cluster, &TASKS, Some(TASKS[1].1));
    for _ in 0..4 {
        assert!(
            http_get(&client, &to.to_string())?
                .body
                .starts_with(TASKS[0].1)
        );
    }
    let mut at = Vec::new();
    for stream in &mut open {
        at.push(ask(stream)?);
    }
    assert!(
        at.contains(&TASKS[1].1.to_owned()),
        "the old flow is still there: {at:?}"
    );
    change(&cluster, &TASKS[..1], None);
    for (stream, task) in open.iter_mut().zip(&at) {
        assert_eq!(ask(stream).is_ok(), task == TASKS[0].1, "{task}");
    }
    ensure!(cluster.counter(1, "ended") > 0, "by a reset");
    cluster.threads[0].run(|inside| {
        let failures = inside.plane().apply(&Plan {
            ops: vec![Op::Remove(frontend(8080, Protocol::Tcp))],
        });
        assert!(failures.is_empty() && inside.plane().flows(1).is_empty());
    });
    ensure!(ask(&mut open[0]).is_err() && ask(&mut open[1]).is_err());
    Ok(())
}

#[test]
fn what_the_relay_has_it_keeps() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let task = cluster.task(1, "t1", TASKS[0].1)?;
    let _nginx = whoami(&task)?;
    let client = cluster.lab.client("c1")?;
    let to = cluster.nodes[0].at(8080);
    // A listener on the node, as the relay holds one.
    let listener = cluster.nodes[0].enter(|| Ok(TcpListener::bind("0.0.0.0:8080")?))?;
    let mut open = connect(&client, to)?;
    let (mut relayed, _) = listener.accept()?;
    cluster.publish(8080, Protocol::Tcp, &TASKS[..1]);
    open.write_all(b"still here")?;
    relayed.set_read_timeout(Some(Duration::from_secs(5)))?;
    relayed.read_exact(&mut [0; 10])?;
    ensure!(cluster.counter(1, "to_relay_flow") > 0);
    let answer = http_get(&client, &to.to_string())?;
    assert_eq!(answer.body, format!("{} {}", TASKS[0].1, client.ipv4()));
    Ok(())
}

/// Pins outlive agents, and so must not serve a network namespace that they were not made for.
#[test]
fn pins_are_of_one_network_namespace_and_of_one_size() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let client = cluster.lab.client("c1")?;
    let elsewhere = client.path();
    cluster.threads[0].run(move |inside| {
        let mut options = options(&inside.pins);
        options.flows += 1;
        let error = EbpfPlane::open(&options).err().unwrap();
        ensure!(
            matches!(
                error,
                EbpfError::Size {
                    present: 65_536,
                    ..
                }
            ),
            "{error}"
        );
        ensure!(error.to_string().contains("leave --clean"), "{error}");
        options.flows -= 1;
        let here = File::open("/proc/thread-self/ns/net")?;
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(File::open(elsewhere)?.as_fd(), network)?;
        let refused = EbpfPlane::open(&options);
        move_into_link_name_space(here.as_fd(), network)?;
        let error = refused.err().unwrap();
        ensure!(matches!(error, EbpfError::Foreign { .. }), "{error}");
        ensure!(error.to_string().contains("--bpf-dir"), "{error}");
        EbpfPlane::open(&options)?;
        Ok(())
    })
}
