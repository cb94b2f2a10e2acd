//! What can go wrong, and where.

use std::{fmt, io, net::Ipv4Addr, path::PathBuf};

use ipnetwork::Ipv4Network;
use portolan_model::{NetworkName, TaskId};

use crate::netlink::NetlinkError;

/// Why the overlay is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// No netlink socket could be opened; nothing has changed.
    #[error("cannot open a netlink socket; the overlay needs root or CAP_NET_ADMIN")]
    Open(#[source] io::Error),
    /// The kernel did not carry out one operation; what came before it stands.
    #[error("cannot {operation} {object}")]
    Kernel {
        /// What was to be done: `add`, `remove`, `list`, ...
        operation: &'static str,
        /// To what: `link ptbr4096`, `route 10.208.2.0/24`.
        object: String,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// A link lacks although it was just made or seen; another program has removed it.
    #[error("link {0} has gone while it was set up")]
    LinkGone(String),
    /// A kernel setting of a link was not written; the others stand.
    #[error("cannot write {}", path.display())]
    Setting {
        /// The setting, under `/proc/sys`.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A kernel setting of a link cannot be written from this container; the others stand.
    #[error(
        "cannot write {}, which is read-only in this container: mount the node's /proc/sys/net at /host/sysnet, as deploy/portolan-stack.yml does",
        path.display()
    )]
    ReadOnly {
        /// The setting, under `/proc/sys`.
        path: PathBuf,
    },
    /// The packet filter is as it was.
    #[error("cannot program the packet filter: {0}")]
    Filter(String),
    /// There is no such namespace (any more); nothing has changed.
    #[error("task {task}: there is no network namespace {namespace}")]
    NoNamespace {
        /// The task to be attached.
        task: TaskId,
        /// The path or process that was given.
        namespace: String,
        /// Why it cannot be opened.
        #[source]
        source: io::Error,
    },
    /// The namespace is that of the node itself; nothing has changed.
    #[error(
        "task {0}: its network namespace is the node's own, which reaches the overlay without being \
         attached; register the task by address instead"
    )]
    OwnNamespace(TaskId),
    /// The same network was given twice; nothing has changed.
    #[error("task {task}: network {network} is given twice")]
    NetworkTwice {
        /// The task to be attached.
        task: TaskId,
        /// The network.
        network: NetworkName,
    },
    /// The kernel cannot do what the overlay is built on; nothing has changed.
    #[error(
        "this kernel has no VXLAN links with a VNI filter; the overlay needs Linux 5.18 or later with \
         CONFIG_VXLAN"
    )]
    NoVniFilter(#[source] NetlinkError),
    /// The VXLAN link could not be taken up; it is there, down.
    #[error(
        "UDP port {port} is in use by another program or another VXLAN, as Docker Swarm's; give the mesh \
         another one with --data-path-port, the same on all nodes"
    )]
    PortInUse {
        /// The port.
        port: u16,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// The node has an address of its own in the network's subnet; the network is not set up.
    #[error(
        "network {network}: its subnet {subnet} holds {address}, an address that this node has outside \
         the overlay; give the network another subnet"
    )]
    SubnetInUse {
        /// The network.
        network: NetworkName,
        /// Its subnet.
        subnet: Ipv4Network,
        /// The node's address.
        address: Ipv4Addr,
    },
    /// Another program has taken the name of a link of ours; nothing has changed.
    #[error("link {name} exists and is no {expected}; remove or rename it")]
    NameTaken {
        /// The link's name.
        name: String,
        /// What it would have to be.
        expected: &'static str,
    },
}

/// One thing that [`crate::Overlay::reconcile`] could not do; the rest of the pass was done all the same.
#[derive(Debug)]
pub struct Failure {
    /// What it happened to: a network's name, or `guard`.
    pub object: String,
    /// What happened.
    pub error: OverlayError,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.error)
    }
}

/// Adds to a kernel error what was being done.
pub(crate) trait Doing<T> {
    fn doing(
        self,
        operation: &'static str,
        object: impl FnOnce() -> String,
    ) -> Result<T, OverlayError>;
}

impl<T> Doing<T> for Result<T, NetlinkError> {
    fn doing(
        self,
        operation: &'static str,
        object: impl FnOnce() -> String,
    ) -> Result<T, OverlayError> {
        self.map_err(|source| OverlayError::Kernel {
            operation,
            object: object(),
            source,
        })
    }
}
