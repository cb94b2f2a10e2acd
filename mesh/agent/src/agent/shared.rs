//! What every part of the agent that answers questions reads from.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use portolan_dns::DnsServer;
use portolan_docker::Seen;
use portolan_gossip::{Gossip, View};
use portolan_model::{PlaneChoice, Snapshot};
use tokio::sync::{mpsc, watch};

use super::{
    command::Command,
    overlay_thread::{OverlayHandle, OverlayStanding},
    plane_thread::{PlaneHandle, PlanesStanding},
    runner::Reasons,
    trace::Tracing,
};
use crate::config::Config;

/// Handles to all parts of a running agent. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shared {
    pub config: Arc<Config>,
    pub gossip: Gossip,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub reasons: watch::Receiver<Reasons>,
    pub overlay: OverlayHandle,
    pub plane: PlaneHandle,
    pub dns: Arc<DnsServer>,
    pub commands: mpsc::Sender<Command>,
    /// Asks for the end: the value says whether to clean up the kernel too.
    pub leave: mpsc::Sender<LeaveRequest>,
    pub started: Instant,
    /// Changes at least once a second while the runner is alive.
    pub beat: watch::Receiver<()>,
    /// What is seen of the Docker engine; `None` if none is followed.
    pub docker: Option<watch::Receiver<Seen>>,
    pub tracing: Tracing,
}

/// A request to leave the cluster and end.
#[derive(Debug)]
pub(super) struct LeaveRequest {
    /// Whether everything of ours is to be removed from the kernel and the disk.
    pub clean: bool,
    /// Told when it is done, with what could not be removed.
    pub done: tokio::sync::oneshot::Sender<Vec<String>>,
}

impl Shared {
    // Each of these clones and lets go of its channel at once: a second borrow while a writer waits for
    // the first one to end would wait for ever.

    /// The state of the world.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// What is seen of the Docker engine.
    pub(super) fn docker_seen(&self) -> Option<Seen> {
        self.docker.as_ref().map(|seen| seen.borrow().clone())
    }

    /// How the overlay stands.
    pub(super) fn overlay_standing(&self) -> OverlayStanding {
        self.overlay.standing().borrow().clone()
    }

    /// How the planes stand; `None` until they were given a snapshot.
    pub(super) fn plane_standing(&self) -> Option<PlanesStanding> {
        self.plane.standing().borrow().clone()
    }

    /// Why things are not as they should be.
    pub(super) fn reasons(&self) -> Reasons {
        self.reasons.borrow().clone()
    }

    /// What gossip knows.
    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.gossip.view().borrow())
    }

    /// What keeps the node from serving as it should; empty when it is ready. A fast path that is asked for and
    /// missing is among it, though the relay serves meanwhile.
    pub(super) fn waiting_for(&self) -> BTreeSet<&'static str> {
        let mut waits = self.starting();
        let fast = self
            .plane_standing()
            .is_some_and(|planes| planes.fast.serves);
        if self.config.plane == PlaneChoice::Ebpf && !fast {
            waits.insert("plane: the fast path, which --plane ebpf asks for");
        }
        waits
    }

    /// What the agent still waits for before it serves at all.
    pub(super) fn starting(&self) -> BTreeSet<&'static str> {
        let snapshot = self.snapshot();
        let programmed = self.overlay_standing().programmed;
        let planes = self.plane_standing();
        let settled = |planes: &PlanesStanding| planes.fast.reliable.is_some();
        let waits = [
            ("gossip: the first exchange with a member", snapshot.synced),
            ("overlay: the first programming", programmed),
            ("plane: the first programming", planes.is_some()),
            (
                "plane: the fast path, if it can work here",
                planes.as_ref().is_none_or(settled),
            ),
            (
                "overlay: a slice of the ingress network",
                snapshot.own_networks().next().is_some(),
            ),
        ];
        waits
            .into_iter()
            .filter(|(_, done)| !done)
            .map(|(what, _)| what)
            .collect()
    }
}
