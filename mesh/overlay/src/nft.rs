//! Runs of the `nft` program, in the network namespace of the calling thread.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

/// What the program is called.
pub(crate) const PROGRAM: &str = "nft";

/// Why a run came to nothing.
#[derive(Debug)]
pub(crate) enum Failed {
    /// There is no such program.
    Missing,
    /// It says why.
    Refused(String),
}

/// Runs it to its end and gives its output. A script, `-f -`, is one transaction.
pub(crate) fn run(program: &str, args: &[&str], input: &str) -> Result<String, Failed> {
    let run = || -> io::Result<_> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    match run() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            let first = words.lines().next().unwrap_or_default();
            Err(Failed::Refused(first.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failed::Missing),
        Err(error) => Err(Failed::Refused(error.to_string())),
    }
}
