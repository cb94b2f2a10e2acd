//! The planes of a node, and which of them has each frontend.

use std::collections::BTreeMap;

use portolan_model::{PlaneChoice, ServiceId};
use portolan_plane::{BackendState, Frontend, FrontendSpec, PlaneKind};

use super::{super::plane_thread::PlanesStanding, Facts};
use crate::api::{PlaneRow, PortRow};

/// Who serves a port that is neither plane's.
const DOCKERS: &str = "docker";

impl Facts {
    /// Every frontend of this node, in order.
    pub(in crate::agent) fn ports(&self) -> Vec<PortRow> {
        portolan_plane::frontends(&self.snapshot)
            .values()
            .map(|spec| self.port(spec))
            .collect()
    }

    fn port(&self, spec: &FrontendSpec) -> PortRow {
        // What is asked for and what the planes have heard of may differ for a moment.
        let told = self.planes.as_ref();
        let told = told.and_then(|planes| planes.told.get(&spec.frontend));
        let backends = told.map_or(&[][..], |told| &told.backends);
        let active = backends
            .iter()
            .filter(|b| b.state == BackendState::Active)
            .count();
        let fast = self.planes.as_ref().filter(|planes| planes.fast.serves);
        let left = fast.and_then(|planes| planes.fast.left.get(&spec.frontend));
        let planes = self.planes.as_ref();
        let shared = planes.filter(|planes| planes.shared.contains(&spec.frontend));
        let dockers = shared.is_some();
        let plane = if fast.is_some() && left.is_none() {
            PlaneKind::Ebpf.to_string()
        } else if dockers {
            DOCKERS.to_owned()
        } else {
            PlaneKind::Relay.to_string()
        };
        let dockers = shared.map(|planes| {
            if planes.guessed {
                "Swarm's own mesh has the port, or a process that the agent's container hides from it"
            } else {
                "Swarm's own mesh has the port"
            }
        });
        let dockers = dockers.map(str::to_owned);
        let (ipv6, ipv6_reason) = self.ipv6_plane(spec, backends, &plane);
        PortRow {
            frontend: spec.frontend.to_string(),
            service: spec.service_name.clone(),
            active,
            draining: backends.len() - active,
            plane,
            plane_reason: left.cloned().or(dockers),
            ipv6,
            ipv6_reason,
            problem: self.frontend_problem(&spec.frontend),
        }
    }

    /// Why a frontend is not served.
    pub(super) fn frontend_problem(&self, frontend: &Frontend) -> Option<String> {
        let Some(planes) = &self.planes else {
            return Some("the planes have not begun yet".to_owned());
        };
        planes
            .relay
            .unreadable
            .clone()
            .or_else(|| not_served(planes, frontend))
    }

    /// The planes, the relay first.
    pub(super) fn planes(&self) -> Vec<PlaneRow> {
        let Some(planes) = &self.planes else {
            let waits = |plane: PlaneKind| PlaneRow {
                plane: plane.to_string(),
                serving: false,
                reason: "has not been given anything to serve yet".to_owned(),
                frontends: 0,
            };
            return [PlaneKind::Relay, PlaneKind::Ebpf].map(waits).into();
        };
        let relay = PlaneRow {
            plane: PlaneKind::Relay.to_string(),
            serving: planes.relay.unreadable.is_none(),
            reason: planes.relay.unreadable.clone().unwrap_or_else(|| {
                if planes.fast.serves {
                    "listens everywhere, and carries what the fast path does not".to_owned()
                } else {
                    "carries everything".to_owned()
                }
            }),
            frontends: planes.relay.served,
        };
        let fast = &planes.fast;
        let chosen = match self.config.plane {
            PlaneChoice::Ebpf => "asked for",
            PlaneChoice::Auto | PlaneChoice::Relay => "it works here",
        };
        let chosen = match &fast.sockets {
            Some(why) => format!("{chosen}; processes of this node are the relay's: {why}"),
            None => chosen.to_owned(),
        };
        let ebpf = PlaneRow {
            plane: PlaneKind::Ebpf.to_string(),
            serving: fast.serves,
            reason: fast.reason.clone().unwrap_or(chosen),
            frontends: fast.carried(),
        };
        vec![relay, ebpf]
    }

    /// What is wrong with the planes, and with frontends on this node.
    pub(super) fn plane_problems(&self) -> Vec<String> {
        let Some(planes) = &self.planes else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        let relay = planes.relay.unreadable.iter();
        problems.extend(relay.map(|error| format!("plane {}: {error}", PlaneKind::Relay)));
        let fast = &planes.fast;
        let missed = fast.serves || self.config.plane == PlaneChoice::Ebpf;
        let lost = fast.reason.iter().filter(|_| missed);
        let unreadable = fast.standing.unreadable.iter();
        problems.extend(
            lost.chain(unreadable)
                .map(|reason| format!("plane {}: {reason}", PlaneKind::Ebpf)),
        );
        let wanted = portolan_plane::frontends(&self.snapshot);
        let named = |frontend: &Frontend, problem: String| match wanted.get(frontend) {
            Some(spec) => format!("service {}: {frontend}: {problem}", spec.service_name),
            None => format!("{frontend}: {problem}"),
        };
        for (frontend, error) in self.unserved_frontends() {
            problems.push(named(&frontend, error));
        }
        for (frontend, error) in &fast.standing.failures {
            problems.push(named(frontend, format!("not on the fast path: {error}")));
        }
        // Without a backend there is nothing to forward by any plane.
        let asked = wanted
            .values()
            .filter(|spec| spec.policy.plane == PlaneChoice::Ebpf && !spec.backends.is_empty());
        problems.extend(asked.filter_map(|spec| {
            let reason = if fast.serves {
                fast.left.get(&spec.frontend)?
            } else {
                fast.reason.as_ref()?
            };
            let problem = format!("asks for the plane ebpf, and the relay has it: {reason}");
            Some(named(&spec.frontend, problem))
        }));
        problems
    }

    /// What keeps this node from serving frontends, by service.
    pub(super) fn unserved(&self) -> BTreeMap<ServiceId, Vec<String>> {
        let mut unserved = BTreeMap::<ServiceId, Vec<String>>::new();
        let wanted = portolan_plane::frontends(&self.snapshot);
        for (frontend, error) in self.unserved_frontends() {
            if let Some(spec) = wanted.get(&frontend) {
                let problem = format!("{frontend} on this node: {error}");
                unserved
                    .entry(spec.service.clone())
                    .or_default()
                    .push(problem);
            }
        }
        unserved
    }

    /// Frontends that no plane serves, and why.
    fn unserved_frontends(&self) -> BTreeMap<Frontend, String> {
        let planes = self.planes.iter();
        let not_relayed = planes.flat_map(|planes| {
            let frontends = planes.relay.failures.keys();
            let all = frontends.chain(planes.relay.unsupported.keys());
            all.filter_map(|frontend| Some((frontend.clone(), not_served(planes, frontend)?)))
        });
        not_relayed.collect()
    }
}

/// Why neither plane serves a frontend; `None` if one does, or Docker.
fn not_served(planes: &PlanesStanding, frontend: &Frontend) -> Option<String> {
    if planes.shared.contains(frontend) {
        return None;
    }
    if let Some(error) = planes.relay.failures.get(frontend) {
        return Some(error.clone());
    }
    let carried = planes.fast.serves && !planes.fast.left.contains_key(frontend);
    let unsupported = planes.relay.unsupported.get(frontend);
    unsupported.filter(|_| !carried).cloned()
}
