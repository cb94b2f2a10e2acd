//! Who answers at a published port, counted.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Result, bail, ensure};
use portolan_testbed::{Namespace, Protocol, Report, http_get, udp_ask, wait_until};

/// How long one answer may take when nothing is broken.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a node may take to do what its agent has been told.
const TOLD: Duration = Duration::from_secs(1);

/// What `portolan whoami` says before the label of its task.
const LABEL: &str = "hostname: ";

/// How many answers came from which task, by its label.
pub type Answers = BTreeMap<String, usize>;

/// Asks once, on a connection or from a port of its own, and returns the label of the task that answered.
pub fn ask(from: &Namespace, to: SocketAddr, protocol: Protocol) -> Result<String> {
    let answer = match protocol {
        Protocol::Tcp => {
            let answer = http_get(from, &to.to_string())?;
            ensure!(answer.status == 200, "{to}: status {}", answer.status);
            answer.body
        }
        Protocol::Udp => String::from_utf8(udp_ask(from, to, b"who?", ANSWER)?)?,
    };
    let first = answer.lines().next().unwrap_or_default();
    Ok(first.strip_prefix(LABEL).unwrap_or(first).to_owned())
}

/// Asks so many times, one after the other.
pub fn answers(
    from: &Namespace,
    to: SocketAddr,
    protocol: Protocol,
    requests: usize,
) -> Result<Answers> {
    let mut answers = Answers::new();
    for _ in 0..requests {
        *answers.entry(ask(from, to, protocol)?).or_default() += 1;
    }
    Ok(answers)
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

/// That a task of this label answers, within a second of being told.
pub fn answered_by(from: &Namespace, to: SocketAddr, protocol: Protocol, task: &str) -> Result<()> {
    wait_until(TOLD, format!("{task} answers at {to}/{protocol}"), || {
        let label = ask(from, to, protocol)?;
        ensure!(label == task, "{label} answers");
        Ok(Some(()))
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
