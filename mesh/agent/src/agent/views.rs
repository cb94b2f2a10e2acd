//! What the agent shows of itself and of the cluster: the rows of the admin API, as pure functions of
//! [`Facts`].

mod docker;
mod ipv6;
mod planes;
mod rows;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use portolan_docker::Seen;
use portolan_gossip::{KeyId, Member, MemberState, View};
use portolan_model::{NodeState, Snapshot};

pub(super) use rows::task_word;

use super::{
    overlay_thread::OverlayStanding, plane_thread::PlanesStanding, runner::Reasons, shared::Shared,
};
use crate::{
    api::{Counts, Joining, Status},
    config::Config,
};

/// All that is known at one moment, so that what is shown together fits together.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub config: Arc<Config>,
    pub now: SystemTime,
    /// How long the agent has run.
    pub uptime: Duration,
    pub snapshot: Arc<Snapshot>,
    pub view: Arc<View>,
    pub reasons: Reasons,
    pub overlay: OverlayStanding,
    /// How the planes stand; `None` until they were given a snapshot.
    pub planes: Option<PlanesStanding>,
    /// What is seen of the Docker engine; `None` if none is followed.
    pub docker: Option<Seen>,
    pub dns_problems: Vec<String>,
    /// The key that gossip is sent with; `None` without keys.
    pub key: Option<KeyId>,
    /// What keeps the node from being ready.
    pub waiting_for: Vec<String>,
}

impl Facts {
    /// Asks every part.
    pub(super) async fn gather(shared: &Shared) -> Self {
        // Without keys, and once gossip has ended, there is none to be shown.
        let keys = shared.gossip.keyring_list().await.unwrap_or_default();
        Self {
            config: Arc::clone(&shared.config),
            now: SystemTime::now(),
            uptime: shared.started.elapsed(),
            snapshot: shared.snapshot(),
            view: shared.view(),
            reasons: shared.reasons(),
            overlay: shared.overlay_standing(),
            planes: shared.plane_standing(),
            docker: shared.docker_seen(),
            dns_problems: shared.dns.problems(),
            key: keys.iter().find(|key| key.primary).map(|key| key.id),
            waiting_for: shared
                .waiting_for()
                .into_iter()
                .map(str::to_owned)
                .collect(),
        }
    }

    /// The node on one screen.
    pub(super) fn status(&self) -> Status {
        Status {
            node: self.config.name.clone(),
            advertise: self.config.advertise,
            version: super::VERSION.to_owned(),
            state: self.own_state().to_owned(),
            uptime_s: self.uptime.as_secs(),
            waiting_for: self.waiting_for.clone(),
            members: self.members(),
            encryption: self
                .key
                .map_or_else(|| "off".to_owned(), |key| format!("on, key {key}")),
            table_hash: format!("{:016x}", self.view.table_hash),
            planes: self.planes(),
            pins: self
                .planes
                .as_ref()
                .map(|planes| planes.fast.pins.clone())
                .unwrap_or_default(),
            docker: self.docker(),
            overlay_mtu: self.overlay.mtu,
            ports: self.ports(),
            counts: Counts {
                nodes: self.snapshot.nodes.len(),
                networks: self.snapshot.networks.len(),
                services: self.snapshot.services.len(),
                tasks: self.snapshot.tasks.len(),
            },
            problems: self.problems(),
        }
    }

    /// What the next node has to be told.
    pub(super) fn joining(&self) -> Joining {
        let config = &self.config;
        Joining {
            join: SocketAddr::new(config.advertise, config.gossip_port),
            key_file: config.key_file.clone(),
            key: self.key.map(|key| key.to_string()),
            cluster: config.cluster.clone(),
            data_path_port: config.data_path_port,
            swarm: self.is_in_swarm(),
        }
    }

    fn own_state(&self) -> &'static str {
        state_word(
            self.snapshot
                .nodes
                .get(&self.snapshot.me)
                .map(|node| node.state),
        )
    }

    /// Members by state: the living always, of the others those states that occur.
    fn members(&self) -> Vec<(String, usize)> {
        let mut counts = BTreeMap::from([(MemberState::Alive, 0)]);
        for member in self.view.members.values() {
            *counts.entry(member.state).or_insert(0) += 1;
        }
        counts
            .into_iter()
            .map(|(state, count)| (member_word(state).to_owned(), count))
            .collect()
    }

    /// Everything that is not as it should be: of the node itself first, then members, then objects.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = self.reasons.problems.clone();
        problems.extend(self.docker_problems());
        problems.extend(self.overlay.problems.iter().cloned());
        problems.extend(self.plane_problems());
        problems.extend(self.ipv6_problem());
        problems.extend(self.dns_problems.iter().cloned());
        problems.extend(self.reasons.tasks.iter().map(|(id, reason)| {
            let task = self.snapshot.tasks.get(id);
            let name = task.map_or_else(
                || id.to_string(),
                |view| self.snapshot.task_name(&view.task),
            );
            format!("task {name}: {reason}")
        }));
        let down = self
            .view
            .members
            .values()
            .filter(|member| member.state == MemberState::Down);
        problems.extend(down.map(|member| self.member_problem(member)));
        problems.extend(self.snapshot.networks.values().flat_map(|view| {
            view.problems
                .iter()
                .map(|problem| format!("network {}: {problem}", view.network.name))
        }));
        let encrypted = self.snapshot.networks.values();
        let encrypted = encrypted.filter(|view| view.network.encrypted);
        problems.extend(encrypted.map(|view| {
            let name = &view.network.name;
            format!("network {name}: it asks for encryption, which this version does not have: its packets travel in the clear")
        }));
        problems.extend(self.snapshot.services.values().flat_map(|view| {
            let declared = view.problems.iter().map(ToString::to_string);
            let all = declared
                .chain(self.asked_wrongly(view))
                .chain(self.without_tasks(view));
            all.map(|problem| format!("service {}: {problem}", view.service.name))
        }));
        problems
    }

    fn member_problem(&self, member: &Member) -> String {
        let down = self.now.duration_since(member.since).unwrap_or_default();
        format!(
            "member {} ({}) has been down for {}",
            member.name,
            member.addr.ip(),
            ago(down)
        )
    }
}

/// How gossip sees a member.
pub(super) const fn member_word(state: MemberState) -> &'static str {
    match state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
        MemberState::Left => "left",
    }
}

/// What a node says of itself; empty if it has not said anything.
const fn state_word(state: Option<NodeState>) -> &'static str {
    match state {
        Some(NodeState::Up) => "up",
        Some(NodeState::Draining) => "draining",
        Some(NodeState::Leaving) => "leaving",
        None => "",
    }
}

/// A length of time, rounded down to one unit.
fn ago(time: Duration) -> String {
    match time.as_secs() {
        s @ ..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
