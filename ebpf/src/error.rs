//! What can go wrong between the plane and the kernel.

use std::{io, path::PathBuf};

use aya::{
    EbpfError as LoadError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use portolan_plane::OpError;

/// Why the fast path could not be opened, or a link of it not be attached.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// This build has no programs.
    #[error("this build has no fast path: {0}")]
    Absent(&'static str),
    /// The directory of the pins cannot be made or read; nothing changed.
    #[error("{}", path.display())]
    Pins {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not tell the network namespace of the agent.
    #[error("read the cookie of the network namespace")]
    Namespace(#[source] io::Error),
    /// The pins are those of an agent in another network namespace; nothing changed.
    #[error(
        "{} is the fast path of another network namespace: give this agent a directory of its own (--bpf-dir)",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The pinned table of flows has another size than is wanted; nothing changed.
    #[error(
        "{} has room for {present} flows, not for {wanted}: keep that number, or run `portolan leave --clean`, which \
         ends all flows, and start again",
        path.display()
    )]
    Size {
        /// The pin.
        path: PathBuf,
        /// Its size.
        present: u32,
        /// The size asked for.
        wanted: u32,
    },
    /// A pinned map cannot be read; nothing changed.
    #[error("{}", path.display())]
    Pinned {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: MapError,
    },
    /// The kernel refused the object; maps that were made stay pinned.
    #[error("load the programs")]
    Load(#[source] LoadError),
    /// A program or a map is not in the object, or is of another type.
    #[error("the object has no usable {0}")]
    Incomplete(&'static str),
    /// The kernel refused a program.
    #[error("{doing} program {program}")]
    Program {
        /// What was tried.
        doing: &'static str,
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// A link could not be pinned; it is not attached.
    #[error("pin the link of {program} on {link}")]
    Pin {
        /// The program.
        program: &'static str,
        /// The network link.
        link: String,
        /// Why.
        #[source]
        source: PinError,
    },
    /// A pinned link is not what it should be.
    #[error("take over the link of {program} on {link}")]
    Adopt {
        /// The program.
        program: &'static str,
        /// The network link.
        link: String,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// A network link is not there.
    #[error("link {link}")]
    NoLink {
        /// Its name.
        link: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A task's link is said to be of a network that is not among those told.
    #[error("link {link} is of network {network}, which this node is not on")]
    NoNetwork {
        /// The task's link.
        link: String,
        /// The network.
        network: String,
    },
    /// The programs on sockets could not be attached to the cgroup; what was attached is.
    #[error("cgroup {}", path.display())]
    Cgroup {
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("{0}")]
    Map(#[from] OpError),
}

/// Says what was done with which map.
pub(crate) trait Doing<T> {
    fn doing(self, operation: impl FnOnce() -> String) -> Result<T, OpError>;
}

impl<T> Doing<T> for Result<T, MapError> {
    fn doing(self, operation: impl FnOnce() -> String) -> Result<T, OpError> {
        self.map_err(|error| OpError::Kernel {
            operation: operation(),
            source: match error {
                MapError::SyscallError(call) => call.io_error,
                other => io::Error::other(other),
            },
        })
    }
}
