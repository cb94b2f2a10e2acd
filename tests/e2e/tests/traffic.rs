//! Published ports: where they answer, who answers, and how fairly.

#![expect(clippy::indexing_slicing, reason = "a test of missing JSON has failed")]

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    panic::resume_unwind,
    sync::Barrier,
    thread,
};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, PATIENCE, Plane,
    answers::{by_label, each, refused, seen_as_they_are},
    on_both_planes,
};
use portolan_testbed::{Protocol, ask_from, http_get, nginx, wait_until};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const STACK: &str = "
services:
  web:
    ports: ['8080:80', '8080:80/udp']
";

on_both_planes! {
    every_node_reaches_every_task_in_exact_turns,
    turns_are_exact_also_for_clients_that_come_at_once,
    an_answer_comes_from_the_very_address_asked,
    host_mode_answers_only_where_a_task_runs,
    a_port_left_out_is_chosen_and_kept,
    a_range_leads_each_port_to_its_own,
    a_port_at_an_address_is_served_only_there,
    twenty_ports_answer_on_five_nodes,
}

fn every_node_reaches_every_task_in_exact_turns(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("turns", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    // Two on one node, one on another, and none on the first.
    let _tasks = [
        cluster.whoami("a1", 1, "web")?,
        cluster.whoami("a2", 1, "web")?,
        cluster.whoami("a3", 2, "web")?,
    ];
    cluster.wait_served("web", 3)?;
    let fair = each(&["a1", "a2", "a3"], 4);
    for protocol in BOTH {
        for node in (0..3).map(|i| cluster.node(i)) {
            for to in [node.at(8080), node.at_v6(8080)] {
                let seen = cluster.answers(to, protocol, 12)?;
                ensure!(seen == fair, "{to}/{protocol}: {seen:?}");
            }
            let loopbacks: [SocketAddr; 2] = [
                (Ipv4Addr::LOCALHOST, 8080).into(),
                (Ipv6Addr::LOCALHOST, 8080).into(),
            ];
            for to in loopbacks {
                let seen = cluster.answers_from(node, to, protocol, 12)?;
                ensure!(
                    seen == fair,
                    "{to}/{protocol} on {}: {seen:?}",
                    node.label()
                );
            }
        }
    }
    Ok(())
}

fn turns_are_exact_also_for_clients_that_come_at_once(plane: Plane) -> Result<()> {
    const CLIENTS: usize = 8;
    const CONNECTIONS: usize = 30;
    const ROUNDS: usize = 3;
    let mut cluster = Cluster::start("at-once", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let _tasks = (0..3)
        .map(|node| cluster.whoami(&format!("a{}", node + 1), node, "web"))
        .collect::<Result<Vec<_>>>()?;
    cluster.wait_served("web", 3)?;
    let (client, to) = (&cluster.client, cluster.node(0).at(8080));
    let any = vec![(Ipv4Addr::UNSPECIFIED, 0).into(); CONNECTIONS];
    let fair = each(&["a1", "a2", "a3"], CLIENTS * CONNECTIONS / 3);
    for round in 0..ROUNDS {
        let together = Barrier::new(CLIENTS);
        let ask = || {
            together.wait();
            ask_from(client, &any, to, Protocol::Tcp)
        };
        let asked = thread::scope(|scope| {
            let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.collect::<Result<Vec<_>>>()
        })?;
        let asked = asked.concat();
        let seen = match plane {
            Plane::Relay => by_label(&asked),
            Plane::Ebpf => seen_as_they_are(&asked)?,
        };
        ensure!(seen == fair, "round {round}: {seen:?}");
    }
    Ok(())
}

fn an_answer_comes_from_the_very_address_asked(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("asked", Options::nodes(2).plane(plane))?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("a1", 1, "web")?;
    cluster.wait_served("web", 1)?;
    let node = cluster.node(0);
    // The kernel would choose the first address for a reply that leaves from the wildcard.
    node.run([
        "ip",
        "address",
        "add",
        "10.77.0.51/24",
        "dev",
        node.underlay(),
    ])?;
    node.run([
        "ip",
        "address",
        "add",
        "fd77::51/64",
        "dev",
        node.underlay(),
        "nodad",
    ])?;
    for to in ["10.77.0.51:8080", "[fd77::51]:8080", "10.77.0.11:8080"] {
        // The asking socket takes answers from `to` alone. Until the fast path has noticed a new address, the
        // relay answers there.
        wait_until(PATIENCE, format!("a1 answers at {to}"), || {
            let label = cluster.ask(to.parse()?, Protocol::Udp)?;
            Ok((label == "a1").then_some(()))
        })?;
    }
    Ok(())
}

fn host_mode_answers_only_where_a_task_runs(plane: Plane) -> Result<()> {
    let stack = "
services:
  web:
    ports:
      - {target: 80, published: 8081, mode: host}
      - {target: 80, published: 8081, mode: host, protocol: udp}
";
    let mut cluster = Cluster::start("hostmode", Options::nodes(3).plane(plane))?;
    cluster.apply(0, stack)?;
    let tasks = [
        cluster.whoami("a1", 1, "web")?,
        cluster.whoami("a2", 1, "web")?,
        cluster.whoami("a3", 2, "web")?,
    ];
    cluster.wait_served("web", 3)?;
    let client = &cluster.client;
    for protocol in BOTH {
        let seen = cluster.answers(cluster.node(1).at(8081), protocol, 8)?;
        ensure!(seen == each(&["a1", "a2"], 4), "n2/{protocol}: {seen:?}");
        let seen = cluster.answers(cluster.node(2).at(8081), protocol, 8)?;
        ensure!(seen == each(&["a3"], 8), "n3/{protocol}: {seen:?}");
        let nothing = cluster.ask(cluster.node(0).at(8081), protocol);
        ensure!(nothing.is_err(), "n1/{protocol} answers: {nothing:?}");
    }
    refused(client, cluster.node(0).at(8081))?;
    let [_, _, last] = tasks;
    cluster.cli(2, &["task", "rm", &last.id])?;
    refused(client, cluster.node(2).at(8081))
}

fn a_port_left_out_is_chosen_and_kept(plane: Plane) -> Result<()> {
    let stack = "
services:
  web:
    ports: ['80', '80/udp']
";
    let mut cluster = Cluster::start("chosen", Options::nodes(2).plane(plane))?;
    let chosen = |cluster: &Cluster, node: usize| -> Result<Vec<u16>> {
        let rows = cluster.json(node, &["services"])?;
        let ports = rows[0]["ports"].as_array().context("no ports")?;
        let published = ports
            .iter()
            .filter_map(|port| port.as_str()?.split(':').next()?.parse().ok());
        Ok(published.collect())
    };
    cluster.apply(0, stack)?;
    let _task = cluster.whoami("a1", 1, "web")?;
    cluster.wait_served("web", 1)?;
    let ports = chosen(&cluster, 0)?;
    ensure!(ports.len() == 2, "{ports:?}");
    for (port, protocol) in ports.iter().zip(BOTH) {
        ensure!(
            (30_000..=32_767).contains(port),
            "chosen: {port}/{protocol}"
        );
        for node in 0..2 {
            let label = cluster.ask(cluster.node(node).at(*port), protocol)?;
            ensure!(label == "a1", "{port}/{protocol}: {label}");
        }
    }
    cluster.apply(1, stack)?;
    let again = chosen(&cluster, 1)?;
    ensure!(
        again == ports,
        "applied again: {again:?}, before: {ports:?}"
    );
    Ok(())
}

fn a_range_leads_each_port_to_its_own(plane: Plane) -> Result<()> {
    let stack = "
services:
  web:
    ports: ['8000-8002:80-82']
";
    let cluster = Cluster::start("range", Options::nodes(2).plane(plane))?;
    cluster.apply(0, stack)?;
    let netns = cluster.lab.task("a1")?;
    let ports = 0..3;
    let _servers: Vec<_> = ports
        .clone()
        .map(|i| nginx(&netns, 80 + i, &format!("port {}", 80 + i)))
        .collect::<Result<_>>()?;
    let _task = cluster.add_task(netns, 1, "web")?;
    cluster.wait_served("web", 1)?;
    for node in [cluster.node(0), cluster.node(1)] {
        for i in ports.clone() {
            let answer = http_get(&cluster.client, &node.at(8000 + i).to_string())?;
            ensure!(
                answer.body == format!("port {}", 80 + i),
                "{}: {}",
                8000 + i,
                answer.body
            );
        }
        refused(&cluster.client, node.at(8003))?;
    }
    Ok(())
}

fn a_port_at_an_address_is_served_only_there(plane: Plane) -> Result<()> {
    let stack = "
services:
  web:
    ports: ['10.77.0.11:8081:80', '10.77.0.11:8081:80/udp']
";
    let mut cluster = Cluster::start("address", Options::nodes(2).plane(plane))?;
    cluster.apply(1, stack)?;
    let _task = cluster.whoami("a1", 1, "web")?;
    cluster.wait_served("web", 1)?;
    let (n1, client) = (cluster.node(0), &cluster.client);
    for protocol in BOTH {
        let label = cluster.ask(n1.at(8081), protocol)?;
        ensure!(label == "a1", "{protocol}: {label}");
    }
    refused(client, n1.at_v6(8081))?;
    refused(n1, (Ipv4Addr::LOCALHOST, 8081).into())?;
    refused(client, cluster.node(1).at(8081))
}

fn twenty_ports_answer_on_five_nodes(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("twenty", Options::nodes(5).plane(plane))?;
    let ports: Vec<u16> = (9001..=9020).collect();
    let services: String = ports
        .chunks(4)
        .zip(1..)
        .map(|(ports, number)| {
            let list: Vec<String> = ports.iter().map(|port| format!("'{port}:80'")).collect();
            format!("  s{number}:\n    ports: [{}]\n", list.join(", "))
        })
        .collect();
    cluster.apply(0, &format!("services:\n{services}"))?;
    let tasks = (0..5)
        .map(|i| cluster.whoami(&format!("a{}", i + 1), i, &format!("s{}", i + 1)))
        .collect::<Result<Vec<_>>>()?;
    for number in 1..=5 {
        cluster.wait_served(&format!("s{number}"), 1)?;
    }
    for node in (0..5).map(|i| cluster.node(i)) {
        for (ports, number) in ports.chunks(4).zip(1..) {
            for port in ports {
                let label = cluster.ask(node.at(*port), Protocol::Tcp)?;
                ensure!(
                    label == format!("a{number}"),
                    "{}:{port}: {label}",
                    node.label()
                );
            }
        }
    }
    drop(tasks);
    Ok(())
}
