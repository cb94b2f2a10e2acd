//! What a plane has to be able to do.

use std::{net::SocketAddr, time::Duration};

use portolan_model::{ServiceId, TaskId};
use serde::Serialize;

use crate::{Actual, Frontend, Plan};

/// Which plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlaneKind {
    /// The userspace relay.
    Relay,
    /// The eBPF fast path.
    Ebpf,
    /// A plane of the tests.
    Fake,
}

impl std::fmt::Display for PlaneKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay",
            Self::Ebpf => "ebpf",
            Self::Fake => "fake",
        })
    }
}

/// Why a plane cannot serve on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Why one operation failed. The frontend is then as it was before, or not served.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// A port is held by another process of this node.
    #[error("port {port} is held by another process on this node; stop it or publish another port")]
    PortInUse {
        /// `8080/tcp`.
        port: String,
    },
    /// The kernel refused something.
    #[error("{operation}")]
    Kernel {
        /// What was tried, on which object.
        operation: String,
        /// The errno.
        #[source]
        source: std::io::Error,
    },
    /// The plane does not carry what was asked for.
    #[error("{0}")]
    Unsupported(String),
}

/// An operation that failed.
#[derive(Debug)]
pub struct Failure {
    /// The frontend that it was about.
    pub frontend: Frontend,
    /// Why.
    pub error: OpError,
}

/// Counters of a frontend since the plane began to serve it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BackendStats {
    /// Flows begun.
    pub flows: u64,
    /// Flows that are open now.
    pub active: u64,
    /// Bytes from clients to the task.
    pub bytes_in: u64,
    /// Bytes from the task to clients.
    pub bytes_out: u64,
    /// Connects that failed or were not answered in time.
    pub connect_failures: u64,
}

/// A frontend's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FrontendStats {
    /// The frontend.
    pub frontend: Frontend,
    /// The service behind it.
    pub service: ServiceId,
    /// The service's name.
    pub service_name: String,
    /// By task and task name; a task that is gone keeps its row until the frontend goes.
    pub backends: Vec<(TaskId, String, BackendStats)>,
    /// Flows that went to a further backend because the chosen one did not answer.
    pub retries: u64,
    /// Flows refused, by reason: `no_backend`, `not_allowed`, `all_backends_failed`, `limit`.
    pub refused: Vec<(&'static str, u64)>,
    /// Flows ended by the idle timeout.
    pub idle_timeouts: u64,
}

/// All counters of a plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PlaneStats {
    /// By frontend, in order.
    pub frontends: Vec<FrontendStats>,
}

/// One live flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlowView {
    /// The client's address and port as seen by this node.
    pub client: SocketAddr,
    /// Where the client sent it.
    pub frontend: Frontend,
    /// The task that has it.
    pub task: TaskId,
    /// Its address and port there.
    pub backend: SocketAddr,
    /// How long it has lived.
    pub age: Duration,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Packets from the client; `None` where the plane sees bytes only.
    pub packets_in: Option<u64>,
    /// Packets to the client.
    pub packets_out: Option<u64>,
    /// The plane that carries it.
    pub plane: PlaneKind,
}

/// Something that forwards packets or bytes from frontends to backends. Synchronous, idempotent, and free
/// of decisions: what it is told is what it does.
pub trait DataPlane {
    /// Its name.
    fn kind(&self) -> PlaneKind;

    /// Whether it can serve on this machine. Changes nothing.
    ///
    /// # Errors
    /// It cannot, with the reason in the words of a user.
    fn probe(&self) -> Result<(), Unavailable>;

    /// What it serves now, read from where the truth is: after a restart of the agent that is what the
    /// kernel still holds.
    ///
    /// # Errors
    /// The state cannot be read; nothing changed.
    fn dump(&self) -> Result<Actual, OpError>;

    /// Takes all steps that it can, in order, and returns those that failed.
    fn apply(&mut self, plan: &Plan) -> Vec<Failure>;

    /// Its counters.
    fn stats(&self) -> PlaneStats;

    /// Its live flows, at most `limit` of them.
    fn flows(&self, limit: usize) -> Vec<FlowView>;
}
