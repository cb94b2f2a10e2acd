//! The client's requests, and who answered them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use portolan_model::Protocol;
use portolan_testbed::{http_get, udp_ask};
use serde::Serialize;

use super::{
    cluster::{Agent, Cluster},
    plan::{HOST_PORT, Plan, WEB_PORT},
    progress::Notes,
    stop::Stop,
};

/// How often each node is asked by each protocol: a multiple of the number of tasks, so that they can
/// have taken turns exactly.
pub(super) const REQUESTS: usize = 12;
/// How long an answer by UDP may take.
const UDP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the client saw.
#[derive(Debug)]
pub(super) struct Answers {
    pub ingress: Vec<Ingress>,
    pub host: Vec<Host>,
}

/// The answers of one node at the port in ingress mode, by one protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Ingress {
    pub node: String,
    pub protocol: Protocol,
    /// How many requests were answered by which task.
    pub by_task: BTreeMap<String, usize>,
    /// Which clients the tasks saw.
    pub clients: BTreeSet<IpAddr>,
    /// Why the others were not answered.
    pub failed: Vec<String>,
}

/// One answer.
struct Answer {
    task: String,
    client: IpAddr,
}

/// The answer of one node at the port in host mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Host {
    pub node: String,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How one request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "by")]
pub(super) enum Outcome {
    /// By this task.
    Answered(String),
    /// Nothing listens.
    Refused,
    /// Otherwise.
    Failed(String),
}

/// Waits until all tasks take turns on every node, and those in host mode answer.
pub(super) fn wait_answered(
    cluster: &Cluster,
    plan: &Plan,
    stop: &Stop,
    notes: &mut Notes,
) -> Result<()> {
    let tasks = plan.web_tasks().count();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let what = format!("answers at {WEB_PORT}/{protocol} by all {tasks} tasks");
        cluster.wait_each(stop, notes, &what, |agent| {
            let ask = |_| Ok(ask(cluster, plan, agent, protocol)?.task);
            let seen = (0..tasks).map(ask).collect::<Result<BTreeSet<_>>>()?;
            if seen.len() < tasks {
                bail!("so far by {}", Vec::from_iter(seen).join(", "));
            }
            Ok(())
        })?;
    }
    let what = format!("answers at {HOST_PORT}/tcp if it runs the task");
    cluster.wait_each(stop, notes, &what, |agent| {
        match (plan.host_task(agent.name()), ask_host(cluster, plan, agent)) {
            (None, _) | (Some(_), Outcome::Answered(_)) => Ok(()),
            (Some(_), Outcome::Refused) => bail!("refused"),
            (Some(_), Outcome::Failed(error)) => bail!("{error}"),
        }
    })
}

/// Asks every node [`REQUESTS`] times by each protocol, and once for the port in host mode.
pub(super) fn ask_all(
    cluster: &Cluster,
    plan: &Plan,
    stop: &Stop,
    notes: &mut Notes,
) -> Result<Answers> {
    let mut answers = Answers {
        ingress: Vec::new(),
        host: Vec::new(),
    };
    for agent in cluster.agents() {
        if stop.is_requested() {
            bail!("stopped by a signal");
        }
        notes.show(agent.name());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            answers
                .ingress
                .push(ask_often(cluster, plan, agent, protocol));
        }
        let outcome = ask_host(cluster, plan, agent);
        answers.host.push(Host {
            node: agent.name().to_owned(),
            outcome,
        });
    }
    Ok(answers)
}

fn ask_often(cluster: &Cluster, plan: &Plan, agent: &Agent, protocol: Protocol) -> Ingress {
    let (mut by_task, mut clients, mut failed) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for _ in 0..REQUESTS {
        match ask(cluster, plan, agent, protocol) {
            Ok(answer) => {
                *by_task.entry(answer.task).or_default() += 1;
                clients.insert(answer.client);
            }
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    Ingress {
        node: agent.name().to_owned(),
        protocol,
        by_task,
        clients,
        failed,
    }
}

/// One request on a connection, or from a port, of its own.
fn ask(cluster: &Cluster, plan: &Plan, agent: &Agent, protocol: Protocol) -> Result<Answer> {
    let (client, at) = (cluster.client(), agent.at(WEB_PORT));
    let answer = match protocol {
        Protocol::Tcp => {
            let answer = http_get(client, &at.to_string())?;
            if answer.status != 200 {
                bail!("status {}", answer.status);
            }
            answer.body
        }
        Protocol::Udp => {
            let answer = udp_ask(client, at, b"who is there?\n", UDP_TIMEOUT)?;
            String::from_utf8_lossy(&answer).into_owned()
        }
    };
    Ok(Answer {
        task: task_in(&answer, plan)
            .with_context(|| format!("answered, but by no task: {answer:?}"))?,
        client: client_in(&answer)
            .with_context(|| format!("answered, but without a client: {answer:?}"))?,
    })
}

fn ask_host(cluster: &Cluster, plan: &Plan, agent: &Agent) -> Outcome {
    match http_get(cluster.client(), &agent.at(HOST_PORT).to_string()) {
        Ok(answer) => match task_in(&answer.body, plan) {
            Some(task) => Outcome::Answered(task),
            None => Outcome::Failed(format!("status {}, by no task", answer.status)),
        },
        Err(error) if is_refused(&error) => Outcome::Refused,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// The task whose host name is a word of the answer.
fn task_in(answer: &str, plan: &Plan) -> Option<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let words: BTreeSet<&str> = answer.split(|c| !is_part(c)).collect();
    let task = plan
        .tasks
        .iter()
        .find(|task| words.contains(task.label.as_str()));
    task.map(|task| task.label.clone())
}

/// The client that the task saw.
fn client_in(answer: &str) -> Option<IpAddr> {
    let mut lines = answer.lines();
    let client = lines.find_map(|line| line.strip_prefix("client: "))?;
    client.parse::<SocketAddr>().ok().map(|at| at.ip())
}

fn is_refused(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_known_by_its_host_name_as_a_word() {
        let plan = Plan::new(3);
        let task = |answer| task_in(answer, &plan);
        assert_eq!(task("hostname: web-1\n"), Some("web-1".to_owned()));
        assert_eq!(task("host-web-1 10.208.3.2"), Some("host-web-1".to_owned()));
        assert_eq!(task("web-11"), None);
        assert_eq!(task(""), None);
    }

    #[test]
    fn the_client_is_read_from_the_line_of_whoami() {
        let answer = "hostname: web-1\naddress: 10.208.2.5:80\nclient: 10.77.0.101:40000\n";
        assert_eq!(client_in(answer), Some([10, 77, 0, 101].into()));
        assert_eq!(client_in("hostname: web-1\n"), None);
    }
}
