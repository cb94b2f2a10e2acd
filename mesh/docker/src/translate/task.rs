//! The tasks of this node: its own containers.

use std::collections::BTreeMap;

use portolan_model::{Endpoint, Service, ServiceId, TaskId, TaskState};
use portolan_provider::Labels;

use super::{Finding, Place, TaskWanted, network::Networks, plain};
use crate::observed::{Container, ContainerState, Health, Observed, Progress, SwarmTask};

const TASK_LABEL: &str = "com.docker.swarm.task.id";
const TASK_NAME_LABEL: &str = "com.docker.swarm.task.name";
const SERVICE_LABEL: &str = "com.docker.swarm.service.id";
const SERVICE_NAME_LABEL: &str = "com.docker.swarm.service.name";

/// As many digits of a container's identity as Docker shows.
const SHORT_ID: usize = 12;
/// As much of a HEALTHCHECK's output as fits a line.
const MAX_OUTPUT: usize = 120;

/// What is needed of a task's labels.
struct Membership {
    service: Option<ServiceId>,
    slot: Option<u32>,
    weight: Option<u16>,
}

/// Whether no Swarm started a container.
pub(super) fn is_plain(container: &Container) -> bool {
    !container.labels.contains_key(TASK_LABEL)
}

/// The tasks of all containers, in the order of their identities.
pub(super) fn tasks(
    observed: &Observed,
    networks: &Networks,
    findings: &mut Vec<Finding>,
) -> Vec<TaskWanted> {
    let of_swarm: BTreeMap<&str, &SwarmTask> = observed
        .tasks
        .iter()
        .map(|task| (task.id.as_str(), task))
        .collect();
    let mut containers: Vec<&Container> = observed.containers.iter().collect();
    containers.sort_by_key(|container| &container.id);
    let mut tasks: BTreeMap<TaskId, TaskWanted> = BTreeMap::new();
    for container in containers {
        let task_id = container.labels.get(TASK_LABEL).map(String::as_str);
        let swarm_task = task_id.and_then(|id| of_swarm.get(id).copied());
        let Some((state, reason)) = state(container, swarm_task) else {
            continue;
        };
        let Some(place) = place(container) else {
            continue;
        };
        let endpoints = endpoints(container, networks);
        let member = match task_id {
            Some(_) => member_of_swarm(container),
            None => member_by_labels(container, !endpoints.is_empty()),
        };
        let Some(member) = member else { continue };
        if task_id.is_some() && is_orphan(container, swarm_task) {
            findings.push(orphan(container, member.service.as_ref()));
            continue;
        }
        let short = container.id.get(..SHORT_ID).unwrap_or(&container.id);
        let Ok(id) = task_id.unwrap_or(short).parse::<TaskId>() else {
            continue;
        };
        if let Some(other) = tasks.get(&id) {
            findings.push(twin(container, other));
            continue;
        }
        let task = TaskWanted {
            id: id.clone(),
            name: container.name.clone(),
            container: container.id.clone(),
            service: member.service,
            slot: member.slot,
            weight: member.weight,
            place,
            started_ms: container.started_ms,
            endpoints,
            state,
            checked: container.health.is_some(),
            reason,
        };
        tasks.insert(id, task);
    }
    tasks.into_values().collect()
}

/// Whether a task may get flows, and why not; `None` if it does not run.
fn state(container: &Container, task: Option<&SwarmTask>) -> Option<(TaskState, Option<String>)> {
    match container.state {
        ContainerState::Running | ContainerState::Paused => {}
        ContainerState::Restarting | ContainerState::Ended => return None,
    }
    let because = |state, reason: &str| Some((state, Some(reason.to_owned())));
    if container.stopping {
        return because(TaskState::Draining, "its container is being stopped");
    }
    if task.is_some_and(|task| task.desired == Progress::After) {
        return because(TaskState::Draining, "the Swarm wants it to end");
    }
    if container.state == ContainerState::Paused {
        return because(
            TaskState::Unhealthy,
            "its container is paused (`docker unpause` ends that)",
        );
    }
    match &container.health {
        Some(Health::Starting) => {
            because(TaskState::Starting, "its HEALTHCHECK has not passed yet")
        }
        Some(Health::Unhealthy(output)) => {
            let line = output.lines().next().unwrap_or_default();
            let line: String = line.chars().filter(|c| !c.is_control()).collect();
            let line: String = line.chars().take(MAX_OUTPUT).collect();
            let colon = if line.is_empty() { "" } else { ": " };
            because(
                TaskState::Unhealthy,
                &format!("its HEALTHCHECK fails{colon}{line}"),
            )
        }
        Some(Health::Healthy) | None => Some((TaskState::Healthy, None)),
    }
}

/// Whether a container runs behind the Swarm's back. The Swarm starts each container once; one that was
/// started again (`docker restart`, `docker start`) runs beside the task that has replaced it. A manager
/// also sees that the task is over; there, as on a worker, it may not have heard of a start yet.
fn is_orphan(container: &Container, task: Option<&SwarmTask>) -> bool {
    container.restarted || task.is_some_and(|task| task.state == Progress::After)
}

fn orphan(container: &Container, service: Option<&ServiceId>) -> Finding {
    Finding::new(
        service,
        &format!("container {}", container.name),
        "",
        "it was started again behind the Swarm's back, which has replaced it, and gets no connections",
        &format!("remove it with `docker rm -f {}`", container.name),
    )
}

fn twin(container: &Container, other: &TaskWanted) -> Finding {
    Finding::new(
        other.service.as_ref(),
        &format!("container {}", container.name),
        "",
        &format!(
            "container {} says that it is the same task, and counts",
            other.name
        ),
        "remove the label com.docker.swarm.task.id from what the Swarm did not start",
    )
}

/// `None` is a container that must not be served, or is no task at all.
fn member_of_swarm(container: &Container) -> Option<Membership> {
    let service: ServiceId = container.labels.get(SERVICE_LABEL)?.parse().ok()?;
    // What is wrong with the labels is said where the service is declared.
    let labels = container.labels.iter();
    let labels = labels.map(|(name, text)| (name.as_str(), text.as_str()));
    let labels = Labels::apply(labels, "", &mut Service::new(service.clone()));
    labels.enabled.then_some(Membership {
        slot: slot(container),
        service: Some(service),
        weight: labels.weight,
    })
}

/// `on_ours`: it is on a network of Portolan's driver, and so attached even if it is no task.
fn member_by_labels(container: &Container, on_ours: bool) -> Option<Membership> {
    let attached = on_ours.then_some(Membership {
        service: None,
        slot: None,
        weight: None,
    });
    if !plain::is_labelled(container) {
        return attached;
    }
    let Ok(plain) = plain::read(container) else {
        return attached;
    };
    if !plain.labels.enabled {
        return attached;
    }
    Some(Membership {
        service: Some(plain.service.id),
        slot: plain.labels.slot.or(plain.number).filter(|slot| *slot > 0),
        weight: plain.labels.weight,
    })
}

/// The slot that is in the name of a task, `<service>.<slot>.<task id>`; a global service has the node's
/// identity there.
fn slot(container: &Container) -> Option<u32> {
    let label = |name| container.labels.get(name);
    let rest = label(TASK_NAME_LABEL)?.strip_prefix(label(SERVICE_NAME_LABEL)?.as_str())?;
    let rest = rest.strip_suffix(label(TASK_LABEL)?.as_str())?;
    let slot = rest.strip_prefix('.')?.strip_suffix('.')?;
    slot.parse().ok().filter(|slot| *slot > 0)
}

fn place(container: &Container) -> Option<Place> {
    if container.on_host_network {
        return Some(Place::Node);
    }
    let sandbox = container.sandbox.clone().map(Place::Netns);
    // One that shares the network of another container has no sandbox of its own.
    sandbox.or_else(|| (container.pid > 0).then_some(Place::Pid(container.pid)))
}

fn endpoints(container: &Container, networks: &Networks) -> Vec<Endpoint> {
    let on_ours = container.networks.iter().filter_map(|endpoint| {
        Some(Endpoint {
            network: networks.name(&endpoint.id)?.clone(),
            ip: endpoint.address?.into(),
            mac: endpoint.mac,
        })
    });
    on_ours.collect()
}
