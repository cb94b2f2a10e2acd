//! What was measured where: without it figures mean nothing.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use portolan_testbed::binary;
use serde::Serialize;

/// The machine, and the versions of all that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) name: String,
    /// The day, `2026-11-21`, UTC.
    pub(crate) date: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    /// The checkout's commit, if it is one.
    pub(crate) commit: String,
    /// Of each program, the line that it tells of itself.
    pub(crate) versions: Vec<String>,
    /// The load average of a minute before the first run; what else ran is noise in the figures.
    pub(crate) load_before: f64,
    /// The same after the last run, in which the runs' own load is.
    pub(crate) load_after: f64,
}

impl Machine {
    /// Looks at this one.
    pub(crate) fn look(name: Option<String>) -> Result<Self> {
        let host = read("/proc/sys/kernel/hostname")?;
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        let memory = read("/proc/meminfo")?;
        let memory = memory.split_ascii_whitespace().nth(1);
        let portolan = binary()?.to_string_lossy().into_owned();
        let versions = [
            (portolan.as_str(), "--version"),
            ("haproxy", "-v"),
            ("nginx", "-v"),
            ("nft", "--version"),
            ("iperf3", "--version"),
        ];
        let before = load()?;
        Ok(Self {
            name: name.unwrap_or_else(|| host.trim().to_owned()),
            date: said("date", &["-u", "+%F"])?,
            cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            memory_gib: memory.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 20,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            commit: said("git", &["rev-parse", "--short", "HEAD"])?,
            versions: versions
                .into_iter()
                .map(|(program, flag)| said(program, &[flag]))
                .collect::<Result<_>>()?,
            load_before: before,
            load_after: before,
        })
    }
}

/// The load average of the last minute.
pub(crate) fn load() -> Result<f64> {
    let text = read("/proc/loadavg")?;
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.context("/proc/loadavg has no number")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.to_owned())
}

/// The first line that a program says; nginx tells its version on standard error.
fn said(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| program.to_owned())?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
