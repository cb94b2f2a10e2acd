//! What the demo found, as a table and as JSON.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

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
    ingress: Vec<Ingress>,
    host: Vec<Host>,
}

#[derive(Debug, Clone, Serialize)]
struct NodeSummary {
    name: String,
    address: Ipv4Addr,
    socket: PathBuf,
}

#[derive(Debug, Clone, Serialize)]
struct TaskSummary {
    name: String,
    service: &'static str,
    node: String,
    addresses: BTreeMap<String, IpAddr>,
}

impl Summary {
    pub(super) fn new(cluster: &Cluster, plan: &Plan, answers: Answers, startup: Duration) -> Self {
        let nodes = cluster.agents().iter().map(|agent| NodeSummary {
            name: agent.name().to_owned(),
            address: agent.node().ipv4(),
            socket: agent.socket().to_owned(),
        });
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
            nodes: nodes.collect(),
            tasks: tasks.collect(),
            requests: REQUESTS,
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
        summary
    }

    /// Whether everything is as it should be.
    pub(super) fn is_ok(&self) -> bool {
        self.ok
    }

    pub(super) fn add_problems(&mut self, problems: Vec<String>) {
        self.problems.extend(problems);
        self.ok = self.problems.is_empty();
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
        let headings = ["NODE".to_owned(), "ADDRESS".to_owned()];
        table.set_header(headings.into_iter().chain(self.tasks.iter().map(heading)));
        for node in &self.nodes {
            let cells = [node.name.clone(), node.address.to_string()];
            let counts = self.tasks.iter().map(|task| self.cell(&node.name, task));
            table.add_row(cells.into_iter().chain(counts));
        }
        writeln!(
            f,
            "Requests of the client to each node, and the tasks that answered:\n\n{table}\n"
        )?;
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
            failed: failed.iter().map(|&error| error.to_owned()).collect(),
        }
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
