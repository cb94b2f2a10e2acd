//! Running the binary.

use std::{path::Path, process::Command, time::Duration};

/// How a run ended.
pub(super) struct Ran {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// The binary with a clean environment.
pub(super) fn portolan() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("PORTOLAN_")) {
        command.env_remove(variable);
    }
    command
}

/// Runs it to its end.
pub(super) fn ended(command: &mut Command) -> Ran {
    let output = portolan_testbed::output_within(command, Duration::from_secs(20)).unwrap();
    Ran {
        code: output.status.code().expect("it ended by itself"),
        stdout: output.stdout,
        stderr: output.stderr,
    }
}

/// Runs it with these arguments.
pub(super) fn run(args: &[&str]) -> Ran {
    ended(portolan().args(args))
}

/// A file with this text.
pub(super) fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
