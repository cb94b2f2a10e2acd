//! What is asked of a published port in these tests, and the loads on it.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_e2e::Cluster;
use portolan_testbed::{Load, LoadOptions, Namespace, Protocol, Report, http_get, wait_until};

/// How long Docker may take to do what it is told.
pub(crate) const DOCKER: Duration = Duration::from_secs(25);

/// That all nodes answer at a port, with so many tasks that take turns.
pub(crate) fn by_all_nodes(cluster: &Cluster, port: u16, tasks: usize) -> Result<()> {
    (0..cluster.len()).try_for_each(|node| by_node(cluster, node, port, Protocol::Tcp, tasks))
}

/// That a node answers at a port, with so many tasks that take turns: within a while, as the first round may have begun
/// with other tasks, and Docker may be replacing one. A load takes its share of the turns, so that they need not be equal here.
pub(crate) fn by_node(
    cluster: &Cluster,
    node: usize,
    port: u16,
    protocol: Protocol,
    tasks: usize,
) -> Result<()> {
    let at = cluster.node(node).at(port);
    let what = format!("{tasks} tasks take turns at {at}/{protocol}");
    wait_until(DOCKER, what, || {
        let seen = cluster.answers(at, protocol, 3 * tasks)?;
        ensure!(seen.len() == tasks, "seen: {seen:?}");
        Ok(Some(()))
    })
}

/// The page at an address, as `curl http://ADDRESS/page` shows it.
pub(crate) fn page(from: &Namespace, address: &str) -> Result<String> {
    let answer = http_get(from, &format!("{address}/page"))?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.first_line().trim_start_matches("page: ").to_owned())
}

/// A load on a port of some nodes at once.
pub(crate) struct Loads(Vec<Load>);

impl Loads {
    /// Starts so many requests per second at each of these nodes, for the page of what runs there.
    pub(crate) fn start(
        cluster: &Cluster,
        nodes: &[usize],
        port: u16,
        per_second: u32,
    ) -> Result<Self> {
        let loads = nodes.iter().map(|node| {
            let at = cluster.node(*node).at(port);
            cluster.load_path(at, "/page", LoadOptions::per_second(per_second))
        });
        Ok(Self(loads.collect::<Result<_>>()?))
    }

    /// Waits until each has had so many answers more.
    pub(crate) fn answered(&self, more: usize) -> Result<()> {
        let before: Vec<usize> = self.0.iter().map(Load::answers).collect();
        wait_until(DOCKER, format!("{more} answers more"), || {
            let mut both = self.0.iter().zip(&before);
            let enough = both.all(|(load, before)| load.answers() >= before + more);
            Ok(enough.then_some(()))
        })
    }

    /// The time since the last of them began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.last().map(Load::elapsed).unwrap_or_default()
    }

    pub(crate) fn stop(self) -> Result<Vec<Report>> {
        self.0.into_iter().map(Load::stop).collect()
    }

    /// Stops, and wants no failure: gives what was met.
    pub(crate) fn none_failed(self) -> Result<Vec<Report>> {
        let reports = self.stop()?;
        reports.into_iter().map(Report::without_failures).collect()
    }

    /// Stops, and wants no failure of what was asked from a time on.
    pub(crate) fn none_failed_from(self, time: Duration) -> Result<Vec<Report>> {
        let reports = self.stop()?;
        for report in &reports {
            ensure!(report.requests > 0, "no request was made");
            let late = report.failures.iter().find(|failure| failure.at > time);
            ensure!(late.is_none(), "failed after {time:?}: {report}");
        }
        Ok(reports)
    }
}
