//! Portolan as a global service of a Swarm, from its image and its stack file, as docs/swarm.md says.

#![expect(clippy::indexing_slicing, reason = "a test of missing JSON has failed")]

use std::{os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Machines, Options, Plane, stream::PacedStream};
use portolan_testbed::{
    Load, LoadOptions, Process, Protocol, Report, binary, output_within, wait_until,
};
use serde_json::Value;

/// How long Docker may take to do what it is told.
const DOCKER: Duration = Duration::from_secs(50);
/// What makes an image of the packed file system, as `make image` has it.
const IMPORT: [&str; 6] = [
    "-c",
    "ENV PATH=/bin",
    "-c",
    "ENTRYPOINT [\"portolan\"]",
    "-c",
    "CMD [\"agent\"]",
];

fn deploy(file: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    dir.join(file).to_string_lossy().into_owned()
}

/// Machines with engines that are a Swarm, and on each the image in two versions. No agent runs yet.
fn machines() -> Result<Cluster> {
    let options = Options::nodes(3).on(Machines::Swarm).plane(Plane::Ebpf);
    let cluster = Cluster::prepare("pl-gs", options)?;
    cluster.import_images()?;
    let tar = cluster.file(0, "image.tar");
    let mut pack = Command::new(deploy("image"));
    output_within(pack.arg(binary()?).arg(&tar), DOCKER)?.success()?;
    let tar = tar.to_string_lossy();
    for node in 0..cluster.len() {
        let engine = cluster.engine(node)?;
        // One stack file for all nodes cannot say at which of its addresses a node is reached.
        let second = format!("192.0.2.{}/24", node + 1);
        let add = ["ip", "address", "add", &second, "dev", "eth0"];
        cluster.node(node).run(add)?;
        // As systemd does on a machine.
        let mut mount = engine.command("mount");
        output_within(mount.args(["-t", "bpf", "bpf", "/sys/fs/bpf"]), DOCKER)?.success()?;
        // Two images that differ in when they were made.
        for image in ["portolan:0.1.0", "portolan:next"] {
            let mut words = vec!["import"];
            words.extend(IMPORT);
            words.extend([tar.as_ref(), image]);
            engine.docker(&words)?;
        }
    }
    Ok(cluster)
}

/// The container of the agent on a node, if it runs from this image.
fn agent(cluster: &Cluster, node: usize, image: &str) -> Result<Option<String>> {
    let line = format!("ps -q --filter name=portolan_agent --filter ancestor={image}");
    let id = cluster.docker(node, &line)?;
    Ok((!id.is_empty()).then_some(id))
}

/// What the agents tell, by node.
fn logs(cluster: &Cluster) -> String {
    let of = |node| {
        let id = agent(cluster, node, "portolan:next").ok().flatten();
        let text = cluster.try_docker(node, &format!("logs {}", id.unwrap_or_default()));
        text.map_or_else(|error| format!("{error:#}"), |output| output.stderr)
    };
    let all = (0..cluster.len()).map(|node| format!("node {node}:\n{}", of(node)));
    all.collect::<Vec<_>>().join("\n")
}

/// That the agent on a node finds nothing wrong, and serves by the fast path.
fn is_well(cluster: &Cluster, node: usize, image: &str) -> Result<Option<()>> {
    let Some(agent) = agent(cluster, node, image)? else {
        return Ok(None);
    };
    let status = cluster.docker(node, &format!("exec {agent} portolan status"))?;
    ensure!(
        status.contains("No problems") && status.contains("ebpf serves"),
        "{status}"
    );
    Ok(Some(()))
}

/// That the agent on a node has a published port on the fast path, with a task to lead to.
fn is_carried(cluster: &Cluster, node: usize, image: &str, port: u16) -> Result<Option<()>> {
    let Some(agent) = agent(cluster, node, image)? else {
        return Ok(None);
    };
    let status = format!("exec {agent} portolan status --format json");
    let status: Value = serde_json::from_str(&cluster.docker(node, &status)?)?;
    let mut rows = status["ports"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["frontend"] == format!("*:{port}/tcp"));
    let carried = row.is_some_and(|row| row["plane"] == "ebpf" && row["active"] == 1);
    Ok(carried.then_some(()))
}

/// A program of dockerd's name that has a port of the first node, as dockerd has where the kernel has IPVS.
fn daemon(cluster: &Cluster, port: u16) -> Result<Process> {
    let program = cluster.file(0, "dockerd");
    symlink(binary()?, &program)?;
    let mut command = cluster.node(0).command(&program);
    command.args(["whoami", "--http", &port.to_string(), "--name", "dockerd"]);
    cluster.node(0).spawn(&mut command)?.listening(port)
}

#[test]
fn a_global_service_publishes_and_is_upgraded_under_load() -> Result<()> {
    let cluster = machines()?;
    let key = cluster.file(0, "key");
    cluster.docker(0, &format!("secret create portolan_key {}", key.display()))?;
    let _dockerd = daemon(&cluster, 8090)?;
    let stack = deploy("portolan-stack.yml");
    cluster.docker(
        0,
        &format!("stack deploy --resolve-image never -c {stack} portolan"),
    )?;
    cluster.docker(
        0,
        "service create -d -q --no-resolve-image --name web --replicas 2 -p 8080:80 -p 8090:80 web:blue",
    )?;
    // A container in the namespace of another one, of which only a process is known.
    cluster.docker(0, "run -d --name first web:green sleep 600")?;
    cluster.docker(
        0,
        "run -d --name second --network container:first --label portolan.publish=8070:80 web:green",
    )?;
    for node in 0..cluster.len() {
        wait_until(DOCKER, "the agent is well", || {
            is_well(&cluster, node, "portolan:0.1.0")
        })?;
        let at = cluster.node(node).at(8080);
        wait_until(DOCKER, format!("{at} is answered"), || {
            let seen = cluster.answers(at, Protocol::Tcp, 4)?;
            Ok((seen.len() == 2).then_some(()))
        })?;
    }

    // A long connection by each node, to one task and so by the tunnel from at least two of them.
    cluster.docker(
        0,
        "service create -d -q --no-resolve-image --name echo -p 9000:90 web:blue nc -ll -p 90 -e cat",
    )?;
    let streams = (0..cluster.len()).map(|node| {
        wait_until(DOCKER, "the fast path carries echo", || {
            is_carried(&cluster, node, "portolan:0.1.0", 9000)
        })?;
        PacedStream::start(&cluster.client, cluster.node(node).at(9000))
    });
    let streams: Vec<PacedStream> = streams.collect::<Result<_>>()?;
    wait_until(DOCKER, "the container beside another is a task", || {
        cluster
            .ask(cluster.node(1).at(8070), Protocol::Tcp)
            .map(Some)
    })?;
    // A port of which dockerd itself has the socket: the agent sees that from its container, or would call it a problem.
    let by = cluster.ask(cluster.node(0).at(8090), Protocol::Tcp)?;
    ensure!(!by.contains("dockerd"), "{by}");

    let loads = (0..cluster.len()).map(|node| {
        let at = cluster.node(node).at(8080);
        cluster.load_path(at, "/page", LoadOptions::per_second(30))
    });
    let loads: Vec<Load> = loads.collect::<Result<_>>()?;
    cluster.docker(
        0,
        "service update -d -q --no-resolve-image --image portolan:next portolan_agent",
    )?;
    for node in 0..cluster.len() {
        wait_until(DOCKER, "the next agent is well", || {
            is_well(&cluster, node, "portolan:next")
        })?;
    }
    for stream in streams {
        stream.goes_on(20)?;
        stream.stop()?;
    }
    for load in loads {
        let report = load.stop().and_then(Report::without_failures);
        report.with_context(|| logs(&cluster))?;
    }

    cluster.docker(0, "stack rm portolan")?;
    for node in 0..cluster.len() {
        wait_until(DOCKER, "the agent has ended", || {
            let gone = cluster.docker(node, "ps -aq --filter name=portolan_agent")?;
            Ok(gone.is_empty().then_some(()))
        })?;
        cluster.docker(
            node,
            "run --rm --network host --cap-add NET_ADMIN --cap-add SYS_ADMIN -v /run:/run \
             -v /sys/fs/bpf:/sys/fs/bpf -v portolan_state:/var/lib/portolan portolan:next leave --clean",
        )?;
        let links = cluster.node(node).run(["ip", "-br", "link"])?.stdout;
        ensure!(!links.contains("ptbr"), "{links}");
        let mut pins = cluster.engine(node)?.command("find");
        let pins = output_within(pins.args(["/sys/fs/bpf/portolan", "-type", "f"]), DOCKER)?;
        ensure!(pins.stdout.is_empty(), "{}", pins.stdout);
    }
    Ok(())
}
