//! How soon what Docker does is shown on every node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Plane};
use portolan_testbed::wait_until;
use serde_json::Value;

use crate::{answered::DOCKER, swarm};

/// How long it may take on a machine that has other things to do.
const FOLLOWED: Duration = Duration::from_secs(2);

/// Times begin with Docker's own word, the return of a command or an event of a container, and end when the last node
/// shows it.
#[test]
fn what_docker_does_is_shown_on_every_node_at_once() -> Result<()> {
    let cluster = swarm("timing", Plane::Ebpf)?;
    let mut times = Vec::new();

    let begin = now()?;
    cluster.docker(
        0,
        "service create -d --name web --replicas 2 -p 8080:80 web:blue",
    )?;
    let returned = now()?;
    let declared = shown(&cluster, "services", |rows| web(rows, "8080:80/tcp", 0))?;
    times.push(("create: the service", since(returned, declared)));
    let served = shown(&cluster, "services", |rows| web(rows, "8080:80/tcp", 2))?;
    let started = last(&cluster, "start", begin)?;
    times.push(("create: its tasks", since(started, served)));

    let begin = now()?;
    cluster.docker(0, "service scale -d web=6")?;
    let served = shown(&cluster, "services", |rows| web(rows, "8080:80/tcp", 6))?;
    let started = last(&cluster, "start", begin)?;
    times.push(("scale up: the tasks", since(started, served)));

    let begin = now()?;
    cluster.docker(0, "node update --availability drain n3")?;
    let drained = shown(&cluster, "tasks", |rows| {
        let mut rows = rows.as_array().into_iter().flatten();
        rows.all(|row| row["node"] != "n3" || row["state"] != "healthy")
    })?;
    let told = last(&cluster, "kill", begin)?;
    times.push(("drain: no flows to n3", since(told, drained)));
    cluster.wait_served("web", 6)?;

    cluster.docker(0, "service update -d --publish-add 8081:80 web")?;
    let returned = now()?;
    let updated = shown(&cluster, "services", |rows| web(rows, "8081:80/tcp", 0))?;
    times.push(("update: another port", since(returned, updated)));

    cluster.docker(0, "service rm web")?;
    let returned = now()?;
    let removed = shown(&cluster, "services", |rows| {
        rows.as_array().is_some_and(Vec::is_empty)
    })?;
    times.push(("remove", since(returned, removed)));

    for (what, time) in &times {
        println!("{what}: {} ms", time.as_millis());
    }
    for (what, time) in times {
        ensure!(time < FOLLOWED, "{what}: after {time:?}");
    }
    Ok(())
}

/// Waits until `portolan LIST` is right on every node, and tells when that was.
fn shown(cluster: &Cluster, list: &str, right: impl Fn(&Value) -> bool) -> Result<Duration> {
    wait_until(DOCKER, format!("every node shows its {list}"), || {
        for node in 0..cluster.len() {
            let rows = cluster.json(node, &[list])?;
            ensure!(right(&rows), "n{}: {rows:#}", node + 1);
        }
        now().map(Some)
    })
}

/// Whether the service is shown with a port and at least so many tasks.
fn web(rows: &Value, port: &str, tasks: u64) -> bool {
    let mut rows = rows.as_array().into_iter().flatten();
    rows.any(|row| {
        row["name"] == "web"
            && row["ports"].to_string().contains(port)
            && row["healthy"].as_u64() >= Some(tasks)
    })
}

/// When the last event of this kind was on any engine, of those since a time.
fn last(cluster: &Cluster, event: &str, since: Duration) -> Result<Duration> {
    let mut last = Duration::ZERO;
    for node in 0..cluster.len() {
        let until = now()?;
        let line = format!(
            "events --since {} --until {} --filter type=container --filter event={event} \
             --format {{{{.TimeNano}}}}",
            stamp(since),
            stamp(until)
        );
        for time in cluster.docker(node, &line)?.lines() {
            last = last.max(Duration::from_nanos(time.parse()?));
        }
    }
    ensure!(!last.is_zero(), "no container had a {event}");
    Ok(last)
}

/// As `docker events` takes it.
fn stamp(time: Duration) -> String {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}

/// Portolan may know what is to come before the event.
fn since(begin: Duration, end: Duration) -> Duration {
    end.saturating_sub(begin)
}

/// The clock of Docker's events.
fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}
