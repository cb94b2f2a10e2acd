//! Services change under load, and no request fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_e2e::{
    Cluster, Options, PATIENCE, Plane, Task,
    answers::{by_task, each, refused},
    on_both_planes,
};
use portolan_testbed::{Load, LoadOptions, Protocol, Report, nginx, wait_until};

const STACK: &str = "
services:
  web:
    ports: ['8080:80']
    x-portolan: {drain: 500ms}
";
/// Requests per second through each node.
const RATE: u32 = 100;

/// A load on a port through every node of the cluster.
struct Loads(Vec<Load>);

impl Loads {
    fn start(cluster: &Cluster, port: u16) -> Result<Self> {
        let options = LoadOptions::per_second(RATE);
        let targets = (0..cluster.len()).map(|i| cluster.node(i).at(port));
        let start = |target| cluster.load(target, options.clone());
        let loads = Self(targets.map(start).collect::<Result<_>>()?);
        loads.answer_more()?;
        Ok(loads)
    }

    /// Waits until each has had twenty answers more: the change before has met requests.
    fn answer_more(&self) -> Result<()> {
        for load in &self.0 {
            let enough = load.answers() + 20;
            wait_until(Duration::from_secs(5), "twenty answers more", || {
                Ok((load.answers() >= enough).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Stops them; no request may have failed.
    fn stop(self) -> Result<Vec<Report>> {
        let reports = self
            .0
            .into_iter()
            .map(|load| load.stop()?.without_failures());
        reports.collect()
    }
}

/// That exactly these take turns on every node, at the latest when none of them is passed over any more for having
/// answered late under load.
fn take_turns(cluster: &Cluster, tasks: &[&str]) -> Result<()> {
    for node in (0..cluster.len()).map(|i| cluster.node(i)) {
        let what = format!("{tasks:?} take turns on {}", node.label());
        wait_until(PATIENCE, what, || {
            let seen = cluster.answers(node.at(8080), Protocol::Tcp, 4 * tasks.len())?;
            ensure!(seen == each(tasks, 4), "{seen:?}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

on_both_planes! {
    two_tasks_become_six_and_one_under_load,
    all_tasks_are_replaced_one_by_one_under_load,
    a_node_is_drained_and_activated_under_load,
    ports_come_and_go_by_applying_again_under_load,
}

fn two_tasks_become_six_and_one_under_load(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("scale", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let mut tasks = vec![
        cluster.whoami("a1", 0, "web")?,
        cluster.whoami("a2", 1, "web")?,
    ];
    cluster.wait_served("web", 2)?;
    let loads = Loads::start(&cluster, 8080)?;
    for number in 3..=6 {
        let task = cluster.whoami(&format!("a{number}"), number % 3, "web")?;
        tasks.push(task);
        loads.answer_more()?;
    }
    cluster.wait_served("web", 6)?;
    loads.answer_more()?;
    let last = tasks.pop();
    for task in tasks {
        cluster.retire(task)?;
        loads.answer_more()?;
    }
    let reports = loads.stop()?;
    let all = ["a1", "a2", "a3", "a4", "a5", "a6"];
    for report in &reports {
        let seen = by_task(report);
        ensure!(seen.keys().eq(all), "not every task has answered: {report}");
    }
    cluster.wait_served("web", 1)?;
    take_turns(&cluster, &["a6"])?;
    drop(last);
    Ok(())
}

fn all_tasks_are_replaced_one_by_one_under_load(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("rolling", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let old: Vec<Task> = (0..3)
        .map(|i| cluster.whoami(&format!("old{i}"), i, "web"))
        .collect::<Result<_>>()?;
    cluster.wait_served("web", 3)?;
    let loads = Loads::start(&cluster, 8080)?;
    let mut new = Vec::new();
    for task in old {
        new.push(cluster.whoami(&format!("new{}", task.node), task.node, "web")?);
        cluster.retire(task)?;
        loads.answer_more()?;
    }
    loads.stop()?;
    cluster.wait_served("web", 3)?;
    take_turns(&cluster, &["new0", "new1", "new2"])
}

fn a_node_is_drained_and_activated_under_load(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("nodedrain", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let _tasks = [
        cluster.whoami("a1", 0, "web")?,
        cluster.whoami("a2", 1, "web")?,
        cluster.whoami("a3", 2, "web")?,
    ];
    cluster.wait_served("web", 3)?;
    let loads = Loads::start(&cluster, 8080)?;
    cluster.cli(1, &["node", "drain"])?;
    cluster.wait_served("web", 2)?;
    // Its task gets nothing, and its published port goes on; the load takes turns of its own.
    for node in 0..3 {
        let seen = cluster.answers(cluster.node(node).at(8080), Protocol::Tcp, 8)?;
        ensure!(!seen.contains_key("a2"), "n{}: {seen:?}", node + 1);
    }
    // The drain is over: what it withheld comes back whole.
    cluster.wait_for(0, "the end of the drain", &["tasks"], |rows| {
        rows.as_array()
            .is_some_and(|rows| rows.iter().all(|row| row["node"] != "n2"))
    })?;
    loads.answer_more()?;
    cluster.cli(1, &["node", "activate"])?;
    cluster.wait_served("web", 3)?;
    loads.answer_more()?;
    loads.stop()?;
    take_turns(&cluster, &["a1", "a2", "a3"])
}

fn ports_come_and_go_by_applying_again_under_load(plane: Plane) -> Result<()> {
    let stack = |ports: &str| format!("services:\n  web:\n    ports: [{ports}]\n");
    let mut cluster = Cluster::start("ports", Options::nodes(2).plane(plane))?;
    cluster.apply(0, &stack("'8080:80'"))?;
    let task = cluster.whoami("a1", 1, "web")?;
    let _second = nginx(&task.netns, 81, "port 81")?;
    cluster.wait_served("web", 1)?;
    let loads = Loads::start(&cluster, 8080)?;
    let has_ports = |count: usize| {
        (0..2).try_for_each(|node| {
            let right = |status: &serde_json::Value| {
                let ports = status["ports"].as_array().into_iter().flatten();
                ports
                    .filter(|p| p["frontend"].as_str().is_some_and(|f| f.starts_with("*:")))
                    .count()
                    == count
            };
            cluster
                .wait_for(node, &format!("{count} ports"), &["status"], right)
                .map(drop)
        })
    };
    // From the other node than before: whoever applies last is right.
    cluster.apply(1, &stack("'8080:80', '8081:81', '8082:80/udp'"))?;
    has_ports(3)?;
    for node in (0..2).map(|i| cluster.node(i)) {
        cluster.answered_by(node.at(8081), Protocol::Tcp, "port 81")?;
        cluster.answered_by(node.at(8082), Protocol::Udp, "a1")?;
    }
    loads.answer_more()?;
    cluster.apply(0, &stack("'8080:80', '8082:81'"))?;
    has_ports(2)?;
    for node in (0..2).map(|i| cluster.node(i)) {
        refused(&cluster.client, node.at(8081))?;
        cluster.answered_by(node.at(8082), Protocol::Tcp, "port 81")?;
    }
    loads.answer_more()?;
    loads.stop()?;
    Ok(())
}
