//! The objects of a Swarm.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Manager, address};
use crate::observed::{Progress, SwarmNode, SwarmPort, SwarmService, SwarmTask, time::unix_ms};

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(in crate::observed) struct Service {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: String,
    spec: ServiceSpec,
    endpoint: ServiceEndpoint,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Version {
    index: u64,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct ServiceSpec {
    name: String,
    labels: BTreeMap<String, String>,
    task_template: TaskTemplate,
    endpoint_spec: EndpointSpec,
    /// Where clients before API 1.25 put what is in the template now.
    networks: Vec<Target>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct TaskTemplate {
    container_spec: ContainerSpec,
    networks: Vec<Target>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct ContainerSpec {
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Target {
    target: String,
    aliases: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct EndpointSpec {
    mode: String,
    ports: Vec<PortConfig>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct PortConfig {
    protocol: String,
    target_port: u16,
    published_port: u16,
    publish_mode: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct ServiceEndpoint {
    ports: Vec<PortConfig>,
    #[serde(rename = "VirtualIPs")]
    virtual_ips: Vec<VirtualIp>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct VirtualIp {
    #[serde(rename = "NetworkID")]
    network_id: String,
    addr: String,
}

impl From<Service> for SwarmService {
    fn from(service: Service) -> Self {
        let Service {
            id,
            version,
            created_at,
            spec,
            endpoint,
        } = service;
        let template = spec.task_template;
        let targets = if template.networks.is_empty() {
            spec.networks
        } else {
            template.networks
        };
        let vip = |vip: VirtualIp| {
            let (address, _) = vip.addr.split_once('/').unwrap_or((&vip.addr, ""));
            Some((vip.network_id, address.parse().ok()?))
        };
        Self {
            id,
            name: spec.name,
            version: version.index,
            created_ms: unix_ms(&created_at).unwrap_or_default(),
            labels: spec.labels,
            container_labels: template.container_spec.labels,
            dnsrr: spec.endpoint_spec.mode == "dnsrr",
            ports: spec.endpoint_spec.ports.into_iter().map(port).collect(),
            assigned: endpoint.ports.into_iter().map(port).collect(),
            networks: targets.into_iter().map(|t| (t.target, t.aliases)).collect(),
            vips: endpoint.virtual_ips.into_iter().filter_map(vip).collect(),
        }
    }
}

fn port(port: PortConfig) -> SwarmPort {
    SwarmPort {
        published: port.published_port,
        target: port.target_port,
        protocol: if port.protocol.is_empty() {
            "tcp".to_owned()
        } else {
            port.protocol
        },
        host: port.publish_mode == "host",
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(in crate::observed) struct Task {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "ServiceID")]
    service_id: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    slot: u32,
    desired_state: String,
    status: TaskStatus,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct TaskStatus {
    state: String,
}

impl From<Task> for SwarmTask {
    fn from(task: Task) -> Self {
        Self {
            id: task.id,
            service: task.service_id,
            node: task.node_id,
            slot: Some(task.slot).filter(|slot| *slot > 0),
            state: progress(&task.status.state),
            desired: progress(&task.desired_state),
        }
    }
}

fn progress(state: &str) -> Progress {
    match state {
        "running" => Progress::Running,
        "complete" | "shutdown" | "failed" | "rejected" | "orphaned" | "remove" => Progress::After,
        _ => Progress::Before,
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(in crate::observed) struct Node {
    #[serde(rename = "ID")]
    id: String,
    description: Description,
    status: NodeStatus,
    manager_status: Manager,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Description {
    hostname: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct NodeStatus {
    addr: String,
}

impl From<Node> for SwarmNode {
    fn from(node: Node) -> Self {
        // A manager that listens at every address is known by that of its log's peers.
        let addresses = [&node.status.addr, &node.manager_status.addr];
        Self {
            id: node.id,
            name: node.description.hostname,
            address: addresses.into_iter().find_map(|text| address(text)),
        }
    }
}
