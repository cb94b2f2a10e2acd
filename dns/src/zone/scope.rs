//! What a client may be told: by where its query came in, and from whom.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use portolan_model::{INGRESS_NETWORK, NetworkName};

use super::{Zone, Zones};
use crate::Askers;

/// Where a query came in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Door {
    /// At the node's gateway address on a network.
    Network(NetworkName),
    /// At the node's own address, for clients of all networks and of none.
    Node,
}

/// What becomes of names that are not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// They are asked for elsewhere.
    Forward,
    /// The client is told to ask another server, of which it has one.
    Refuse,
    /// They do not exist.
    Deny,
}

/// The names that a client gets.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    pub(super) zones: &'a Zones,
    /// Those of these networks; the first one that knows a name is right.
    pub(super) networks: Vec<&'a Zone>,
    /// Whether there may be more that are not known yet.
    pub(super) incomplete: bool,
    /// What becomes of all other names.
    pub(crate) others: Others,
}

impl Zones {
    /// What a client gets at the gateway address of a network; `None` if it is not to be answered there.
    pub(crate) fn on(
        &self,
        network: &NetworkName,
        client: IpAddr,
        allow: &[IpNetwork],
    ) -> Option<Scope<'_>> {
        // Without a zone the network is going; its listener follows in a moment.
        let zone = self.networks.get(network)?;
        let admitted = zone.contains(client)
            || self.own.contains(&client)
            || allow.iter().any(|allowed| allowed.contains(client));
        admitted.then(|| self.of_task(zone, client))
    }

    /// What a client gets at the node's own address; `None` if it is outside.
    pub(crate) fn at_node(
        &self,
        askers: &Askers,
        client: IpAddr,
        allow: &[IpNetwork],
    ) -> Option<Scope<'_>> {
        if client.is_loopback() || askers.own.contains(&client) || self.own.contains(&client) {
            let served = self.networks.values().filter(|zone| zone.gateway.is_some());
            return Some(self.among(served.filter(|zone| !zone.internal).collect(), false));
        }
        if let Some(zone) = self.networks.values().find(|zone| zone.contains(client)) {
            return Some(self.of_task(zone, client));
        }
        if let Some(networks) = askers.tasks.get(&client) {
            let zones = networks.iter().filter_map(|name| self.networks.get(name));
            let mut scope = self.among(zones.collect(), false);
            // A network that is not known yet may be an internal one.
            scope.incomplete = scope.networks.len() < networks.len();
            if !networks.is_empty() && scope.networks.iter().all(|zone| zone.internal) {
                scope.others = Others::Deny;
            }
            return Some(scope);
        }
        let mut local = askers.local.iter().chain(allow);
        let inside = local.any(|subnet| subnet.contains(client));
        inside.then(|| self.among(Vec::new(), askers.incomplete))
    }

    /// For a task at its address on a network: that network first, as a stub resolver takes the first
    /// server's word.
    fn of_task<'a>(&'a self, zone: &'a Zone, client: IpAddr) -> Scope<'a> {
        let further = zone.also_on.get(&client).into_iter().flatten();
        let further: Vec<_> = further.filter_map(|name| self.networks.get(name)).collect();
        let others = match zone.internal {
            false => Others::Forward,
            true if further.iter().any(|zone| !zone.internal) => Others::Refuse,
            true => Others::Deny,
        };
        Scope {
            zones: self,
            networks: [zone].into_iter().chain(further).collect(),
            incomplete: false,
            others,
        }
    }

    /// For a client that is on none of the networks more than on another: `ingress` last, which everything
    /// may be on.
    fn among<'a>(&'a self, mut networks: Vec<&'a Zone>, incomplete: bool) -> Scope<'a> {
        networks.sort_by_key(|zone| zone.name.as_str() == INGRESS_NETWORK);
        Scope {
            zones: self,
            networks,
            incomplete,
            others: Others::Forward,
        }
    }
}

impl Zone {
    fn contains(&self, client: IpAddr) -> bool {
        match client {
            IpAddr::V4(ip) => self.subnet.contains(ip),
            IpAddr::V6(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
