//! The namespaces, and the processes in them.

use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use portolan_testbed::{Lab, Namespace, Node, Process, Protocol, Signal, http_get, output_within};
use serde::de::DeserializeOwned;

use super::{
    plan::{Plan, PlannedTask, STACK, STATUS_PORT, TARGET_PORT, WEB_PORT},
    progress::Notes,
    stop::Stop,
};
use crate::api::{Applied, NetworkRow, NodeRow, PlaneRow, ServiceRow, Status, TaskRow};

/// The prefix of the namespaces: `pt-demo-n1`.
pub(super) const PREFIX: &str = "demo";
/// How long each thing is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long the agents have for leaving; then they are killed.
const LEAVING: Duration = Duration::from_secs(8);

/// What the demo runs. Fields are dropped in order: processes before their namespaces, all before the lab.
#[derive(Debug)]
pub(super) struct Cluster {
    tasks: Vec<Task>,
    agents: Vec<Agent>,
    client: Node,
    program: PathBuf,
    lab: Lab,
}

/// A node and its agent.
#[derive(Debug)]
pub(super) struct Agent {
    process: Option<Process>,
    socket: PathBuf,
    node: Node,
}

/// A task that runs.
#[derive(Debug)]
pub(super) struct Task {
    process: Process,
    pub planned: PlannedTask,
    /// Network and address of each endpoint.
    pub endpoints: Vec<(String, IpAddr)>,
    namespace: Namespace,
}

impl Cluster {
    /// The namespaces alone, after what an earlier demo left was removed.
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let program = env::current_exe().context("cannot find this program's own file")?;
        let lab = Lab::new(PREFIX)?;
        let join = |name: &String| -> Result<Agent> {
            let node = lab.node(name)?;
            Ok(Agent {
                process: None,
                socket: node.dir().join("admin.sock"),
                node,
            })
        };
        let agents = plan.nodes.iter().map(join).collect::<Result<_>>()?;
        Ok(Self {
            tasks: Vec::new(),
            agents,
            client: lab.client("c1")?,
            program,
            lab,
        })
    }

    pub(super) fn agents(&self) -> &[Agent] {
        &self.agents
    }

    pub(super) fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    pub(super) fn client(&self) -> &Node {
        &self.client
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// This program, for commands to try.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// The stack file that was applied.
    pub(super) fn stack_file(&self) -> PathBuf {
        self.lab.switch().dir().join("demo.yml")
    }

    /// The ids of all processes that were started.
    pub(super) fn pids(&self) -> Vec<u32> {
        let agents = self
            .agents
            .iter()
            .filter_map(|agent| agent.process.as_ref());
        agents
            .chain(self.tasks.iter().map(|task| &task.process))
            .map(Process::pid)
            .collect()
    }

    /// Starts the agents, with one key; every one joins by the others.
    pub(super) fn start_agents(&mut self) -> Result<()> {
        let key_file = self.lab.switch().dir().join("key");
        let mut keygen = Command::new(&self.program);
        output_within(clean(keygen.arg("keygen").arg(&key_file)), PATIENCE)?.success()?;
        let addresses: Vec<String> = self
            .agents
            .iter()
            .map(|a| a.node.ipv4().to_string())
            .collect();
        for agent in &mut self.agents {
            let own = agent.node.ipv4().to_string();
            let others: Vec<&str> = addresses
                .iter()
                .filter(|a| **a != own)
                .map(String::as_str)
                .collect();
            let dir = agent.node.dir();
            let mut command = agent.node.command(&self.program);
            clean(&mut command)
                .args(["agent", "--name", agent.node.label(), "--advertise", &own])
                .args(["--http", &format!("0.0.0.0:{STATUS_PORT}")])
                .arg("--key-file")
                .arg(&key_file)
                .arg("--state-dir")
                .arg(dir.join("state"))
                .arg("--socket")
                .arg(&agent.socket)
                .args(["--plane", "auto", "--no-docker"])
                .arg("--bpf-dir")
                .arg(dir.join("bpf"));
            if !others.is_empty() {
                command.args(["--join", &others.join(",")]);
            }
            agent.process = Some(agent.node.spawn(&mut command)?);
        }
        Ok(())
    }

    /// Waits until every agent says that it is ready.
    pub(super) fn wait_ready(&self, stop: &Stop, notes: &mut Notes) -> Result<()> {
        self.wait_each(stop, notes, "is ready", |agent| {
            let answer = http_get(&agent.node, &format!("127.0.0.1:{STATUS_PORT}/readyz"))?;
            if answer.status != 200 {
                bail!("{}", answer.body.trim());
            }
            Ok(())
        })
    }

    /// Waits until every agent counts every other among the living.
    pub(super) fn wait_members(&self, stop: &Stop, notes: &mut Notes) -> Result<()> {
        self.wait_each(stop, notes, "knows all members", |agent| {
            let nodes: Vec<NodeRow> = self.call(agent, &["nodes"])?;
            let alive = nodes
                .iter()
                .filter(|node| node.membership == "alive")
                .count();
            if alive < self.agents.len() {
                bail!("{alive} of {}", self.agents.len());
            }
            Ok(())
        })
    }

    /// Applies the stack file on the first node.
    pub(super) fn apply(&self) -> Result<()> {
        let file = self.stack_file();
        fs::write(&file, STACK).with_context(|| file.display().to_string())?;
        let file = file.to_string_lossy();
        let first = self.agents.first().context("no node")?;
        let applied: Applied = self.call(first, &["apply", "-f", &file])?;
        if !applied.problems.is_empty() {
            bail!("{}", applied.problems.join("; "));
        }
        Ok(())
    }

    /// Starts the tasks in namespaces of their own, and gives them to the agents of their nodes.
    pub(super) fn start_tasks(
        &mut self,
        plan: &Plan,
        stop: &Stop,
        notes: &mut Notes,
    ) -> Result<()> {
        self.wait_each(stop, notes, "knows the services", |agent| {
            let services: Vec<ServiceRow> = self.call(agent, &["services"])?;
            let known = |task: &PlannedTask| services.iter().any(|s| s.name == task.service);
            match plan.tasks.iter().find(|task| !known(task)) {
                Some(task) => bail!("{} not yet", task.service),
                None => Ok(()),
            }
        })?;
        for planned in &plan.tasks {
            notes.show(&planned.label);
            let task = self.start_task(planned)?;
            self.tasks.push(task);
        }
        Ok(())
    }

    fn start_task(&self, planned: &PlannedTask) -> Result<Task> {
        let namespace = self.lab.task(&planned.label)?;
        let port = TARGET_PORT.to_string();
        let mut command = namespace.command(&self.program);
        clean(&mut command).args(["whoami", "--http", &port, "--udp", &port]);
        let process = namespace.spawn(&mut command)?;
        let process = process
            .listening(TARGET_PORT)?
            .bound(Protocol::Udp, TARGET_PORT)?;
        let on = |agent: &&Agent| agent.name() == planned.node;
        let agent = self.agents.iter().find(on).context("no such node")?;
        let (path, slot) = (namespace.path(), planned.slot.to_string());
        let path = path.to_string_lossy();
        let add = [
            "task",
            "add",
            planned.service,
            "--netns",
            &path,
            "--slot",
            &slot,
        ];
        let row: TaskRow = self.call(agent, &add)?;
        let networks: Vec<NetworkRow> = self.call(agent, &["networks"])?;
        if let Some(gateway) = gateway(&networks, agent.name()) {
            namespace.set_resolver(gateway, &[], &[])?;
        }
        Ok(Task {
            process,
            planned: planned.clone(),
            endpoints: row.endpoints,
            namespace,
        })
    }

    /// Waits until `check` succeeds for every node in turn; what it last said is shown.
    pub(super) fn wait_each(
        &self,
        stop: &Stop,
        notes: &mut Notes,
        what: &str,
        check: impl Fn(&Agent) -> Result<()>,
    ) -> Result<()> {
        for agent in &self.agents {
            let what = format!("{} {what}", agent.name());
            stop.wait_until(PATIENCE, &what, || {
                if !agent.is_running() {
                    return Ok(Some(Err(anyhow!(
                        "the agent of {} has ended",
                        agent.name()
                    ))));
                }
                if let Err(error) = check(agent) {
                    notes.show(&format!("until {what}: {error:#}"));
                    return Err(error);
                }
                Ok(Some(Ok(())))
            })??;
        }
        Ok(())
    }

    /// Waits until every node whose fast path works has the published ports on it.
    pub(super) fn wait_planes(&self, stop: &Stop, notes: &mut Notes) -> Result<()> {
        self.wait_each(stop, notes, "has its ports on its plane", |agent| {
            let status: Status = self.call(agent, &["status"])?;
            let plane = plane_of(&status);
            let elsewhere = status.ports.iter().find(|port| {
                port.frontend.starts_with(&format!("*:{WEB_PORT}/")) && port.plane != plane.plane
            });
            match elsewhere {
                Some(port) => bail!(
                    "{}: {}",
                    port.frontend,
                    port.plane_reason.as_deref().unwrap_or("not yet")
                ),
                None => Ok(()),
            }
        })
    }

    /// What forwards on a node, and why.
    pub(super) fn plane(&self, agent: &Agent) -> Result<PlaneRow> {
        Ok(plane_of(&self.call(agent, &["status"])?))
    }

    /// Runs a command of this program against an agent, and reads what it prints.
    fn call<T: DeserializeOwned>(&self, agent: &Agent, args: &[&str]) -> Result<T> {
        let mut command = Command::new(&self.program);
        clean(&mut command)
            .arg("--socket")
            .arg(&agent.socket)
            .args(args)
            .args(["--format", "json"]);
        let output = output_within(&mut command, PATIENCE)?.success()?;
        serde_json::from_str(&output.stdout).with_context(|| {
            format!(
                "`{}` printed no such JSON: {}",
                output.command, output.stdout
            )
        })
    }

    /// Lets the agents leave, all at once, and removes everything.
    pub(super) fn stop(mut self) {
        let deadline = Instant::now() + LEAVING;
        for agent in &self.agents {
            // What cannot be asked to leave, or does not, is killed with its namespace.
            agent
                .process
                .as_ref()
                .and_then(|process| process.signal(Signal::TERM).ok());
        }
        for agent in &mut self.agents {
            let left = deadline.saturating_duration_since(Instant::now());
            agent
                .process
                .as_mut()
                .and_then(|process| process.wait(left).ok());
        }
    }
}

impl Agent {
    /// The node's name.
    pub(super) fn name(&self) -> &str {
        self.node.label()
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Its admin socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its address on the underlay, with a port.
    pub(super) fn at(&self, port: u16) -> SocketAddr {
        self.node.at(port)
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_running)
    }

    /// The last lines of its log, for messages.
    pub(super) fn log_tail(&self) -> String {
        match &self.process {
            Some(process) => process.log_tail(),
            None => format!("{} has no agent yet", self.name()),
        }
    }
}

impl Task {
    /// The name of its namespace.
    pub(super) fn namespace(&self) -> &str {
        self.namespace.name()
    }
}

/// The faster one of a node's planes that serve, with the reason of the fast path if that is not it.
fn plane_of(status: &Status) -> PlaneRow {
    let of = |plane: &str| status.planes.iter().find(|row| row.plane == plane);
    let (relay, ebpf) = (of("relay"), of("ebpf"));
    let reason = ebpf.map(|row| row.reason.clone()).unwrap_or_default();
    match ebpf.filter(|row| row.serving).or(relay) {
        Some(row) => PlaneRow {
            reason,
            ..row.clone()
        },
        None => PlaneRow {
            plane: String::new(),
            serving: false,
            reason,
            frontends: 0,
        },
    }
}

/// Where a node answers names, for tasks on the network that services share: it is the first address of
/// its slice.
fn gateway(networks: &[NetworkRow], node: &str) -> Option<IpAddr> {
    let network = networks.iter().find(|network| network.name == "default")?;
    let (_, slices) = network.slices.iter().find(|(name, _)| name == node)?;
    slices.first()?.split('/').next()?.parse().ok()
}

/// Keeps the user's own `PORTOLAN_*` settings from what the demo starts.
fn clean(command: &mut Command) -> &mut Command {
    for (key, _) in env::vars_os() {
        if key.to_string_lossy().starts_with("PORTOLAN_") {
            command.env_remove(key);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_the_first_address_of_the_node_s_slice() {
        let network = |name: &str, slice: &str| NetworkRow {
            name: name.to_owned(),
            vni: 4097,
            subnet: "10.235.16.0/20".to_owned(),
            internal: false,
            slices: vec![("n2".to_owned(), vec![slice.to_owned()])],
            endpoints: 0,
            problems: Vec::new(),
        };
        let networks = [
            network("ingress", "10.208.1.0/24"),
            network("default", "10.235.16.64/26"),
        ];
        assert_eq!(gateway(&networks, "n2"), Some([10, 235, 16, 64].into()));
        assert_eq!(gateway(&networks, "n1"), None);
    }
}
