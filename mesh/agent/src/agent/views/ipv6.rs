//! Who has the IPv6 clients of a port, and why.

use std::net::IpAddr;

use portolan_plane::{Backend, BackendState, FrontendAddress, FrontendSpec, PlaneKind};

use super::Facts;

impl Facts {
    /// Who has new flows of IPv6 clients, if the port takes any; `plane` has the port. With it, why that is the
    /// relay although the service wants it to be the fast path.
    pub(super) fn ipv6_plane(
        &self,
        spec: &FrontendSpec,
        backends: &[Backend],
        plane: &str,
    ) -> (Option<String>, Option<String>) {
        match spec.frontend.address {
            FrontendAddress::Node | FrontendAddress::Ip(IpAddr::V6(_)) => {}
            FrontendAddress::Ip(IpAddr::V4(_)) | FrontendAddress::Vip(..) => return (None, None),
        }
        if plane != PlaneKind::Ebpf.to_string() {
            return (Some(plane.to_owned()), None);
        }
        let relay = Some(PlaneKind::Relay.to_string());
        let service = self.snapshot.services.get(&spec.service);
        if !service.is_some_and(|view| view.service.ipv6) {
            return (relay, None);
        }
        let mut active = backends
            .iter()
            .filter(|backend| backend.state == BackendState::Active);
        match active.find(|backend| backend.ipv6.is_none()) {
            Some(without) => {
                let why = self.why_no_ipv6(without);
                (relay, Some(format!("{} {why}", without.name)))
            }
            None => (Some(plane.to_owned()), None),
        }
    }

    fn why_no_ipv6(&self, backend: &Backend) -> String {
        let node = self.snapshot.nodes.get(&backend.node);
        if node.is_some_and(|node| node.ipv6) {
            "has no link of its own to have an IPv6 address on".to_owned()
        } else {
            let name = self.snapshot.node_name(&backend.node);
            format!("has no IPv6 address, as {name} gives its tasks none")
        }
    }

    /// What keeps this node from giving its tasks the IPv6 addresses that their services want.
    pub(super) fn ipv6_problem(&self) -> Option<String> {
        let reason = self.overlay.no_ipv6.as_ref()?;
        let tasks = self.snapshot.tasks.values();
        let mut services = tasks
            .filter(|task| task.node == self.snapshot.me)
            .filter_map(|task| self.snapshot.services.get(task.task.service.as_ref()?));
        let name = &services.find(|view| view.service.ipv6)?.service.name;
        Some(format!(
            "service {name}: it wants IPv6 clients at its tasks' own addresses, and here tasks can have \
             none: {reason}; the relay serves such clients on all nodes"
        ))
    }
}
