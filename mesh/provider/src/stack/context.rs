//! What has been read of a file so far, for what comes after it.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;
use portolan_model::{INGRESS_NETWORK, NetworkName, PublishedPort, ServiceId};

use super::{StackNetwork, StaticTask, TaskPlace, undeclared};
use crate::{cursor::At, diagnostic::Fault};

/// The key of the network of services that name none.
pub(super) const DEFAULT_NETWORK: &str = "default";

/// What has been read so far.
#[derive(Default)]
pub(super) struct Context {
    pub(super) stack: Option<String>,
    /// The networks by their keys in the file; `None` is one whose name is wrong, which is reported where
    /// it stands and nowhere else.
    pub(super) networks: BTreeMap<String, Option<NetworkName>>,
    pub(super) subnets: Vec<(Ipv4Network, NetworkName)>,
    /// Published ports, without those still to be chosen, and the keys of the services that they belong to.
    pub(super) ports: Vec<(PublishedPort, String)>,
    /// The services by their keys in the file, wrong names as with networks.
    pub(super) services: BTreeMap<String, Option<ServiceId>>,
    pub(super) tasks: Vec<StaticTask>,
    pub(super) slots: BTreeSet<(ServiceId, u32)>,
    pub(super) places: BTreeSet<(ServiceId, String, TaskPlace)>,
    default_is_used: bool,
}

impl Context {
    pub(super) fn new(stack: Option<String>) -> Self {
        Self {
            stack,
            ..Self::default()
        }
    }

    /// The full name of what the file calls `key`.
    pub(super) fn full_name(&self, key: &str) -> String {
        match &self.stack {
            Some(stack) => format!("{stack}_{key}"),
            None => key.to_owned(),
        }
    }

    /// The network that a service calls `key`; nothing if its name is wrong.
    ///
    /// # Errors
    /// It is not declared.
    pub(super) fn network(&mut self, key: &str) -> Result<Option<NetworkName>, Fault> {
        if let Some(name) = self.networks.get(key) {
            return Ok(name.clone());
        }
        if key == INGRESS_NETWORK {
            return Err(Fault::new(
                "the network ingress is built in",
                "remove it: every service with published ports is on it",
            ));
        }
        if key != DEFAULT_NETWORK {
            let known: Vec<_> = self.networks.keys().map(String::as_str).collect();
            return Err(undeclared(
                "network",
                key,
                &known,
                "the top-level `networks`",
            ));
        }
        self.default_is_used = true;
        Ok(self.full_name(key).parse().ok())
    }

    /// The default network, if services are on it and the file does not declare it.
    pub(super) fn default_network(&self, root: &At<'_>) -> Option<StackNetwork> {
        if !self.default_is_used {
            return None;
        }
        let name: NetworkName = self
            .full_name(DEFAULT_NETWORK)
            .parse()
            .map_err(|error| root.fault(Fault::of(&error)))
            .ok()?;
        if self.networks.values().flatten().any(|other| *other == name) {
            root.error(
                format!(
                    "network {name} is declared under another key and is the default network too"
                ),
                "give every service its `networks`, or call the key `default`",
            );
            return None;
        }
        Some(StackNetwork {
            name,
            subnet: None,
            internal: false,
            encrypted: false,
            external: false,
        })
    }
}
