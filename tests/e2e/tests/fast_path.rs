//! The fast path, as a user has it: the task sees the client itself, what the fast path does not carry is relayed, and
//! nothing is lost when the fast path, or its agent, is.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, HTTP_PORT, Options, PATIENCE, Plane,
    answers::refused,
    stream::{PacedStream, connect, echo, echo_server},
};
use portolan_testbed::{Load, LoadOptions, Protocol, Signal, http_get, nginx, udp_ask, wait_until};
use serde_json::Value;

const STACK: &str = "
services:
  web:
    ports: ['8080:80', '8080:80/udp', '9000:90']
    x-portolan: {drain: 1s}
";
/// How long a fast path may take to be whole again.
const HEALED: Duration = Duration::from_secs(2);

/// A cluster with the fast path, and a task of `web` on n2.
fn started(prefix: &str, nodes: usize) -> Result<(Cluster, portolan_e2e::Task)> {
    let mut cluster = Cluster::start(prefix, Options::nodes(nodes).plane(Plane::Ebpf))?;
    cluster.apply(0, STACK)?;
    let task = cluster.whoami("web1", 1, "web")?;
    cluster.wait_served("web", 1)?;
    Ok((cluster, task))
}

/// The address that the task sees when the client asks it by a node's port 8080.
fn seen_by_task(cluster: &Cluster, node: usize, protocol: Protocol) -> Result<IpAddr> {
    let to = cluster.node(node).at(8080);
    let answer = match protocol {
        Protocol::Tcp => http_get(&cluster.client, &to.to_string())?.body,
        Protocol::Udp => {
            let answer = udp_ask(&cluster.client, to, b"who?", Duration::from_secs(2))?;
            String::from_utf8(answer)?
        }
    };
    let client = answer
        .lines()
        .find_map(|line| line.strip_prefix("client: "))
        .with_context(|| format!("no client in: {answer}"))?;
    Ok(client.parse::<std::net::SocketAddr>()?.ip())
}

fn is_seen_itself(cluster: &Cluster, node: usize) -> Result<()> {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let seen = seen_by_task(cluster, node, protocol)?;
        ensure!(
            seen == cluster.client.ipv4(),
            "by n{}/{protocol} the task sees {seen}\n{:#}",
            node + 1,
            cluster.json(node, &["status"])?
        );
    }
    Ok(())
}

/// The row of a frontend in a node's status.
fn port(status: &Value, frontend: &str) -> Result<Value> {
    let mut rows = status["ports"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["frontend"] == frontend);
    row.cloned()
        .with_context(|| format!("no {frontend} in {status:#}"))
}

fn pins(cluster: &Cluster, node: usize) -> Vec<PathBuf> {
    let dirs = fs::read_dir(cluster.file(node, "bpf"));
    let versions = dirs.into_iter().flatten().flatten();
    let pins = versions.flat_map(|version| fs::read_dir(version.path()).into_iter().flatten());
    pins.flatten().map(|pin| pin.path()).collect()
}

fn is_link(pin: &Path) -> bool {
    pin.to_string_lossy().contains("/from_outside-")
}

#[test]
fn a_task_on_another_node_sees_the_client_itself() -> Result<()> {
    let (cluster, _task) = started("fp-first", 3)?;
    for node in 0..3 {
        let url = format!("http://{}/", cluster.node(node).at(8080));
        let answer = cluster
            .client
            .run(["curl", "-sS", "--max-time", "5", &url])?;
        let client = format!("client: {}:", cluster.client.ipv4());
        ensure!(
            answer.stdout.contains(&client),
            "n{}: {}",
            node + 1,
            answer.stdout
        );
        is_seen_itself(&cluster, node)?;
    }
    Ok(())
}

#[test]
fn processes_of_a_node_are_connected_past_the_relay_also_while_no_agent_runs() -> Result<()> {
    let (mut cluster, _task) = started("fp-socket", 2)?;
    cluster.wait_served("web", 1)?;
    let status = cluster.json(0, &["status"])?;
    let pins = status["pins"].as_array().context("no pins")?;
    ensure!(
        pins.iter()
            .any(|pin| pin.as_str().is_some_and(|pin| pin.ends_with("/connect4"))),
        "the plane is {:#}",
        status["planes"][1]
    );
    let dial = |cluster: &Cluster| -> Result<()> {
        let node = cluster.node(0);
        let own = [node.at(8080).to_string(), node.at_v6(8080).to_string()];
        for to in ["127.0.0.1:8080", "[::1]:8080", &own[0], &own[1]] {
            let url = format!("http://{to}/");
            let answer = node.run(["curl", "-sS", "--max-time", "5", &url])?.stdout;
            // The ingress network is 10.208.0.0/12.
            ensure!(
                (208..224).any(|n| answer.contains(&format!("client: 10.{n}."))),
                "{to}: {answer}"
            );
        }
        Ok(())
    };
    dial(&cluster)?;
    let url = format!("{}/metrics", cluster.node(0).at(HTTP_PORT));
    let metrics = http_get(&cluster.client, &url)?.body;
    let value = |begin: &str| {
        let line = metrics.lines().find(|line| line.starts_with(begin));
        let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        value.with_context(|| format!("no {begin} in\n{metrics}"))
    };
    ensure!(value("portolan_fast_path_packets_total{reason=\"socket_flow\"}")? == 4);
    let web = "service=\"web\",port=\"8080\",protocol=\"tcp\"";
    ensure!(value(&format!("portolan_plane_flows_total{{plane=\"ebpf\",{web}"))? == 4);
    ensure!(
        value(&format!(
            "portolan_plane_flows_total{{plane=\"relay\",{web}"
        ))? == 0
    );
    // A connected socket's datagrams are the relay's, which can move them.
    let asked = "127.0.0.1:8080".parse()?;
    udp_ask(cluster.node(0), asked, b"who?", Duration::from_secs(2))?;
    cluster.kill_agent(0)?;
    dial(&cluster).context("without an agent")
}

#[test]
fn each_frontend_tells_its_plane_and_why_it_is_relayed() -> Result<()> {
    let mut cluster = Cluster::start("fp-tells", Options::nodes(2).plane(Plane::Ebpf))?;
    let stack = "
services:
  web: {ports: ['8080:80']}
  slow:
    ports: ['8081:80']
    x-portolan: {plane: relay}
  header:
    ports: ['8082:80']
    x-portolan: {proxy_protocol: v2}
";
    cluster.apply(0, stack)?;
    let _web = cluster.whoami("web1", 1, "web")?;
    let _slow = cluster.whoami("slow1", 1, "slow")?;
    cluster.wait_served("web", 1)?;
    cluster.wait_healthy_everywhere("slow", 1)?;
    let status = cluster.json(0, &["status"])?;
    ensure!(
        status["planes"][1]["plane"] == "ebpf" && status["planes"][1]["serving"] == true,
        "{status:#}"
    );
    ensure!(
        status["pins"]
            .as_array()
            .is_some_and(|pins| !pins.is_empty()),
        "{status:#}"
    );
    let planes = |frontend: &str| -> Result<(Value, Value)> {
        let row = port(&status, frontend)?;
        Ok((row["plane"].clone(), row["plane_reason"].clone()))
    };
    ensure!(
        planes("*:8080/tcp")? == ("ebpf".into(), Value::Null),
        "{status:#}"
    );
    let (plane, reason) = planes("*:8081/tcp")?;
    ensure!(plane == "relay" && reason.is_string(), "{status:#}");
    let (plane, reason) = planes("*:8082/tcp")?;
    let reason = reason.as_str().context("no reason")?.to_owned();
    ensure!(plane == "relay" && reason.contains("PROXY"), "{reason}");
    let text = cluster.cli(0, &["status"])?;
    ensure!(text.contains(&reason) && text.contains("Pinned"), "{text}");

    let seen = http_get(&cluster.client, &cluster.node(0).at(8081).to_string())?.body;
    ensure!(!seen.contains(&cluster.client.ipv4().to_string()), "{seen}");
    let hold = |port: u16| connect(&cluster.client, cluster.node(0).at(port));
    let (_fast, _slow) = (hold(8080)?, hold(8081)?);
    cluster.wait_for(0, "a flow on each plane", &["flows"], |rows| {
        let on = |plane: &str, service: &str| {
            let mut rows = rows.as_array().into_iter().flatten();
            rows.any(|row| row["plane"] == plane && row["service"] == service)
        };
        on("ebpf", "web") && on("relay", "slow")
    })?;
    let only = cluster.json(0, &["flows", "--service", "web"])?;
    let mut rows = only.as_array().into_iter().flatten();
    ensure!(rows.all(|row| row["service"] == "web"), "{only:#}");
    let refused = cluster.cli(0, &["flows", "--service", "nope"]);
    let told = refused.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(told.contains("no service 'nope'"), "{told}");

    let url = format!("http://{}/metrics", cluster.node(0).at(HTTP_PORT));
    let metrics = cluster.client.run(["curl", "-sS", &url])?.stdout;
    for begin in [
        "portolan_plane_flows_total{plane=\"ebpf\",service=\"web\",port=\"8080\"",
        "portolan_plane_flows_total{plane=\"relay\",service=\"slow\",port=\"8081\"",
        "portolan_fast_path_packets_total{reason=\"new_flow\"} 1",
    ] {
        let found = metrics.lines().any(|line| line.starts_with(begin));
        ensure!(found, "no {begin} in\n{metrics}");
    }
    Ok(())
}

#[test]
fn a_program_that_someone_detaches_is_attached_again_with_no_connection_lost() -> Result<()> {
    let (cluster, _task) = started("fp-detach", 2)?;
    let target = format!("{}/", cluster.node(0).at(8080));
    let load = Load::start(&cluster.client, &target, LoadOptions::per_second(100))?;
    let links = || pins(&cluster, 0).into_iter().filter(|pin| is_link(pin));
    let before: Vec<PathBuf> = links().collect();
    ensure!(!before.is_empty(), "no program is attached");
    for link in &before {
        // The pin is all that holds it.
        fs::remove_file(link)?;
    }
    wait_until(HEALED, "the programs are attached again", || {
        Ok((links().count() == before.len()).then_some(()))
    })?;
    is_seen_itself(&cluster, 0)?;
    let lost = cluster.metric(0, "portolan_fast_path_lost_pins_total", &[])?;
    ensure!(lost >= before.len() as f64, "{lost} pins lost");
    let report = load.stop()?;
    let unconnected = report
        .failures
        .iter()
        .any(|f| f.error.contains(": connect"));
    ensure!(report.requests > 0 && !unconnected, "{report}");
    Ok(())
}

#[test]
fn a_port_that_another_process_holds_stays_its_own_on_that_node() -> Result<()> {
    let mut cluster = Cluster::start("fp-held", Options::nodes(2).plane(Plane::Ebpf))?;
    let held = nginx(cluster.node(0), 8080, "mine")?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("web1", 1, "web")?;
    cluster.wait_healthy_everywhere("web", 1)?;
    cluster.wait_for(0, "the conflict", &["status"], |status| {
        port(status, "*:8080/tcp").is_ok_and(|row| row["problem"].is_string())
    })?;
    let answer = http_get(&cluster.client, &cluster.node(0).at(8080).to_string())?;
    ensure!(answer.body == "mine", "{}", answer.body);
    is_seen_itself(&cluster, 1)?;
    drop(held);
    cluster.wait_for(0, "the port", &["status"], |status| {
        port(status, "*:8080/tcp").is_ok_and(|row| row["plane"] == "ebpf")
    })?;
    is_seen_itself(&cluster, 0)
}

/// Waits until a node holds another one for down.
fn wait_down(cluster: &Cluster, node: usize, by: usize) -> Result<()> {
    let name = format!("n{}", node + 1);
    cluster.wait_for(by, "it is down", &["nodes"], |rows| {
        let mut rows = rows.as_array().into_iter().flatten();
        rows.any(|row| row["name"] == *name && row["membership"] == "down")
    })?;
    Ok(())
}

#[test]
fn agents_are_killed_and_started_again_and_no_flow_notices() -> Result<()> {
    let (mut cluster, task) = started("fp-kill", 2)?;
    let _echo = echo_server(&task.netns, 90)?;
    let stream = PacedStream::start(&cluster.client, cluster.node(0).at(9000))?;
    let target = format!("{}/", cluster.node(0).at(8080));
    let load = Load::start(&cluster.client, &target, LoadOptions::per_second(100))?;
    for node in 0..2 {
        cluster.kill_agent(node)?;
        stream.goes_on(20)?;
        is_seen_itself(&cluster, 0)?;
        if node == 0 {
            // It holds no task, and clients still come by it.
            wait_down(&cluster, node, 1)?;
            stream.goes_on(20)?;
            is_seen_itself(&cluster, 0)?;
        }
        cluster.start_agent(node)?;
        cluster.wait_ready()?;
        stream.goes_on(20)?;
        is_seen_itself(&cluster, 0)?;
    }
    let report = load.stop()?;
    ensure!(
        report.requests > 0 && report.failures.is_empty(),
        "{report}"
    );
    stream.stop()?;
    // Not even for a moment was n2 taken for a node without the fast path.
    let relayed = cluster.metric(0, "portolan_plane_flows_total", &["plane=\"relay\""])?;
    ensure!(relayed < 1.0, "{relayed} flows were relayed by n1");
    Ok(())
}

#[test]
fn an_upgrade_in_place_is_noticed_by_no_flow_and_no_member() -> Result<()> {
    let (mut cluster, task) = started("fp-hup", 2)?;
    let _echo = echo_server(&task.netns, 90)?;
    let stream = PacedStream::start(&cluster.client, cluster.node(0).at(9000))?;
    let target = format!("{}/", cluster.node(0).at(8080));
    let load = Load::start(&cluster.client, &target, LoadOptions::per_second(100))?;
    for node in 0..2 {
        let pid = cluster.agent(node)?.pid();
        cluster.agent(node)?.signal(Signal::HUP)?;
        wait_until(PATIENCE, "it starts again", || {
            let log = cluster.agent(node)?.log_text()?;
            Ok((log.matches("portolan starts").count() == 2).then_some(()))
        })?;
        cluster.wait_ready()?;
        ensure!(cluster.agent(node)?.pid() == pid, "it is another process");
        stream.goes_on(20)?;
    }
    // And it ends as well, for whoever starts the next one, be it after the other node has missed it.
    for (node, other) in [(0, 1), (1, 0)] {
        cluster.agent(node)?.signal(Signal::QUIT)?;
        cluster.agent(node)?.wait(Duration::from_secs(5))?;
        wait_down(&cluster, node, other)?;
        stream.goes_on(20)?;
        is_seen_itself(&cluster, 0)?;
        cluster.start_agent(node)?;
        cluster.wait_ready()?;
        stream.goes_on(20)?;
    }
    let report = load.stop()?;
    ensure!(
        report.requests > 0 && report.failures.is_empty(),
        "{report}"
    );
    stream.stop()?;
    Ok(())
}

#[test]
fn who_leaves_forwards_no_more_and_who_cleans_leaves_nothing() -> Result<()> {
    let (mut cluster, _task) = started("fp-leave", 3)?;
    ensure!(!pins(&cluster, 0).is_empty(), "nothing is pinned");
    cluster.stop_agent(0, Duration::from_secs(10))?;
    ensure!(pins(&cluster, 0).is_empty(), "{:?}", pins(&cluster, 0));
    refused(&cluster.client, cluster.node(0).at(8080))?;
    is_seen_itself(&cluster, 2)?;

    cluster.cli(2, &["leave", "--clean"])?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let dir = cluster.file(2, "bpf");
    ensure!(!mounts.contains(&*dir.to_string_lossy()), "{mounts}");
    ensure!(!dir.exists(), "{} is there", dir.display());
    Ok(())
}

#[test]
fn a_fast_path_that_is_asked_for_and_missing_is_said_and_the_relay_serves() -> Result<()> {
    let mut cluster = Cluster::prepare("fp-none", Options::nodes(2).plane(Plane::Ebpf))?;
    cluster.start_agent(0)?;
    // The directory is n1's: pins are of one network namespace.
    let foreign = cluster.file(0, "bpf").to_string_lossy().into_owned();
    cluster.wait_node_ready(0)?;
    cluster.start_agent_with(1, &["--bpf-dir", &foreign])?;
    cluster.wait_for(0, "both members", &["nodes"], |rows| {
        let mut rows = rows.as_array().into_iter().flatten();
        rows.any(|row| row["name"] == "n2" && row["state"] == "up")
    })?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("web1", 1, "web")?;
    cluster.wait_healthy_everywhere("web", 1)?;
    for node in 0..2 {
        let seen = seen_by_task(&cluster, node, Protocol::Tcp)?;
        ensure!(seen != cluster.client.ipv4(), "n{}: {seen}", node + 1);
    }
    let ready = http_get(
        &cluster.client,
        &format!("{}/readyz", cluster.node(1).at(HTTP_PORT)),
    )?;
    ensure!(
        ready.status == 503 && ready.body.contains("fast path"),
        "{}",
        ready.body
    );
    let status = cluster.json(1, &["status"])?;
    let mut problems = status["problems"].as_array().into_iter().flatten();
    ensure!(
        problems.any(|p| p.as_str().is_some_and(|p| p.contains("network namespace"))),
        "{status:#}"
    );
    // n1 has the fast path, and cannot reach the task by it.
    let row = port(&cluster.json(0, &["status"])?, "*:8080/tcp")?;
    ensure!(row["plane"] == "relay", "{row:#}");
    Ok(())
}

#[test]
fn an_agent_with_the_relay_alone_removes_what_another_had_pinned() -> Result<()> {
    let (mut cluster, _task) = started("fp-relay", 2)?;
    cluster.kill_agent(0)?;
    ensure!(!pins(&cluster, 0).is_empty(), "nothing is pinned");
    cluster.start_agent_with(0, &["--plane", "relay"])?;
    cluster.wait_node_ready(0)?;
    ensure!(pins(&cluster, 0).is_empty(), "{:?}", pins(&cluster, 0));
    cluster.wait_healthy(0, "web", 1)?;
    let seen = seen_by_task(&cluster, 0, Protocol::Tcp)?;
    ensure!(seen != cluster.client.ipv4(), "{seen}");
    Ok(())
}

#[test]
fn another_number_of_flows_waits_until_none_is_lost_by_it() -> Result<()> {
    let (mut cluster, task) = started("fp-size", 2)?;
    let _echo = echo_server(&task.netns, 90)?;
    let mut held = connect(&cluster.client, cluster.node(0).at(9000))?;
    echo(&mut held, b"before")?;
    cluster.kill_agent(0)?;
    cluster.start_agent_with(0, &["--fast-path-flows", "2048"])?;
    cluster.wait_ready()?;
    echo(&mut held, b"after")?;
    is_seen_itself(&cluster, 0)?;
    let status = cluster.json(0, &["status"])?;
    let mut problems = status["problems"].as_array().into_iter().flatten();
    ensure!(
        problems.any(|p| p.as_str().is_some_and(|p| p.contains("not for 2048"))),
        "{status:#}"
    );
    Ok(())
}

#[test]
fn a_drain_waits_for_the_flows_of_the_fast_path() -> Result<()> {
    let mut cluster = Cluster::start("fp-drain", Options::nodes(1).plane(Plane::Ebpf))?;
    cluster.apply(0, &STACK.replace("drain: 1s", "drain: 1m"))?;
    let task = cluster.whoami("web1", 0, "web")?;
    let _echo = echo_server(&task.netns, 90)?;
    cluster.wait_for(0, "the plane", &["status"], |status| {
        port(status, "*:9000/tcp").is_ok_and(|row| row["plane"] == "ebpf")
    })?;
    let mut held = connect(&cluster.client, cluster.node(0).at(9000))?;
    echo(&mut held, b"before")?;
    cluster.agent(0)?.signal(Signal::TERM)?;
    cluster.wait_for(0, "leaving", &["status"], |status| {
        status["state"] == "leaving"
    })?;
    ensure!(
        cluster.agent(0)?.wait(Duration::from_secs(2)).is_err(),
        "it has not waited"
    );
    echo(&mut held, b"while it drains")?;
    drop(held);
    cluster.agent(0)?.wait(Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn a_build_with_other_maps_follows_one_that_is_at_work() -> Result<()> {
    let (mut cluster, task) = started("fp-layout", 2)?;
    let _echo = echo_server(&task.netns, 90)?;
    let stream = PacedStream::start(&cluster.client, cluster.node(0).at(9000))?;
    let target = format!("{}/", cluster.node(0).at(8080));
    let load = Load::start(&cluster.client, &target, LoadOptions::per_second(100))?;
    cluster.kill_agent(0)?;
    // As another build would have called them, and still at work.
    let ours = cluster.layout_dir(0)?;
    let others = ours.with_file_name("v0");
    fs::rename(&ours, &others)?;
    is_seen_itself(&cluster, 0)?;
    cluster.start_agent(0)?;
    cluster.wait_ready()?;
    wait_until(HEALED, "only this build's programs are at work", || {
        Ok((ours.exists() && !others.exists()).then_some(()))
    })?;
    is_seen_itself(&cluster, 0)?;
    let report = load.stop()?;
    ensure!(
        report.requests > 0 && report.failures.is_empty(),
        "{report}"
    );
    stream.stop()?;
    Ok(())
}
