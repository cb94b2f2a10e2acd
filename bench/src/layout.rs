//! The namespaces that every contender forwards between: a client, two nodes with agents, a task on each.
//!
//! ```text
//! client c1 --- entry node n1 ===VXLAN=== n2 --- task "remote"
//!                    \-- task "local"
//! ```
//!
//! Direct routing has a VXLAN link of its own, as the fast path would take packets that come by the overlay.
//! The overlay admits no traffic that others forward: DNAT is made possible by a few rules beside it. All of
//! that is there all the time, for all contenders.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result};
use portolan_e2e::{Cluster, Options, Plane, Task};
use portolan_testbed::{Namespace, Node, Process, nginx};
use serde_json::Value;

use crate::{contender::Contender, datagrams::Sink, measure::Traffic, peers};

/// The entry node, which the client speaks with.
const ENTRY: usize = 0;
/// The node of the remote task.
const FAR: usize = 1;
/// All of the overlay: the built-in network `ingress`.
pub(crate) const OVERLAY: &str = "10.208.0.0/12";

/// The remote task's address on the direct way.
pub(crate) const DIRECT_TASK: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// What fits a VXLAN packet on an underlay of 1500 bytes.
const MTU: u32 = 1450;
const BRIDGE: &str = "ptbr4096";
const TUNNEL: &str = "ptvx4096";

/// A running cluster with peers beside the agent of the entry node.
pub(crate) struct Layout {
    // Dropped from the first to the last: programs before the namespaces that they run in.
    _peers: Vec<Process>,
    remote: Server,
    local: Server,
    fast_remote: Server,
    fast_local: Server,
    cluster: Cluster,
    /// The entry node's own address on the overlay.
    pub(crate) gateway: Ipv4Addr,
}

/// A task, and what answers in it.
pub(crate) struct Server {
    _programs: Vec<Process>,
    /// Counts the datagrams that come.
    pub(crate) sink: Arc<Sink>,
    /// Its address on the overlay.
    pub(crate) address: Ipv4Addr,
    task: Task,
}

impl Layout {
    /// Starts it all, and waits until it serves.
    pub(crate) fn build() -> Result<Self> {
        let mut cluster = Cluster::start("bench", Options::nodes(2).plane(Plane::Ebpf))?;
        cluster.apply(ENTRY, &stack())?;
        let remote = Server::start(&mut cluster, "remote", FAR)?;
        let local = Server::start(&mut cluster, "local", ENTRY)?;
        let fast_remote = Server::start(&mut cluster, "fast-remote", FAR)?;
        let fast_local = Server::start(&mut cluster, "fast-local", ENTRY)?;
        for service in ["remote", "local", "fast-remote", "fast-local"] {
            cluster.wait_healthy_everywhere(service, 1)?;
        }
        let gateway = gateway(&cluster, ENTRY)?;
        route_directly(&cluster, &remote.task.netns)?;
        route_for_nat(&cluster)?;
        let entry = cluster.node(ENTRY);
        // Ports stay in use for a minute after their connections: each proxy has an address of its own.
        let [a, b, c, _] = gateway.octets();
        let own = Ipv4Addr::new(a, b, c, 200);
        run(entry, &format!("ip address add {own}/32 dev lo"))?;
        let peers = vec![
            peers::haproxy(entry, remote.address)?,
            peers::nginx_stream(entry, remote.address, own)?,
        ];
        Ok(Self {
            _peers: peers,
            remote,
            local,
            fast_remote,
            fast_local,
            cluster,
            gateway,
        })
    }

    pub(crate) fn client(&self) -> &Node {
        &self.cluster.client
    }

    pub(crate) fn entry(&self) -> &Node {
        self.cluster.node(ENTRY)
    }

    /// The task that a contender leads to.
    pub(crate) fn server(&self, contender: Contender) -> &Server {
        match contender {
            Contender::FastRemote => &self.fast_remote,
            Contender::FastLocal => &self.fast_local,
            Contender::RelayLocal => &self.local,
            _ => &self.remote,
        }
    }
}

impl Server {
    fn start(cluster: &mut Cluster, service: &str, node: usize) -> Result<Self> {
        let label = format!("{service}-task");
        let task = cluster.task(&label, node, service)?;
        let address = task.address("ingress")?.parse()?;
        let mut iperf = task.netns.command("iperf3");
        iperf.args(["--server", "--port", &Traffic::Bulk.task_port().to_string()]);
        let programs = vec![
            nginx(&task.netns, Traffic::Http.task_port(), "hello")?,
            task.netns
                .spawn(&mut iperf)?
                .listening(Traffic::Bulk.task_port())?,
        ];
        Ok(Self {
            _programs: programs,
            sink: Sink::start(&task.netns, Traffic::Datagrams.task_port())?,
            address,
            task,
        })
    }
}

fn stack() -> String {
    let ports = |contender: Contender| {
        let published = Traffic::ALL.map(|traffic| {
            let (port, task) = (contender.port(traffic), traffic.task_port());
            match traffic {
                Traffic::Datagrams => format!("'{port}:{task}/udp'"),
                Traffic::Bulk | Traffic::Http => format!("'{port}:{task}'"),
            }
        });
        published.join(", ")
    };
    let service = |name: &str, plane: &str, contender: Contender| {
        let ports = ports(contender);
        format!("  {name}:\n    ports: [{ports}]\n    x-portolan: {{ plane: {plane} }}\n")
    };
    [
        "services:\n".to_owned(),
        service("remote", "relay", Contender::RelayRemote),
        service("local", "relay", Contender::RelayLocal),
        service("fast-remote", "ebpf", Contender::FastRemote),
        service("fast-local", "ebpf", Contender::FastLocal),
    ]
    .concat()
}

/// A node's own address on the ingress network, the first of its slice.
fn gateway(cluster: &Cluster, node: usize) -> Result<Ipv4Addr> {
    let rows = cluster.node(node).run(["ip", "-json", "-4", "address"])?;
    let links: Value = serde_json::from_str(&rows.stdout)?;
    let bridge = links
        .as_array()
        .into_iter()
        .flatten()
        .find(|link| link["ifname"] == BRIDGE)
        .context("the overlay has no bridge")?;
    let addresses = bridge["addr_info"].as_array().context("no addresses")?;
    let texts = addresses.iter().filter_map(|a| a["local"].as_str());
    let first = texts.filter_map(|text| text.parse().ok()).min();
    first.context("the bridge has no address")
}

/// A way from the client to the remote task that no agent knows of: a VXLAN link of its own between the nodes,
/// and routes.
fn route_directly(cluster: &Cluster, task: &Namespace) -> Result<()> {
    let (entry, far) = (cluster.node(ENTRY), cluster.node(FAR));
    let client = cluster.client.ipv4();
    for (node, other, own) in [(entry, far, "10.99.1.1"), (far, entry, "10.99.1.2")] {
        let (here, there) = (node.ipv4(), other.ipv4());
        run(
            node,
            &format!(
                "ip link add direct type vxlan id 77 local {here} remote {there} dstport 4790 dev eth0"
            ),
        )?;
        run(node, &format!("ip address add {own}/30 dev direct"))?;
        run(node, "ip link set direct up")?;
        for link in ["eth0", "direct"] {
            node.set_sysctl(&format!("net.ipv4.conf.{link}.forwarding"), "1")?;
        }
    }
    run(
        &cluster.client,
        &format!("ip route add 10.99.0.0/24 via {}", entry.ipv4()),
    )?;
    run(entry, "ip route add 10.99.0.0/24 via 10.99.1.2")?;
    run(far, &format!("ip route add {client} via 10.99.1.1"))?;

    run(
        far,
        &format!(
            "ip link add direct-task mtu {MTU} type veth peer name direct netns {}",
            task.name()
        ),
    )?;
    run(far, "ip address add 10.99.0.1/24 dev direct-task")?;
    run(far, "ip link set direct-task up")?;
    far.set_sysctl("net.ipv4.conf.direct-task.forwarding", "1")?;
    run(task, &format!("ip link set direct mtu {MTU} up"))?;
    run(task, &format!("ip address add {DIRECT_TASK}/24 dev direct"))?;
    run(task, &format!("ip route add {client} via 10.99.0.1"))
}

/// Lets what a DNAT on the entry node has rewritten into the overlay, and the replies out of it.
fn route_for_nat(cluster: &Cluster) -> Result<()> {
    let entry = cluster.node(ENTRY);
    let client = cluster.client.ipv4().to_string();
    let table = overlay_table(entry)?;
    run(
        entry,
        &format!("ip rule add pref 1000 to {OVERLAY} iif eth0 lookup {table}"),
    )?;
    run(
        entry,
        &format!("ip rule add pref 1000 to {client} iif {TUNNEL} lookup main"),
    )?;
    run(entry, &admit("eth0", &client))
}

/// Puts a rule ahead of those that keep strangers out of the overlay.
fn admit(link: &str, client: &str) -> String {
    format!(
        "nft insert rule inet portolan_overlay networks iifname {link} ip saddr {client} accept"
    )
}

/// The routing table of the ingress network.
fn overlay_table(node: &Node) -> Result<String> {
    let rules = node.run(["ip", "-json", "rule"])?.stdout;
    let rules: Value = serde_json::from_str(&rules)?;
    let mut rules = rules.as_array().into_iter().flatten();
    let rule = rules.find(|rule| rule["iif"] == BRIDGE);
    let table = rule.and_then(|rule| rule["table"].as_str());
    Ok(table.context("no rule leads to the overlay")?.to_owned())
}

fn run(inside: &Namespace, line: &str) -> Result<()> {
    inside.run(line.split(' ')).map(drop)
}
