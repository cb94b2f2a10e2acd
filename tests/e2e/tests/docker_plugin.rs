//! Docker networks by the network plugin, as users type it: addresses from Docker's IPAM, names from its DNS, and
//! everything else ours.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Machines, Options, Plane, on_both_planes};
use portolan_testbed::{Engine, Protocol, binary, http_get, output_within, wait_until};
use serde_json::Value;

on_both_planes! {
    a_network_of_the_swarm,
    a_stack_on_a_network_of_the_plugin,
}

/// How long Docker may take to do what it is told.
const DOCKER: Duration = Duration::from_secs(40);

/// Makes the plugin of what was built, installs it on every engine as the documents say, and enables it.
fn install(cluster: &Cluster, scope: &str) -> Result<()> {
    let shim = binary()?.with_file_name("portolan-plugin");
    ensure!(shim.exists(), "{}: `make build` builds it", shim.display());
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/plugin/config.json");
    for node in 0..cluster.len() {
        let dir = cluster.file(node, "plugin");
        let root = dir.join("rootfs");
        fs::create_dir_all(&root)?;
        fs::copy(&config, dir.join("config.json"))?;
        fs::copy(&shim, root.join("portolan-plugin"))?;
        // What is released is static; this one has its libraries beside it.
        let list = output_within(Command::new("ldd").arg(&shim), DOCKER)?.success()?;
        for library in list
            .stdout
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a library at the root")?)?;
            fs::copy(library, to)?;
        }
        // The agents of tests have their sockets in their own directories.
        let run = cluster.file(node, "");
        let (dir, run) = (dir.display(), run.display());
        cluster.docker(node, &format!("plugin create portolan:latest {dir}"))?;
        cluster.docker(
            node,
            &format!(
                "plugin set portolan:latest SCOPE={scope} run.source={run} \
                 PORTOLAN_SOCKET=/host/run/agent.sock"
            ),
        )?;
        cluster.docker(node, "plugin enable portolan:latest")?;
    }
    Ok(())
}

fn start(name: &str, machines: Machines, nodes: usize, plane: Plane) -> Result<Cluster> {
    let options = Options::nodes(nodes).on(machines).plane(plane);
    let mut cluster = Cluster::prepare(&format!("pl-{name}"), options)?;
    for node in 0..nodes {
        start_agent(&mut cluster, node, machines)?;
    }
    cluster.wait_ready()?;
    cluster.import_images()?;
    let scope = if machines == Machines::Swarm {
        "global"
    } else {
        "local"
    };
    install(&cluster, scope)?;
    Ok(cluster)
}

/// Starts an agent; in a Swarm it is told nothing but which of the machine's addresses is meant.
fn start_agent(cluster: &mut Cluster, node: usize, machines: Machines) -> Result<()> {
    if machines != Machines::Swarm {
        return cluster.start_agent(node);
    }
    let address = cluster.node(node).ipv4().to_string();
    cluster.start_agent_with(node, &["--advertise", &address])
}

/// A container that waits to be spoken from.
fn client(cluster: &Cluster, node: usize, network: &str) -> Result<()> {
    let image = Engine::IMAGE;
    let line = format!("run -d --name from{node} --network {network} {image} sleep 1000");
    cluster.docker(node, &line).map(drop)
}

/// That a container's first program finds its interface and its address.
fn is_there_first(cluster: &Cluster, node: usize) -> Result<()> {
    let image = Engine::IMAGE;
    let line = format!("run --rm --network shop {image} ip -o addr show up");
    let shown = cluster.docker(node, &line)?;
    ensure!(shown.contains("inet 10.10.3."), "n{}: {shown}", node + 1);
    Ok(())
}

fn pings(cluster: &Cluster, node: usize, to: &str) -> Result<()> {
    let pings = cluster.docker(node, &format!("exec from{node} ping -c1 -W2 {to}"));
    pings.map(drop)
}

/// The answer to a request for the page at an address, from a container.
fn page(cluster: &Cluster, node: usize, address: &str) -> Result<String> {
    let line =
        format!("printf 'GET /page HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' | nc -w 3 {address} 80");
    let name = format!("from{node}");
    cluster
        .engine(node)?
        .docker(&["exec", &name, "sh", "-c", &line])
}

/// The addresses that a name has for a container.
fn resolved(cluster: &Cluster, node: usize, name: &str) -> Result<Vec<String>> {
    let answer = cluster.try_docker(node, &format!("exec from{node} nslookup {name}"))?;
    let addresses = answer.stdout.lines().filter_map(|line| {
        let address = line.strip_prefix("Address: ")?.trim();
        address.starts_with("10.10.3.").then(|| address.to_owned())
    });
    let mut addresses: Vec<String> = addresses.collect();
    addresses.sort_unstable();
    Ok(addresses)
}

/// That everybody reaches everybody, by address, by the virtual address and by name.
fn all_reach_all(cluster: &Cluster) -> Result<()> {
    for node in 0..cluster.len() {
        let vip = resolved(cluster, node, "web")?;
        ensure!(vip.len() == 1, "web is {vip:?} on n{}", node + 1);
        let tasks = resolved(cluster, node, "tasks.web")?;
        ensure!(tasks.len() == cluster.len(), "tasks.web is {tasks:?}");
        for address in tasks.iter().chain(&vip) {
            pings(cluster, node, address)?;
            // Once for each task behind it.
            for _ in 0..cluster.len() {
                let answer = page(cluster, node, address)?;
                ensure!(
                    answer.contains("blue"),
                    "n{}: {address}: {answer}",
                    node + 1
                );
            }
        }
    }
    Ok(())
}

fn a_network_of_the_swarm(plane: Plane) -> Result<()> {
    let mut cluster = start("sw", Machines::Swarm, 3, plane)?;
    cluster.docker(
        0,
        "network create -d portolan:latest --subnet 10.10.3.0/24 --attachable shop",
    )?;
    cluster.docker(
        0,
        "service create -d -q --no-resolve-image --name web --mode global --network shop web:blue",
    )?;
    for node in 0..cluster.len() {
        client(&cluster, node, "shop")?;
        is_there_first(&cluster, node)?;
    }
    wait_until(DOCKER, "every task is reached from everywhere", || {
        all_reach_all(&cluster)?;
        Ok(Some(()))
    })?;
    // What is shown is one line for each container, with its address.
    let tasks = cluster.json(1, &["tasks"])?;
    let tasks = tasks.as_array().context("a list")?;
    ensure!(tasks.len() == 2 * cluster.len(), "{tasks:#?}");

    // An agent that is away takes nothing along, and the next one knows whose the links are.
    cluster.kill_agent(1)?;
    let tasks = resolved(&cluster, 1, "tasks.web")?;
    for address in &tasks {
        pings(&cluster, 1, address)?;
    }
    start_agent(&mut cluster, 1, Machines::Swarm)?;
    // A call that comes before the agent is ready waits for it.
    cluster.docker(1, "rm -f from1")?;
    client(&cluster, 1, "shop")?;
    cluster.wait_ready()?;
    wait_until(DOCKER, "every task is reached again", || {
        all_reach_all(&cluster)?;
        Ok(Some(()))
    })?;

    cluster.docker(0, "service rm web")?;
    for node in 0..cluster.len() {
        cluster.docker(node, &format!("rm -f from{node}"))?;
    }
    wait_until(DOCKER, "the network is removed", || {
        cluster.docker(0, "network rm shop")?;
        Ok(Some(()))
    })?;
    nothing_left(&cluster)
}

/// That no container's link is left, and no network but the one that is built in.
fn nothing_left(cluster: &Cluster) -> Result<()> {
    wait_until(DOCKER, "nothing is left of the network", || {
        for node in 0..cluster.len() {
            let links = cluster.node(node).run(["ip", "-br", "link"])?.stdout;
            let left = links
                .lines()
                .find(|line| line.starts_with("ptv") && !line.starts_with("ptvx"));
            ensure!(left.is_none() && !links.contains("ptp"), "{links}");
            let networks = cluster.json(node, &["networks"])?;
            let networks = networks.as_array().context("a list")?;
            ensure!(networks.len() == 1, "{networks:?}");
        }
        Ok(Some(()))
    })
}

/// Web finds redis by its name and by an alias, which both lead to its virtual address, as is the default.
const SHOP: &str = "
version: '3.8'
services:
  web:
    image: web:blue
    ports: ['8080:80']
    networks: [back]
    deploy: {mode: global}
  redis:
    image: redis:7
    networks:
      back: {aliases: [store]}
networks:
  back:
    driver: portolan:latest
    ipam: {config: [{subnet: 10.10.3.0/24}]}
";

fn a_stack_on_a_network_of_the_plugin(plane: Plane) -> Result<()> {
    let mut cluster = start("st", Machines::Swarm, 3, plane)?;
    let file = cluster.file(0, "shop.yml");
    fs::write(&file, SHOP)?;
    cluster.docker(0, &format!("stack deploy -c {} shop", file.display()))?;
    // Up to 20 s pass until a manager knows of a worker's new plugin, and gives it tasks.
    let placed = |rows: &Value| {
        let mut rows = rows.as_array().into_iter().flatten();
        rows.any(|row| row["name"] == "shop_web" && row["tasks"] == 3)
    };
    cluster.wait_within(DOCKER, 0, "a task on each node", &["services"], placed)?;
    cluster.wait_served("shop_web", 3)?;
    let mut counted = wait_until(DOCKER, "redis counts", || {
        hit(&cluster, 0, "redis").map(|(count, _)| Some(count))
    })?;
    // Of each node's round, every task by every name.
    let mut askers = BTreeSet::new();
    for name in ["redis", "store"] {
        for node in [0, 1, 2].repeat(cluster.len()) {
            let (count, asker) = hit(&cluster, node, name)?;
            ensure!(count == counted + 1, "{name}: {count} after {counted}");
            counted = count;
            askers.insert((name, asker));
        }
    }
    ensure!(askers.len() == 2 * cluster.len(), "{askers:?}");
    // It is the virtual address that the names lead to, and not the task's.
    let vips = "service inspect shop_redis --format {{range.Endpoint.VirtualIPs}}{{.Addr}},{{end}}";
    let vips = cluster.docker(0, vips)?;
    let web = cluster.docker(1, "ps -q --filter name=shop_web")?;
    for name in ["redis", "store"] {
        let looked = cluster.try_docker(1, &format!("exec {web} nslookup {name}"))?;
        let vip = looked.stdout.lines().find_map(|line| {
            let address = line.strip_prefix("Address: ")?.trim();
            address.starts_with("10.10.3.").then_some(address)
        });
        let vip = vip.with_context(|| format!("{name}: {}", looked.stdout))?;
        ensure!(vips.contains(&format!("{vip}/")), "{name}: {vip} of {vips}");
    }
    // Published by every node; by the fast path the tasks see the client itself, which is checked with each answer.
    for node in 0..cluster.len() {
        let at = cluster.node(node).at(8080);
        let seen = cluster.answers(at, Protocol::Tcp, cluster.len())?;
        ensure!(seen.len() == cluster.len(), "{at}: {seen:?}");
    }
    hits_go_on_after(&mut cluster, "the plugin", |cluster| {
        cluster.docker(1, "plugin disable -f portolan:latest")?;
        cluster.docker(1, "plugin enable portolan:latest")?;
        Ok(())
    })?;
    hits_go_on_after(&mut cluster, "the engine", |cluster| {
        cluster.engine_mut(1)?.stop()?;
        cluster.engine_mut(1)?.start_again()
    })?;
    cluster.docker(0, "stack rm shop")?;
    nothing_left(&cluster)
}

/// That all tasks count again after a restart of something on n2, which may have taken redis along with its count.
fn hits_go_on_after(
    cluster: &mut Cluster,
    what: &str,
    restart: impl Fn(&mut Cluster) -> Result<()>,
) -> Result<()> {
    restart(cluster)?;
    cluster.wait_served("shop_web", 3)?;
    wait_until(DOCKER, format!("all count again after {what}"), || {
        let mut askers = BTreeSet::new();
        for node in [0, 1, 2].repeat(cluster.len()) {
            askers.insert(hit(cluster, node, "redis")?.1);
        }
        ensure!(askers.len() == cluster.len(), "{askers:?}");
        Ok(Some(()))
    })?;
    Ok(())
}

/// Makes a hit on a node, counted in the redis of a name: how many there were, and which task it was.
fn hit(cluster: &Cluster, node: usize, name: &str) -> Result<(u64, String)> {
    let at = format!("{}/hits/{name}", cluster.node(node).at(8080));
    let answer = http_get(&cluster.client, &at)?;
    let mut lines = answer.body.lines();
    let count = lines.next().and_then(|line| line.strip_prefix("hits: "));
    let count = count
        .with_context(|| format!("{at}: {answer:?}"))?
        .parse()?;
    Ok((count, lines.next().unwrap_or_default().to_owned()))
}

#[test]
fn a_network_of_engines_without_a_swarm() -> Result<()> {
    let mut cluster = start("pe", Machines::Engines, 2, Plane::Ebpf)?;
    // Each engine hands out a part of its own.
    for (node, range) in ["10.10.3.0/26", "10.10.3.64/26"].iter().enumerate() {
        cluster.docker(
            node,
            &format!(
                "network create -d portolan:latest --subnet 10.10.3.0/24 --ip-range {range} shop"
            ),
        )?;
        client(&cluster, node, "shop")?;
        is_there_first(&cluster, node)?;
    }
    let address = |node: usize| {
        cluster.docker(
            node,
            &format!("inspect -f {{{{.NetworkSettings.Networks.shop.IPAddress}}}} from{node}"),
        )
    };
    let (first, second) = (address(0)?, address(1)?);
    ensure!(first != second, "both have {first}");
    wait_until(DOCKER, "the containers reach each other", || {
        pings(&cluster, 0, &second)?;
        pings(&cluster, 1, &first)?;
        Ok(Some(()))
    })?;

    // What cannot be is refused where it is typed.
    let refused = |line: &str, word: &str| -> Result<()> {
        let output = cluster.try_docker(0, line)?;
        ensure!(!output.status.success(), "{line} is done");
        ensure!(output.stderr.contains(word), "{line}: {}", output.stderr);
        Ok(())
    };
    let create = "network create -d portolan:latest";
    refused(
        "network create -d portolan --subnet 10.10.4.0/24 wrong",
        "could not resolve driver portolan",
    )?;
    refused(
        &format!("{create} --subnet 10.208.0.0/16 wrong"),
        "of network ingress",
    )?;
    refused(
        &format!("{create} --subnet 10.10.4.0/24 -o portolan.vni=much wrong"),
        "leave the option out",
    )?;
    cluster.kill_agent(0)?;
    let output = cluster.try_docker(0, &format!("{create} --subnet 10.10.5.0/24 wrong"))?;
    ensure!(
        output
            .stderr
            .contains("no Portolan agent answers at /run/agent.sock"),
        "{}",
        output.stderr
    );
    cluster.start_agent(0)?;
    for node in 0..2 {
        cluster.docker(node, &format!("rm -f from{node}"))?;
        cluster.docker(node, "network rm shop")?;
    }
    cluster.wait_ready()?;
    nothing_left(&cluster)
}
