//! `portolan demo`: a whole cluster on this one machine, in network namespaces of its own.
//!
//! Agents, tasks and requests are real: each node runs this very program as its agent, the tasks are
//! `portolan whoami`, and everything is told to the agents by this program's own commands. It is therefore
//! a check of the installation too: with `--once` it ends with an exit status that says whether every
//! node answered, and whether the tasks took turns exactly.

mod cluster;
mod guide;
mod leftovers;
mod plan;
mod progress;
mod stop;
mod summary;
mod traffic;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use cluster::Cluster;
use guide::Guide;
use plan::Plan;
use progress::Progress;
use stop::Stop;
use summary::Summary;

/// How often a demo that is up looks whether its agents still run.
const LOOK: Duration = Duration::from_secs(1);

/// What `portolan demo` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    pub nodes: u8,
    /// Check that every node answers, tear everything down, and exit with 0 or 1.
    #[arg(long)]
    pub once: bool,
    /// How the result is shown on standard output; progress is on standard error.
    #[arg(long, value_enum, default_value_t = DemoFormat::Table)]
    pub format: DemoFormat,
}

/// How the demo's result is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Runs the demo: until a signal, or with `once` until it is checked. Blocks.
///
/// # Errors
/// It could not be started, or its result could not be shown. What it found to be wrong is in the exit
/// code and in the result.
pub fn run(args: &DemoArgs) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo makes network namespaces, for which it needs root: sudo portolan demo");
    }
    let stop = Stop::on_signals()?;
    let mut progress = Progress::start();
    let plan = Plan::new(args.nodes);

    let mut cluster = progress.step(
        &format!(
            "Joining {} and a client, in namespaces",
            count(args.nodes, "node")
        ),
        |_| Cluster::new(&plan),
    )?;
    let started = start(&mut cluster, &plan, &stop, &mut progress);
    // The logs go with the namespaces: so they are read before.
    let failure = match &started {
        Err(error) if !stop.is_requested() => explain(error, &cluster),
        _ => Vec::new(),
    };
    let unfinished = started.is_err();
    let summary = match started {
        Ok(summary) if args.once => Some(summary),
        Ok(summary) => {
            stay_up(args, &summary, &cluster, &plan, &stop, &mut progress)?;
            None
        }
        Err(_) => None,
    };

    let pids = cluster.pids();
    progress.step("Stopping the agents, and removing everything", |_| {
        cluster.stop();
        Ok(())
    })?;
    let left = leftovers::find(&pids)?;
    let Some(mut summary) = summary else {
        let success = left.is_empty() && !unfinished;
        tell(failure.into_iter().chain(left));
        return Ok(exit_code(success));
    };
    summary.add_problems(left);
    show(args, &summary)?;
    Ok(exit_code(summary.is_ok()))
}

fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// From bare namespaces to a published port that was asked on every node.
fn start(
    cluster: &mut Cluster,
    plan: &Plan,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<Summary> {
    progress.step("Starting an agent on each node", |notes| {
        cluster.start_agents()?;
        cluster.wait_ready(stop, notes)
    })?;
    progress.step("Gossip: every node finds every other", |notes| {
        cluster.wait_members(stop, notes)
    })?;
    progress.step("Applying a stack file on n1", |_| cluster.apply())?;
    progress.step(
        "Starting tasks, and attaching them to the overlay",
        |notes| cluster.start_tasks(plan, stop, notes),
    )?;
    progress.step(
        "Waiting until the published ports answer on every node",
        |notes| traffic::wait_answered(cluster, plan, stop, notes),
    )?;
    progress.step(
        "Waiting until each node's plane has the published ports",
        |notes| cluster.wait_planes(stop, notes),
    )?;
    let startup = progress.elapsed();
    let requests = format!(
        "Asking each node {} times by tcp and by udp",
        traffic::REQUESTS
    );
    progress.step(&requests, |notes| {
        let answers = traffic::ask_all(cluster, plan, stop, notes)?;
        Summary::new(cluster, plan, answers, startup)
    })
}

/// Shows the result and what to try, and waits for the signal to end.
fn stay_up(
    args: &DemoArgs,
    summary: &Summary,
    cluster: &Cluster,
    plan: &Plan,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<()> {
    let guide = Guide::open(cluster, plan)?;
    show(args, summary)?;
    if args.format == DemoFormat::Table {
        write!(io::stdout().lock(), "\n{guide}\n").context("standard output")?;
    }
    progress.say("Up. Ctrl-C ends it and removes everything.");
    let mut ended = Vec::new();
    while !stop.wait(LOOK) {
        for agent in cluster.agents() {
            if !agent.is_running() && !ended.contains(&agent.name()) {
                ended.push(agent.name());
                progress.say(&format!(
                    "The agent of {} has ended; {}",
                    agent.name(),
                    agent.log_tail()
                ));
            }
        }
    }
    Ok(())
}

fn show(args: &DemoArgs, summary: &Summary) -> Result<()> {
    let text = match args.format {
        DemoFormat::Table => summary.to_string(),
        DemoFormat::Json => serde_json::to_string_pretty(summary)?,
    };
    writeln!(io::stdout().lock(), "{text}").context("standard output")
}

/// What the agents had to say, and which step failed and what it waited for.
fn explain(error: &anyhow::Error, cluster: &Cluster) -> Vec<String> {
    let logs = cluster.agents().iter().map(|agent| agent.log_tail() + "\n");
    logs.chain([format!("error: the demo failed: {error:#}")])
        .collect()
}

fn tell(lines: impl Iterator<Item = String>) {
    for line in lines {
        // There is nobody left to be told that standard error is gone.
        writeln!(io::stderr().lock(), "{line}").ok();
    }
}

fn count(number: u8, what: &str) -> String {
    if number == 1 {
        format!("1 {what}")
    } else {
        format!("{number} {what}s")
    }
}
