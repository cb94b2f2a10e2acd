//! A firewall of the node's own beside the fast path: docs/firewall.md says what is tested here.

use std::fs;

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Options, PATIENCE, Plane, Task, answers::each};
use portolan_testbed::{Protocol, wait_until};

const STACK: &str = "
services:
  web:
    ports: ['8080:80']
";
const BOTH: [Plane; 2] = [Plane::Relay, Plane::Ebpf];

/// Two nodes, and a task on the second.
fn started(plane: Plane) -> Result<(Cluster, Task)> {
    let mut cluster = Cluster::start("firewall", Options::nodes(2).plane(plane))?;
    cluster.apply(0, STACK)?;
    let task = cluster.whoami("a2", 1, "web")?;
    cluster.wait_served("web", 1)?;
    Ok((cluster, task))
}

/// Puts one rule into a chain of a node's own.
fn rule(cluster: &Cluster, node: usize, family: &str, hook: &str, rule: &str) -> Result<()> {
    let path = cluster.file(node, "firewall.nft");
    let script = format!(
        "table {family} own {{\n  chain own {{\n    type filter hook {hook} priority 0; policy accept;\n    {rule}\n  }}\n}}\n"
    );
    fs::write(&path, script)?;
    cluster
        .node(node)
        .run(["nft", "-f", &path.to_string_lossy()])?;
    Ok(())
}

fn is_served(cluster: &Cluster) -> Result<()> {
    let seen = cluster.answers(cluster.node(0).at(8080), Protocol::Tcp, 3)?;
    ensure!(seen == each(&["a2"], 3), "{seen:?}");
    Ok(())
}

/// Removes that chain.
fn no_rule(cluster: &Cluster, node: usize, family: &str) -> Result<()> {
    let line = ["nft", "delete", "table", family, "own"];
    cluster.node(node).run(line)?;
    Ok(())
}

/// Whether nothing answers within a second.
fn is_cut(cluster: &Cluster) -> Result<bool> {
    let url = format!("http://{}/", cluster.node(0).at(8080));
    let line = ["curl", "-sS", "--max-time", "1", &url];
    Ok(!cluster.client.output(line)?.status.success())
}

#[test]
fn a_port_dropped_on_input_is_closed_to_the_relay_and_not_to_the_fast_path() -> Result<()> {
    for plane in BOTH {
        let (cluster, _task) = started(plane)?;
        rule(&cluster, 0, "inet", "input", "tcp dport 8080 drop")?;
        match plane {
            Plane::Relay => ensure!(is_cut(&cluster)?, "the relay is reached behind a drop"),
            Plane::Ebpf => is_served(&cluster)?,
        }
        // So is what tracks connections and counts them.
        no_rule(&cluster, 0, "inet")?;
        rule(
            &cluster,
            0,
            "inet",
            "prerouting",
            "tcp dport 8080 ct state new limit rate over 1/day burst 1 packets drop",
        )?;
        match plane {
            Plane::Relay => {
                is_cut(&cluster)?;
                ensure!(is_cut(&cluster)?, "the relay is reached past a limit");
            }
            Plane::Ebpf => is_served(&cluster)?,
        }
    }
    Ok(())
}

#[test]
fn a_service_or_a_node_with_the_relay_alone_has_all_rules_of_the_node() -> Result<()> {
    let (mut cluster, _task) = started(Plane::Ebpf)?;
    rule(&cluster, 0, "inet", "input", "tcp dport 8080 drop")?;
    is_served(&cluster)?;
    let relayed = "services: {web: {ports: ['8080:80'], x-portolan: {plane: relay}}}\n";
    cluster.apply(0, relayed)?;
    wait_until(PATIENCE, "the service's port is closed", || {
        Ok(is_cut(&cluster)?.then_some(()))
    })?;
    cluster.apply(0, STACK)?;
    cluster.wait_served("web", 1)?;
    is_served(&cluster)?;
    cluster.kill_agent(0)?;
    cluster.set_plane(0, Plane::Relay);
    cluster.start_agent(0)?;
    cluster.wait_ready()?;
    cluster.wait_served("web", 1)?;
    ensure!(is_cut(&cluster)?, "the node's port is open");
    Ok(())
}

#[test]
fn a_port_dropped_as_it_comes_in_by_the_card_is_open_on_the_fast_path() -> Result<()> {
    for plane in BOTH {
        let (cluster, _task) = started(plane)?;
        // The programs of a link come before this hook, too.
        rule(
            &cluster,
            0,
            "netdev",
            "ingress device eth0",
            "tcp dport 8080 drop",
        )?;
        match plane {
            Plane::Relay => ensure!(is_cut(&cluster)?, "the relay is reached behind a drop"),
            Plane::Ebpf => is_served(&cluster)?,
        }
    }
    Ok(())
}

#[test]
fn answers_dropped_as_they_leave_by_the_card_leave_on_the_fast_path() -> Result<()> {
    for plane in BOTH {
        let (cluster, _task) = started(plane)?;
        // The kernel lets what a program redirects pass this hook by (`nf_skip_egress`).
        rule(
            &cluster,
            0,
            "netdev",
            "egress device eth0",
            "tcp sport 8080 drop",
        )?;
        match plane {
            Plane::Relay => ensure!(is_cut(&cluster)?, "the relay answers through a drop"),
            Plane::Ebpf => is_served(&cluster)?,
        }
    }
    Ok(())
}

#[test]
fn the_tunnel_is_the_hosts_traffic_and_needs_its_firewalls_leave() -> Result<()> {
    for plane in BOTH {
        let (cluster, _task) = started(plane)?;
        rule(&cluster, 1, "inet", "input", "udp dport 4789 drop")?;
        ensure!(
            is_cut(&cluster)?,
            "{plane:?}: the tunnel comes in in spite of a drop"
        );
        no_rule(&cluster, 1, "inet")?;
        wait_until(PATIENCE, "the task is reached again", || {
            cluster.ask(cluster.node(0).at(8080), Protocol::Tcp)?;
            Ok(Some(()))
        })?;
        rule(&cluster, 0, "inet", "output", "udp dport 4789 drop")?;
        ensure!(
            is_cut(&cluster)?,
            "{plane:?}: the tunnel goes out in spite of a drop"
        );
    }
    Ok(())
}

#[test]
fn a_list_of_clients_closes_a_port_on_either_plane() -> Result<()> {
    for plane in BOTH {
        let (cluster, _task) = started(plane)?;
        cluster.apply(
            0,
            "services: {web: {ports: ['8080:80'], x-portolan: {allow: [192.0.2.0/24]}}}\n",
        )?;
        wait_until(PATIENCE, "the client is refused", || {
            Ok(is_cut(&cluster)?.then_some(()))
        })?;
        cluster.apply(
            0,
            "services: {web: {ports: ['8080:80'], x-portolan: {allow: [10.77.0.0/24]}}}\n",
        )?;
        cluster.wait_served("web", 1)?;
        wait_until(PATIENCE, "the client is served", || {
            is_served(&cluster)?;
            Ok(Some(()))
        })?;
    }
    Ok(())
}
