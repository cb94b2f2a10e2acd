//! What can be typed.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::trace::TraceArgs;
use crate::{config::Flags, demo::DemoArgs, whoami::WhoamiArgs};

/// An ingress routing mesh: a published port answers on every node, wherever its tasks run.
#[derive(Debug, Parser)]
#[command(
    name = "portolan",
    version,
    after_help = "Exit codes: 0 done, 1 failed or refused, 2 wrong input, 3 no agent at the socket.\n\
                  Begin with `portolan demo`, or `portolan keygen FILE` and `portolan agent --key-file FILE`."
)]
pub(crate) struct Cli {
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help = "The agent's admin socket [env: PORTOLAN_SOCKET] [default: /run/portolan/portolan.sock]"
    )]
    pub(crate) socket: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the agent of this node, until SIGTERM
    #[command(
        after_help = "Every option is also a key of the file and a PORTOLAN_* variable; flags go over \
                      variables, and those over the file.\n\n\
                      SIGTERM and SIGINT: drain, tell the others, and take the fast path down. \
                      SIGHUP: start again in place, from the program's file as it is now; the fast path goes on \
                      meanwhile. SIGQUIT: end, leaving the fast path at work for the next agent.\n\n\
                      Example: portolan agent --advertise 10.0.0.11 --join 10.0.0.12 --key-file /etc/portolan.key"
    )]
    Agent(AgentArgs),
    /// Show a whole cluster on this machine, in namespaces of its own
    #[command(after_help = "Example: sudo portolan demo --nodes 5")]
    Demo(DemoArgs),
    /// Answer HTTP and UDP with who is asked and who asks
    #[command(after_help = "Example: portolan whoami --http 8080 --udp 8080 --name web.1")]
    Whoami(WhoamiArgs),
    /// Show this node on one screen
    #[command(after_help = "Example: portolan status --format json | jq .problems")]
    Status(Listing),
    /// List the nodes of the cluster
    #[command(after_help = "Example: portolan nodes")]
    Nodes(Listing),
    /// List the networks
    #[command(after_help = "Example: portolan networks")]
    Networks(Listing),
    /// List the services
    #[command(after_help = "Example: portolan services")]
    Services(Listing),
    /// List the tasks
    #[command(after_help = "Example: portolan tasks --format json | jq -r '.[].name'")]
    Tasks(Listing),
    /// List the newest flows through this node
    #[command(after_help = "Example: portolan flows --limit 20")]
    Flows(FlowsArgs),
    /// Show the next flow of a client on its way through the fast path, packet by packet
    #[command(
        after_help = "It shows what this node does; run it on the task's node as well to see what that one does. \
                      Times are UTC.\n\n\
                      Example: portolan trace 10.0.0.5 :8080"
    )]
    Trace(TraceArgs),
    /// Add, drain and remove tasks of this node
    #[command(subcommand)]
    Task(TaskCommand),
    /// Put a network namespace on a network, without being a task
    #[command(after_help = "Example: portolan attach shop_default --netns /run/netns/debug")]
    Attach(AttachArgs),
    /// Take an attachment off its network again
    #[command(after_help = "Example: portolan detach ID")]
    Detach(TaskId),
    /// Declare the services of a stack file; again, to update them
    #[command(after_help = "Example: portolan apply -f stack.yml --name shop")]
    Apply(ApplyArgs),
    /// Remove a stack or a service
    #[command(after_help = "Example: portolan rm shop")]
    Rm(RmArgs),
    /// Drain this node, or make it active again
    #[command(subcommand)]
    Node(NodeCommand),
    /// Leave the cluster and end the agent
    #[command(after_help = "Example: portolan leave --clean")]
    Leave(LeaveArgs),
    /// List and rotate the gossip keys of this node
    #[command(
        after_help = "To rotate: install the new key on every node, then use it on every node, then remove \
                      the old one.\n\nExample: portolan keys install new.key"
    )]
    Keys(KeysArgs),
    /// Print what to type on the next node, so that it joins; with the key, so keep it secret
    #[command(after_help = "Example: portolan join-token")]
    JoinToken(Listing),
    /// Make a gossip key
    #[command(after_help = "Example: portolan keygen /etc/portolan.key")]
    Keygen(KeygenArgs),
    /// Tell everything that is wrong with a configuration and stack files, starting nothing
    #[command(after_help = "Example: portolan check --config /etc/portolan.toml stack.yml")]
    Check(CheckArgs),
    /// Write a completion script for a shell
    #[command(after_help = "Example: portolan completion bash > /etc/bash_completion.d/portolan")]
    Completion(CompletionArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
}

/// Where a configuration comes from, the environment aside.
#[derive(Debug, Args)]
pub(crate) struct Sources {
    #[arg(
        long,
        value_name = "FILE",
        help = "The configuration file (TOML) [env: PORTOLAN_CONFIG]"
    )]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: Flags,
}

/// How a list is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Listing {
    /// A table for people, or JSON for programs
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct FlowsArgs {
    #[command(flatten)]
    pub(crate) listing: Listing,
    /// How many at most, of each plane
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) limit: usize,
    /// Only those of this service, by name or id
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<portolan_model::ServiceId>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Add a task to a service, on this node; prints it
    #[command(after_help = "Example: portolan task add shop_web --netns /run/netns/web1")]
    Add(TaskAddArgs),
    /// Remove a task at once
    #[command(after_help = "Example: portolan task rm ID")]
    Rm(TaskId),
    /// Give a task no more new flows; it keeps those that it has
    #[command(after_help = "Example: portolan task drain ID")]
    Drain(TaskId),
}

#[derive(Debug, Args)]
pub(crate) struct TaskId {
    /// The id, as `portolan tasks` shows it
    pub(crate) id: portolan_model::TaskId,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TaskPlace {
    /// In the network namespace at this path
    #[arg(long, value_name = "PATH")]
    pub(crate) netns: Option<PathBuf>,
    /// In the network namespace of this process
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// Anywhere, at an address that every node reaches
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<IpAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct TaskAddArgs {
    /// The service, by name or id
    pub(crate) service: String,
    #[command(flatten)]
    pub(crate) place: TaskPlace,
    /// Its number within the service [default: the first free one]
    #[arg(long, value_name = "N")]
    pub(crate) slot: Option<u32>,
    /// Its share of new flows [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) weight: Option<u16>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct NetnsPlace {
    /// The network namespace at this path
    #[arg(long, value_name = "PATH")]
    pub(crate) netns: Option<PathBuf>,
    /// The network namespace of this process
    #[arg(long)]
    pub(crate) pid: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The network
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) place: NetnsPlace,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The stack file; `-` is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The stack's name, over the one in the file
    #[arg(long, value_name = "STACK")]
    pub(crate) name: Option<String>,
    /// Also remove what the stack has and the file has not
    #[arg(long)]
    pub(crate) prune: bool,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// A stack or a service
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Give the tasks of this node no more new flows
    #[command(after_help = "Example: portolan node drain")]
    Drain(Listing),
    /// Give them new flows again
    #[command(after_help = "Example: portolan node activate")]
    Activate(Listing),
}

#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Also remove everything from the kernel and the state directory; works without an agent too
    #[arg(long)]
    pub(crate) clean: bool,
    #[arg(
        long,
        value_name = "FILE",
        help = "The agent's configuration file, where --clean finds none running [env: PORTOLAN_CONFIG]"
    )]
    pub(crate) config: Option<PathBuf>,
    /// The agent's state directory, likewise
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<String>,
    /// Where its fast path is pinned, likewise
    #[arg(long, value_name = "DIR")]
    pub(crate) bpf_dir: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) command: Option<KeysCommand>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List the ids of the keys, the one in use first
    List(Listing),
    /// Take packets under a further key, not yet sending with it
    Install {
        /// A file with the key; `-` is standard input
        key: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Send with a key of the ring
    Use {
        /// Its id
        id: portolan_gossip::KeyId,
        #[command(flatten)]
        listing: Listing,
    },
    /// Take a key out of the ring
    Remove {
        /// Its id
        id: portolan_gossip::KeyId,
        #[command(flatten)]
        listing: Listing,
    },
}

#[derive(Debug, Args)]
pub(crate) struct KeygenArgs {
    /// Where to write it, closed to others; without one it is printed
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    /// Stack files
    #[arg(value_name = "STACK.yml")]
    pub(crate) stacks: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell
    pub(crate) shell: Shell,
}
