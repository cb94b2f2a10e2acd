//! From what the engine says to what Portolan is to serve.

mod network;
mod plain;
mod service;
mod task;
mod version;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use ipnetwork::Ipv4Network;
use portolan_model::{Endpoint, NetworkName, PublishedPort, Service, ServiceId, TaskId, TaskState};
use portolan_provider::Diagnostic;

use crate::observed::{Kind, Observed};
use network::Networks;
pub(crate) use network::is_ours as is_our_driver;
pub use version::{is_of_swarm, is_same_state};

/// What follows from all that is known of one engine. Everything is in the order of its identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The services that this engine declares: those of the Swarm if it is a manager, and those that the
    /// labels of its own containers describe.
    pub services: Vec<ServiceWanted>,
    /// The networks of Portolan's driver that this engine declares, the Swarm's if it is a manager.
    pub networks: Vec<NetworkWanted>,
    /// The tasks of this node.
    pub tasks: Vec<TaskWanted>,
    /// Whether the Swarm's services and networks are all there: what was and is not any more is removed.
    /// Without this, absence says nothing of them.
    pub knows_swarm: bool,
    /// The addresses of the Swarm's other nodes, as far as this one knows them.
    pub peers: BTreeSet<IpAddr>,
    /// What is wrong, with its remedy.
    pub diagnostics: Vec<Finding>,
}

/// Where a declaration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From the Swarm: every manager declares the same.
    Swarm,
    /// From this engine alone: the labels of its containers, or a network outside of any Swarm. A service of
    /// labels stands as long as there is a task of it on any node.
    Engine,
}

/// A service to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceWanted {
    /// The declaration. Published ports still to be chosen are 0. A VIP is one that the Swarm has assigned;
    /// on other networks there is none yet. `created_ms` and `spec_version` are the same on every manager.
    ///
    /// Of `spec_version` the lowest 20 bits are 0, which leaves room for versions with what the agent adds, and
    /// for a removal: a service that is not wanted any more, and later is again (`--publish-rm`,
    /// `--publish-add`), has a version above that of its removal. It is above any clock too, so that the
    /// version after it is the next number whoever counts.
    pub service: Service,
    /// Who declares it.
    pub origin: Origin,
    /// The ports in host mode, for which Docker's own means listen: to be shown, not served.
    pub left_to_docker: Vec<PublishedPort>,
}

/// A network of Portolan's driver to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkWanted {
    /// Its name.
    pub name: NetworkName,
    /// Its identity in Docker.
    pub id: String,
    /// Where its addresses come from.
    pub subnet: Option<Ipv4Network>,
    /// The VNI that the driver was given or has chosen; `None` leaves it to the agent.
    pub vni: Option<u32>,
    /// Nothing is forwarded out of it.
    pub internal: bool,
    /// Its packets are to be encrypted between nodes.
    pub encrypted: bool,
    /// When it was created, Unix milliseconds. It does not change from then on.
    pub created_ms: u64,
    /// Greater for one that is created later under the same name; see [`ServiceWanted::service`].
    pub spec_version: u64,
    /// Who declares it.
    pub origin: Origin,
}

/// A task of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskWanted {
    /// Its identity: that of the Swarm's task, or the first twelve digits of the container's.
    pub id: TaskId,
    /// The container's name.
    pub name: String,
    /// The container's identity.
    pub container: String,
    /// Its service; `None` for a container that only is on a network of Portolan's driver. On a worker the
    /// definition of it comes from the managers; a service of which there is none is not for Portolan.
    pub service: Option<ServiceId>,
    /// Its number within the service, from 1; `None` leaves that to the agent.
    pub slot: Option<u32>,
    /// Its share of new flows; `None` is that of every task.
    pub weight: Option<u16>,
    /// What is to be attached. Another one after every start of the container.
    pub place: Place,
    /// When the container was started, Unix milliseconds.
    pub started_ms: u64,
    /// Its endpoints on networks of Portolan's driver, with the addresses that Docker gave.
    pub endpoints: Vec<Endpoint>,
    /// Whether it may get flows, as far as Docker knows.
    pub state: TaskState,
    /// Whether a HEALTHCHECK stands behind the state. Without one a task that has just started is called
    /// healthy before it listens.
    pub checked: bool,
    /// Why it is not in rotation, in the words of a user.
    pub reason: Option<String>,
}

/// Where a task's packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Into the network namespace of this path.
    Netns(PathBuf),
    /// Into the network namespace of this process.
    Pid(u32),
    /// To the node itself: the container has no network namespace of its own.
    Node,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The service that it concerns; `None` is the engine or an object without a service.
    pub service: Option<ServiceId>,
    /// What it is, and what to do about it.
    pub diagnostic: Diagnostic,
}

impl Finding {
    fn new(
        service: Option<&ServiceId>,
        source: &str,
        path: &str,
        message: &str,
        remedy: &str,
    ) -> Self {
        Self {
            service: service.cloned(),
            diagnostic: Diagnostic::of_object(source, path, message, Some(remedy)),
        }
    }
}

/// Says what follows from all that is known of one engine.
///
/// The same objects give the same result in whatever order the engine lists them, and the services and
/// networks of a Swarm are the same on each of its managers.
pub fn translate(observed: &Observed) -> Wanted {
    let swarm = observed.engine.swarm.as_ref();
    let mut wanted = Wanted {
        knows_swarm: swarm.is_some_and(|swarm| swarm.manager),
        peers: peers(observed),
        ..Wanted::default()
    };
    complain_of_the_engine(observed, &mut wanted.diagnostics);
    let networks = Networks::new(observed, &mut wanted);
    let mut services: BTreeMap<ServiceId, ServiceWanted> = BTreeMap::new();
    for service in &observed.services {
        let read = service::of_swarm(service, &networks, &mut wanted.diagnostics);
        services.extend(read.map(|read| (read.service.id.clone(), read)));
    }
    let plain = plain::services(observed, &networks, &mut wanted.diagnostics);
    services.extend(plain.into_iter().map(|s| (s.service.id.clone(), s)));
    wanted.tasks = task::tasks(observed, &networks, &mut wanted.diagnostics);
    if wanted.knows_swarm {
        // Here it is known which services are none of ours.
        let ours = |id: &ServiceId| {
            services.contains_key(id) || observed.services.iter().all(|s| s.id != id.as_str())
        };
        wanted
            .tasks
            .retain(|task| task.service.as_ref().is_none_or(ours));
    }
    wanted.services = services.into_values().collect();
    wanted
        .diagnostics
        .sort_by_key(|finding| (finding.service.clone(), finding.diagnostic.to_string()));
    wanted.diagnostics.dedup();
    wanted
}

/// The Swarm's other nodes.
fn peers(observed: &Observed) -> BTreeSet<IpAddr> {
    let Some(swarm) = &observed.engine.swarm else {
        return BTreeSet::new();
    };
    let nodes = observed
        .nodes
        .iter()
        .filter(|node| node.id != swarm.node_id);
    let nodes = nodes.filter_map(|node| node.address);
    let all = nodes.chain(swarm.managers.iter().copied());
    all.filter(|address| Some(*address) != swarm.address)
        .collect()
}

fn complain_of_the_engine(observed: &Observed, findings: &mut Vec<Finding>) {
    for object in &observed.unreadable {
        let name = if object.name.is_empty() {
            &object.id
        } else {
            &object.name
        };
        let service = object
            .id
            .parse()
            .ok()
            .filter(|_| object.kind == Kind::Service);
        findings.push(Finding::new(
            service.as_ref(),
            &format!("{} {name}", object.kind),
            "",
            &format!("what the engine says of it makes no sense: {}", object.reason),
            "tell the makers of Portolan, with what `docker inspect` prints; what was read of it last stays",
        ));
    }
    let Some(swarm) = &observed.engine.swarm else {
        return;
    };
    let remedy = match swarm.state.as_str() {
        "active" => return,
        "locked" => "unlock it with `docker swarm unlock`",
        _ => "see `docker info`; what the Swarm declared last is served meanwhile",
    };
    let why = if swarm.error.is_empty() {
        String::new()
    } else {
        format!(": {}", swarm.error)
    };
    let message = format!("its part in the Swarm is {}{why}", swarm.state);
    findings.push(Finding::new(None, "docker", "", &message, remedy));
}
