//! As the documents have it installed: the command for the next node, and the systemd unit's capabilities.

use std::{env, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, PATIENCE, Plane,
    stream::{PacedStream, connect, echo, echo_server},
};
use portolan_testbed::{Protocol, Signal, binary, wait_until};

/// A machine's own `/etc`, in which a key may be written.
const OWN_ETC: &str = "\
set -e
cp /etc/resolv.conf /etc/hosts /etc/nsswitch.conf \"$1\"
mount --bind \"$1\" /etc
";

#[test]
fn the_next_node_joins_by_the_command_that_is_printed() -> Result<()> {
    let mut cluster = Cluster::prepare("token", Options::nodes(1))?;
    cluster.start_agent(0)?;
    cluster.wait_node_ready(0)?;
    let printed = cluster.cli(0, &["join-token"])?;
    // What is to be typed is set off.
    let typed = printed.lines().filter(|line| line.starts_with("  "));
    let typed: Vec<&str> = typed.collect();
    ensure!(typed.len() == 2, "{printed}");

    let next = cluster.lab.node("n2")?;
    let etc = next.dir().join("etc");
    fs::create_dir(&etc)?;
    let mut command = next.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{OWN_ETC}{}\n", typed.join("\n")));
    command.arg("sh").arg(&etc);
    let program = binary()?;
    let dir = program.parent().context("a program is in a directory")?;
    let path = env::var("PATH")?;
    command.env("PATH", format!("{}:{path}", dir.display()));
    // All machines of a test have one file system, and the engine that may be on it is none of theirs.
    for (name, file) in [("STATE_DIR", "state"), ("SOCKET", "agent.sock")] {
        command.env(format!("PORTOLAN_{name}"), next.dir().join(file));
    }
    command.envs([("PORTOLAN_DOCKER", "false"), ("PORTOLAN_PLANE", "relay")]);
    let _agent = next.spawn(&mut command)?;
    let joined = cluster.wait_for(0, "the next node", &["nodes"], |rows| {
        let rows = rows.as_array().into_iter().flatten();
        rows.filter(|row| row["state"] == "up").count() == 2
    })?;
    ensure!(
        joined.to_string().contains(&next.ipv4().to_string()),
        "{joined:#}"
    );
    Ok(())
}

/// What starts a program with the capabilities that the unit leaves it, and no more.
fn as_the_unit_does() -> Result<Vec<String>> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/portolan.service");
    let unit = fs::read_to_string(unit)?;
    let mut lines = unit.lines();
    let set = lines.find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let set = set.context("the unit has no bounding set")?;
    let kept = set.split_whitespace().map(|capability| {
        let name = capability.strip_prefix("CAP_").unwrap_or(capability);
        format!(",+{}", name.to_lowercase())
    });
    let kept = format!("-all{}", kept.collect::<String>());
    let words = ["setpriv", "--bounding-set", &kept, "--no-new-privs", "--"];
    Ok(words.map(str::to_owned).to_vec())
}

#[test]
fn the_units_capabilities_suffice() -> Result<()> {
    let options = Options::nodes(2)
        .plane(Plane::Ebpf)
        .under(as_the_unit_does()?);
    let mut cluster = Cluster::start("unit", options)?;
    cluster.apply(
        0,
        "
services:
  web: {ports: ['80:80', '80:80/udp']}
  echo:
    ports: ['9000:90']
    x-portolan: {idle_timeout: 2s}
",
    )?;
    // A task's namespace by its path, and by a process that has more capabilities than the agent.
    let _web = cluster.whoami("web1", 1, "web")?;
    let netns = cluster.lab.task("echo1")?;
    let echoes = echo_server(&netns, 90)?;
    cluster.cli(
        1,
        &["task", "add", "echo", "--pid", &echoes.pid().to_string()],
    )?;
    cluster.wait_served("web", 1)?;
    cluster.wait_served("echo", 1)?;
    for node in 0..2 {
        let at = cluster.node(node).at(80);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            cluster.ask(at, protocol)?;
        }
        // The node's own processes, and names.
        let local = "127.0.0.1:80".parse()?;
        cluster.ask_from(cluster.node(node), local, Protocol::Tcp)?;
        let status = cluster.json(node, &["status"])?;
        let none = status["problems"].as_array().is_some_and(Vec::is_empty);
        let pins = status["pins"].to_string();
        ensure!(none && pins.contains("/connect4"), "{status:#}");
    }
    let name = cluster
        .node(1)
        .run(["dig", "+short", "@169.254.77.53", "web"])?;
    ensure!(name.stdout.starts_with("10."), "{}", name.stdout);

    // An upgrade, with the same capabilities.
    let stream = PacedStream::start(&cluster.client, cluster.node(0).at(9000))?;
    cluster.agent(0)?.signal(Signal::HUP)?;
    wait_until(PATIENCE, "it starts again", || {
        let log = cluster.agent(0)?.log_text()?;
        Ok((log.matches("portolan starts").count() == 2).then_some(()))
    })?;
    cluster.wait_ready()?;
    stream.goes_on(20)?;
    stream.stop()?;

    // The end of an idle connection is told to both.
    let mut idle = connect(&cluster.client, cluster.node(0).at(9000))?;
    echo(&mut idle, b"one word")?;
    idle.set_read_timeout(Some(Duration::from_secs(10)))?;
    let end = std::io::Read::read(&mut idle, &mut [0; 1]);
    let reset = end.as_ref().err().map(std::io::Error::kind);
    ensure!(
        reset == Some(std::io::ErrorKind::ConnectionReset),
        "{end:?}"
    );
    Ok(())
}
