//! The engine's JSON, as far as it is read. Nulls are gone when it comes here, and every field may be absent.

mod container;
mod swarm;

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use super::{DockerNetwork, Engine, Swarm, time::unix_ms};

pub(super) use container::{Inspected, Summary};
pub(super) use swarm::{Node, Service, Task};

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
