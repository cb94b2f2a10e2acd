//! What the demo found, as a table and as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{
    cluster::Cluster,
    plan::{HOST_PORT, Plan, WEB_PORT},
    traffic::{Answers, Host, Ingress, Outcome, REQUESTS},
};

/// The result.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    /// Whether there is no problem.
    ok: bool,
    /// What is not as it should be.
    problems: Vec<String>,
    /// Milliseconds from the start until every node answered.
    startup_ms: u64,
    nodes: Vec<NodeSummary>,
    tasks: Vec<TaskSummary>,
    /// Requests to each node by each protocol.
    requests: usize,
    /// The client's address.
    client: IpAddr,
    ingress: Vec<Ingress>,
    host: Vec<Host>,
}

#[derive(Debug, Clone, Serialize)]
struct NodeSummary {
    name: String,
    address: Ipv4Addr,
    socket: PathBuf,
    /// What forwards there: `ebpf` or `relay`.
    plane: String,
    /// Why that.
    plane_reason: String,
}

#[derive(Debug, Clone, Serialize)]
struct TaskSummary {
    name: String,
    service: &'static str,
    node: String,
    addresses: BTreeMap<String, IpAddr>,
}

impl Summary {
    pub(super) fn new(
        cluster: &Cluster,
        plan: &Plan,
        answers: Answers,
        startup: Duration,
    ) -> Result<Self> {
        let nodes = cluster.agents().iter().map(|agent| {
            let plane = cluster.plane(agent)?;
            Ok(NodeSummary {
                name: agent.name().to_owned(),
                address: agent.node().ipv4(),
                socket: agent.socket().to_owned(),
                plane: plane.plane,
                plane_reason: plane.reason,
            })
        });
        let nodes = nodes.collect::<Result<_>>()?;
        let tasks = cluster.tasks().iter().map(|task| TaskSummary {
            name: task.planned.label.clone(),
            service: task.planned.service,
            node: task.planned.node.clone(),
            addresses: task.endpoints.iter().cloned().collect(),
        });
        let mut summary = Self {
            ok: true,
            problems: Vec::new(),
            startup_ms: startup.as_millis() as u64,
            nodes,
            tasks: tasks.collect(),
            requests: REQUESTS,
            client: cluster.client().ipv4().into(),
            ingress: answers.ingress,
            host: answers.host,
        };
        summary.add_problems(
            summary
                .ingress
                .iter()
                .flat_map(|i| uneven(i, plan))
                .collect(),
        );
        summary.add_problems(
            summary
                .host
                .iter()
                .filter_map(|h| misplaced(h, plan))
                .collect(),
        );
        let hidden = summary.ingress.iter().filter_map(|i| {
            let node = summary.nodes.iter().find(|node| node.name == i.node)?;
            hidden_client(i, &node.plane, summary.client)
        });
        summary.add_problems(hidden.collect());
        Ok(summary)
    }

    /// Whether everything is as it should be.
    pub(super) fn is_ok(&self) -> bool {
        self.ok
    }

    pub(super) fn add_problems(&mut self, problems: Vec<String>) {
        self.problems.extend(problems);
        self.ok = self.problems.is_empty();
    }

    /// Whom the tasks saw by way of a node.
    fn seen_by(&self, node: &NodeSummary) -> String {
        let answers = self.ingress.iter().filter(|i| i.node == node.name);
        let seen: BTreeSet<&IpAddr> = answers.flat_map(|ingress| &ingress.clients).collect();
        let shown: Vec<String> = seen.iter().map(ToString::to_string).collect();
        let whom = if seen.iter().eq([&&self.client]) {
            format!("the client itself, {}", self.client)
        } else {
            format!("{} for the client {}", shown.join(", "), self.client)
        };
        match node.plane.as_str() {
            "ebpf" => format!("the tasks saw {whom}, by the fast path"),
            plane => format!(
                "the tasks saw {whom}, by the {plane}: {}",
                node.plane_reason
            ),
        }
    }

    /// How often a task answered at a node, in the cell of a table.
    fn cell(&self, node: &str, task: &TaskSummary) -> String {
        if task.service != "web" {
            let host = self.host.iter().find(|host| host.node == node);
            return match host.map(|host| &host.outcome) {
                Some(Outcome::Answered(by)) if *by == task.name => "answers".to_owned(),
                Some(Outcome::Refused) => "-".to_owned(),
                _ => "?".to_owned(),
            };
        }
        let of_node = self.ingress.iter().filter(|ingress| ingress.node == node);
        let counts = of_node.map(|ingress| {
            let count = ingress.by_task.get(&task.name).copied().unwrap_or_default();
            format!("{count} {}", ingress.protocol)
        });
        counts.collect::<Vec<_>>().join(", ")
    }
}

/// What is wrong with the answers of one node: each task has to have an equal share.
fn uneven(ingress: &Ingress, plan: &Plan) -> Vec<String> {
    let (node, protocol) = (&ingress.node, ingress.protocol);
    let mut problems = Vec::new();
    if let Some(first) = ingress.failed.first() {
        let count = ingress.failed.len();
        problems.push(format!(
            "{node}: {count} of {REQUESTS} requests by {protocol} failed: {first}"
        ));
    }
    let share = REQUESTS / plan.web_tasks().count().max(1);
    let of = |task: &str| ingress.by_task.get(task).copied().unwrap_or_default();
    let counts: Vec<_> = plan
        .web_tasks()
        .map(|task| (&task.label, of(&task.label)))
        .collect();
    if ingress.failed.is_empty() && counts.iter().any(|(_, count)| *count != share) {
        let counts: Vec<_> = counts
            .iter()
            .map(|(task, count)| format!("{task} {count}"))
            .collect();
        problems.push(format!(
            "{node}: the split by {protocol} is not even: {}",
            counts.join(", ")
        ));
    }
    problems
}

/// What is wrong if a task behind the fast path sees someone else than the client.
fn hidden_client(ingress: &Ingress, plane: &str, client: IpAddr) -> Option<String> {
    let others: Vec<String> = ingress
        .clients
        .iter()
        .filter(|seen| **seen != client)
        .map(ToString::to_string)
        .collect();
    (plane == "ebpf" && !others.is_empty()).then(|| {
        format!(
            "{}: by {} on the fast path a task saw {} instead of the client, {client}",
            ingress.node,
            ingress.protocol,
            others.join(", ")
        )
    })
}

/// What is wrong with a node's answer at the port in host mode.
fn misplaced(host: &Host, plan: &Plan) -> Option<String> {
    let node = &host.node;
    match (&host.outcome, plan.host_task(node)) {
        (Outcome::Answered(by), Some(task)) if *by == task.label => None,
        (Outcome::Refused, None) => None,
        (Outcome::Answered(by), _) => Some(format!(
            "{node}: {HOST_PORT} in host mode was answered by {by}, which does not run there"
        )),
        (Outcome::Refused, Some(task)) => Some(format!(
            "{node}: {HOST_PORT} in host mode was refused, where {} runs",
            task.label
        )),
        (Outcome::Failed(error), _) => Some(format!("{node}: {HOST_PORT} in host mode: {error}")),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let port = |service| {
            if service == "web" {
                WEB_PORT
            } else {
                HOST_PORT
            }
        };
        let heading =
            |task: &TaskSummary| format!("{}:{} ON {}", task.name, port(task.service), task.node);
        let headings = ["NODE", "ADDRESS", "PLANE"].map(str::to_owned);
        table.set_header(headings.into_iter().chain(self.tasks.iter().map(heading)));
        for node in &self.nodes {
            let cells = [
                node.name.clone(),
                node.address.to_string(),
                node.plane.clone(),
            ];
            let counts = self.tasks.iter().map(|task| self.cell(&node.name, task));
            table.add_row(cells.into_iter().chain(counts));
        }
        writeln!(
            f,
            "Requests of the client to each node, and the tasks that answered:\n\n{table}\n"
        )?;
        let mut seen = BTreeMap::<String, Vec<&str>>::new();
        for node in &self.nodes {
            seen.entry(self.seen_by(node)).or_default().push(&node.name);
        }
        for (seen, nodes) in seen {
            writeln!(f, "Asked at {}, {seen}.", nodes.join(", "))?;
        }
        if self.ok {
            write!(f, "Every node answered, and the tasks took turns exactly.")?;
        }
        for (number, problem) in self.problems.iter().enumerate() {
            let end = if number > 0 { "\n" } else { "" };
            write!(f, "{end}PROBLEM: {problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::Protocol;

    use super::*;

    fn ingress(counts: [usize; 2], failed: &[&str]) -> Ingress {
        Ingress {
            node: "n1".to_owned(),
            protocol: Protocol::Udp,
            by_task: ["web-1".to_owned(), "web-2".to_owned()]
                .into_iter()
                .zip(counts)
                .collect(),
            clients: [CLIENT].into(),
            failed: failed.iter().map(|&error| error.to_owned()).collect(),
        }
    }

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 101));

    #[test]
    fn only_behind_the_fast_path_a_task_has_to_see_the_client() {
        let mut answers = ingress([6, 6], &[]);
        assert_eq!(hidden_client(&answers, "ebpf", CLIENT), None);
        answers.clients.insert([10, 208, 1, 1].into());
        assert_eq!(hidden_client(&answers, "relay", CLIENT), None);
        let problem = hidden_client(&answers, "ebpf", CLIENT).unwrap();
        assert!(problem.contains("saw 10.208.1.1 instead"), "{problem}");
    }

    #[test]
    fn an_exact_split_is_no_problem_and_any_other_is() {
        let plan = Plan::new(3);
        assert_eq!(uneven(&ingress([6, 6], &[]), &plan), [""; 0]);
        assert_eq!(
            uneven(&ingress([7, 5], &[]), &plan),
            ["n1: the split by udp is not even: web-1 7, web-2 5"]
        );
        assert_eq!(
            uneven(&ingress([6, 5], &["no answer"]), &plan),
            ["n1: 1 of 12 requests by udp failed: no answer"]
        );
    }

    #[test]
    fn host_mode_is_for_the_node_of_the_task_alone() {
        let plan = Plan::new(3);
        let problem = |node: &str, outcome| {
            misplaced(
                &Host {
                    node: node.to_owned(),
                    outcome,
                },
                &plan,
            )
        };
        let answered = || Outcome::Answered("host-web-1".to_owned());
        assert_eq!(problem("n3", answered()), None);
        assert_eq!(problem("n1", Outcome::Refused), None);
        assert!(problem("n1", answered()).is_some());
        assert!(problem("n3", Outcome::Refused).is_some());
        assert!(problem("n1", Outcome::Failed("timed out".to_owned())).is_some());
    }
}
