//! What operators rely on: metrics that Prometheus takes, health, messages that help, and an orderly end.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, HTTP_PORT, Options, Plane, on_both_planes};
use portolan_testbed::{LoadOptions, binary, http_get};

on_both_planes! {
    prometheus_finds_nothing_to_object_to,
    a_node_that_leaves_is_missed_at_once_by_no_one,
}

fn prometheus_finds_nothing_to_object_to(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("promtool", Options::nodes(2).plane(plane))?;
    cluster.apply(0, "services: {web: {ports: ['8080:80', '8080:80/udp']}}\n")?;
    let _task = cluster.whoami("web1", 1, "web")?;
    cluster.wait_served("web", 1)?;
    for _ in 0..5 {
        http_get(&cluster.client, &format!("{}/", cluster.node(0).at(8080)))?;
    }
    let url = format!("http://{}/metrics", cluster.node(0).at(HTTP_PORT));
    let checked = cluster.client.run([
        "sh",
        "-c",
        &format!("curl -sS {url} | promtool check metrics"),
    ])?;
    ensure!(
        checked.stderr.is_empty() && checked.stdout.is_empty(),
        "{}{}",
        checked.stdout,
        checked.stderr
    );
    let metrics = cluster.client.run(["curl", "-sS", &url])?.stdout;
    let counted = metrics.lines().any(|line| {
        line.starts_with("portolan_") && line.contains("service=\"web\"") && line.ends_with(" 5")
    });
    ensure!(counted, "no metric counts 5 connections to web:\n{metrics}");
    Ok(())
}

#[test]
fn health_and_readiness_say_what_is_missing() -> Result<()> {
    let cluster = Cluster::start("ready", Options::nodes(1))?;
    for path in ["healthz", "readyz"] {
        let answer = http_get(
            &cluster.client,
            &format!("{}/{path}", cluster.node(0).at(HTTP_PORT)),
        )?;
        ensure!(answer.status == 200, "{path}: {}", answer.status);
    }
    let page = http_get(
        &cluster.client,
        &format!("{}/", cluster.node(0).at(HTTP_PORT)),
    )?;
    let page = page.body;
    ensure!(
        page.contains("<title>") && page.contains("portolan"),
        "{page}"
    );
    Ok(())
}

#[test]
fn wrong_input_is_answered_with_all_problems_at_once() -> Result<()> {
    let cluster = Cluster::start("wrong", Options::nodes(1))?;
    let path = cluster.file(0, "wrong.yml");
    fs::write(
        &path,
        "services:\n  web:\n    ports: ['99999:80', '8080:80/sctp']\n    networks: [nowhere]\n    x-portolan: {drian: 5s}\n",
    )?;
    let path = path.display().to_string();
    let refused = cluster.try_cli(0, &["apply", "-f", &path])?;
    ensure!(
        refused.status.code() == Some(2),
        "{}: {}",
        refused.status,
        refused.stderr
    );
    for part in ["99999", "sctp", "nowhere", "drian", "drain", "wrong.yml:3"] {
        ensure!(
            refused.stderr.contains(part),
            "nothing about {part}: {}",
            refused.stderr
        );
    }
    let services = cluster.json(0, &["services"])?;
    ensure!(
        services.as_array().is_some_and(Vec::is_empty),
        "{services:#}"
    );
    let unknown = cluster.try_cli(0, &["task", "add", "web", "--netns", "/run/netns/none"])?;
    ensure!(
        unknown.status.code() == Some(1) && unknown.stderr.contains("no service 'web'"),
        "{}",
        unknown.stderr
    );
    cluster.apply(0, "services: {web: {ports: ['8080:80']}}\n")?;
    let gone = cluster.try_cli(0, &["task", "add", "web", "--netns", "/run/netns/none"])?;
    ensure!(
        gone.status.code() == Some(1) && gone.stderr.contains("/run/netns/none"),
        "{}",
        gone.stderr
    );
    let tasks = cluster.json(0, &["tasks"])?;
    ensure!(tasks.as_array().is_some_and(Vec::is_empty), "{tasks:#}");
    Ok(())
}

#[test]
fn without_an_agent_the_message_names_the_socket() -> Result<()> {
    let cluster = Cluster::prepare("noagent", Options::nodes(1))?;
    let output = cluster.try_cli(0, &["status"])?;
    ensure!(output.status.code() == Some(3), "{}", output.status);
    ensure!(
        output.stderr.contains("agent.sock") && output.stderr.contains("portolan agent"),
        "{}",
        output.stderr
    );
    Ok(())
}

#[test]
fn a_key_is_demanded_where_others_can_reach_the_node() -> Result<()> {
    let cluster = Cluster::prepare("nokey", Options::nodes(1))?;
    let address = cluster.node(0).ipv4().to_string();
    let program = binary()?.display().to_string();
    let state = cluster.file(0, "state").display().to_string();
    let line = [
        program.as_str(),
        "agent",
        "--advertise",
        &address,
        "--state-dir",
        &state,
        "--http",
        "nonsense",
    ];
    let output = cluster.node(0).output(line)?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    for part in ["key", "--insecure", "keygen", "nonsense"] {
        ensure!(
            output.stderr.contains(part),
            "nothing about {part}: {}",
            output.stderr
        );
    }
    Ok(())
}

#[test]
fn one_file_on_all_nodes_is_a_whole_configuration() -> Result<()> {
    let mut cluster = Cluster::prepare("static", Options::nodes(2))?;
    let tasks: Vec<_> = ["web1", "web2"]
        .iter()
        .map(|l| cluster.lab.task(l))
        .collect::<Result<_>>()?;
    let programs: Vec<_> = tasks
        .iter()
        .zip(["web1", "web2"])
        .map(|(netns, name)| {
            let mut command = netns.command(binary()?);
            command.args(["whoami", "--name", name, "--http", "80"]);
            netns.spawn(&mut command)?.listening(80)
        })
        .collect::<Result<_>>()?;
    let path = |i: usize| tasks[i].path().display().to_string();
    let stack = format!(
        "services:\n  web:\n    ports: ['8080:80']\n    x-portolan:\n      tasks:\n        - {{node: n1, netns: {}}}\n        - {{node: n2, netns: {}}}\n",
        path(0),
        path(1)
    );
    for node in 0..2 {
        let file = cluster.file(node, "static.yml");
        fs::write(&file, &stack)?;
        let file = file.display().to_string();
        cluster.start_agent_with(node, &["--stack", &file])?;
    }
    cluster.wait_ready()?;
    cluster.wait_healthy_everywhere("web", 2)?;
    for node in 0..2 {
        let mut seen: Vec<String> = (0..4)
            .map(|_| {
                let answer = http_get(
                    &cluster.client,
                    &format!("{}/", cluster.node(node).at(8080)),
                )?;
                Ok(answer.body.lines().next().unwrap_or_default().to_owned())
            })
            .collect::<Result<_>>()?;
        seen.sort();
        seen.dedup();
        ensure!(seen.len() == 2, "n{}: {seen:?}", node + 1);
    }
    drop(programs);
    Ok(())
}

fn a_node_that_leaves_is_missed_at_once_by_no_one(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("leave", Options::nodes(3).plane(plane))?;
    cluster.apply(
        0,
        "services: {web: {ports: ['8080:80'], x-portolan: {drain: 1s}}}\n",
    )?;
    let _tasks = [
        cluster.whoami("web1", 1, "web")?,
        cluster.whoami("web2", 2, "web")?,
    ];
    cluster.wait_served("web", 2)?;
    let load = cluster.load(cluster.node(0).at(8080), LoadOptions::workers(4))?;
    cluster.stop_agent(2, Duration::from_secs(10))?;
    cluster.wait_healthy(0, "web", 1)?;
    let nodes = cluster.json(0, &["nodes"])?;
    let left = nodes
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["name"] == "n3");
    ensure!(
        left.is_none_or(|row| row["membership"] == "left"),
        "{nodes:#}"
    );
    let report = load.stop()?;
    ensure!(report.requests > 50, "{report}");
    report.without_failures()?;
    Ok(())
}
