//! Who answers at a published port, counted.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Result, anyhow, bail, ensure};
use portolan_testbed::{
    Asked, Load, LoadOptions, Namespace, Protocol, Report, http_get, udp_exchange, wait_until,
};

use crate::Cluster;

/// How long one answer may take when nothing is broken.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a node may take to do what its agent has been told.
const TOLD: Duration = Duration::from_secs(1);

/// What `portolan whoami` says before the label of its task.
const LABEL: &str = "hostname: ";
/// And before the address and port of who asks.
const CLIENT: &str = "client: ";

/// How many answers came from which task, by its label.
pub type Answers = BTreeMap<String, usize>;

impl Cluster {
    /// Asks once as the client, on a connection or from a port of its own, and returns the label of the task that
    /// answered.
    ///
    /// # Errors
    /// No answer; or the task was to see the client's own address, and saw another.
    pub fn ask(&self, to: SocketAddr, protocol: Protocol) -> Result<String> {
        self.ask_from(&self.client, to, protocol)
    }

    /// As [`Cluster::ask`], from anywhere.
    pub fn ask_from(&self, from: &Namespace, to: SocketAddr, protocol: Protocol) -> Result<String> {
        let (client, answer) = match protocol {
            Protocol::Tcp => {
                let answer = http_get(from, &to.to_string())?;
                ensure!(answer.status == 200, "{to}: status {}", answer.status);
                (answer.client, answer.body)
            }
            Protocol::Udp => {
                let (client, answer) = udp_exchange(from, to, b"who?", ANSWER)?;
                (client, String::from_utf8(answer)?)
            }
        };
        if self.keeps_clients(to) {
            sees(client, &answer).map_err(|error| anyhow!("{to}/{protocol}: {error}"))?;
        }
        Ok(label(&answer).to_owned())
    }

    /// Asks so many times, one after the other.
    pub fn answers(&self, to: SocketAddr, protocol: Protocol, requests: usize) -> Result<Answers> {
        self.answers_from(&self.client, to, protocol, requests)
    }

    /// As [`Cluster::answers`], from anywhere.
    pub fn answers_from(
        &self,
        from: &Namespace,
        to: SocketAddr,
        protocol: Protocol,
        requests: usize,
    ) -> Result<Answers> {
        let mut answers = Answers::new();
        for _ in 0..requests {
            *answers
                .entry(self.ask_from(from, to, protocol)?)
                .or_default() += 1;
        }
        Ok(answers)
    }

    /// That a task of this label answers, within a second of being told.
    pub fn answered_by(&self, to: SocketAddr, protocol: Protocol, task: &str) -> Result<()> {
        wait_until(TOLD, format!("{task} answers at {to}/{protocol}"), || {
            let label = self.ask(to, protocol)?;
            ensure!(label == task, "{label} answers");
            Ok(Some(()))
        })
    }

    /// Starts a load of the client's. A request fails, too, if the task was to see the client's own address and
    /// saw another.
    pub fn load(&self, to: SocketAddr, options: LoadOptions) -> Result<Load> {
        self.load_path(to, "/", options)
    }

    /// As [`Cluster::load`], asking for another page.
    pub fn load_path(&self, to: SocketAddr, path: &str, options: LoadOptions) -> Result<Load> {
        let options = if self.keeps_clients(to) {
            options.check(|answer| sees(answer.client, &answer.body))
        } else {
            options
        };
        Load::start(&self.client, &format!("{to}{path}"), options)
    }
}

/// That the task saw this client, if it tells at all: nginx does not.
///
/// # Errors
/// It saw another, in words.
pub fn sees(client: SocketAddr, answer: &str) -> Result<(), String> {
    let seen = answer.lines().find_map(|line| line.strip_prefix(CLIENT));
    match seen {
        Some(seen) if seen != client.to_string() => {
            Err(format!("the task saw {seen}, and the client was {client}"))
        }
        _ => Ok(()),
    }
}

/// The label of the task that gave an answer.
fn label(answer: &str) -> &str {
    let first = answer.lines().next().unwrap_or_default();
    first.strip_prefix(LABEL).unwrap_or(first)
}

/// The answers that many clients had.
pub fn by_label(asked: &[Asked]) -> Answers {
    let mut answers = Answers::new();
    for one in asked {
        *answers.entry(label(&one.answer).to_owned()).or_default() += 1;
    }
    answers
}

/// The answers that many clients had, if every task saw its client as it is.
///
/// # Errors
/// How many did not, and the first of them.
pub fn seen_as_they_are(asked: &[Asked]) -> Result<Answers> {
    let wrong = asked.iter().map(|one| sees(one.client, &one.answer));
    let wrong: Vec<String> = wrong.filter_map(Result::err).collect();
    match wrong.first() {
        None => Ok(by_label(asked)),
        Some(first) => bail!("{} of {}: {first}", wrong.len(), asked.len()),
    }
}

/// The answers that are exactly fair: so many by each task.
pub fn each(tasks: &[&str], count: usize) -> Answers {
    tasks
        .iter()
        .map(|task| ((*task).to_owned(), count))
        .collect()
}

/// The answers to a load, by label.
pub fn by_task(report: &Report) -> Answers {
    let label = |body: &String| body.strip_prefix(LABEL).unwrap_or(body).to_owned();
    report
        .by_body
        .iter()
        .map(|(body, count)| (label(body), *count))
        .collect()
}

/// That nothing listens there any more, within a second of being told.
///
/// # Errors
/// Something answers, or the refusal is no refusal.
pub fn refused(from: &Namespace, to: SocketAddr) -> Result<()> {
    wait_until(TOLD, format!("{to} is refused"), || {
        match http_get(from, &to.to_string()) {
            Ok(answer) => bail!("it answers {:?}", answer.body),
            Err(error) if format!("{error:#}").contains("Connection refused") => Ok(Some(())),
            Err(error) => Err(error),
        }
    })
}

/// That requests were made, that none has failed but those that were under way between the two times of
/// the load's clock, and that none of these failed before its connection was made.
///
/// A request that was under way while its task was killed may have been on that task, and then is lost with
/// it; one that ended before or began after was not.
pub fn lost_only_between(report: &Report, from: Duration, to: Duration) -> Result<()> {
    ensure!(report.requests > 0, "no request was made");
    for failure in &report.failures {
        let under_way = failure.at <= to && failure.at + failure.took >= from;
        ensure!(
            under_way,
            "failed though not under way at {from:?} to {to:?}: {report}"
        );
        ensure!(
            !failure.error.contains(": connect"),
            "was not connected: {report}"
        );
    }
    Ok(())
}
