//! Following what others declare, and letting go of what is over.

use std::collections::BTreeSet;

use portolan_model::{NetworkName, ServiceId, TaskId};

use super::{AttachState, Node};

/// For how long a removal is published at least, so that a node which was away learns of it.
const KEEP_REMOVAL_MS: u64 = 10 * 60 * 1000;
/// For how long a slice is kept after the last task of this node left the network.
const KEEP_SLICE_MS: u64 = 60 * 1000;

impl Node {
    /// Publishes the declarations that count: of everything declared here, and of every service and
    /// network of which there are tasks here, so that they outlive the node that declared them.
    pub(super) fn follow_declarations(&mut self, now_ms: u64) {
        let snapshot = std::sync::Arc::clone(&self.snapshot);
        let services: BTreeSet<ServiceId> = self
            .state
            .services
            .keys()
            .chain(
                self.state
                    .tasks
                    .values()
                    .filter_map(|task| task.service.as_ref()),
            )
            .cloned()
            .collect();
        for id in services {
            let alive = snapshot.services.get(&id).map(|view| &view.service);
            let Some(winner) = alive.or_else(|| snapshot.removed_services.get(&id)) else {
                continue;
            };
            if self.state.services.get(&id) != Some(winner) {
                self.state.services.insert(id.clone(), (**winner).clone());
            }
            if winner.removed {
                self.state
                    .removals
                    .entry(format!("service {id}"))
                    .or_insert(now_ms);
                self.state
                    .tasks
                    .retain(|_, task| task.service.as_ref() != Some(&id));
            }
        }
        let networks: BTreeSet<NetworkName> = self
            .state
            .networks
            .keys()
            .chain(self.state.slices.keys())
            .cloned()
            .collect();
        for name in networks {
            let alive = snapshot
                .networks
                .get(&name)
                .filter(|view| !view.declared_by.is_empty());
            let removed = snapshot.removed_networks.get(&name);
            let Some(winner) = alive.map(|view| &view.network).or(removed) else {
                continue;
            };
            if self.state.networks.get(&name) != Some(winner) {
                self.state.networks.insert(name.clone(), (**winner).clone());
            }
            if winner.removed {
                self.state
                    .removals
                    .entry(format!("network {name}"))
                    .or_insert(now_ms);
                self.state.slices.remove(&name);
            }
        }
    }

    /// Holds tasks that serve without being checked to be healthy, so that a check which the service is
    /// given later takes none of them out of rotation before it has found something.
    pub(super) fn trust_unchecked(&mut self) {
        let snapshot = std::sync::Arc::clone(&self.snapshot);
        let tasks = self.state.tasks.values();
        let awaited = tasks.filter(|task| !self.awaited_ports(task).is_empty());
        let awaited: BTreeSet<TaskId> = awaited.map(|task| task.id.clone()).collect();
        let unchecked = |id: &ServiceId| {
            let view = snapshot.services.get(id);
            view.is_some_and(|view| view.service.health.is_none())
        };
        for task in self.state.tasks.values_mut() {
            let attached = self.attach.get(&task.id) == Some(&AttachState::Attached);
            if attached
                && !awaited.contains(&task.id)
                && task.service.as_ref().is_some_and(unchecked)
            {
                task.healthy = Some(true);
            }
        }
    }

    /// Removes tasks whose drain is over, unless they are Docker's, which says when they are gone, removals that everyone knows, and slices that no one needs.
    pub(super) fn expire(&mut self, now_ms: u64) {
        self.state.tasks.retain(|_, task| {
            task.docker.is_some() || task.drain_until_ms.is_none_or(|until| now_ms < until)
        });
        let me = self.identity.id;
        let over =
            |since: Option<&u64>| since.is_none_or(|since| since + KEEP_REMOVAL_MS <= now_ms);
        let (removals, catalog) = (&self.state.removals, &self.catalog);
        self.state.services.retain(|id, service| {
            !service.removed
                || !over(removals.get(&format!("service {id}")))
                || catalog.repeats_older_service(me, id, service.spec_version)
        });
        self.state.networks.retain(|name, network| {
            !network.removed
                || !over(removals.get(&format!("network {name}")))
                || catalog.repeats_older_network(me, name, network.spec_version)
        });
        let (services, networks) = (&self.state.services, &self.state.networks);
        self.state.removals.retain(|key, _| {
            services
                .values()
                .any(|s| s.removed && *key == format!("service {}", s.id))
                || networks
                    .values()
                    .any(|n| n.removed && *key == format!("network {}", n.name))
        });
        let tasks = self.state.tasks.values();
        let mut used = self.driver_networks();
        used.extend(tasks.flat_map(|task| task.networks.iter().cloned()));
        self.state.slices.retain(|network, held| {
            if used.contains(network) || *network == NetworkName::ingress() {
                held.unused_since_ms = None;
                return true;
            }
            now_ms < *held.unused_since_ms.get_or_insert(now_ms) + KEEP_SLICE_MS
        });
    }

    /// Every moment at which something is over.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = u64> + '_ {
        let drains = self
            .state
            .tasks
            .values()
            .filter_map(|task| task.drain_until_ms);
        let removals = self
            .state
            .removals
            .values()
            .map(|since| since + KEEP_REMOVAL_MS);
        let slices = self.state.slices.values();
        let slices = slices.filter_map(|held| Some(held.unused_since_ms? + KEEP_SLICE_MS));
        let tasks = self.state.tasks.values();
        let drained = tasks
            .filter(|task| task.service.is_some())
            .filter_map(|task| {
                Some(self.state.draining_since_ms? + u64::from(self.drain_ms(task)))
            });
        drains.chain(removals).chain(slices).chain(drained)
    }

    /// Lets no moment that was noted lie in a future which the clock, set back, has yet to reach: whatever
    /// began then counts as begun now.
    pub(super) fn mind_the_clock(&mut self, now_ms: u64) {
        let longest: Vec<u64> = self
            .state
            .tasks
            .values()
            .map(|task| now_ms + u64::from(self.drain_ms(task)))
            .collect();
        for (task, longest) in self.state.tasks.values_mut().zip(longest) {
            task.drain_until_ms = task.drain_until_ms.map(|until| until.min(longest));
        }
        let state = &mut self.state;
        let unused = state
            .slices
            .values_mut()
            .map(|held| &mut held.unused_since_ms);
        for since in unused.chain([&mut state.draining_since_ms]) {
            *since = since.map(|since| since.min(now_ms));
        }
        for since in state.removals.values_mut() {
            *since = now_ms.min(*since);
        }
    }
}
