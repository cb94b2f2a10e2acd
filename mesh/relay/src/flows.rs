//! The flows that are open now, and their counters.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use dashmap::DashMap;
use portolan_plane::{FlowView, PlaneKind};

use crate::served::{Reserved, Served};

/// One flow, at the backend that it has now.
pub(crate) struct Flow {
    client: SocketAddr,
    served: Arc<Served>,
    reserved: Reserved,
    backend: SocketAddr,
    begun: Instant,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// A direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client to the task.
    In,
    /// From the task to the client.
    Out,
}

impl Flow {
    /// The place that it takes at its backend.
    pub(crate) fn reserved(&self) -> &Reserved {
        &self.reserved
    }

    /// Counts bytes, here and for the backend.
    pub(crate) fn count(&self, direction: Direction, bytes: usize) {
        let counters = &self.reserved.backend().counters;
        let (own, all) = match direction {
            Direction::In => (&self.bytes_in, &counters.bytes_in),
            Direction::Out => (&self.bytes_out, &counters.bytes_out),
        };
        own.fetch_add(bytes as u64, Ordering::Relaxed);
        all.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn view(&self) -> FlowView {
        FlowView {
            client: self.client,
            frontend: self.served.frontend.clone(),
            task: self.reserved.backend().spec.task.clone(),
            backend: self.backend,
            age: self.begun.elapsed(),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            packets_in: None,
            packets_out: None,
            plane: PlaneKind::Relay,
        }
    }
}

/// All open flows of a relay.
#[derive(Default)]
pub(crate) struct Flows {
    open: DashMap<u64, Arc<Flow>>,
    next: AtomicU64,
}

impl Flows {
    /// A flow has begun: its client reached a backend, at this address and port. It is listed until the
    /// guard is dropped.
    pub(crate) fn begin(
        self: &Arc<Self>,
        served: &Arc<Served>,
        client: SocketAddr,
        backend: SocketAddr,
        reserved: Reserved,
    ) -> OpenFlow {
        reserved
            .backend()
            .counters
            .flows
            .fetch_add(1, Ordering::Relaxed);
        let flow = Arc::new(Flow {
            client,
            served: Arc::clone(served),
            reserved,
            backend,
            begun: Instant::now(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.insert(id, Arc::clone(&flow));
        OpenFlow {
            flow,
            id,
            flows: Arc::clone(self),
        }
    }

    /// At most `limit` flows, in no order.
    pub(crate) fn views(&self, limit: usize) -> Vec<FlowView> {
        self.open
            .iter()
            .take(limit)
            .map(|flow| flow.view())
            .collect()
    }
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flows({})", self.open.len())
    }
}

/// Keeps a flow listed.
pub(crate) struct OpenFlow {
    flow: Arc<Flow>,
    id: u64,
    flows: Arc<Flows>,
}

impl std::ops::Deref for OpenFlow {
    type Target = Flow;
    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.flows.open.remove(&self.id);
    }
}
