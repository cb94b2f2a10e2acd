//! The networks of Portolan's driver.

use std::collections::BTreeMap;

use portolan_model::{INGRESS_NETWORK, NetworkName};

use super::{Finding, NetworkWanted, Origin, Wanted, version};
use crate::observed::{DockerNetwork, Observed};

/// The name under which the plugin is known, without registry and tag.
const DRIVER: &str = "portolan";
/// The option in which the driver keeps the VNI that it has chosen.
const VNI_OPTION: &str = "portolan.vni";
const ENCRYPTED_OPTION: &str = "encrypted";

/// The networks of Portolan's driver, by Docker's identities.
pub(super) struct Networks(BTreeMap<String, NetworkName>);

impl Networks {
    /// Finds them, and adds to `wanted` those that this engine declares.
    pub(super) fn new(observed: &Observed, wanted: &mut Wanted) -> Self {
        let mut ours = BTreeMap::new();
        let mut declared: BTreeMap<NetworkName, NetworkWanted> = BTreeMap::new();
        for network in observed.networks.iter().filter(|n| is_ours(&n.driver)) {
            let Some(name) = name(network, &mut wanted.diagnostics) else {
                continue;
            };
            ours.insert(network.id.clone(), name.clone());
            // A worker's engine knows only those networks of the Swarm of which it has tasks, and not since
            // when they are there.
            if network.swarm && !wanted.knows_swarm {
                continue;
            }
            let network = read(network, name, &mut wanted.diagnostics);
            // An engine without a Swarm takes a name twice; the later network is the one that is meant.
            let age = |network: &NetworkWanted| (network.created_ms, network.id.clone());
            let older = declared.get(&network.name).map(age);
            if older.is_none_or(|older| older < age(&network)) {
                declared.insert(network.name.clone(), network);
            }
        }
        wanted.networks = declared.into_values().collect();
        Self(ours)
    }

    /// The name of a network, if it is one of ours.
    pub(super) fn name(&self, id: &str) -> Option<&NetworkName> {
        self.0.get(id)
    }
}

/// Whether a driver is Portolan's: `portolan`, `portolan:latest`, `registry.example/net/portolan:1.2`.
pub(crate) fn is_ours(driver: &str) -> bool {
    let name = driver.rsplit('/').next().unwrap_or(driver);
    name.split([':', '@']).next() == Some(DRIVER)
}

fn name(network: &DockerNetwork, findings: &mut Vec<Finding>) -> Option<NetworkName> {
    let source = format!("network {}", network.name);
    match network.name.parse::<NetworkName>() {
        Ok(name) if name.as_str() != INGRESS_NETWORK => Some(name),
        Ok(_) => {
            let message = "the network ingress is built in";
            let remedy = "create it under another name";
            findings.push(Finding::new(None, &source, "", message, remedy));
            None
        }
        Err(error) => {
            let message = format!("its name is none of Portolan's: {error}");
            let remedy = "create it under another name";
            findings.push(Finding::new(None, &source, "", &message, remedy));
            None
        }
    }
}

fn read(network: &DockerNetwork, name: NetworkName, findings: &mut Vec<Finding>) -> NetworkWanted {
    let source = format!("network {name}");
    let vni = network.options.get(VNI_OPTION).and_then(|text| {
        let vni = text.parse().ok().filter(|vni| (1..1 << 24).contains(vni));
        if vni.is_none() {
            let message = format!("'{text}' is no VNI");
            let remedy = "give a number from 1 to 16777215, or leave the option out";
            findings.push(Finding::new(None, &source, VNI_OPTION, &message, remedy));
        }
        vni
    });
    if network.subnet.is_none() {
        let message = "it has no IPv4 subnet";
        let remedy = "create it with --subnet, such as 10.10.3.0/24";
        findings.push(Finding::new(None, &source, "", message, remedy));
    }
    NetworkWanted {
        name,
        id: network.id.clone(),
        subnet: network.subnet,
        vni,
        internal: network.internal,
        encrypted: network
            .options
            .get(ENCRYPTED_OPTION)
            .is_some_and(|text| text != "false"),
        created_ms: network.created_ms,
        spec_version: version::of_time(network.created_ms),
        origin: if network.swarm {
            Origin::Swarm
        } else {
            Origin::Engine
        },
    }
}
