//! What every part of the agent that answers questions reads from.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use portolan_dns::DnsServer;
use portolan_gossip::{Gossip, View};
use portolan_model::Snapshot;
use portolan_plane::Standing;
use tokio::sync::{mpsc, watch};

use super::{
    command::Command,
    overlay_thread::{OverlayHandle, OverlayStanding},
    plane_thread::PlaneHandle,
    runner::Reasons,
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

    /// How the overlay stands.
    pub(super) fn overlay_standing(&self) -> OverlayStanding {
        self.overlay.standing().borrow().clone()
    }

    /// How the plane stands; `None` until it was given a snapshot.
    pub(super) fn plane_standing(&self) -> Option<Standing> {
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

    /// What the agent still waits for before it serves as it should; empty when it is ready.
    pub(super) fn waiting_for(&self) -> BTreeSet<&'static str> {
        let snapshot = self.snapshot();
        let programmed = self.overlay_standing().programmed;
        let planned = self.plane_standing().is_some();
        let waits = [
            ("gossip: the first exchange with a member", snapshot.synced),
            ("overlay: the first programming", programmed),
            ("plane: the first programming", planned),
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
