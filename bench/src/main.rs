//! Side-by-side benchmarks: Portolan, its peers, and direct routing, which is the limit.
//!
//! Every contender carries the same traffic over the same overlay, which real agents have set up:
//! client -> entry node -> VXLAN -> task on another node, all of them network namespaces of this machine
//! ([`layout`]). Runs are interleaved (A B C, A B C, ...), so that what else happens on the machine meets
//! all contenders alike; figures are compared within a round, and medians are told with their ranges.
//!
//! It says nothing of real network cards, and nothing of latency under real distances.

#![expect(
    clippy::print_stderr,
    reason = "a benchmark takes minutes and tells where it is"
)]

mod contender;
mod cpu;
mod datagrams;
mod layout;
mod load;
mod machine;
mod measure;
mod peers;
mod plot;
mod report;
mod results;

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use contender::Contender;
use layout::Layout;
use machine::Machine;
use measure::Measure;
use results::{Entry, Results};

/// Measures Portolan, HAProxy, nginx, nft and direct routing side by side. Needs root.
#[derive(Debug, Parser)]
struct Args {
    /// One round of one second per run: proves that all works, in about a minute.
    #[arg(long)]
    quick: bool,
    /// How often each contender runs each measure.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many seconds each run takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only measures whose name contains this.
    #[arg(long, default_value = "")]
    measure: String,
    /// Only contenders whose name contains this, and direct routing.
    #[arg(long, default_value = "")]
    contender: String,
    /// Where the results are written.
    #[arg(long, default_value = "bench/results")]
    out: PathBuf,
    /// The name of this machine in the results; its host name by default.
    #[arg(long)]
    machine: Option<String>,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.rounds, args.seconds) = (1, 1);
    }
    use_the_program_beside()?;
    portolan_testbed::require(&["haproxy", "iperf3", "nginx", "nft"])?;
    let measures: Vec<Measure> = Measure::all()
        .filter(|m| m.name().contains(&args.measure))
        .collect();
    let contenders: Vec<Contender> = Contender::ALL
        .into_iter()
        .filter(|c| *c == Contender::Direct || c.name().contains(&args.contender))
        .collect();
    ensure!(!measures.is_empty(), "no measure is called so");

    let machine = Machine::look(args.machine)?;
    let layout = Layout::build()?;
    let mut results = Results {
        machine,
        rounds: args.rounds,
        seconds: args.seconds,
        entries: Vec::new(),
    };
    for measure in &measures {
        for round in 1..=args.rounds {
            for contender in contenders.iter().filter(|c| c.carries(*measure)) {
                let entry = run(&layout, *contender, *measure, round, args.seconds);
                let entry =
                    entry.with_context(|| format!("{}: {}", measure.name(), contender.name()))?;
                eprintln!("{round}/{}  {entry}", args.rounds);
                results.entries.push(entry);
            }
        }
    }
    results.machine.load_after = machine::load()?;
    write(&results, &args.out)
}

fn run(
    layout: &Layout,
    contender: Contender,
    measure: Measure,
    round: u32,
    seconds: u32,
) -> Result<Entry> {
    contender.begin(layout)?;
    let ran = measure.run(layout, contender, Duration::from_secs(seconds.into()));
    contender.end(layout)?;
    Ok(Entry {
        measure: measure.name(),
        unit: measure.unit(),
        contender: contender.name(),
        round,
        sample: ran?,
    })
}

fn write(results: &Results, out: &PathBuf) -> Result<()> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let stem = format!("{}-{}", results.machine.date, results.machine.name);
    let summary = results.summary();
    let files = [
        (
            format!("{stem}.json"),
            serde_json::to_string_pretty(results)?,
        ),
        (
            format!("{stem}-rate.svg"),
            plot::svg(&summary, plot::Shown::Rate),
        ),
        (
            format!("{stem}-cpu.svg"),
            plot::svg(&summary, plot::Shown::Cpu),
        ),
        (
            format!("{stem}.md"),
            report::markdown(results, &summary, &stem),
        ),
    ];
    for (name, text) in files {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// Measures the `portolan` of this build, unless `PORTOLAN_BIN` names another.
fn use_the_program_beside() -> Result<()> {
    if env::var_os("PORTOLAN_BIN").is_some() {
        return Ok(());
    }
    let beside = env::current_exe()?.with_file_name("portolan");
    ensure!(
        beside.is_file(),
        "{} is not there: cargo build --release -p portolan-agent",
        beside.display()
    );
    #[expect(
        unsafe_code,
        reason = "the testbed reads the program's place from the environment"
    )]
    // SAFETY: this is the only thread, as nothing but the parsing of arguments went before.
    unsafe {
        env::set_var("PORTOLAN_BIN", beside);
    }
    Ok(())
}
