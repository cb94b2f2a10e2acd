//! Declaring services and networks: applying a stack file, and removing what it declared.

use std::{net::IpAddr, sync::Arc};

use ipnetwork::Ipv4Network;
use portolan_model::{
    EncodeError, Network, NetworkName, PublishedPort, Record, Service, ServiceNetwork, Snapshot,
    claims,
};
use portolan_provider::{Stack, StackNetwork};

use super::Node;
use crate::api::{Applied, Removed};

/// Why a declaration cannot stand. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeclareError {
    #[error("port {published}/{protocol} is already published by service {holder}; publish another one for {service}, or remove {holder} first", published = port.published, protocol = port.protocol)]
    PortTaken {
        service: String,
        port: PublishedPort,
        holder: String,
    },
    #[error(
        "network {name}: subnet {subnet} overlaps {other_subnet} of network {other}; give it another one"
    )]
    SubnetTaken {
        name: String,
        subnet: String,
        other: String,
        other_subnet: String,
    },
    #[error(
        "network {name}: subnet {subnet} holds {address}, at which node {node} is reached; give it another one"
    )]
    SubnetOfNodes {
        name: String,
        subnet: String,
        node: String,
        address: IpAddr,
    },
    #[error(
        "network {name} has subnet {present}, and a network in use cannot change to {wanted}; remove it first (`portolan rm {name}`)"
    )]
    SubnetFixed {
        name: String,
        present: String,
        wanted: String,
    },
    #[error("network {0} is external and not declared yet; apply the stack that declares it first")]
    NoExternal(String),
    #[error("network {network} is still used by {user}; remove that first")]
    NetworkUsed { network: String, user: String },
    #[error("network {0} is built in")]
    BuiltIn(String),
    #[error(
        "there is no stack, service or network '{0}'; `portolan services` and `portolan networks` list them"
    )]
    Unknown(String),
    #[error(transparent)]
    Exhausted(#[from] claims::Exhausted),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl Node {
    /// Declares the networks and services of a stack; what is declared alike already keeps its version,
    /// its VIPs and the ports that were chosen for it. All or nothing.
    pub(crate) fn apply(
        &mut self,
        stack: &Stack,
        prune: bool,
        now_ms: u64,
    ) -> Result<Applied, Vec<DeclareError>> {
        let before = self.state.clone();
        let mut applied = Applied {
            ignored: stack.ignored.clone(),
            ..Applied::default()
        };
        let mut errors = Vec::new();
        for network in &stack.networks {
            if let Err(error) =
                self.apply_network(network, stack.name.as_deref(), now_ms, &mut applied)
            {
                errors.push(error);
            }
            self.rebuild(now_ms);
        }
        for service in &stack.services {
            self.apply_service(service, now_ms, &mut applied, &mut errors);
            self.rebuild(now_ms);
        }
        if prune && errors.is_empty() {
            self.prune(stack, now_ms, &mut applied);
        }
        if errors.is_empty() {
            Ok(applied)
        } else {
            self.state = before;
            self.refresh(now_ms);
            Err(errors)
        }
    }

    /// Removes a stack with all its services and networks, a service, or a network that no one uses.
    pub(crate) fn remove(&mut self, name: &str, now_ms: u64) -> Result<Removed, DeclareError> {
        let snapshot = Arc::clone(&self.snapshot);
        let of_stack = |stack: &Option<String>| stack.as_deref() == Some(name);
        let mut services: Vec<Arc<Service>> = snapshot
            .services
            .values()
            .map(|view| Arc::clone(&view.service))
            .filter(|service| of_stack(&service.stack))
            .collect();
        let mut networks: Vec<Arc<Network>> = snapshot
            .networks
            .values()
            .map(|view| Arc::clone(&view.network))
            .filter(|network| of_stack(&network.stack))
            .collect();
        if services.is_empty() && networks.is_empty() {
            // The start of an id is not enough: after a removal it would stand for another service.
            let named = |s: &Service| s.name == name || s.id.as_str() == name;
            let mut all = snapshot.services.values().map(|view| &view.service);
            if let Some(service) = all.find(|service| named(service)) {
                services.push(Arc::clone(service));
            } else if let Some(view) = snapshot
                .networks
                .values()
                .find(|v| v.network.name.as_str() == name)
            {
                if view.network.name == NetworkName::ingress() {
                    return Err(DeclareError::BuiltIn(name.to_owned()));
                }
                networks.push(Arc::clone(&view.network));
            } else {
                return Err(DeclareError::Unknown(name.to_owned()));
            }
        }
        for network in &networks {
            if let Some(user) = user_of(&snapshot, network, &services) {
                return Err(DeclareError::NetworkUsed {
                    network: network.name.to_string(),
                    user,
                });
            }
        }
        let removed = Removed {
            services: services.iter().map(|s| s.name.clone()).collect(),
            networks: networks.iter().map(|n| n.name.to_string()).collect(),
        };
        for service in services {
            self.remove_service(&service, now_ms);
        }
        for network in networks {
            self.remove_network(&network, now_ms);
        }
        Ok(removed)
    }

    pub(super) fn remove_service(&mut self, service: &Service, now_ms: u64) {
        let gone = Service {
            removed: true,
            spec_version: next_version(service.spec_version, now_ms),
            ..service.clone()
        };
        self.state
            .removals
            .insert(format!("service {}", gone.id), now_ms);
        self.state
            .tasks
            .retain(|_, task| task.service.as_ref() != Some(&gone.id));
        self.state.services.insert(gone.id.clone(), gone);
    }

    pub(super) fn remove_network(&mut self, network: &Network, now_ms: u64) {
        let gone = Network {
            removed: true,
            spec_version: next_version(network.spec_version, now_ms),
            ..network.clone()
        };
        self.state
            .removals
            .insert(format!("network {}", gone.name), now_ms);
        self.state.networks.insert(gone.name.clone(), gone);
    }

    fn prune(&mut self, stack: &Stack, now_ms: u64, applied: &mut Applied) {
        let Some(name) = stack.name.as_deref() else {
            return;
        };
        let snapshot = Arc::clone(&self.snapshot);
        let mut gone = Vec::new();
        for view in snapshot.services.values() {
            let service = &view.service;
            if service.stack.as_deref() == Some(name)
                && stack.services.iter().all(|s| s.id != service.id)
            {
                applied.removed.push(format!("service {}", service.name));
                gone.push(Arc::clone(service));
                self.remove_service(service, now_ms);
            }
        }
        for view in snapshot.networks.values() {
            let network = &view.network;
            let kept = stack.networks.iter().any(|n| n.name == network.name);
            if network.stack.as_deref() == Some(name)
                && !kept
                && user_of(&snapshot, network, &gone).is_none()
            {
                applied.removed.push(format!("network {}", network.name));
                self.remove_network(network, now_ms);
            }
        }
    }

    fn apply_network(
        &mut self,
        wanted: &StackNetwork,
        stack: Option<&str>,
        now_ms: u64,
        applied: &mut Applied,
    ) -> Result<(), DeclareError> {
        let snapshot = Arc::clone(&self.snapshot);
        let present = snapshot.networks.get(&wanted.name);
        if wanted.external {
            return match present {
                Some(_) => Ok(()),
                None => Err(DeclareError::NoExternal(wanted.name.to_string())),
            };
        }
        let subnet = match (wanted.subnet, present) {
            (Some(subnet), None) => subnet,
            (Some(subnet), Some(view)) if view.network.subnet == subnet => subnet,
            (Some(subnet), Some(view)) => {
                return Err(DeclareError::SubnetFixed {
                    name: wanted.name.to_string(),
                    present: view.network.subnet.to_string(),
                    wanted: subnet.to_string(),
                });
            }
            (None, Some(view)) => view.network.subnet,
            (None, None) => claims::subnet(&snapshot, &wanted.name)?,
        };
        self.check_subnet(&wanted.name, subnet, present.is_none())?;
        let removed = snapshot.removed_networks.get(&wanted.name);
        let base = present.map(|view| &view.network).or(removed);
        let mut network = Network {
            name: wanted.name.clone(),
            vni: present.map_or_else(|| claims::vni(&snapshot, &wanted.name), |v| v.network.vni),
            subnet,
            internal: wanted.internal,
            encrypted: wanted.encrypted,
            spec_version: base.map_or(0, |n| n.spec_version),
            created_ms: present.map_or(now_ms, |v| v.network.created_ms),
            removed: false,
            stack: stack.map(str::to_owned),
            own_range: present.and_then(|v| v.network.own_range),
        };
        let name = format!("network {}", network.name);
        match present {
            Some(view) if *view.network == network => applied.unchanged.push(name),
            _ => {
                network.spec_version = next_version(network.spec_version, now_ms);
                Record::Network(network.clone()).encode()?;
                let list = if present.is_some() {
                    &mut applied.updated
                } else {
                    &mut applied.created
                };
                list.push(name);
            }
        }
        self.state
            .removals
            .remove(&format!("network {}", network.name));
        self.state.networks.insert(network.name.clone(), network);
        Ok(())
    }

    /// Whether a network can have a subnet; `new`: it has no such one yet.
    pub(super) fn check_subnet(
        &self,
        name: &NetworkName,
        subnet: Ipv4Network,
        new: bool,
    ) -> Result<(), DeclareError> {
        let mut others = self.snapshot.networks.values().map(|view| &view.network);
        if let Some(other) =
            others.find(|n| n.name != *name && n.ranges().any(|taken| taken.overlaps(subnet)))
        {
            return Err(DeclareError::SubnetTaken {
                name: name.to_string(),
                subnet: subnet.to_string(),
                other: other.name.to_string(),
                other_subnet: other.subnet.to_string(),
            });
        }
        if let Some(node) = claims::node_within(&self.snapshot, subnet).filter(|_| new) {
            return Err(DeclareError::SubnetOfNodes {
                name: name.to_string(),
                subnet: subnet.to_string(),
                node: node.name.clone(),
                address: node.underlay,
            });
        }
        Ok(())
    }

    fn apply_service(
        &mut self,
        wanted: &Service,
        now_ms: u64,
        applied: &mut Applied,
        errors: &mut Vec<DeclareError>,
    ) {
        let snapshot = Arc::clone(&self.snapshot);
        let present = snapshot
            .services
            .get(&wanted.id)
            .map(|view| Arc::clone(&view.service));
        let removed = snapshot.removed_services.get(&wanted.id).cloned();
        let base = present.clone().or(removed);
        let mut service = Service {
            spec_version: base.map_or(0, |s| s.spec_version),
            created_ms: present.as_ref().map_or(now_ms, |s| s.created_ms),
            ..wanted.clone()
        };
        for place in &mut service.networks {
            match vip(&snapshot, present.as_deref(), wanted, place) {
                Ok(vip) => place.vip = vip,
                Err(error) => errors.push(error.into()),
            }
        }
        match ports(&snapshot, present.as_deref(), wanted) {
            Ok(ports) => service.ports = ports,
            Err(error) => errors.push(error.into()),
        }
        for port in &service.ports {
            let others = snapshot
                .services
                .values()
                .filter(|view| view.service.id != wanted.id);
            let holder = others
                .into_iter()
                .find(|v| v.ports.iter().any(|other| other.conflicts(port)));
            if let Some(holder) = holder {
                errors.push(DeclareError::PortTaken {
                    service: wanted.name.clone(),
                    port: *port,
                    holder: holder.service.name.clone(),
                });
            }
        }
        let name = format!("service {}", service.name);
        let chosen = wanted
            .ports
            .iter()
            .zip(&service.ports)
            .filter(|(wanted, _)| wanted.published == 0);
        applied
            .chosen_ports
            .extend(chosen.map(|(_, port)| format!("{}: {port}", service.name)));
        if present.as_deref() == Some(&service) {
            applied.unchanged.push(name);
        } else {
            service.spec_version = next_version(service.spec_version, now_ms);
            if let Err(error) = Record::Service(service.clone()).encode() {
                errors.push(error.into());
            }
            let list = if present.is_some() {
                &mut applied.updated
            } else {
                &mut applied.created
            };
            list.push(name);
        }
        self.state
            .removals
            .remove(&format!("service {}", service.id));
        self.state.services.insert(service.id.clone(), service);
    }
}

/// The version of a changed declaration: above the one that it replaces, and above every earlier one,
/// removals too, that a node which is away now may bring back.
fn next_version(present: u64, now_ms: u64) -> u64 {
    now_ms.max(present + 1)
}

/// The VIP of a service on a network: the one that it has, or a new one.
pub(super) fn vip(
    snapshot: &Snapshot,
    present: Option<&Service>,
    wanted: &Service,
    place: &ServiceNetwork,
) -> Result<Option<std::net::Ipv4Addr>, claims::Exhausted> {
    if wanted.endpoint_mode == portolan_model::EndpointMode::Dnsrr {
        return Ok(None);
    }
    let before = present.into_iter().flat_map(|s| &s.networks);
    match before
        .into_iter()
        .find(|n| n.name == place.name)
        .and_then(|n| n.vip)
    {
        Some(vip) => Ok(Some(vip)),
        None => claims::vip(snapshot, &wanted.id, &place.name).map(Some),
    }
}

/// The ports of a service with every outside port chosen: as before where the rest of the port is as before.
pub(super) fn ports(
    snapshot: &Snapshot,
    present: Option<&Service>,
    wanted: &Service,
) -> Result<Vec<PublishedPort>, claims::Exhausted> {
    let given = wanted.ports.iter().filter(|port| port.published != 0);
    let mut taken: Vec<PublishedPort> = given.copied().collect();
    let mut before: Vec<PublishedPort> = present.map(|s| s.ports.clone()).unwrap_or_default();
    wanted
        .ports
        .iter()
        .map(|port| {
            if port.published != 0 {
                return Ok(*port);
            }
            let same = |old: &PublishedPort| {
                PublishedPort {
                    published: 0,
                    ..*old
                } == *port
                    && claims::PORT_RANGE.contains(&old.published)
            };
            let published = match before.iter().position(same) {
                Some(at) => before.swap_remove(at).published,
                None => claims::published_port(snapshot, &wanted.id, port, &taken)?,
            };
            let chosen = PublishedPort { published, ..*port };
            taken.push(chosen);
            Ok(chosen)
        })
        .collect()
}

/// A service or an attached task that uses a network and is not among the services that go with it.
fn user_of(snapshot: &Snapshot, network: &Network, going: &[Arc<Service>]) -> Option<String> {
    let going = |id: &portolan_model::ServiceId| going.iter().any(|s| s.id == *id);
    let services = snapshot.services.values().map(|view| &view.service);
    let service = services
        .into_iter()
        .find(|s| !going(&s.id) && s.networks.iter().any(|n| n.name == network.name));
    service.map(|s| format!("service {}", s.name)).or_else(|| {
        let tasks = snapshot.tasks.values().map(|view| &view.task);
        let task = tasks.into_iter().find(|task| {
            task.service.as_ref().is_none_or(|id| !going(id))
                && task.endpoint(network.name.as_str()).is_some()
        })?;
        Some(format!("task {}", snapshot.task_name(task)))
    })
}
