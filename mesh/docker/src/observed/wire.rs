//! The engine's JSON, as far as it is read. Nulls are gone when it comes here, and every field may be absent.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::Deserialize;

use super::{
    Container, ContainerNetwork, ContainerState, DockerNetwork, Engine, Health, Progress, Swarm,
    SwarmNode, SwarmPort, SwarmService, SwarmTask, time::unix_ms,
};

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Info {
    name: String,
    server_version: String,
    swarm: SwarmInfo,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct SwarmInfo {
    #[serde(rename = "NodeID")]
    node_id: String,
    node_addr: String,
    local_node_state: String,
    control_available: bool,
    error: String,
    remote_managers: Vec<Manager>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Manager {
    addr: String,
}

impl From<Info> for Engine {
    fn from(info: Info) -> Self {
        let swarm = info.swarm;
        let within = !matches!(swarm.local_node_state.as_str(), "" | "inactive");
        Self {
            name: info.name,
            version: info.server_version,
            swarm: within.then(|| Swarm {
                address: address(&swarm.node_addr),
                manager: swarm.control_available,
                managers: swarm
                    .remote_managers
                    .iter()
                    .filter_map(|m| address(&m.addr))
                    .collect(),
                node_id: swarm.node_id,
                state: swarm.local_node_state,
                error: swarm.error,
            }),
        }
    }
}

/// An address, with or without a port, that is one of a machine.
fn address(text: &str) -> Option<IpAddr> {
    let plain = text.parse::<IpAddr>().ok();
    let ip = plain.or_else(|| Some(text.parse::<std::net::SocketAddr>().ok()?.ip()))?;
    (!ip.is_unspecified()).then_some(ip)
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Service {
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
pub(super) struct Task {
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
pub(super) struct Node {
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

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Network {
    id: String,
    name: String,
    driver: String,
    scope: String,
    internal: bool,
    created: String,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    options: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Ipam {
    config: Vec<Pool>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Pool {
    subnet: String,
}

impl From<Network> for DockerNetwork {
    fn from(network: Network) -> Self {
        let mut pools = network.ipam.config.iter();
        Self {
            id: network.id,
            name: network.name,
            driver: network.driver,
            swarm: network.scope == "swarm",
            internal: network.internal,
            subnet: pools.find_map(|pool| pool.subnet.parse().ok()),
            options: network.options,
            created_ms: unix_ms(&network.created).unwrap_or_default(),
        }
    }
}

/// A container as the list of them has it.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Summary {
    pub(super) id: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) network_settings: NetworkSettings,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: String,
    name: String,
    created: String,
    state: State,
    config: Config,
    host_config: HostConfig,
    network_settings: NetworkSettings,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct State {
    status: String,
    pid: u32,
    started_at: String,
    finished_at: String,
    health: Option<HealthState>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct HealthState {
    status: String,
    log: Vec<Probe>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Probe {
    output: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    labels: BTreeMap<String, String>,
    stop_signal: String,
    stop_timeout: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct NetworkSettings {
    sandbox_key: PathBuf,
    pub(super) networks: BTreeMap<String, EndpointSettings>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct EndpointSettings {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    mac_address: String,
}

impl From<Inspected> for Container {
    fn from(container: Inspected) -> Self {
        let state = container.state;
        let sandbox = container.network_settings.sandbox_key;
        Self {
            id: container.id,
            name: container.name.trim_start_matches('/').to_owned(),
            labels: container.config.labels,
            created_ms: unix_ms(&container.created).unwrap_or_default(),
            started_ms: unix_ms(&state.started_at).unwrap_or_default(),
            restarted: unix_ms(&state.finished_at).is_some(),
            pid: state.pid,
            state: match state.status.as_str() {
                "running" => ContainerState::Running,
                "paused" => ContainerState::Paused,
                "restarting" => ContainerState::Restarting,
                _ => ContainerState::Ended,
            },
            health: state.health.as_ref().and_then(health),
            sandbox: Some(sandbox).filter(|path| path.is_absolute()),
            on_host_network: container.host_config.network_mode == "host",
            stop_signal: container.config.stop_signal,
            stop_timeout_s: container.config.stop_timeout,
            networks: container
                .network_settings
                .networks
                .into_iter()
                .map(|(name, endpoint)| ContainerNetwork {
                    name,
                    id: endpoint.network_id,
                    address: endpoint.ip_address.parse().ok(),
                    mac: serde_json::from_value(endpoint.mac_address.into()).ok(),
                })
                .collect(),
            stopping: false,
        }
    }
}

fn health(health: &HealthState) -> Option<Health> {
    match health.status.as_str() {
        "starting" => Some(Health::Starting),
        "healthy" => Some(Health::Healthy),
        "unhealthy" => {
            let output = health
                .log
                .last()
                .map(|probe| probe.output.trim().to_owned());
            Some(Health::Unhealthy(output.unwrap_or_default()))
        }
        _ => None,
    }
}
