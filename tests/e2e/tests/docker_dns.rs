//! Names in containers of real Docker engines: Docker's own first, Portolan's by `--dns`.

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Machines, Options, PATIENCE};
use portolan_testbed::wait_until;

const NETWORK: &str = "
services: {}
networks:
  app: {}
";

/// What a program in a container prints, whatever its status.
fn exec(cluster: &Cluster, line: &str) -> Result<String> {
    let output = cluster.try_docker(0, &format!("exec {line}"))?;
    Ok(output.stdout + &output.stderr)
}

fn waits_for(cluster: &Cluster, line: &str, answer: &str) -> Result<()> {
    let mut last = String::new();
    wait_until(
        PATIENCE,
        format!("`docker exec {line}` prints {answer}"),
        || {
            last = exec(cluster, line)?;
            Ok(last.contains(answer).then_some(()))
        },
    )
    .map_err(|error| error.context(last))
}

#[test]
fn containers_find_services_of_the_mesh_and_docker_its_own() -> Result<()> {
    let cluster = Cluster::start("dockdns", Options::nodes(2).on(Machines::Engines))?;
    cluster.import_images()?;
    cluster.apply(0, NETWORK)?;
    let on_app = "--label portolan.networks=app";
    cluster.docker(1, &format!("run -d --name web {on_app} web:blue"))?;
    cluster.wait_healthy_everywhere("web", 1)?;

    // As with `\"dns\": [\"169.254.77.53\"]` in daemon.json.
    let dns = "--dns 169.254.77.53";
    let idle = "busybox:testbed sleep 3600";
    cluster.docker(0, "network create mine")?;
    cluster.docker(0, &format!("run -d --name store --network mine {idle}"))?;
    for (name, network) in [("plain", "bridge"), ("mixed", "mine")] {
        let run = format!("run -d --name {name} --network {network} {dns} {on_app} {idle}");
        cluster.docker(0, &run)?;
        // By the name of the service, on another engine: its page.
        waits_for(&cluster, &format!("{name} wget -qO- http://web/"), "blue")?;
        waits_for(
            &cluster,
            &format!("{name} wget -qO- http://web.app/"),
            "blue",
        )?;
        let srv = exec(&cluster, &format!("{name} nslookup -type=srv _80._tcp.web"))?;
        ensure!(srv.contains("tasks.web.app"), "{name}: {srv}");
    }
    // Docker's resolver is asked first, and knows its own.
    let own = exec(&cluster, "mixed nslookup store")?;
    ensure!(own.contains("127.0.0.11") && own.contains("Name:"), "{own}");

    // Who sets ndots has Docker's resolver pass on no names of one label, and needs a search domain.
    let search = "--dns-opt ndots:1 --dns-search app";
    let run = format!("run -d --name dots --network mine {dns} {search} {on_app} {idle}");
    cluster.docker(0, &run)?;
    waits_for(&cluster, "dots wget -qO- http://web/", "blue")?;

    // One that is no task is not on the network either.
    cluster.docker(0, &format!("run -d --name stranger {dns} {idle}"))?;
    let unknown = exec(&cluster, "stranger nslookup web")?;
    ensure!(!unknown.contains("Name:\tweb"), "{unknown}");
    Ok(())
}

#[test]
fn a_task_of_a_swarm_asks_by_the_bridge_to_its_node() -> Result<()> {
    let options = Options::nodes(1).on(Machines::Swarm);
    let options = options.args(&["--advertise", "10.77.0.11"]);
    let cluster = Cluster::start("swarmdns", options)?;
    cluster.import_images()?;
    cluster.apply(0, NETWORK)?;
    cluster.docker(
        0,
        "run -d --name web --label portolan.networks=app web:blue",
    )?;
    cluster.wait_healthy_everywhere("web", 1)?;
    cluster.docker(0, "network create -d overlay ov")?;
    let options = [
        "--network",
        "ov",
        "--dns",
        "169.254.77.53",
        "--label",
        "portolan.networks=app",
    ];
    cluster
        .engine(0)?
        .create_service("api", &options, &["sleep", "3600"])?;
    let mut api = String::new();
    wait_until(PATIENCE, "the task runs", || {
        api = cluster.docker(0, "ps -q --filter name=api")?;
        Ok((!api.is_empty()).then_some(()))
    })?;
    waits_for(&cluster, &format!("{api} wget -qO- http://web/"), "blue")?;
    // Docker's own name of the service itself.
    let own = exec(&cluster, &format!("{api} nslookup api"))?;
    ensure!(own.contains("Name:\tapi"), "{own}");
    Ok(())
}
