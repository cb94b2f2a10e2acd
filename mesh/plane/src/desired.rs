//! What this node is to serve, as a pure function of the snapshot.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use portolan_model::{
    Endpoint, EndpointMode, INGRESS_NETWORK, Protocol, PublishMode, ServiceView, Snapshot,
    TaskState, TaskView, claims, ipv6_of,
};

use crate::{
    Actual, Backend, BackendState, Frontend, FrontendAddress, FrontendSpec, Policy, Sources,
};

/// Every frontend that this node has to serve.
///
/// - a port in ingress mode: with all tasks of the service, on the ingress network;
/// - a port in host mode: while this node has tasks of the service, with those;
/// - a VIP: on each network of the service that this node is on, every port, TCP and UDP.
pub fn frontends(snapshot: &Snapshot) -> Actual {
    snapshot
        .services
        .values()
        .flat_map(|view| of_service(snapshot, view))
        .map(|spec| (spec.frontend.clone(), Arc::new(spec)))
        .collect()
}

/// Those of one service. Of the snapshot they take its networks, and of the rest only the service and its tasks.
pub(crate) fn of_service<'a>(
    snapshot: &'a Snapshot,
    view: &'a ServiceView,
) -> impl Iterator<Item = FrontendSpec> + 'a {
    published(snapshot, view).chain(vips(snapshot, view))
}

fn published<'a>(
    snapshot: &'a Snapshot,
    view: &'a ServiceView,
) -> impl Iterator<Item = FrontendSpec> + 'a {
    view.ports.iter().flat_map(move |port| {
        let only_here = port.mode == PublishMode::Host;
        let address = port
            .address
            .map_or(FrontendAddress::Node, FrontendAddress::Ip);
        port.pairs()
            .map(move |(published, target)| {
                let frontend = Frontend {
                    address: address.clone(),
                    port: published,
                    protocol: port.protocol,
                };
                let mut backends = backends(snapshot, view, INGRESS_NETWORK, target, port.protocol);
                if only_here {
                    backends.retain(|backend| backend.local);
                }
                spec(snapshot, view, INGRESS_NETWORK, frontend, backends)
            })
            .filter(move |spec| !only_here || !spec.backends.is_empty())
    })
}

fn vips<'a>(
    snapshot: &'a Snapshot,
    view: &'a ServiceView,
) -> impl Iterator<Item = FrontendSpec> + 'a {
    let service = &view.service;
    let places = service
        .networks
        .iter()
        .filter(|_| service.endpoint_mode == EndpointMode::Vip)
        .filter(|place| {
            let network = snapshot.networks.get(&place.name);
            network.is_some_and(|n| n.gateway(&snapshot.me).is_some())
        });
    places.flat_map(move |place| {
        let protocols = place
            .vip
            .map(|vip| [(vip, Protocol::Tcp), (vip, Protocol::Udp)]);
        protocols.into_iter().flatten().map(move |(vip, protocol)| {
            let frontend = Frontend {
                address: FrontendAddress::Vip(place.name.clone(), IpAddr::V4(vip)),
                port: 0,
                protocol,
            };
            spec(
                snapshot,
                view,
                place.name.as_str(),
                frontend,
                backends(snapshot, view, place.name.as_str(), 0, protocol),
            )
        })
    })
}

fn spec(
    snapshot: &Snapshot,
    view: &ServiceView,
    network: &str,
    frontend: Frontend,
    backends: Vec<Backend>,
) -> FrontendSpec {
    let service = &view.service;
    let east_west = matches!(frontend.address, FrontendAddress::Vip(..));
    FrontendSpec {
        frontend,
        service: service.id.clone(),
        service_name: service.name.clone(),
        backends,
        policy: Policy {
            balancing: service.balancing,
            local_first: service.local_first,
            tcp_idle_ms: service.tcp_idle_ms,
            udp_idle_ms: service.udp_idle_ms,
            proxy_protocol: service.proxy_protocol,
            // The list is about the outside; who shares a network has been let in already.
            allow: if east_west {
                Vec::new()
            } else {
                service.allow.clone()
            },
            plane: service.plane,
        },
        sources: sources(snapshot, network),
    }
}

/// This node's addresses for connections to tasks on a network.
fn sources(snapshot: &Snapshot, network: &str) -> Option<Sources> {
    let view = snapshot
        .networks
        .values()
        .find(|v| v.network.name.as_str() == network)?;
    let slice = view.slices.get(&snapshot.me)?.first()?;
    let addresses: Vec<_> = claims::source_addresses(slice).collect();
    (!addresses.is_empty()).then_some(Sources {
        within: view.network.subnet,
        addresses,
    })
}

/// The backends of a service on a network, ordered by task id.
fn backends(
    snapshot: &Snapshot,
    view: &ServiceView,
    network: &str,
    port: u16,
    protocol: Protocol,
) -> Vec<Backend> {
    let mut backends: Vec<Backend> = view
        .tasks
        .iter()
        .filter_map(|id| snapshot.tasks.get(id))
        .filter_map(|task| {
            let endpoint = task.endpoint(network)?;
            Some(Backend {
                task: task.task.id.clone(),
                name: snapshot.task_name(&task.task),
                node: task.node,
                local: task.node == snapshot.me,
                ip: endpoint.ip,
                ipv6: ipv6(snapshot, view, task, endpoint),
                port,
                state: backend_state(task.state, protocol)?,
                weight: task.task.weight,
            })
        })
        .collect();
    backends.sort();
    backends
}

/// The IPv6 address of a task's endpoint: it has one for clients outside, if the service wants it, where
/// it has a link of its own and its node can give it one.
fn ipv6(
    snapshot: &Snapshot,
    view: &ServiceView,
    task: &TaskView,
    endpoint: &Endpoint,
) -> Option<Ipv6Addr> {
    let IpAddr::V4(v4) = endpoint.ip else {
        return None;
    };
    let network = &snapshot.networks.get(&endpoint.network)?.network;
    let linked = endpoint.mac.is_some() && network.subnet.contains(v4);
    let outside = endpoint.network.as_str() == INGRESS_NETWORK;
    let given = snapshot.nodes.get(&task.node)?.ipv6;
    (view.service.ipv6 && outside && linked && given).then(|| ipv6_of(network.vni, v4))
}

/// What a task's state means for flows of a protocol. An unhealthy task keeps its connections, which may
/// well outlive a failed check; its datagrams go to a task that answers.
fn backend_state(state: TaskState, protocol: Protocol) -> Option<BackendState> {
    match (state, protocol) {
        (TaskState::Healthy, _) => Some(BackendState::Active),
        (TaskState::Draining, _) | (TaskState::Unhealthy, Protocol::Tcp) => {
            Some(BackendState::Draining)
        }
        (TaskState::Starting, _) | (TaskState::Unhealthy, Protocol::Udp) => None,
    }
}
