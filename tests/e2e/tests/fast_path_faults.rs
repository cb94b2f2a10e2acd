//! The fast path under load, while agents die, programs are detached, and nodes have none.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, Plane, Task,
    answers::{Answers, each},
    stream::{PacedStream, echo_server},
};
use portolan_testbed::{Load, LoadOptions, Process, Protocol, detach_link, wait_until};

const STACK: &str = "
services:
  web:
    ports: ['8080:80', '8080:80/udp', '9000:90']
";
/// How long agents are killed and started under load, unless `PORTOLAN_LOAD_SECONDS` says otherwise.
const LOADED: u64 = 10;
/// Less than the first retransmission of a SYN (RFC 6298): no connection has lost a packet at its begin.
const NO_RETRANSMISSION: Duration = Duration::from_millis(990);
/// A SYN is sent again after 1 s, and after 2 s more.
const TWO_RETRANSMISSIONS: Duration = Duration::from_millis(3200);
/// How long a fast path may take to be whole again.
const HEALED: Duration = Duration::from_secs(2);

/// A task that echoes on port 90, too.
struct Echoing {
    _echo: Process,
    _task: Task,
}

impl Echoing {
    fn start(cluster: &mut Cluster, label: &str, node: usize) -> Result<Self> {
        let task = cluster.whoami(label, node, "web")?;
        Ok(Self {
            _echo: echo_server(&task.netns, 90)?,
            _task: task,
        })
    }
}

/// Waits until a load has had so many answers more.
fn answered(load: &Load, more: usize) -> Result<()> {
    let enough = load.answers() + more;
    let what = format!("{more} answers more");
    wait_until(Duration::from_secs(15), what, || {
        Ok((load.answers() >= enough).then_some(()))
    })
}

#[test]
fn all_agents_are_killed_under_load_and_no_client_notices() -> Result<()> {
    let seconds = env::var("PORTOLAN_LOAD_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let lasting = Duration::from_secs(seconds.unwrap_or(LOADED));
    let mut cluster = Cluster::start("killall", Options::nodes(3).plane(Plane::Ebpf))?;
    cluster.apply(0, STACK)?;
    let _tasks = (0..3)
        .map(|node| Echoing::start(&mut cluster, &format!("a{}", node + 1), node))
        .collect::<Result<Vec<_>>>()?;
    cluster.wait_served("web", 3)?;
    // By each node to each task, connections that last all the time.
    let streams = (0..9)
        .map(|i| PacedStream::start(&cluster.client, cluster.node(i % 3).at(9000)))
        .collect::<Result<Vec<_>>>()?;
    let loads = (0..3)
        .map(|node| cluster.load(cluster.node(node).at(8080), LoadOptions::per_second(100)))
        .collect::<Result<Vec<_>>>()?;
    let all_go_on = |when: &str| {
        loads
            .iter()
            .try_for_each(|load| answered(load, 100))
            .context(when.to_owned())?;
        streams
            .iter()
            .try_for_each(|stream| stream.goes_on(20))
            .context(when.to_owned())
    };
    all_go_on("before")?;
    while loads.iter().any(|load| load.elapsed() < lasting) {
        for node in 0..3 {
            cluster.kill_agent(node)?;
        }
        all_go_on("without any agent")?;
        for node in 0..3 {
            cluster.start_agent(node)?;
        }
        cluster.wait_ready()?;
        cluster.wait_served("web", 3)?;
        all_go_on("after the restart")?;
    }
    for load in loads {
        let report = load.stop()?.without_failures()?;
        // One client through three nodes at once has the same port twice now and then, and so one connection for the
        // task: the second waits.
        ensure!(report.slowest < TWO_RETRANSMISSIONS, "{report}");
    }
    for stream in streams {
        let met = stream.stop().context("a connection broke")?;
        ensure!(
            met.slowest < NO_RETRANSMISSION,
            "a connection stood still: {met:?}"
        );
    }
    Ok(())
}

/// Has the client drop and count what comes from a task's own address, which no client may ever see.
const WATCH: &str = "
table ip watch {
  chain leaked {
    type filter hook prerouting priority -300
    ip saddr 10.208.0.0/12 counter drop
  }
}
";

fn leaked(cluster: &Cluster) -> Result<u64> {
    let listed = cluster
        .client
        .run(["nft", "list", "table", "ip", "watch"])?
        .stdout;
    let mut words = listed
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    let packets = words.nth(1).context("no counter")?;
    Ok(packets.parse()?)
}

/// How someone takes a program off a link.
#[derive(Debug, Clone, Copy)]
enum By {
    /// Removing the pin, which is all that holds it.
    Pin,
    /// Detaching it; the pin stays.
    Detaching,
}

/// Detaches a program from all links of a node by hand, under load, and holds the agent and all that is begun from then on
/// to the promises.
fn detached(program: &str, node: usize) -> Result<()> {
    let mut cluster = Cluster::start("detach", Options::nodes(2).plane(Plane::Ebpf))?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("a2", 1, "web")?;
    cluster.wait_served("web", 1)?;
    let watch = cluster.client.dir().join("watch.nft");
    fs::write(&watch, WATCH)?;
    cluster
        .client
        .run(["nft", "-f", &watch.to_string_lossy()])?;
    let dir = cluster.layout_dir(node)?;
    let pins = || -> Result<Vec<_>> {
        let entries = fs::read_dir(&dir)?.collect::<Result<Vec<_>, _>>()?;
        let paths = entries.into_iter().map(|entry| entry.path());
        let prefix = format!("{program}-");
        Ok(paths
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            })
            .collect())
    };
    let before = pins()?;
    ensure!(!before.is_empty(), "{program} is nowhere attached");
    let to = cluster.node(0).at(8080);
    // Not by the cluster: for a while the relay may stand in.
    let load = Load::start(
        &cluster.client,
        &to.to_string(),
        LoadOptions::per_second(50),
    )?;
    answered(&load, 50)?;
    let mut rounds = Vec::new();
    for by in [By::Pin, By::Detaching] {
        let metric = match by {
            By::Pin => "portolan_fast_path_lost_pins_total",
            By::Detaching => "portolan_fast_path_detached_programs_total",
        };
        let from = load.elapsed();
        for pin in &before {
            match by {
                By::Pin => fs::remove_file(pin)?,
                By::Detaching => detach_link(pin)?,
            }
        }
        let begin = Instant::now();
        rounds.push((from, load.elapsed()));
        wait_until(HEALED, format!("{program} is attached again"), || {
            let noted = cluster.metric(node, metric, &[])?;
            let whole = pins()?.len() == before.len() && noted >= before.len() as f64;
            Ok(whole.then_some(()))
        })?;
        ensure!(
            begin.elapsed() < HEALED,
            "{by:?}: after {:?}",
            begin.elapsed()
        );
        answered(&load, 50)?;
        ensure!(cluster.ask(to, Protocol::Tcp)? == "a2");
    }
    for told in ["has removed a pin", "has detached a program"] {
        let log = cluster.agent(node)?.log_text()?;
        ensure!(log.contains(told), "nobody {told}:\n{log}");
    }
    let report = load.stop()?;
    for failure in &report.failures {
        let under_way =
            |(from, to): &(_, _)| failure.at <= *to && failure.at + failure.took >= *from;
        ensure!(
            rounds.iter().any(under_way),
            "a new connection failed, detached at {rounds:?}: {report}"
        );
    }
    ensure!(report.slowest < TWO_RETRANSMISSIONS, "{report}");
    let leaked = leaked(&cluster)?;
    ensure!(leaked == 0, "{leaked} packets from the task's own address");
    Ok(())
}

#[test]
fn clients_lose_no_new_connection_when_the_program_of_the_network_card_is_detached() -> Result<()> {
    detached("from_outside", 0)
}

#[test]
fn clients_lose_no_new_connection_when_the_tunnels_program_is_detached_where_they_come_in()
-> Result<()> {
    detached("from_mesh", 0)
}

#[test]
fn clients_lose_no_new_connection_when_the_tunnels_program_is_detached_where_the_task_is()
-> Result<()> {
    detached("from_mesh", 1)
}

#[test]
fn clients_lose_no_new_connection_when_the_tasks_program_is_detached() -> Result<()> {
    detached("from_task", 1)
}

/// Who answers to the client by a node, without a look at whom the task saw.
fn answers_of_any_plane(cluster: &Cluster, node: usize, count: usize) -> Result<Answers> {
    // An address of the node that the cluster does not take for the fast path's.
    let to = cluster.node(node).at_v6(8080);
    cluster.answers(to, Protocol::Tcp, count)
}

/// Which plane a node's port takes, and why.
fn port(cluster: &Cluster, node: usize, plane: &str, reason: &str) -> Result<()> {
    let what = format!("8080 is for {plane}: {reason:?}");
    cluster.wait_for(node, &what, &["status"], |status| {
        let mut rows = status["ports"].as_array().into_iter().flatten();
        rows.any(|row| {
            let why = row["plane_reason"].as_str().unwrap_or_default();
            row["frontend"] == "*:8080/tcp" && row["plane"] == plane && why.contains(reason)
        })
    })?;
    Ok(())
}

#[test]
fn nodes_with_and_without_the_fast_path_serve_together() -> Result<()> {
    let mut cluster = Cluster::prepare("mixed", Options::nodes(3).plane(Plane::Ebpf))?;
    cluster.set_plane(1, Plane::Relay);
    for node in 0..3 {
        cluster.start_agent(node)?;
    }
    cluster.wait_ready()?;
    cluster.apply(0, STACK)?;
    let _fast = [
        cluster.whoami("a1", 0, "web")?,
        cluster.whoami("a3", 2, "web")?,
    ];
    cluster.wait_served("web", 2)?;
    let fair = each(&["a1", "a3"], 4);
    for node in 0..3 {
        // By n1 and n3 the tasks see the client, by n2 they see n2.
        let seen = cluster.answers(cluster.node(node).at(8080), Protocol::Tcp, 8)?;
        ensure!(seen == fair, "n{}: {seen:?}", node + 1);
    }
    // A task that the fast path does not reach: the whole service is the relay's, and says so.
    let slow = cluster.whoami("a2", 1, "web")?;
    cluster.wait_healthy_everywhere("web", 3)?;
    for node in 0..3 {
        if node != 1 {
            port(&cluster, node, "relay", "does not reach")?;
        }
        let seen = answers_of_any_plane(&cluster, node, 6)?;
        ensure!(
            seen == each(&["a1", "a2", "a3"], 2),
            "n{}: {seen:?}",
            node + 1
        );
    }
    cluster.retire(slow)?;
    cluster.wait_served("web", 2)?;
    let load = cluster.load(cluster.node(0).at(8080), LoadOptions::per_second(50))?;
    answered(&load, 50)?;
    // A node gets the fast path under load, and then is reached by it.
    cluster.kill_agent(1)?;
    cluster.set_plane(1, Plane::Ebpf);
    cluster.start_agent(1)?;
    cluster.wait_ready()?;
    let _now_fast = cluster.whoami("b2", 1, "web")?;
    cluster.wait_served("web", 3)?;
    for node in 0..3 {
        // The load takes turns of its own at n1.
        let seen = cluster.answers(cluster.node(node).at(8080), Protocol::Tcp, 12)?;
        ensure!(seen.contains_key("b2"), "n{}: {seen:?}", node + 1);
    }
    load.stop()?.without_failures()?;
    Ok(())
}

#[test]
fn where_the_fast_path_cannot_work_auto_serves_by_the_relay_and_says_why() -> Result<()> {
    let mut cluster = Cluster::prepare("auto", Options::nodes(2).plane(Plane::Ebpf))?;
    cluster.start_agent(0)?;
    // No directory can be made there, and nothing be mounted.
    cluster.start_agent_with(1, &["--plane", "auto", "--bpf-dir", "/proc/none/portolan"])?;
    cluster.wait_ready()?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("a1", 0, "web")?;
    cluster.wait_healthy_everywhere("web", 1)?;
    for node in 0..2 {
        let seen = answers_of_any_plane(&cluster, node, 3)?;
        ensure!(seen == each(&["a1"], 3), "n{}: {seen:?}", node + 1);
    }
    port(&cluster, 0, "ebpf", "")?;
    port(&cluster, 1, "relay", "")?;
    let status = cluster.cli(1, &["status"])?;
    ensure!(
        status.contains("/proc/none"),
        "nothing about the directory:\n{status}"
    );
    let status = cluster.json(1, &["status"])?;
    let problems = status["problems"].as_array().context("no problems")?;
    ensure!(problems.is_empty(), "auto has what it wants: {problems:?}");
    Ok(())
}
