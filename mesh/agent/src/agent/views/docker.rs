//! The Docker engine, and what it says of services.

use portolan_docker::Link;
use portolan_model::ServiceView;

use super::Facts;
use crate::{api::DockerRow, config::DockerChoice};

impl Facts {
    /// The engine that is followed.
    pub(super) fn docker(&self) -> Option<DockerRow> {
        let (seen, socket) = self.docker.as_ref().zip(self.config.docker.socket())?;
        let engine = seen.known.as_ref().map(|known| &known.observed.engine);
        let (state, reason) = match &seen.link {
            Link::Connecting => ("connecting", ""),
            Link::Up => ("up", ""),
            Link::Troubled(reason) => ("troubled", reason.as_str()),
            Link::Down(reason) if self.no_docker_is_fine() => ("absent", reason.as_str()),
            Link::Down(reason) => ("down", reason.as_str()),
        };
        let swarm = engine.and_then(|engine| engine.swarm.as_ref());
        Some(DockerRow {
            socket: socket.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            version: engine
                .map(|engine| engine.version.clone())
                .unwrap_or_default(),
            swarm: swarm
                .map_or("", |swarm| if swarm.manager { "manager" } else { "worker" })
                .to_owned(),
        })
    }

    /// Nobody asked for an engine, and there never was one.
    fn no_docker_is_fine(&self) -> bool {
        let seen = self.docker.as_ref();
        let absent = |seen: &portolan_docker::Seen| {
            let link =
                matches!(&seen.link, Link::Down(reason) if reason.contains("does not exist"));
            link && seen.known.is_none()
        };
        self.config.docker == DockerChoice::Auto && seen.is_none_or(absent)
    }

    /// What is wrong with the engine. What is known of it is served meanwhile.
    pub(super) fn docker_problem(&self) -> Option<String> {
        let seen = self.docker.as_ref()?;
        match &seen.link {
            Link::Connecting | Link::Up => None,
            Link::Down(_) if self.no_docker_is_fine() => None,
            Link::Down(reason) | Link::Troubled(reason) => Some(format!("docker: {reason}")),
        }
    }

    /// What is wrong with a service as Docker asks for it; its manager knows that.
    pub(super) fn asked_wrongly(&self, view: &ServiceView) -> &[String] {
        let said = self.reasons.services.get(&view.service.id);
        said.map_or(&[], Vec::as_slice)
    }

    /// The ports of a service that Docker itself serves.
    pub(super) fn left_to_docker(&self, view: &ServiceView) -> Vec<String> {
        let known = self.docker.iter().filter_map(|seen| seen.known.as_ref());
        let wanted = known.flat_map(|known| &known.wanted.services);
        let of = wanted.filter(|wanted| wanted.service.id == view.service.id);
        let ports = of.flat_map(|wanted| &wanted.left_to_docker);
        ports
            .map(|port| format!("{port} (host, by Docker)"))
            .collect()
    }
}
