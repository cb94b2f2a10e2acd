//! The command line: what is typed, asked of the agent, and shown.
//!
//! Exit codes: 0 done, 1 it failed or the agent refused, 2 wrong input, 3 no agent at the socket.

mod args;
mod ask;
mod check;
mod failure;
mod join;
mod keys;
mod lists;
mod node;
mod status;
mod table;
mod trace;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser};

use crate::whoami;
use args::{Cli, Command};
use failure::Failure;

/// Runs what the command line asks for. Blocks until it is done.
pub fn main() -> ExitCode {
    let Cli { socket, command } = Cli::parse();
    let done = match command {
        Command::Agent(args) => node::agent(socket, args),
        Command::Leave(args) => node::leave(socket, args),
        Command::Check(args) => check::check(socket, args),
        Command::Keygen(args) => keys::keygen(args.file.as_deref()),
        Command::Completion(args) => completion(args.shell),
        Command::Trace(args) => trace::trace(socket, &args),
        Command::Whoami(args) => {
            whoami::run(&args).map_err(|error| Failure::failed(format!("whoami: {error:#}")))
        }
        Command::Demo(args) => match crate::demo::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(Failure::failed(format!("demo: {error:#}"))),
        },
        command => ask::ask(socket, command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.lines());
            failure.code()
        }
    }
}

fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "portolan", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read has seen enough: `portolan tasks | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| Failure::failed(format!("standard output: {error}"))),
    }
}

/// Writes lines to standard error. If that is gone there is nobody left to tell.
fn complain(lines: &[String]) {
    let mut err = io::stderr().lock();
    for line in lines {
        let _ = writeln!(err, "{line}");
    }
}
