//! Nodes, networks, services and tasks, one row each.

use std::{collections::BTreeSet, net::Ipv4Addr};

use portolan_model::{
    EndpointMode, INGRESS_NETWORK, NetworkView, NodeId, NodeState, PublishMode, ServiceView,
    TaskId, TaskState, TaskView,
};

use super::{Facts, member_word, state_word};
use crate::api::{NetworkRow, NodeRow, ServiceRow, TaskRow};

impl Facts {
    /// Every member, and every node that has a record, by name.
    pub(in crate::agent) fn nodes(&self) -> Vec<NodeRow> {
        let ids: BTreeSet<&NodeId> = self
            .view
            .members
            .keys()
            .chain(self.snapshot.nodes.keys())
            .collect();
        let mut rows: Vec<NodeRow> = ids.into_iter().map(|id| self.node(id)).collect();
        rows.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        rows
    }

    /// The node that is asked.
    pub(in crate::agent) fn own_node(&self) -> NodeRow {
        self.node(&self.snapshot.me)
    }

    fn node(&self, id: &NodeId) -> NodeRow {
        let (member, record) = (self.view.members.get(id), self.snapshot.nodes.get(id));
        let name = record
            .map(|r| r.name.clone())
            .or_else(|| member.map(|m| m.name.clone()));
        let address = record
            .map(|r| r.underlay)
            .or_else(|| member.map(|m| m.addr.ip()));
        NodeRow {
            id: id.to_string(),
            name: name.unwrap_or_default(),
            address: address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            membership: member.map_or("", |m| member_word(m.state)).to_owned(),
            state: state_word(record.map(|r| r.state)).to_owned(),
            tasks: self
                .snapshot
                .tasks
                .values()
                .filter(|task| task.node == *id)
                .count(),
            version: record.map(|r| r.version.clone()).unwrap_or_default(),
            me: *id == self.snapshot.me,
        }
    }

    /// Every network, by name.
    pub(in crate::agent) fn networks(&self) -> Vec<NetworkRow> {
        self.snapshot
            .networks
            .values()
            .map(|view| self.network(view))
            .collect()
    }

    fn network(&self, view: &NetworkView) -> NetworkRow {
        let network = &view.network;
        let name = network.name.as_str();
        let slices = view.slices.iter().map(|(node, slices)| {
            let prefixes = slices.iter().map(|slice| slice.prefix.to_string());
            (self.snapshot.node_name(node), prefixes.collect())
        });
        let tasks = self.snapshot.tasks.values();
        let prefixes = [format!("overlay: {name}: "), format!("network {name}: ")];
        let parts = self.overlay.problems.iter().chain(&self.dns_problems);
        let here = parts.filter_map(|problem| {
            prefixes
                .iter()
                .find_map(|prefix| problem.strip_prefix(prefix.as_str()))
                .map(str::to_owned)
        });
        let declared = view.problems.iter().map(ToString::to_string);
        NetworkRow {
            name: name.to_owned(),
            vni: network.vni,
            subnet: network.subnet.to_string(),
            internal: network.internal,
            slices: slices.collect(),
            endpoints: tasks.filter(|task| task.endpoint(name).is_some()).count(),
            problems: declared.chain(here).collect(),
        }
    }

    /// Every service, by id.
    pub(in crate::agent) fn services(&self) -> Vec<ServiceRow> {
        let mut unserved = self.unserved();
        let views = self.snapshot.services.iter();
        views
            .map(|(id, view)| self.service(view, unserved.remove(id).unwrap_or_default()))
            .chain(self.unserved_services())
            .collect()
    }

    fn service(&self, view: &ServiceView, unserved: Vec<String>) -> ServiceRow {
        let service = &view.service;
        let vips = service
            .networks
            .iter()
            .filter_map(|n| Some((n.name.to_string(), n.vip?)));
        let ports = view.ports.iter().map(|port| match port.mode {
            PublishMode::Ingress => port.to_string(),
            PublishMode::Host => format!("{port} (host)"),
        });
        let ports = ports.chain(self.left_to_docker(view));
        let declared = view.problems.iter().map(ToString::to_string);
        ServiceRow {
            id: service.id.to_string(),
            name: service.name.clone(),
            stack: service.stack.clone(),
            endpoint_mode: match service.endpoint_mode {
                EndpointMode::Vip => "vip".to_owned(),
                EndpointMode::Dnsrr => "dnsrr".to_owned(),
            },
            vips: vips.collect(),
            ports: ports.collect(),
            ipv6: service.ipv6,
            healthy: self.count(view, TaskState::Healthy),
            tasks: view.tasks.len(),
            spec_version: service.spec_version,
            problems: declared
                .chain(self.asked_wrongly(view))
                .chain(self.without_tasks(view))
                .chain(unserved)
                .collect(),
        }
    }

    /// What is wrong with a service that has tasks of which none takes new flows.
    pub(super) fn without_tasks(&self, view: &ServiceView) -> Option<String> {
        match (view.tasks.len(), self.count(view, TaskState::Healthy)) {
            (0, _) | (_, 1..) => None,
            (1, 0) => Some("its only task takes no new flows".to_owned()),
            (tasks, 0) => Some(format!("none of its {tasks} tasks takes new flows")),
        }
    }

    fn count(&self, view: &ServiceView, state: TaskState) -> usize {
        self.snapshot
            .tasks_of(&view.service.id)
            .filter(|task| task.state == state)
            .count()
    }

    /// Every task and attachment, by service, slot and id.
    pub(in crate::agent) fn tasks(&self) -> Vec<TaskRow> {
        let mut rows: Vec<TaskRow> = self
            .snapshot
            .tasks
            .values()
            .map(|view| self.task_row(view))
            .collect();
        rows.sort_by(|a, b| (&a.service, a.slot, &a.id).cmp(&(&b.service, b.slot, &b.id)));
        rows
    }

    /// One task.
    pub(in crate::agent) fn task(&self, id: &TaskId) -> Option<TaskRow> {
        self.snapshot.tasks.get(id).map(|view| self.task_row(view))
    }

    fn task_row(&self, view: &TaskView) -> TaskRow {
        let task = &view.task;
        let service = task.service.as_ref().map(|id| {
            let known = self.snapshot.services.get(id);
            known.map_or_else(|| id.to_string(), |view| view.service.name.clone())
        });
        TaskRow {
            id: task.id.to_string(),
            name: self.snapshot.task_name(task),
            service: service.unwrap_or_default(),
            slot: task.slot,
            node: self.snapshot.node_name(&view.node),
            state: task_word(view.state).to_owned(),
            reason: self.reason(view),
            weight: task.weight,
            endpoints: task
                .endpoints
                .iter()
                .map(|e| (e.network.to_string(), e.ip))
                .collect(),
            resolver: self.resolver(view),
        }
    }

    /// Where a task may ask for names; any of its networks will do, and one of its own is the safer one.
    fn resolver(&self, view: &TaskView) -> Option<Ipv4Addr> {
        // A resolv.conf has no word for another port.
        if self.config.dns_port != 53 {
            return None;
        }
        let attached = view.task.endpoints.iter().filter(|e| e.mac.is_some());
        let (ingress, own): (Vec<_>, Vec<_>) =
            attached.partition(|e| e.network.as_str() == INGRESS_NETWORK);
        let first = own.into_iter().chain(ingress).next()?;
        self.snapshot
            .networks
            .get(&first.network)?
            .gateway(&view.node)
    }

    /// Why a task is not in rotation; empty if it is.
    fn reason(&self, view: &TaskView) -> String {
        let task = &view.task;
        let service = task
            .service
            .as_ref()
            .map(|id| self.snapshot.services.get(id));
        if let Some(local) = self.reasons.tasks.get(&task.id) {
            return local.clone();
        }
        if let Some(local) = self.reasons.containers.get(&task.id) {
            return local.clone();
        }
        let checked = service
            .flatten()
            .is_some_and(|view| view.service.health.is_some());
        match view.state {
            _ if service == Some(None) => "its service is not declared".to_owned(),
            TaskState::Starting if checked => "not checked yet".to_owned(),
            TaskState::Starting if view.node == self.snapshot.me => "not attached yet".to_owned(),
            TaskState::Starting => {
                "not ready yet; `portolan tasks` on its node says why".to_owned()
            }
            TaskState::Unhealthy => "failing its health check".to_owned(),
            TaskState::Draining if task.state == TaskState::Draining => "draining".to_owned(),
            TaskState::Draining => match self.snapshot.nodes.get(&view.node).map(|node| node.state)
            {
                Some(NodeState::Leaving) => "its node leaves".to_owned(),
                _ => "its node drains".to_owned(),
            },
            TaskState::Healthy if service.is_some() && task.weight == 0 => {
                "its weight is 0".to_owned()
            }
            TaskState::Healthy => String::new(),
        }
    }
}

/// The state of a task.
pub(in crate::agent) const fn task_word(state: TaskState) -> &'static str {
    match state {
        TaskState::Starting => "starting",
        TaskState::Healthy => "healthy",
        TaskState::Unhealthy => "unhealthy",
        TaskState::Draining => "draining",
    }
}
