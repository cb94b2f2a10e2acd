//! Docker engines: a Swarm in seconds, and nothing left of it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_testbed::{Engine, Lab, Swarm, wait_until};

#[test]
fn three_engines_are_a_swarm_and_leave_nothing() -> Result<()> {
    let lab = Lab::unique("dk")?;
    let prefix = lab.prefix().to_owned();
    let start = Instant::now();
    let swarm = Swarm::start(&lab, 3)?;
    ensure!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    let manager = swarm.manager()?;
    let nodes = manager.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
    let mut nodes: Vec<&str> = nodes.lines().collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n1 Ready", "n2 Ready", "n3 Ready"]);

    // Tasks run on each, of an image that no registry has.
    manager.create_service("idle", &["--mode", "global"], &["sleep", "1000"])?;
    for engine in &swarm.engines {
        wait_until(Duration::from_secs(20), "the task runs", || {
            let running = engine.docker(&["ps", "-q"])?;
            Ok((running.lines().count() == 1).then_some(()))
        })?;
    }
    // What the engine says of namespaces is true where its mounts are.
    let worker = swarm.engines.get(2).context("three engines")?;
    let id = worker.docker(&["ps", "-q"])?;
    let sandbox = worker.docker(&["inspect", "-f", "{{.NetworkSettings.SandboxKey}}", &id])?;
    let mut list = worker.command("ls");
    let seen = portolan_testbed::output_within(list.arg(&sandbox), Duration::from_secs(5))?;
    ensure!(seen.status.success() && !fs::exists(&sandbox)?, "{sandbox}");

    let sockets: Vec<_> = swarm.engines.iter().map(Engine::socket).collect();
    drop(swarm);
    for socket in sockets {
        let dir = socket.parent().context("a directory")?;
        ensure!(!dir.exists(), "{} is left", dir.display());
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        let Ok(groups) = fs::read_dir(hierarchy?.path()) else {
            continue;
        };
        for group in groups {
            let name = group?.file_name().to_string_lossy().into_owned();
            ensure!(!name.contains(&prefix), "the cgroup {name} is left");
        }
    }
    drop(lab);
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&prefix), "a mount is left");
    for namespace in fs::read_dir("/run/netns")? {
        let name = namespace?.file_name().to_string_lossy().into_owned();
        ensure!(!name.contains(&prefix), "{name} is left");
    }
    Ok(())
}

#[test]
fn an_engine_starts_again_after_a_stop() -> Result<()> {
    let lab = Lab::unique("dks")?;
    let mut engine = Engine::start(lab.node("n1")?)?;
    engine.docker(&[
        "run",
        "-d",
        "--restart",
        "always",
        Engine::IMAGE,
        "sleep",
        "1000",
    ])?;
    ensure!(engine.start_again().is_err(), "one is enough");
    let ended = engine.docker(&["kill", "-s", "KILL", &engine.docker(&["ps", "-q"])?]);
    ensure!(ended.is_ok());
    engine.stop()?;
    ensure!(engine.docker(&["ps"]).is_err());
    engine.start_again()?;
    wait_until(Duration::from_secs(20), "the container is back", || {
        Ok((engine.docker(&["ps", "-q"])?.lines().count() == 1).then_some(()))
    })
}
