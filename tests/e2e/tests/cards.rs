//! A network card comes while the agent runs, goes, and comes back.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Options, Plane, on_both_planes};
use portolan_testbed::{LoadOptions, Namespace, Protocol, wait_until};

const STACK: &str = "
services:
  web:
    ports: ['8080:80', '8080:80/udp']
";
/// How long the plane may take to have a card.
const NOTICED: Duration = Duration::from_secs(2);

/// The first node's address on its other card; that of the client there is 10.78.0.101.
const OTHER: &str = "10.78.0.11";

/// Gives a node another card, with a client at its far end.
fn plug_in(cluster: &Cluster, client: &Namespace) -> Result<()> {
    let (node, name) = (cluster.node(0), client.name());
    let both = [
        (
            &**node,
            format!("link add eth1 type veth peer name eth0 netns {name}"),
        ),
        (&**node, format!("address add {OTHER}/24 dev eth1")),
        (&**node, "link set eth1 up".to_owned()),
        (client, "address add 10.78.0.101/24 dev eth0".to_owned()),
        (client, "link set eth0 up".to_owned()),
    ];
    for (machine, args) in both {
        machine.run(["ip"].into_iter().chain(args.split(' ')))?;
    }
    Ok(())
}

/// That clients behind the card are served by the plane.
fn is_served(cluster: &Cluster, client: &Namespace) -> Result<()> {
    let to: SocketAddr = format!("{OTHER}:8080").parse()?;
    let begin = Instant::now();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        // Until the fast path has noticed the card, the relay answers there.
        let left = NOTICED.saturating_sub(begin.elapsed());
        wait_until(left, format!("{to}/{protocol} is served"), || {
            cluster.ask_from(client, to, protocol)?;
            Ok(Some(()))
        })?;
        let seen = cluster.answers_from(client, to, protocol, 8)?;
        // The load takes turns of its own.
        ensure!(seen.len() == 2, "{to}/{protocol}: {seen:?}");
    }
    Ok(())
}

on_both_planes! {
    a_card_serves_soon_after_it_came_also_when_it_comes_back,
}

fn a_card_serves_soon_after_it_came_also_when_it_comes_back(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("card", Options::nodes(2).plane(plane))?;
    cluster.apply(0, STACK)?;
    let _tasks = [
        cluster.whoami("a1", 0, "web")?,
        cluster.whoami("a2", 1, "web")?,
    ];
    cluster.wait_served("web", 2)?;
    // Clients of the other card notice none of it.
    let load = cluster.load(cluster.node(0).at(8080), LoadOptions::per_second(50))?;
    let client = cluster.lab.task("behind")?;
    plug_in(&cluster, &client)?;
    is_served(&cluster, &client)?;
    cluster.node(0).run(["ip", "link", "del", "eth1"])?;
    plug_in(&cluster, &client)?;
    is_served(&cluster, &client)?;
    cluster.node(0).run(["ip", "link", "del", "eth1"])?;
    // A card that is gone is none that something is wrong with.
    cluster.wait_for(0, "no problem", &["status"], |status| {
        status["problems"].as_array().is_some_and(Vec::is_empty)
    })?;
    load.stop()?.without_failures()?;
    Ok(())
}
