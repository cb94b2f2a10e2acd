//! Stack files: what they become, and the reading of a whole one.

mod context;
mod network;
pub(crate) mod options;
pub(crate) mod service;
mod task;

use std::{net::IpAddr, path::PathBuf};

use ipnetwork::Ipv4Network;
use portolan_model::{NetworkName, Service, ServiceId};

use crate::{
    cursor::At,
    diagnostic::{Diagnostic, Fault, Report, quoted},
    yaml::Node,
};
use context::Context;

/// The services, networks and tasks that one file declares, with full names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// The stack's name: the one asked for, else the file's `name`.
    pub name: Option<String>,
    /// The networks, in the order of the file; the default network last, if a service is on it.
    pub networks: Vec<StackNetwork>,
    /// The services, in the order of the file. Published ports left open are 0, no VIP is claimed, and
    /// versions and times are 0: the agent that declares the service sets all of them.
    pub services: Vec<Service>,
    /// The tasks that the file names.
    pub tasks: Vec<StaticTask>,
    /// The keys of Compose that say nothing about the network, each once, in alphabetical order.
    pub ignored: Vec<String>,
}

/// A network as a stack file declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackNetwork {
    /// Its full name.
    pub name: NetworkName,
    /// Where its addresses come from; `None` leaves that to the agent.
    pub subnet: Option<Ipv4Network>,
    /// Nothing is forwarded out of it.
    pub internal: bool,
    /// Its packets are to be encrypted between nodes.
    pub encrypted: bool,
    /// It is declared elsewhere, and has to exist already.
    pub external: bool,
}

/// A task that a stack file names, for the agent of its node to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticTask {
    /// Its service.
    pub service: ServiceId,
    /// The name of the node that it runs on.
    pub node: String,
    /// Its number within the service, from 1; `None` leaves that to the agent.
    pub slot: Option<u32>,
    /// Where it is found on the node.
    pub place: TaskPlace,
    /// Its share of new flows, relative to the other tasks; `None` is that of every task.
    pub weight: Option<u16>,
}

/// Where a task is found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskPlace {
    /// In the network namespace of this path, such as `/run/netns/web1`.
    Netns(PathBuf),
    /// In the network namespace of this process.
    Pid(u32),
    /// At an address that the nodes can reach, with no namespace of its own.
    Address(IpAddr),
}

const ROOT_KEYS: &[&str] = &["name", "networks", "services", "version", "x-portolan"];
const ROOT_OPTIONS: &[&str] = &["tasks"];

/// Reads a stack file.
///
/// `source` is the file's name, for messages. `stack_name` goes before the file's own `name`. With a stack
/// name every service and network gets it as a prefix (`shop_web`); without one, names stay as they are.
///
/// # Errors
/// Everything that is wrong with the file, in its order, and never nothing.
pub fn parse(text: &str, source: &str, stack_name: Option<&str>) -> Result<Stack, Vec<Diagnostic>> {
    let report = Report::new(source);
    let stack = match Node::parse(text) {
        Ok(root) => read(&At::root(&root, &report), stack_name, &report),
        Err((place, fault)) => {
            report.add(place, "", fault);
            None
        }
    };
    report.finish(stack)
}

fn read(root: &At<'_>, stack_name: Option<&str>, report: &Report) -> Option<Stack> {
    if !root.is_map() {
        declares_nothing(root);
        return None;
    }
    let (mut name, mut networks, mut services, mut options) = (None, None, None, None);
    for field in root.fields() {
        match field.name {
            "name" => name = Some(field.value),
            "networks" => networks = Some(field.value),
            "services" => services = Some(field.value),
            "version" => {}
            "x-portolan" => options = Some(field.value),
            _ => field.ignore("", ROOT_KEYS),
        }
    }
    if services.is_none() && networks.is_none() {
        declares_nothing(root);
    }
    let entries = |at: &Option<At<'_>>| at.as_ref().map_or(0, At::len);
    check_size(root, entries(&networks) + entries(&services))?;
    let name = read_name(name.as_ref(), stack_name, report);
    let mut context = Context::new(name.clone());
    let mut declared = networks
        .map(|at| network::read_all(&at, &mut context))
        .unwrap_or_default();
    let services = services
        .map(|at| service::read_all(&at, &mut context))
        .unwrap_or_default();
    for field in options.iter().flat_map(At::fields) {
        match field.name {
            "tasks" => task::read_all(&field.value, None, &mut context),
            _ => field.unknown(ROOT_OPTIONS),
        }
    }
    declared.extend(context.default_network(root));
    let tasks = std::mem::take(&mut context.tasks);
    check_size(root, declared.len() + services.len() + tasks.len())?;
    Some(Stack {
        name,
        networks: declared,
        services,
        tasks,
        ignored: report.ignored(),
    })
}

fn declares_nothing(root: &At<'_>) {
    root.error(
        "the file declares nothing",
        "write at least `services:` or `networks:`",
    );
}

/// The name of the stack: the one asked for, or that of the file. One that is wrong is reported once, here,
/// and not again with every name that would start with it.
fn read_name(in_file: Option<&At<'_>>, asked: Option<&str>, report: &Report) -> Option<String> {
    let name = match asked {
        Some(name) => name
            .parse::<ServiceId>()
            .map_err(|error| {
                let mut fault = Fault::of(&error);
                fault.message = format!("the name of the stack: {}", fault.message);
                report.add(None, "", fault);
            })
            .ok(),
        None => in_file?.parse(str::parse::<ServiceId>),
    };
    name.map(|name| name.as_str().to_owned())
}

/// A node publishes at most 4096 records. Half of them for one file leaves room for the tasks that run
/// and for what was removed of late.
const MAX_RECORDS: usize = 2048;

/// Refuses a file that declares more, before each of its entries is compared with the others.
fn check_size(root: &At<'_>, records: usize) -> Option<()> {
    if records <= MAX_RECORDS {
        return Some(());
    }
    root.error(
        format!(
            "the file declares {records} services, networks and tasks of at most {MAX_RECORDS}"
        ),
        "split it into several stacks, applied on different nodes",
    );
    None
}

/// The fault of a name that is not declared.
fn undeclared(what: &str, name: &str, known: &[&str], where_to: &str) -> Fault {
    let remedy = crate::cursor::nearest(name, known).map_or_else(
        || format!("declare it under {where_to}"),
        |near| format!("did you mean {near}? Else declare it under {where_to}"),
    );
    Fault::new(format!("{what} {} is not declared", quoted(name)), remedy)
}
