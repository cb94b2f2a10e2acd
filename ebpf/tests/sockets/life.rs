//! Agents come and go, and processes are served.

use std::{
    any::Any,
    fs,
    net::TcpStream,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_ebpf::EbpfPlane;
use portolan_model::Protocol;
use portolan_testbed::{detach_link, http_get, nginx, wait_until};

use crate::{
    cluster::Cluster,
    processes::{PORT, TASKS, hook},
};

/// The pins of the hooks.
const HOOKS: [&str; 7] = [
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sendmsg4",
];

/// A node with a task that its processes reach.
fn one_node() -> Result<(Cluster, [Box<dyn Any>; 2])> {
    let cluster = Cluster::new(1)?;
    let task = cluster.task(1, "t1", TASKS[0].1)?;
    let nginx = nginx(&task, 80, "t1")?;
    hook(&cluster);
    cluster.publish(PORT, Protocol::Tcp, &TASKS[..1]);
    Ok((cluster, [Box::new(nginx), Box::new(task)]))
}

fn get(cluster: &Cluster) -> Result<()> {
    let answer = http_get(&cluster.nodes[0], "127.0.0.1:8080")?;
    ensure!(answer.body == "t1");
    Ok(())
}

fn hooks(pins: &[PathBuf]) -> Vec<&str> {
    let names = pins.iter().filter_map(|pin| pin.file_name()?.to_str());
    let mut names: Vec<_> = names.filter(|name| HOOKS.contains(name)).collect();
    names.sort_unstable();
    names
}

#[test]
fn no_connection_fails_while_agents_come_and_go() -> Result<()> {
    let (cluster, _task) = one_node()?;
    let (over, made) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = thread::scope(|scope| {
        let client = scope.spawn(|| {
            cluster.nodes[0].enter(|| {
                // Each is refused if for one moment no program is attached.
                while !over.load(Ordering::Relaxed) {
                    let stream = TcpStream::connect(("127.0.0.1", PORT))?;
                    ensure!(stream.peer_addr()?.to_string() == "127.0.0.1:8080");
                    made.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        for _ in 0..5 {
            cluster.threads[0].run(|inside| inside.plane = None);
            // Without an agent, and with a new one.
            for step in [
                |_: &Cluster| {},
                |cluster: &Cluster| {
                    cluster.threads[0].run(|inside| {
                        inside.open();
                        inside.surround();
                    });
                },
            ] {
                step(&cluster);
                let before = made.load(Ordering::Relaxed);
                wait_until(Duration::from_secs(5), "more connections", || {
                    Ok(
                        (client.is_finished() || made.load(Ordering::Relaxed) > before + 20)
                            .then_some(()),
                    )
                })
                .unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
        client.join().unwrap()
    });
    result?;
    cluster.threads[0].run(|inside| {
        let pins = EbpfPlane::pins(&inside.pins).unwrap();
        assert_eq!(hooks(&pins), HOOKS);
        assert!(
            !pins
                .iter()
                .any(|pin| pin.to_string_lossy().ends_with("-new"))
        );
    });
    Ok(())
}

#[test]
fn a_hook_that_was_detached_is_attached_again() -> Result<()> {
    let (cluster, _task) = one_node()?;
    get(&cluster)?;
    cluster.threads[0].run(|inside| {
        let pins = EbpfPlane::pins(&inside.pins).unwrap();
        let pin = |hook: &str| pins.iter().find(|pin| pin.ends_with(hook)).unwrap();
        // The pin is there, and what it pins is not attached where it should be.
        fs::rename(pin("recvmsg6"), pin("connect4")).unwrap();
    });
    wait_until(Duration::from_secs(5), "the port is closed", || {
        Ok(get(&cluster).is_err().then_some(()))
    })?;
    cluster.threads[0].run(crate::cluster::Inside::surround);
    get(&cluster)?;
    let pin = cluster.threads[0].run(|inside| {
        inside.plane().take_detached();
        let mut pins = EbpfPlane::pins(&inside.pins)?.into_iter();
        let pin = pins.find(|pin| pin.ends_with("connect4"));
        let pin = pin.context("no pin")?;
        detach_link(&pin).map(|()| pin)
    })?;
    ensure!(get(&cluster).is_err(), "it was not detached");
    cluster.threads[0].run(|inside| {
        inside.surround();
        assert_eq!(inside.plane().take_detached(), [pin]);
    });
    get(&cluster)?;
    Ok(())
}

#[test]
fn clean_takes_the_hooks_off() -> Result<()> {
    let (cluster, _task) = one_node()?;
    get(&cluster)?;
    cluster.threads[0].run(|inside| {
        inside.plane = None;
        EbpfPlane::clean(&inside.pins)?;
        ensure!(
            EbpfPlane::pins(&inside.pins).is_err(),
            "the directory is gone"
        );
        Ok(())
    })?;
    wait_until(Duration::from_secs(5), "the port is closed", || {
        Ok(get(&cluster).is_err().then_some(()))
    })?;
    Ok(())
}

#[test]
fn without_cgroups_the_rest_works_and_says_why() -> Result<()> {
    let (cluster, _task) = one_node()?;
    let client = cluster.lab.client("c1")?;
    let from_outside = || http_get(&client, &cluster.nodes[0].at(PORT).to_string());
    let reason = cluster.threads[0].run(|inside| {
        inside.surroundings.cgroup = None;
        inside.surround();
        assert_eq!(
            hooks(&EbpfPlane::pins(&inside.pins).unwrap()),
            Vec::<&str>::new()
        );
        inside.plane().sockets().unwrap_err().0
    });
    ensure!(reason.contains("cgroup2"), "{reason}");
    wait_until(Duration::from_secs(5), "the port is closed", || {
        Ok(get(&cluster).is_err().then_some(()))
    })?;
    from_outside()?;
    let reason = cluster.threads[0].run(|inside| {
        inside.surroundings.cgroup = Some("/nowhere".into());
        inside.surround();
        inside.plane().sockets().unwrap_err().0
    });
    ensure!(reason.contains("/nowhere: No such file"), "{reason}");
    from_outside()?;
    hook(&cluster);
    get(&cluster)?;
    Ok(())
}
