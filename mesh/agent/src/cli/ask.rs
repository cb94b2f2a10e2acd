//! The commands that ask the agent for something, and show the answer.

use std::{
    fmt::Write as _,
    io::{self, Read},
    path::Path,
};

use serde::Serialize;

use super::{
    args::{
        ApplyArgs, Command, Format, KeysArgs, KeysCommand, Listing, NetnsPlace, NodeCommand,
        TaskCommand, TaskPlace,
    },
    failure::Failure,
    join, keys, lists, print, status,
    table::Paint,
};
use crate::{
    api::{
        AddTask, Applied, Apply, Attach, Joining, Key, Keys, NetworkRow, NodeRow, Place, Remove,
        Removed, ServiceRow, Status, TaskRow,
    },
    client::Client,
    config::{DEFAULT_SOCKET, Key as ConfigKey},
};

/// Runs a command that is one request to the agent.
pub(crate) fn ask(socket: Option<String>, command: Command) -> Result<(), Failure> {
    let client = client(socket);
    runtime()?.block_on(request(&client, command))
}

/// The client for the socket that was asked for by flag or environment.
pub(crate) fn client(socket: Option<String>) -> Client {
    let variable = || std::env::var(ConfigKey::Socket.variable()).ok();
    let socket = socket.or_else(variable).filter(|socket| !socket.is_empty());
    Client::new(socket.unwrap_or_else(|| DEFAULT_SOCKET.to_owned()))
}

/// One thread is plenty for one request.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no runtime: {error}")))
}

async fn request(client: &Client, command: Command) -> Result<(), Failure> {
    match command {
        Command::Status(Listing { format }) => {
            let answer: Status = client.get("/v1/status").await?;
            show(format, &answer, |s| status::screen(s, Paint::for_stdout()))
        }
        Command::Nodes(Listing { format }) => {
            let rows: Vec<NodeRow> = client.get("/v1/nodes").await?;
            show(format, &rows, |rows| lists::nodes(rows))
        }
        Command::Networks(Listing { format }) => {
            let rows: Vec<NetworkRow> = client.get("/v1/networks").await?;
            show(format, &rows, |rows| lists::networks(rows))
        }
        Command::Services(Listing { format }) => {
            let rows: Vec<ServiceRow> = client.get("/v1/services").await?;
            show(format, &rows, |rows| lists::services(rows))
        }
        Command::Tasks(Listing { format }) => {
            let rows: Vec<TaskRow> = client.get("/v1/tasks").await?;
            show(format, &rows, |rows| lists::tasks(rows))
        }
        Command::Flows(args) => {
            // Passed on as it came: what a flow holds is for the planes to say.
            let service = args.service.map(|service| format!("&service={service}"));
            let service = service.unwrap_or_default();
            let rows: Vec<serde_json::Value> = client
                .get(&format!("/v1/flows?limit={}{service}", args.limit))
                .await?;
            show(args.listing.format, &rows, |rows| lists::flows(rows))
        }
        Command::Task(command) => task(client, command).await,
        Command::Attach(args) => {
            let body = Attach {
                network: args.network,
                place: netns_place(args.place),
            };
            let row: TaskRow = client.post("/v1/attach", &body).await?;
            show(args.listing.format, &row, lists::added)
        }
        Command::Detach(task) => remove_task(client, &task).await,
        Command::Apply(args) => apply(client, args).await,
        Command::Rm(args) => {
            let removed: Removed = client.post("/v1/rm", &Remove { name: args.name }).await?;
            show(args.listing.format, &removed, |removed| {
                let mut text = String::new();
                lines(&mut text, "removed service", &removed.services);
                lines(&mut text, "removed network", &removed.networks);
                text
            })
        }
        Command::Node(command) => {
            let (verb, Listing { format }) = match command {
                NodeCommand::Drain(listing) => ("drain", listing),
                NodeCommand::Activate(listing) => ("activate", listing),
            };
            let row: NodeRow = client.post(&format!("/v1/node/{verb}"), &()).await?;
            show(format, &row, |row| {
                format!("{} is {}\n", row.name, row.state)
            })
        }
        Command::Keys(args) => keys(client, args).await,
        Command::JoinToken(Listing { format }) => {
            let joining: Joining = client.get("/v1/join").await?;
            match format {
                Format::Table => print(&join::commands(&joining)?),
                Format::Json => show(format, &joining, |_| String::new()),
            }
        }
        Command::Agent(_)
        | Command::Trace(_)
        | Command::Demo(_)
        | Command::Whoami(_)
        | Command::Leave(_)
        | Command::Keygen(_)
        | Command::Check(_)
        | Command::Completion(_) => Err(Failure::failed("the command is not one for the agent")),
    }
}

async fn task(client: &Client, command: TaskCommand) -> Result<(), Failure> {
    match command {
        TaskCommand::Add(args) => {
            let body = AddTask {
                service: args.service,
                place: task_place(args.place),
                slot: args.slot,
                weight: args.weight,
            };
            let row: TaskRow = client.post("/v1/tasks", &body).await?;
            show(args.listing.format, &row, lists::added)
        }
        TaskCommand::Rm(task) => remove_task(client, &task).await,
        TaskCommand::Drain(task) => {
            let path = format!("/v1/tasks/{}/drain", task.id);
            let row: TaskRow = client.post(&path, &()).await?;
            show(task.listing.format, &row, |row| {
                format!("{} is {}\n", row.id, row.state)
            })
        }
    }
}

async fn remove_task(client: &Client, task: &super::args::TaskId) -> Result<(), Failure> {
    let row: TaskRow = client.delete(&format!("/v1/tasks/{}", task.id)).await?;
    show(task.listing.format, &row, |row| {
        format!("removed {}\n", row.id)
    })
}

async fn apply(client: &Client, args: ApplyArgs) -> Result<(), Failure> {
    let (text, source) = read_stack(&args.file)?;
    // Here it can be told apart from a refusal: what is wrong with the file alone is wrong input.
    portolan_provider::parse(&text, &source, args.name.as_deref())
        .map_err(|wrong| Failure::Input(wrong.iter().map(ToString::to_string).collect()))?;
    let body = Apply {
        text,
        source,
        name: args.name,
        prune: args.prune,
    };
    let applied: Applied = client.post("/v1/apply", &body).await?;
    show(args.listing.format, &applied, applied_lines)
}

fn applied_lines(applied: &Applied) -> String {
    let mut text = String::new();
    lines(&mut text, "created", &applied.created);
    lines(&mut text, "updated", &applied.updated);
    lines(&mut text, "unchanged", &applied.unchanged);
    lines(&mut text, "removed", &applied.removed);
    lines(&mut text, "task", &applied.tasks);
    lines(&mut text, "chosen port", &applied.chosen_ports);
    if !applied.ignored.is_empty() {
        let _ = writeln!(
            text,
            "ignored, as they do not concern the network: {}",
            applied.ignored.join(", ")
        );
    }
    lines(&mut text, "problem:", &applied.problems);
    text
}

fn lines(text: &mut String, what: &str, names: &[String]) {
    for name in names {
        let _ = writeln!(text, "{what} {name}");
    }
}

async fn keys(client: &Client, args: KeysArgs) -> Result<(), Failure> {
    let command = args.command.unwrap_or(KeysCommand::List(args.listing));
    let (keys, Listing { format }): (Keys, Listing) = match command {
        KeysCommand::List(listing) => (client.get("/v1/keys").await?, listing),
        KeysCommand::Install { key, listing } => {
            let key = keys::read_key(&key)?.reveal();
            (
                client.post("/v1/keys/install", &Key { key }).await?,
                listing,
            )
        }
        KeysCommand::Use { id, listing } => {
            let key = id.to_string();
            (client.post("/v1/keys/use", &Key { key }).await?, listing)
        }
        KeysCommand::Remove { id, listing } => {
            let key = id.to_string();
            (client.post("/v1/keys/remove", &Key { key }).await?, listing)
        }
    };
    show(format, &keys, lists::keys)
}

/// Shows an answer: exactly as the agent gave it, or for people.
fn show<T: Serialize>(
    format: Format,
    answer: &T,
    table: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => print(&table(answer)),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(answer)
                .map_err(|error| Failure::failed(format!("the answer as JSON: {error}")))?;
            text.push('\n');
            print(&text)
        }
    }
}

/// The text of a stack file and its name for messages. `-` is standard input.
pub(crate) fn read_stack(file: &Path) -> Result<(String, String), Failure> {
    if file == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().read_to_string(&mut text);
        return read
            .map(|_| (text, "stdin".to_owned()))
            .map_err(|error| Failure::input(format!("stdin: {error}; give the file's path")));
    }
    let source = file.display().to_string();
    std::fs::read_to_string(file)
        .map_err(|error| {
            let reason = crate::config::reason(&error);
            Failure::input(format!(
                "{source}: cannot be read: {reason}; give the path of a stack file"
            ))
        })
        .map(|text| (text, source))
}

/// A path that means the same to the agent, which works in another directory.
fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn task_place(place: TaskPlace) -> Place {
    match (place.netns, place.pid, place.address) {
        (_, _, Some(address)) => Place::Address(address),
        (netns, pid, None) => netns_place(NetnsPlace { netns, pid }),
    }
}

fn netns_place(place: NetnsPlace) -> Place {
    match (place.netns, place.pid) {
        (Some(path), _) => Place::Netns(absolute(&path)),
        // clap has seen to it that one of them is there.
        (None, pid) => Place::Pid(pid.unwrap_or_default()),
    }
}
