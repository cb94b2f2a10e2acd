//! The backends of frontends, each in a place of its own in the maps.

use std::net::IpAddr;

use portolan_plane::{Backend, BackendState, FrontendSpec, OpError};

use super::{
    EbpfPlane, Place,
    choice::takes_flows,
    served::{Changes, MAX_BACKENDS, full},
};
use crate::{
    error::Doing,
    layout::{BackendLabel, BackendValue, address, text},
};

impl EbpfPlane {
    /// Writes a backend, in its old place if it is the same one still.
    pub(super) fn write_backend(
        &mut self,
        spec: &FrontendSpec,
        id: u32,
        backend: &Backend,
        place: Option<Place>,
        old: Option<u32>,
        changes: &mut Changes,
    ) -> Result<u32, OpError> {
        let IpAddr::V4(ip) = backend.ip else {
            return Err(OpError::Unsupported(format!(
                "{}: the fast path carries IPv4 only",
                spec.frontend
            )));
        };
        let (ip, ip6) = (address(ip), backend.ipv6.map(address).unwrap_or_default());
        let what = || format!("write backend {} of {}", backend.name, spec.frontend);
        let same = |value: &BackendValue| {
            (value.ip, value.ip6, value.port) == (ip, ip6, backend.port.to_be_bytes())
        };
        let old = match old {
            Some(index) => Some((index, self.maps.backends.get(&index, 0).doing(what)?)),
            None => None,
        };
        let (index, mut before, was) =
            if let Some((index, value)) = old.filter(|(_, value)| same(value)) {
                (index, value, Some(Place::of(&value)))
            } else {
                let index = self
                    .free_backends
                    .take(MAX_BACKENDS)
                    .ok_or_else(|| full("backends"))?;
                changes.taken.push(index);
                // The place may be in use for the first time, or flows of its last owner may be left.
                let mut value = self.maps.backends.get(&index, 0).doing(what)?;
                value.generation = value.generation.wrapping_add(1);
                value.passed_over = 0;
                value.answered = 0;
                self.reset_stats(index)?;
                (index, value, None)
            };
        if was.is_some() {
            let label = self.maps.backend_labels.get(&index, 0).ok();
            changes.backends.push((index, before, label));
        }
        let generation = before.generation;
        // One that is out of reach for now keeps its place, and its flows.
        let place = place.or(was).unwrap_or_default();
        if was.is_some_and(|was| was != place && was != Place::default()) {
            // Flows know the old place: they end, as the task there has.
            before.generation = before.generation.wrapping_add(1);
        }
        let mut others = spec.backends.iter();
        let others = others.any(|other| takes_flows(other) && other.task != backend.task);
        let value = BackendValue {
            ip,
            ip6,
            port: backend.port.to_be_bytes(),
            draining: (!takes_flows(backend)).into(),
            weight: backend.weight.into(),
            others: others.into(),
            node: place.node,
            network: place.network,
            ifindex: place.ifindex,
            macs: place.macs,
            ..before
        };
        if was.is_some() && value.generation != generation {
            // A flow that is just being given it has the old generation, and with it ends.
            let place = BackendValue {
                generation,
                ..value
            };
            self.maps.backends.set(index, place, 0).doing(what)?;
        }
        self.maps.backends.set(index, value, 0).doing(what)?;
        let label = BackendLabel {
            node: *backend.node.as_bytes(),
            task: text(backend.task.as_str()),
            name: text(&backend.name),
            frontend: id,
            weight: backend.weight,
            local: backend.local.into(),
            draining: (backend.state == BackendState::Draining).into(),
        };
        self.maps
            .backend_labels
            .insert(index, label, 0)
            .doing(what)?;
        Ok(index)
    }

    /// Ends all flows of a backend and frees its place.
    pub(super) fn retire(&mut self, index: u32) -> Result<(), OpError> {
        let what = || format!("retire backend {index}");
        let mut value = self.maps.backends.get(&index, 0).doing(what)?;
        value.generation = value.generation.wrapping_add(1);
        self.maps.backends.set(index, value, 0).doing(what)?;
        // One that is not there is what is wanted.
        let _ = self.maps.backend_labels.remove(&index);
        self.free_backends.release(index);
        Ok(())
    }
}
