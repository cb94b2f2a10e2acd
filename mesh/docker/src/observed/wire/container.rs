//! Containers.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use crate::observed::{Container, ContainerNetwork, ContainerState, Health, time::unix_ms};

/// A container as the list of them has it.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(in crate::observed) struct Summary {
    pub(in crate::observed) id: String,
    pub(in crate::observed) labels: BTreeMap<String, String>,
    pub(in crate::observed) network_settings: NetworkSettings,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(in crate::observed) struct Inspected {
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
pub(in crate::observed) struct NetworkSettings {
    sandbox_key: PathBuf,
    pub(in crate::observed) networks: BTreeMap<String, EndpointSettings>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(in crate::observed) struct EndpointSettings {
    #[serde(rename = "NetworkID")]
    pub(in crate::observed) network_id: String,
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
