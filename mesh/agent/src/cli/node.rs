//! The commands that run an agent, or end one.

use std::{os::unix::process::CommandExt, path::Path, process::Command, time::Duration};

use tracing_subscriber::EnvFilter;

use super::{
    args::{AgentArgs, LeaveArgs, Sources},
    ask::{client, runtime},
    check::stack_file,
    failure::Failure,
    print,
};
use crate::{
    agent,
    api::Leave,
    client::ClientError,
    config::{
        Config, Flags, Key, Layer, LogFormat, ThisMachine, parse_env, parse_toml, reason, resolve,
    },
};

/// How long leaving may take: the drain times of the node's services are waited for.
const LEAVE: Duration = Duration::from_hours(1);
/// What the DNS library logs at `info` for each query, and at `warn` for what any client can provoke, is
/// left out, unless `log` names its crates.
const QUIET: &str =
    "hickory_server=error,hickory_net=error,hickory_resolver=error,hickory_proto=error";

impl Sources {
    /// Whether anything of it was given.
    pub(crate) fn is_given(&self) -> bool {
        self.config.is_some() || !self.flags.0.is_empty()
    }
}

/// The configuration from file, environment and flags.
pub(crate) fn configuration(socket: Option<String>, sources: Sources) -> Result<Config, Failure> {
    let variables = || {
        // What is no UTF-8 is no key of ours, and a value that is none is shown with what is wrong in it.
        std::env::vars_os().map(|(name, value)| {
            (
                name.to_string_lossy().into(),
                value.to_string_lossy().into(),
            )
        })
    };
    let file = sources.config.or_else(|| {
        let given = std::env::var_os("PORTOLAN_CONFIG").filter(|file| !file.is_empty());
        given.map(Into::into)
    });
    let file = file
        .as_deref()
        .map(read_config)
        .transpose()?
        .unwrap_or_default();
    let mut flags = sources.flags.0;
    if let Some(socket) = socket {
        flags.set_flag(Key::Socket, socket);
    }
    Ok(resolve(
        [file, parse_env(variables()), flags],
        &ThisMachine,
    )?)
}

fn read_config(file: &Path) -> Result<Layer, Failure> {
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| {
        let reason = reason(&error);
        Failure::input(format!(
            "{shown}: cannot be read: {reason}; give the path of a TOML file"
        ))
    })?;
    Ok(parse_toml(&text, &shown))
}

/// Runs the agent until it is told to stop.
pub(crate) fn agent(socket: Option<String>, args: AgentArgs) -> Result<(), Failure> {
    let config = configuration(socket, args.sources)?;
    let wrong: Vec<_> = config
        .stacks
        .iter()
        .filter_map(|stack| stack_file(stack).err())
        .flat_map(|failure| failure.lines())
        .collect();
    if !wrong.is_empty() {
        return Err(Failure::Input(wrong));
    }
    log_to_stderr(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no runtime: {error}")))?;
    let ended = runtime
        .block_on(agent::run(config))
        .map_err(|error| Failure::failed(format!("{error:#}")))?;
    // All that the runtime still holds is let go of, so that the next agent finds it free.
    drop(runtime);
    match ended {
        agent::End::Left | agent::End::Stayed => Ok(()),
        agent::End::Again => Err(start_again()),
    }
}

/// Becomes the program that this one was started from, which may be a newer one by now, with the same arguments. The
/// process stays, and so do its environment and whoever watches it.
fn start_again() -> Failure {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| "portolan".into());
    let error = Command::new(&program).args(arguments).exec();
    let program = program.display();
    Failure::failed(format!("cannot start {program} again: {error}"))
}

fn log_to_stderr(config: &Config) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.log))
        .map_err(|error| Failure::input(format!("log: {error}; give a level such as info")))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            lines.with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::failed(format!("logging: {error}")))
}

/// Leaves the cluster; with `--clean` also when there is no agent to tell.
pub(crate) fn leave(socket: Option<String>, args: LeaveArgs) -> Result<(), Failure> {
    let client = client(socket.clone()).with_timeout(LEAVE);
    let body = Leave { clean: args.clean };
    let left = runtime()?.block_on(client.post::<serde_json::Value>("/v1/leave", &body));
    match left {
        Ok(_) => print("left\n"),
        Err(ClientError::Unreachable { source, .. })
            if args.clean && source.kind() != std::io::ErrorKind::PermissionDenied =>
        {
            let mut flags = Flags::default();
            // What is removed depends neither on a key nor on the address, and both may be gone by now.
            flags.0.set_flag(Key::Insecure, "true");
            flags.0.set_flag(Key::Advertise, "127.0.0.1");
            for (key, dir) in [(Key::StateDir, args.state_dir), (Key::BpfDir, args.bpf_dir)] {
                if let Some(dir) = dir {
                    flags.0.set_flag(key, &dir);
                }
            }
            let config = configuration(
                socket,
                Sources {
                    config: args.config,
                    flags,
                },
            )?;
            agent::clean(&config).map_err(Failure::Failed)?;
            print("no agent was running; what one had left behind is removed\n")
        }
        Err(error) => Err(error.into()),
    }
}
