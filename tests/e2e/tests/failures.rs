//! Tasks, nodes and agents fail, and others do not notice.

#![expect(
    clippy::indexing_slicing,
    reason = "what is not there fails the test, as it has to"
)]

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, Plane, Task,
    answers::{by_task, each, lost_only_between},
    kernel, on_both_planes,
};
use portolan_testbed::{Load, LoadOptions, Protocol, wait_until};
use serde_json::Value;

const STACK: &str = "
services:
  web:
    ports: ['8080:80']
";

/// What an answer takes at most where none has to be waited for, with all that two cores may have to do besides.
const FULL_SPEED: Duration = Duration::from_millis(900);

/// What a client may have to wait while a node is dead and not yet known to be: until the relay tries another
/// backend, or until the client has sent its SYN again twice, after 1 s and after 2 s more (RFC 6298).
const fn longest_wait(plane: Plane) -> Duration {
    match plane {
        Plane::Relay => Duration::from_millis(1500),
        Plane::Ebpf => Duration::from_millis(3200),
    }
}

/// Waits until a load has had so many answers more.
fn answered(load: &Load, more: usize) -> Result<()> {
    let enough = load.answers() + more;
    wait_until(
        Duration::from_secs(10),
        format!("{more} answers more"),
        || Ok((load.answers() >= enough).then_some(())),
    )
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

on_both_planes! {
    a_task_that_is_killed_takes_only_its_own_connections_along,
    a_task_whose_namespace_vanishes_takes_only_its_own_connections_along,
    a_node_is_cut_off_for_thirty_seconds_under_load,
    udp_follows_a_replaced_task_within_a_second,
    a_port_in_use_on_one_node_is_reported_there_and_taken_when_free,
    nothing_is_left_behind,
}

fn a_task_that_is_killed_takes_only_its_own_connections_along(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("kill", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let _stays = [
        cluster.whoami("a1", 0, "web")?,
        cluster.whoami("a2", 1, "web")?,
    ];
    let mut killed = cluster.whoami("a3", 2, "web")?;
    cluster.wait_served("web", 3)?;
    let load = cluster.load(cluster.node(0).at(8080), LoadOptions::workers(4))?;
    answered(&load, 100)?;
    // Only its program: the namespace is there, and refuses.
    let before = load.elapsed();
    killed.program.as_mut().context("no program")?.kill()?;
    let after = load.elapsed();
    answered(&load, 200)?;
    let report = load.stop()?;
    ensure!(
        by_task(&report).contains_key("a3"),
        "it never answered: {report}"
    );
    lost_only_between(&report, before, after)?;
    ensure!(
        report.failures.len() <= 4,
        "more than the load has connections: {report}"
    );
    ensure!(report.slowest < longest_wait(plane), "{report}");
    Ok(())
}

fn a_task_whose_namespace_vanishes_takes_only_its_own_connections_along(
    plane: Plane,
) -> Result<()> {
    let mut cluster = Cluster::start("vanish", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let _stays = [
        cluster.whoami("a1", 0, "web")?,
        cluster.whoami("a2", 1, "web")?,
    ];
    let vanishes = cluster.whoami("a3", 2, "web")?;
    cluster.wait_served("web", 3)?;
    let load = cluster.load(cluster.node(0).at(8080), LoadOptions::workers(4))?;
    answered(&load, 100)?;
    let before = load.elapsed();
    vanishes.remove()?;
    let after = load.elapsed();
    cluster.wait_served("web", 2)?;
    answered(&load, 50)?;
    let report = load.stop()?;
    ensure!(
        by_task(&report).contains_key("a3"),
        "it never answered: {report}"
    );
    lost_only_between(&report, before, after)?;
    ensure!(
        report.failures.len() <= 4,
        "more than the load has connections: {report}"
    );
    ensure!(report.slowest < longest_wait(plane), "{report}");
    // It was in no file that would have it come back, and so is forgotten.
    cluster.wait_for(0, "two tasks", &["tasks"], |all| rows(all).count() == 2)?;
    Ok(())
}

/// The third one, under load; both sides go on meanwhile.
fn a_node_is_cut_off_for_thirty_seconds_under_load(plane: Plane) -> Result<()> {
    let cut_for = Duration::from_secs(30);
    let mut cluster = Cluster::start("cut", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let mut tasks = vec![
        cluster.whoami("a1", 0, "web")?,
        cluster.whoami("a2", 1, "web")?,
        cluster.whoami("a3", 2, "web")?,
    ];
    cluster.wait_served("web", 3)?;
    let loads = [0, 1].map(|i| cluster.load(cluster.node(i).at(8080), LoadOptions::per_second(50)));
    let loads = loads.into_iter().collect::<Result<Vec<_>>>()?;
    loads.iter().try_for_each(|load| answered(load, 30))?;

    let before: Vec<Duration> = loads.iter().map(Load::elapsed).collect();
    cluster.lab.cut(cluster.node(2))?;
    let begin = Instant::now();
    let after: Vec<Duration> = loads.iter().map(Load::elapsed).collect();
    for node in [0, 1] {
        let left = Duration::from_secs(5).saturating_sub(begin.elapsed());
        cluster.wait_within(left, node, "the tasks of n3 are gone", &["tasks"], |all| {
            rows(all).count() == 2 && rows(all).all(|row| row["node"] != "n3")
        })?;
    }
    // Both sides go on living: the tables grow apart.
    tasks.push(cluster.whoami("b1", 0, "web")?);
    tasks.push(cluster.whoami("b3", 2, "web")?);
    cluster.apply(1, "services:\n  other:\n    ports: ['8090:80']\n")?;
    wait_until(
        cut_for + Duration::from_secs(1),
        "the cut has lasted",
        || Ok((begin.elapsed() >= cut_for).then_some(())),
    )?;
    for ((load, before), after) in loads.into_iter().zip(before).zip(after) {
        let report = load.stop()?;
        lost_only_between(&report, before, after)?;
        for record in report.records.iter().filter(|record| record.at > after) {
            let limit = if record.at > after + Duration::from_secs(5) {
                FULL_SPEED
            } else {
                longest_wait(plane)
            };
            ensure!(record.took < limit, "waited too long: {record:?}: {report}");
        }
    }

    let healed = Instant::now();
    cluster.lab.heal(cluster.node(2))?;
    let limit = Duration::from_secs(2);
    wait_until(limit, "all tables are equal", || {
        let hashes = (0..3)
            .map(|node| cluster.table_hash(node))
            .collect::<Result<Vec<_>>>()?;
        ensure!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
        Ok(Some(()))
    })?;
    let took = healed.elapsed();
    ensure!(took <= limit, "after {took:?}");
    for node in 0..3 {
        let left = limit.saturating_sub(healed.elapsed());
        cluster.wait_within(
            left,
            node,
            "five tasks and two services",
            &["status"],
            |status| status["counts"]["tasks"] == 5 && status["counts"]["services"] == 2,
        )?;
    }
    cluster.wait_served("web", 5)?;
    for node in (0..3).map(|i| cluster.node(i)) {
        // A backend that did not answer during the cut is asked again after a while only.
        let fair = each(&["a1", "a2", "a3", "b1", "b3"], 2);
        let what = format!("all tasks take turns on {}", node.label());
        wait_until(Duration::from_secs(12), what, || {
            let seen = cluster.answers(node.at(8080), Protocol::Tcp, 10)?;
            ensure!(seen == fair, "{seen:?}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

fn udp_follows_a_replaced_task_within_a_second(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("udp", Options::nodes(2).plane(plane))?;
    cluster.apply(0, "services:\n  web:\n    ports: ['8080:80/udp']\n")?;
    let mut old = cluster.whoami("old", 1, "web")?;
    cluster.wait_served("web", 1)?;
    // One flow throughout: the client never changes its port.
    let client = cluster.client.enter(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(cluster.node(0).at(8080))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(socket)
    })?;
    let ask = || -> Option<String> {
        let mut answer = [0; 512];
        client.send(b"who?").ok()?;
        let length = client.recv(&mut answer).ok()?;
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        text.lines()
            .next()?
            .strip_prefix("hostname: ")
            .map(str::to_owned)
    };
    ensure!(
        ask().as_deref() == Some("old"),
        "the first task does not answer"
    );
    for (label, node, removal) in [("new1", 1, "drain"), ("new2", 0, "rm"), ("new3", 1, "")] {
        let new = cluster.whoami(label, node, "web")?;
        cluster.wait_served("web", 2)?;
        let kept = ask();
        ensure!(
            kept.is_some() && kept.as_deref() != Some(label),
            "the flow has moved: {kept:?}"
        );
        if !removal.is_empty() {
            cluster.cli(old.node, &["task", removal, &old.id])?;
        }
        let begin = Instant::now();
        // With no command the namespace goes of itself, as when a container is removed.
        let gone = std::mem::replace(&mut old, new);
        gone.remove()?;
        while ask().as_deref() != Some(label) {
            ensure!(
                begin.elapsed() < Duration::from_secs(1),
                "{label}: not within a second"
            );
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(1),
            "{label}: after {:?}",
            begin.elapsed()
        );
        cluster.wait_served("web", 1)?;
    }
    Ok(())
}

#[test]
fn a_port_is_published_by_one_service() -> Result<()> {
    let cluster = Cluster::start("taken", Options::nodes(2))?;
    cluster.apply(0, STACK)?;
    cluster.wait_for(1, "the service", &["services"], |all| {
        rows(all).count() == 1
    })?;
    let stack = cluster.file(1, "second.yml");
    std::fs::write(
        &stack,
        "services:\n  api:\n    ports: ['8080:81', '8081:81']\n",
    )?;
    let refused = cluster.try_cli(1, &["apply", "-f", &stack.to_string_lossy()])?;
    ensure!(
        !refused.status.success(),
        "it was applied: {}",
        refused.stdout
    );
    let message = "port 8080/tcp is already published by service web; publish another one for api, or remove web";
    ensure!(refused.stderr.contains(message), "{}", refused.stderr);
    // All or nothing.
    let services = cluster.json(1, &["services"])?;
    ensure!(
        rows(&services).all(|row| row["name"] == "web"),
        "{services:#}"
    );
    Ok(())
}

fn a_port_in_use_on_one_node_is_reported_there_and_taken_when_free(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("inuse", Options::nodes(3).plane(plane))?;
    let holder = cluster
        .node(1)
        .enter(|| Ok(TcpListener::bind("0.0.0.0:8080")?))?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("a1", 0, "web")?;
    cluster.wait_served("web", 1)?;
    let message = "port 8080/tcp is held by another process on this node";
    let status = cluster.wait_for(1, "the problem", &["status"], |status| {
        rows(&status["problems"]).any(|p| p.as_str().is_some_and(|p| p.contains(message)))
    })?;
    let port = rows(&status["ports"]).find(|port| port["frontend"] == "*:8080/tcp");
    let reason = port.context("no port")?["problem"]
        .as_str()
        .unwrap_or_default();
    ensure!(reason.contains(message), "{status:#}");
    for node in [0, 2] {
        let seen = cluster.answers(cluster.node(node).at(8080), Protocol::Tcp, 3)?;
        ensure!(seen == each(&["a1"], 3), "n{}: {seen:?}", node + 1);
        let status = cluster.json(node, &["status"])?;
        ensure!(rows(&status["problems"]).count() == 0, "{status:#}");
    }
    // It is told once, however often it is tried.
    let log = cluster.agent(1)?.log_text()?;
    let told = log.lines().filter(|line| line.contains(message)).count();
    ensure!(told == 1, "told {told} times:\n{log}");
    drop(holder);
    cluster.wait_for(1, "no problem", &["status"], |status| {
        rows(&status["problems"]).count() == 0
    })?;
    let seen = cluster.answers(cluster.node(1).at(8080), Protocol::Tcp, 3)?;
    ensure!(seen == each(&["a1"], 3), "n2: {seen:?}");
    Ok(())
}

fn nothing_is_left_behind(plane: Plane) -> Result<()> {
    let stack = "
services:
  web:
    ports: ['8080:80', '8080:80/udp']
    networks: [front, back]
    x-portolan: {drain: 200ms}
networks:
  front:
  back: {internal: true}
";
    let mut cluster = Cluster::prepare("clean", Options::nodes(2).plane(plane))?;
    let before = [kernel(cluster.node(0))?, kernel(cluster.node(1))?];
    cluster.start_agent(0)?;
    cluster.start_agent(1)?;
    cluster.wait_ready()?;
    cluster.apply(0, stack)?;
    let tasks: Vec<Task> = (0..2)
        .map(|i| cluster.whoami(&format!("a{i}"), i, "web"))
        .collect::<Result<_>>()?;
    cluster.wait_served("web", 2)?;
    for (node, before) in before.iter().enumerate() {
        let seen = cluster.answers(cluster.node(node).at(8080), Protocol::Tcp, 4)?;
        ensure!(seen == each(&["a0", "a1"], 2), "n{}: {seen:?}", node + 1);
        let with = kernel(cluster.node(node))?;
        ensure!(with[0] != before[0], "there was nothing to clean");
    }
    for (node, before) in before.iter().enumerate() {
        cluster.cli(node, &["leave", "--clean"])?;
        cluster.agent(node)?.wait(Duration::from_secs(10))?;
        let after = kernel(cluster.node(node))?;
        for (before, after) in before.iter().zip(&after) {
            ensure!(
                before == after,
                "n{}: before:\n{before}\nafter:\n{after}",
                node + 1
            );
        }
        ensure!(
            !cluster.file(node, "state").exists(),
            "the state directory is there"
        );
        ensure!(
            !cluster.file(node, "agent.sock").exists(),
            "the socket is there"
        );
        let dir = cluster.bpf_dir(node);
        ensure!(!dir.exists(), "{} is there", dir.display());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(
            !mounts.contains(&*dir.to_string_lossy()),
            "it is mounted still: {mounts}"
        );
        let links = tasks[node].netns.run(["ip", "-o", "link"])?.stdout;
        ensure!(links.lines().count() == 1, "left in the task: {links}");
    }
    Ok(())
}
