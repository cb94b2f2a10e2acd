//! The Docker engine, and what it says of services.

use portolan_docker::{Known, Link};
use portolan_model::{ServiceId, ServiceView};

use super::Facts;
use crate::{
    api::{DockerRow, ServiceRow},
    config::{Config, DockerChoice},
};

impl Facts {
    /// The engine that is followed.
    pub(super) fn docker(&self) -> Option<DockerRow> {
        let (seen, socket) = self.docker.as_ref().zip(self.config.docker.socket())?;
        let engine = seen.known.as_ref().map(|known| &known.observed.engine);
        let (state, reason) = match &seen.link {
            Link::Connecting => ("connecting", ""),
            Link::Up => ("up", ""),
            Link::Troubled(reason) => ("troubled", reason.as_str()),
            Link::Absent(reason) if self.no_engine_is_fine() => ("absent", reason.as_str()),
            Link::Absent(reason) | Link::Down(reason) => ("down", reason.as_str()),
        };
        let version = engine.map(|engine| engine.version.clone());
        let swarm = engine.and_then(|engine| engine.swarm.as_ref());
        let part = match swarm.map(|swarm| swarm.manager) {
            None => "",
            Some(true) => "manager",
            Some(false) => "worker",
        };
        Some(DockerRow {
            socket: socket.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            version: version.unwrap_or_default(),
            swarm: part.to_owned(),
        })
    }

    fn known(&self) -> Option<&Known> {
        self.docker.as_ref()?.known.as_deref()
    }

    /// Whether the engine is one of a Swarm.
    pub(super) fn is_in_swarm(&self) -> bool {
        let known = self.known();
        known.is_some_and(|known| known.observed.engine.swarm.is_some())
    }

    /// Nobody asked for an engine, and there never was one.
    fn no_engine_is_fine(&self) -> bool {
        self.config.docker == DockerChoice::Auto && self.known().is_none()
    }

    /// What is wrong with the engine, and with what it asks for that is no service. What was known last is served
    /// meanwhile.
    pub(super) fn docker_problems(&self) -> Vec<String> {
        let link = match self.docker.as_ref().map(|seen| &seen.link) {
            None | Some(Link::Connecting | Link::Up) => None,
            Some(Link::Absent(_)) if self.no_engine_is_fine() => None,
            Some(Link::Absent(reason) | Link::Down(reason) | Link::Troubled(reason)) => {
                Some(format!("docker: {reason}"))
            }
        };
        let taken = self.is_in_swarm().then(|| ports_of_swarm(&self.config));
        let unserved = self.unserved_services().into_iter().flat_map(|row| {
            let problems = row.problems.into_iter();
            problems.map(move |problem| format!("service {}: {problem}", row.name))
        });
        let taken = taken.into_iter().flatten();
        link.into_iter().chain(taken).chain(unserved).collect()
    }

    /// Services that Docker asks for and that are not declared, because something is wrong with them.
    pub(super) fn unserved_services(&self) -> Vec<ServiceRow> {
        let said = self.reasons.services.iter();
        let unserved = said.filter(|(id, _)| !self.snapshot.services.contains_key(*id));
        let name = |id: &ServiceId| {
            let mut services = self.known()?.observed.services.iter();
            let service = services.find(|service| service.id == id.as_str())?;
            // As it is printed.
            service.name.parse::<ServiceId>().ok()
        };
        let named = unserved.map(|(id, problems)| {
            let name = name(id).unwrap_or_else(|| id.clone()).to_string();
            (id, name, problems)
        });
        let rows = named.map(|(id, name, problems)| ServiceRow {
            id: id.to_string(),
            problems: without_name(&name, problems).collect(),
            name,
            stack: None,
            endpoint_mode: String::new(),
            vips: Vec::new(),
            ports: Vec::new(),
            ipv6: false,
            healthy: 0,
            tasks: 0,
            spec_version: 0,
        });
        rows.collect()
    }

    /// What is wrong with a service as Docker asks for it; who declares it knows that.
    pub(super) fn asked_wrongly(&self, view: &ServiceView) -> impl Iterator<Item = String> {
        let said = self.reasons.services.get(&view.service.id);
        without_name(&view.service.name, said.into_iter().flatten())
    }

    /// The ports of a service that Docker itself serves.
    pub(super) fn left_to_docker(&self, view: &ServiceView) -> Vec<String> {
        let wanted = self.known().into_iter().flat_map(|k| &k.wanted.services);
        let of = wanted.filter(|wanted| wanted.service.id == view.service.id);
        let ports = of.flat_map(|wanted| &wanted.left_to_docker);
        ports
            .map(|port| format!("{port} (host, by Docker)"))
            .collect()
    }
}

/// Problems as they are said of a service that is named already.
fn without_name<'a>(
    name: &str,
    problems: impl IntoIterator<Item = &'a String>,
) -> impl Iterator<Item = String> {
    let prefix = format!("service {name}: ");
    let problems = problems.into_iter();
    problems.map(move |problem| problem.strip_prefix(&prefix).unwrap_or(problem).to_owned())
}

/// Ports of the agent that a Swarm has to have.
fn ports_of_swarm(config: &Config) -> impl Iterator<Item = String> + use<> {
    let held = [
        ("gossip", config.gossip_port, 7946, "--gossip-port"),
        (
            "the overlay",
            config.data_path_port,
            4789,
            "--data-path-port",
        ),
    ];
    let taken = held
        .into_iter()
        .filter(|(_, port, swarms, _)| port == swarms);
    taken.map(|(part, port, _, flag)| {
        format!(
            "{part} has port {port}, which the Swarm needs on each of its nodes; leave {flag} out and restart the agent, \
             which takes another one beside Docker"
        )
    })
}
