//! Recordings, changed ones too, and what is made of them as text.

use std::fmt::Write;

use portolan_docker::{
    Observed, Place, TaskWanted, Wanted,
    observed::{Readable, Unreadable, read, read_list},
    translate,
};
use serde_json::Value;

/// The engine of the Swarm's manager, n1.
pub(crate) fn manager() -> Value {
    serde_json::from_str(include_str!("../data/manager.json")).unwrap()
}

/// The engine of a worker, n3, with some containers that no Swarm started.
pub(crate) fn worker() -> Value {
    serde_json::from_str(include_str!("../data/worker.json")).unwrap()
}

/// The answers of an engine, as it gives them, read.
pub(crate) fn observe(engine: &Value) -> Observed {
    let mut observed = Observed::default();
    match read(engine["info"].clone()) {
        Ok(read) => observed.engine = read,
        Err(error) => observed.unreadable.push(error),
    }
    let is_manager = observed.engine.swarm.as_ref().is_some_and(|s| s.manager);
    let bad = &mut observed.unreadable;
    if is_manager {
        observed.services = list(&engine["services"], bad);
        observed.tasks = list(&engine["tasks"], bad);
        observed.nodes = list(&engine["nodes"], bad);
    }
    observed.networks = list(&engine["networks"], bad);
    let inspected = engine["inspect"].as_object().into_iter().flatten();
    for (_, container) in inspected {
        match read(container.clone()) {
            Ok(read) => observed.containers.push(read),
            Err(error) => bad.push(error),
        }
    }
    observed
}

fn list<T: Readable>(json: &Value, bad: &mut Vec<Unreadable>) -> Vec<T> {
    match read_list(json.clone()) {
        Ok((good, wrong)) => {
            bad.extend(wrong);
            good
        }
        Err(error) => {
            bad.push(error);
            Vec::new()
        }
    }
}

pub(crate) fn wanted(engine: &Value) -> Wanted {
    translate(&observe(engine))
}

/// The container of this name, to be changed.
pub(crate) fn container<'a>(engine: &'a mut Value, name: &str) -> &'a mut Value {
    let mut containers = engine["inspect"].as_object_mut().unwrap().values_mut();
    containers
        .find(|c| {
            c["Name"]
                .as_str()
                .unwrap()
                .trim_start_matches('/')
                .starts_with(name)
        })
        .unwrap()
}

/// The service of this name, to be changed.
pub(crate) fn service<'a>(engine: &'a mut Value, name: &str) -> &'a mut Value {
    let mut services = engine["services"].as_array_mut().unwrap().iter_mut();
    services.find(|s| s["Spec"]["Name"] == name).unwrap()
}

pub(crate) fn task<'a>(wanted: &'a Wanted, name: &str) -> &'a TaskWanted {
    let mut tasks = wanted.tasks.iter();
    tasks.find(|t| t.name.starts_with(name)).unwrap()
}

/// A line for each service: its name, what it publishes, what Docker publishes, and what is not as usual.
pub(crate) fn services(wanted: &Wanted) -> String {
    let mut lines: Vec<String> = wanted
        .services
        .iter()
        .map(|wanted| {
            let service = &wanted.service;
            let mut line = service.name.clone();
            for port in &service.ports {
                write!(line, " {port}").unwrap();
            }
            for port in &wanted.left_to_docker {
                write!(line, " {port}(docker)").unwrap();
            }
            for place in &service.networks {
                write!(line, " on {}", place.name).unwrap();
                for alias in &place.aliases {
                    write!(line, "={alias}").unwrap();
                }
                if let Some(vip) = place.vip {
                    write!(line, "@{vip}").unwrap();
                }
            }
            if let Some(stack) = &service.stack {
                write!(line, " of {stack}").unwrap();
            }
            writeln!(line, " {:?}", service.endpoint_mode).unwrap();
            line
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// A line for each task: its name up to the identities in it, slot, place and state.
pub(crate) fn tasks(wanted: &Wanted) -> String {
    let mut lines: Vec<String> = wanted
        .tasks
        .iter()
        .map(|task| {
            let name: Vec<&str> = task
                .name
                .split('.')
                .filter(|part| part.len() < 25)
                .collect();
            let place = match &task.place {
                Place::Netns(path) => path.parent().unwrap().display().to_string(),
                Place::Pid(_) => "pid".to_owned(),
                Place::Node => "node".to_owned(),
            };
            let service = task.service.as_ref().map_or("-", |id| id.as_str());
            let service = if service.len() == 25 {
                "swarm's"
            } else {
                service
            };
            format!(
                "{} of {service} slot {:?} weight {:?} {place} {:?}{} {}\n",
                name.join("."),
                task.slot,
                task.weight,
                task.state,
                if task.checked { " checked" } else { "" },
                task.reason.as_deref().unwrap_or_default(),
            )
        })
        .collect();
    lines.sort();
    lines.concat().replace(" \n", "\n")
}

/// What is wrong, a line each.
pub(crate) fn diagnostics(wanted: &Wanted) -> Vec<String> {
    let found = wanted.diagnostics.iter();
    found
        .map(|finding| finding.diagnostic.to_string())
        .collect()
}
