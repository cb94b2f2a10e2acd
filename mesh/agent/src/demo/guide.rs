//! What to try by hand, and the ways into the namespaces.

use std::{
    env, fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Result;
use portolan_testbed::{Forward, Node, Protocol};

use super::{
    cluster::{Agent, Cluster},
    plan::{HOST_PORT, Plan, STATUS_PORT, WEB_PORT},
};

/// The first ports that are tried on 127.0.0.1: node 1 has 18081 and 17941.
const WEB_BASE: u16 = 18_080;
const STATUS_BASE: u16 = 17_940;

/// Commands for the user, and forwards that last as long as it does.
#[derive(Debug)]
pub(super) struct Guide {
    ways: Vec<Way>,
    client: String,
    task: String,
    host_node: SocketAddr,
    program: PathBuf,
    socket: PathBuf,
    stack: PathBuf,
}

/// The ways into one node from the user's own shell.
#[derive(Debug)]
struct Way {
    name: String,
    at: SocketAddr,
    tcp: Forward,
    udp: Forward,
    status: Forward,
}

impl Guide {
    /// Opens a way to each node.
    pub(super) fn open(cluster: &Cluster, plan: &Plan) -> Result<Self> {
        let numbered = (1_u16..).zip(cluster.agents());
        let ways = numbered.map(|(number, agent)| Way::open(cluster, agent, number));
        let host = cluster
            .agents()
            .iter()
            .find(|agent| plan.host_task(agent.name()).is_some());
        let first = cluster.agents().first();
        let task = cluster.tasks().first();
        Ok(Self {
            ways: ways.collect::<Result<_>>()?,
            client: cluster.client().name().to_owned(),
            task: task
                .map(|task| task.namespace().to_owned())
                .unwrap_or_default(),
            host_node: host.map_or_else(|| (Ipv4Addr::LOCALHOST, 0).into(), |a| a.at(HOST_PORT)),
            program: as_typed(cluster.program()),
            socket: first
                .map(|agent| agent.socket().to_owned())
                .unwrap_or_default(),
            stack: cluster.stack_file(),
        })
    }
}

impl Way {
    fn open(cluster: &Cluster, agent: &Agent, number: u16) -> Result<Self> {
        let (web, status) = (agent.at(WEB_PORT), agent.at(STATUS_PORT));
        let open = |base, target, protocol| {
            forward(cluster, agent.node(), base + number, target, protocol)
        };
        Ok(Self {
            name: agent.name().to_owned(),
            at: web,
            tcp: open(WEB_BASE, web, Protocol::Tcp)?,
            udp: open(WEB_BASE, web, Protocol::Udp)?,
            status: open(STATUS_BASE, status, Protocol::Tcp)?,
        })
    }
}

/// At this port of 127.0.0.1 or, if that is taken, at any free one.
fn forward(
    cluster: &Cluster,
    to: &Node,
    port: u16,
    target: SocketAddr,
    protocol: Protocol,
) -> Result<Forward> {
    let open = |port| {
        cluster
            .lab()
            .forward((Ipv4Addr::LOCALHOST, port).into(), to, target, protocol)
    };
    open(port).or_else(|_| open(0))
}

/// A program's path as one types it here.
fn as_typed(program: &Path) -> PathBuf {
    let here = env::current_dir().unwrap_or_default();
    program.strip_prefix(here).unwrap_or(program).to_owned()
}

impl fmt::Display for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            client,
            task,
            host_node,
            ..
        } = self;
        let (program, socket, stack) = (
            self.program.display(),
            self.socket.display(),
            self.stack.display(),
        );
        writeln!(f, "From your own shell, on 127.0.0.1:\n")?;
        for Way {
            name,
            tcp,
            udp,
            status,
            ..
        } in &self.ways
        {
            writeln!(
                f,
                "  {name:<4} curl http://{}   udp {}   status page http://{}",
                tcp.local_addr(),
                udp.local_addr(),
                status.local_addr(),
            )?;
        }
        writeln!(
            f,
            "\nFrom the client, as root; any node answers, and the tasks take turns:\n"
        )?;
        for way in self.ways.iter().take(1) {
            writeln!(f, "  ip netns exec {client} curl http://{}", way.at)?;
            writeln!(
                f,
                "  echo hi | ip netns exec {client} socat -t2 - UDP:{}",
                way.at
            )?;
        }
        writeln!(
            f,
            "  ip netns exec {client} curl http://{host_node}   (host mode: on this node alone)"
        )?;
        writeln!(f, "\nThe agent of the first node, as root:\n")?;
        writeln!(
            f,
            "  {program} --socket {socket} status   (or nodes, networks, services, tasks)"
        )?;
        writeln!(
            f,
            "  {program} --socket {socket} apply -f {stack}   (after a change of the file)"
        )?;
        writeln!(f, "\nFrom a task, by the service's name:\n")?;
        write!(f, "  ip netns exec {task} curl http://web")
    }
}
