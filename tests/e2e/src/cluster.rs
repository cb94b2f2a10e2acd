//! Agents, tasks, and the questions that tests ask of them.

mod docker;
mod machine;

use std::{
    collections::BTreeMap, fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_testbed::{
    Lab, Namespace, Node, Output, Process, Protocol, binary, http_get, wait_until,
};
use serde_json::Value;

use crate::Plane;
use machine::{Machine, machines};

pub use machine::Machines;

/// How long anything may take that only has to happen at some time.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The port of `/metrics` and the status page, on the underlay address of each node.
pub const HTTP_PORT: u16 = 7947;

/// How the agents of a cluster are started.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many nodes: n1, n2, ...
    pub nodes: usize,
    /// What is on them beside the agent.
    pub machines: Machines,
    /// What they forward by.
    pub plane: Plane,
    /// The MTU of the underlay, in bytes.
    pub mtu: u32,
    /// Further arguments of every `portolan agent`.
    pub args: Vec<String>,
    /// A program that starts every agent, with its arguments; none if empty.
    pub under: Vec<String>,
}

impl Options {
    /// This many nodes, started as the README says, with the relay alone.
    pub fn nodes(nodes: usize) -> Self {
        Self {
            nodes,
            machines: Machines::Bare,
            plane: Plane::Relay,
            mtu: 1500,
            args: Vec::new(),
            under: Vec::new(),
        }
    }

    /// On machines of this kind.
    #[must_use]
    pub fn on(mut self, machines: Machines) -> Self {
        self.machines = machines;
        self
    }

    /// Forwarding by this plane.
    #[must_use]
    pub fn plane(mut self, plane: Plane) -> Self {
        self.plane = plane;
        self
    }

    /// With another MTU of the underlay than 1500 bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// With every agent started by a program, which is given the agent's command line after these words.
    #[must_use]
    pub fn under(mut self, words: Vec<String>) -> Self {
        self.under = words;
        self
    }

    /// With further arguments for every agent.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|a| (*a).to_owned()));
        self
    }
}

/// A machine of the cluster, and the agent on it.
struct Member {
    // Killed before its machine goes.
    agent: Option<Process>,
    plane: Plane,
    machine: Machine,
}

/// A running cluster. Dropping it kills the agents and removes everything.
pub struct Cluster {
    // Agents are killed before their namespaces go.
    members: Vec<Member>,
    options: Options,
    /// The client's machine.
    pub client: Node,
    /// The network that they are on.
    pub lab: Lab,
}

/// A task namespace, and the task that it was registered as.
pub struct Task {
    /// Its program, if the cluster started it.
    pub program: Option<Process>,
    /// Where its program runs.
    pub netns: Namespace,
    /// The node that it is on, from 0.
    pub node: usize,
    /// The task's id.
    pub id: String,
    /// Network and address of each endpoint.
    pub endpoints: Vec<(String, String)>,
}

impl Task {
    /// Its address on a network.
    pub fn address(&self, network: &str) -> Result<&str> {
        let found = self.endpoints.iter().find(|(name, _)| name == network);
        let (_, address) =
            found.with_context(|| format!("task {} is not on {network}", self.id))?;
        Ok(address)
    }

    /// Removes its namespace with all that runs there, as when a container is removed. No agent is told.
    pub fn remove(self) -> Result<()> {
        // A program that is held open would keep the namespace.
        drop(self.program);
        self.netns.remove()
    }
}

impl Cluster {
    /// Starts a cluster and waits until every node is ready and knows all the others.
    pub fn start(prefix: &str, options: Options) -> Result<Self> {
        let mut cluster = Self::prepare(prefix, options)?;
        for node in 0..cluster.members.len() {
            cluster.start_agent(node)?;
        }
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Makes the machines of a cluster, without starting an agent.
    pub fn prepare(prefix: &str, options: Options) -> Result<Self> {
        let lab = Lab::unique(prefix)?.with_mtu(options.mtu);
        let client = lab.client("c1")?;
        let machines = machines(&lab, options.machines, options.nodes)?;
        let members = machines.into_iter().map(|machine| Member {
            agent: None,
            plane: options.plane,
            machine,
        });
        let members = members.collect();
        let cluster = Self {
            members,
            options,
            client,
            lab,
        };
        for i in 0..cluster.members.len() {
            cluster.write_key(i, &"6b".repeat(32))?;
        }
        Ok(cluster)
    }

    /// Gives a node a gossip key of 64 hexadecimal digits.
    pub fn write_key(&self, node: usize, key: &str) -> Result<()> {
        let path = self.file(node, "key");
        fs::write(&path, format!("{key}\n")).with_context(|| path.display().to_string())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// How many nodes it has.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// A node's machine, from 0.
    pub fn node(&self, node: usize) -> &Node {
        self.members[node].machine.node()
    }

    /// What a node forwards by.
    pub fn plane(&self, node: usize) -> Plane {
        self.members[node].plane
    }

    /// Has a node's agent forward by another plane from its next start on.
    pub fn set_plane(&mut self, node: usize, plane: Plane) {
        self.members[node].plane = plane;
    }

    /// Where a node's fast path is pinned; the agent mounts a BPF file system there.
    pub fn bpf_dir(&self, node: usize) -> PathBuf {
        self.file(node, "bpf")
    }

    /// The pins of the one layout of maps that is at work on a node.
    ///
    /// # Errors
    /// Nothing is pinned.
    pub fn layout_dir(&self, node: usize) -> Result<PathBuf> {
        let layout = fs::read_dir(self.bpf_dir(node))?.next();
        Ok(layout.context("nothing is pinned")??.path())
    }

    /// Whether a task has to see the client's own address that is asked for at this one.
    pub fn keeps_clients(&self, to: SocketAddr) -> bool {
        let own = self
            .members
            .iter()
            .find(|m| m.machine.node().ipv4() == to.ip());
        let plane = own.map_or(self.options.plane, |member| member.plane);
        plane == Plane::Ebpf && to.is_ipv4() && !to.ip().is_loopback()
    }

    /// A file in a node's own directory, which goes with it.
    pub fn file(&self, node: usize, name: &str) -> PathBuf {
        self.members[node].machine.dir().join(name)
    }

    /// Starts a node's agent, as it was before if it ran before.
    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        self.start_agent_with(node, &[])
    }

    /// Starts a node's agent with further arguments.
    pub fn start_agent_with(&mut self, node: usize, args: &[&str]) -> Result<()> {
        let machine = &self.members[node].machine;
        let mut command = match self.options.under.split_first() {
            None => machine.command(&binary()?),
            Some((program, words)) => {
                let mut command = machine.command(program.as_ref());
                command.args(words).arg(binary()?);
                command
            }
        };
        command
            .arg("agent")
            .arg("--key-file")
            .arg(self.file(node, "key"))
            .arg("--state-dir")
            .arg(self.file(node, "state"))
            .arg("--socket")
            .arg(self.file(node, "agent.sock"))
            .args(["--http", &format!("0.0.0.0:{HTTP_PORT}")]);
        // A flag is given once: these are what the caller may want otherwise.
        let given =
            |flag: &str| args.contains(&flag) || self.options.args.iter().any(|a| a == flag);
        if !given("--plane") {
            command.args(["--plane", self.plane(node).word()]);
        }
        if self.options.machines == Machines::Bare && !given("--docker") {
            // The engine of the machine that all of them are on is no part of a test.
            command.arg("--no-docker");
        }
        if !given("--bpf-dir") {
            command.arg("--bpf-dir").arg(self.bpf_dir(node));
        }
        // In a Swarm they are told by the engine.
        if self.options.machines != Machines::Swarm {
            let address = self.node(node).ipv4().to_string();
            command.args(["--name", self.node(node).label(), "--advertise", &address]);
            let others = (0..self.len()).filter(|i| *i != node).take(3);
            let join: Vec<_> = others.map(|i| self.node(i).ipv4().to_string()).collect();
            if !join.is_empty() {
                command.args(["--join", &join.join(",")]);
            }
        }
        command.args(&self.options.args).args(args);
        let agent = self.node(node).spawn(&mut command)?;
        self.members[node].agent = Some(agent);
        Ok(())
    }

    /// The agent of a node, which must be running.
    pub fn agent(&mut self, node: usize) -> Result<&mut Process> {
        let agent = self.members[node].agent.as_mut();
        agent.with_context(|| format!("n{} has no agent", node + 1))
    }

    /// Kills a node's agent, as a crash would.
    pub fn kill_agent(&mut self, node: usize) -> Result<()> {
        let mut agent = self.members[node].agent.take().context("no agent")?;
        agent.kill()?;
        Ok(())
    }

    /// Ends a node's agent as an operator would, by SIGTERM.
    pub fn stop_agent(&mut self, node: usize, within: Duration) -> Result<()> {
        let mut agent = self.members[node].agent.take().context("no agent")?;
        agent.terminate(within)?;
        Ok(())
    }

    /// Runs `portolan ARGS` against a node's agent, whatever its status.
    pub fn try_cli(&self, node: usize, args: &[&str]) -> Result<Output> {
        let (program, socket) = (binary()?, self.file(node, "agent.sock"));
        let mut line = vec![text(&program), "--socket".to_owned(), text(&socket)];
        line.extend(args.iter().map(|a| (*a).to_owned()));
        self.node(node).output(line)
    }

    /// Runs `portolan ARGS` against a node's agent; it must succeed.
    pub fn cli(&self, node: usize, args: &[&str]) -> Result<String> {
        let output = self.try_cli(node, args)?;
        ensure!(
            output.status.success(),
            "n{}: portolan {args:?}: {}\n{}{}",
            node + 1,
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Runs `portolan ARGS --format json` against a node's agent.
    pub fn json(&self, node: usize, args: &[&str]) -> Result<Value> {
        let mut args = args.to_vec();
        args.extend(["--format", "json"]);
        let text = self.cli(node, &args)?;
        serde_json::from_str(&text).with_context(|| format!("portolan {args:?} printed {text}"))
    }

    /// Applies a stack file on a node.
    pub fn apply(&self, node: usize, stack: &str) -> Result<String> {
        let path = self.file(node, "stack.yml");
        fs::write(&path, stack)?;
        self.cli(node, &["apply", "-f", &text(&path)])
    }

    /// Makes a namespace, and registers it as a task of a service on a node. Its program is the caller's.
    pub fn task(&mut self, label: &str, node: usize, service: &str) -> Result<Task> {
        let netns = self.lab.task(label)?;
        self.add_task(netns, node, service)
    }

    /// Registers a namespace, in which a program may run already, as a task of a service on a node.
    pub fn add_task(&self, netns: Namespace, node: usize, service: &str) -> Result<Task> {
        let path = text(&netns.path());
        let row = self.json(node, &["task", "add", service, "--netns", &path])?;
        let id = row["id"].as_str().context("no id")?.to_owned();
        let endpoints = row["endpoints"].as_array().context("no endpoints")?;
        let part = |e: &Value, i: usize| e[i].as_str().unwrap_or_default().to_owned();
        let endpoints = endpoints.iter().map(|e| (part(e, 0), part(e, 1))).collect();
        Ok(Task {
            program: None,
            netns,
            node,
            id,
            endpoints,
        })
    }

    /// Makes a namespace with `portolan whoami` in it, on port 80 TCP and UDP, and registers it.
    pub fn whoami(&mut self, label: &str, node: usize, service: &str) -> Result<Task> {
        let netns = self.lab.task(label)?;
        let mut command = netns.command(binary()?);
        command.args(["whoami", "--name", label, "--http", "80", "--udp", "80"]);
        let program = netns.spawn(&mut command)?;
        let program = program.listening(80)?.bound(Protocol::Udp, 80)?;
        let task = self.add_task(netns, node, service)?;
        Ok(Task {
            program: Some(program),
            ..task
        })
    }

    /// Drains a task, waits until it is gone, and removes its namespace with all that runs there.
    pub fn retire(&self, task: Task) -> Result<()> {
        self.cli(task.node, &["task", "drain", &task.id])?;
        self.wait_for(task.node, "the end of a drain", &["tasks"], |rows| {
            let mut rows = rows.as_array().into_iter().flatten();
            rows.all(|row| row["id"] != *task.id)
        })?;
        task.remove()
    }

    /// Waits until every agent is ready and has all the others for members.
    pub fn wait_ready(&self) -> Result<()> {
        for node in 0..self.len() {
            if self.members[node].agent.is_some() {
                self.wait_node_ready(node)?;
            }
        }
        let running = self.members.iter().filter(|m| m.agent.is_some()).count();
        for node in (0..self.len()).filter(|i| self.members[*i].agent.is_some()) {
            self.wait_for(node, "all members", &["nodes"], |rows| {
                let alive = rows.as_array().into_iter().flatten();
                alive
                    .filter(|row| row["membership"] == "alive" && row["state"] != "")
                    .count()
                    == running
            })?;
        }
        Ok(())
    }

    /// Waits until a node's agent is ready.
    pub fn wait_node_ready(&self, node: usize) -> Result<()> {
        let awaited = self.wait_for(node, "readiness", &["status"], |status| {
            status["waiting_for"].as_array().is_some_and(Vec::is_empty)
        });
        let log = || {
            self.members[node]
                .agent
                .as_ref()
                .map(Process::log_tail)
                .unwrap_or_default()
        };
        awaited.with_context(log)?;
        Ok(())
    }

    /// Waits until `portolan ARGS` on a node prints JSON that is right.
    pub fn wait_for(
        &self,
        node: usize,
        what: &str,
        args: &[&str],
        right: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.wait_within(PATIENCE, node, what, args, right)
    }

    /// Waits for so long until `portolan ARGS` on a node prints JSON that is right.
    pub fn wait_within(
        &self,
        within: Duration,
        node: usize,
        what: &str,
        args: &[&str],
        right: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait_until(within, format!("n{}: {what}", node + 1), || {
            last = match self.json(node, args) {
                Ok(value) => value,
                // The agent may be about to start.
                Err(error) => Value::String(format!("{error:#}")),
            };
            Ok(right(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("last seen: {last:#}"))
    }

    /// Waits until a node counts this many healthy tasks of a service, and leads its published ports to them.
    pub fn wait_healthy(&self, node: usize, service: &str, count: usize) -> Result<()> {
        let what = format!("{count} healthy tasks of {service}");
        let rows = self.wait_for(node, &what, &["services"], |rows| {
            let mut rows = rows.as_array().into_iter().flatten();
            rows.any(|row| row["name"] == service && row["healthy"] == count)
        })?;
        // In host mode, and where another process holds the port, a node does not lead to all of them.
        let mut named = rows.as_array().into_iter().flatten();
        let row = named
            .find(|row| row["name"] == service)
            .context("no such service")?;
        let ports = row["ports"].as_array().into_iter().flatten();
        if ports
            .filter_map(Value::as_str)
            .any(|port| port.ends_with("(host)"))
        {
            return Ok(());
        }
        let what = format!("the ports of {service} lead to {count} tasks");
        self.wait_for(node, &what, &["status"], |status| {
            let rows = status["ports"].as_array().into_iter().flatten();
            let mut rows = rows.filter(|row| row["service"] == service && is_published(row));
            rows.all(|row| row["active"] == count || row["problem"].is_string())
        })?;
        Ok(())
    }

    /// Waits until every running node counts this many healthy tasks of a service.
    pub fn wait_healthy_everywhere(&self, service: &str, count: usize) -> Result<()> {
        let running = (0..self.len()).filter(|i| self.members[*i].agent.is_some());
        running
            .into_iter()
            .try_for_each(|node| self.wait_healthy(node, service, count))
    }

    /// As [`Cluster::wait_healthy_everywhere`], and until each node that has the fast path carries by it all
    /// published ports of the service that lead to a task.
    pub fn wait_served(&self, service: &str, count: usize) -> Result<()> {
        self.wait_healthy_everywhere(service, count)?;
        let running = (0..self.len()).filter(|i| self.members[*i].agent.is_some());
        for node in running.filter(|node| self.plane(*node) == Plane::Ebpf) {
            let what = format!("the fast path carries {service}");
            self.wait_for(node, &what, &["status"], |status| {
                let mut rows = status["ports"].as_array().into_iter().flatten();
                rows.all(|row| row["service"] != service || is_carried(row))
            })?;
        }
        Ok(())
    }

    /// The sum of a metric's samples on a node, of those lines that contain all `labels`.
    pub fn metric(&self, node: usize, name: &str, labels: &[&str]) -> Result<f64> {
        let samples = self.samples(node, name)?;
        let all = samples
            .iter()
            .filter(|(line, _)| labels.iter().all(|label| line.contains(label)));
        Ok(all.map(|(_, value)| value).sum())
    }

    /// What the fast path of a node has counted, by reason, without those that it has not met.
    pub fn fast_path_counters(&self, node: usize) -> Result<BTreeMap<String, u64>> {
        let samples = self.samples(node, "portolan_fast_path_packets_total")?;
        let reason = |labels: &str| labels.split('"').nth(1).unwrap_or_default().to_owned();
        let counted = samples
            .iter()
            .map(|(labels, value)| (reason(labels), *value as u64));
        Ok(counted.filter(|(_, count)| *count > 0).collect())
    }

    /// A metric's labels and values.
    fn samples(&self, node: usize, name: &str) -> Result<Vec<(String, f64)>> {
        let target = format!("{}/metrics", self.node(node).at(HTTP_PORT));
        let body = http_get(&self.client, &target)?.body;
        let sample = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let named = labels.is_empty() || labels.starts_with('{');
            Some((labels.to_owned(), value.parse().ok().filter(|_| named)?))
        };
        Ok(body.lines().filter_map(sample).collect())
    }

    /// The hash of all records as a node has it.
    pub fn table_hash(&self, node: usize) -> Result<String> {
        let status = self.json(node, &["status"])?;
        Ok(status["table_hash"]
            .as_str()
            .context("no table hash")?
            .to_owned())
    }
}

/// Whether a row of `status` is of a published port, not of a VIP.
fn is_published(row: &Value) -> bool {
    let at = row["frontend"].as_str().unwrap_or_default();
    at.starts_with("*:") || at.starts_with("10.77.")
}

/// Whether the port of a row of `status` needs the relay no more. A VIP may, and so does a port that another process
/// holds.
fn is_carried(row: &Value) -> bool {
    let relayed = row["active"] == 0 || row["problem"].is_string() || !is_published(row);
    row["plane"] == "ebpf" || relayed
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}
