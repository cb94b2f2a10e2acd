//! Stack files: the part of the Compose format that speaks of the network, read into the words of
//! [`portolan_model`].
//!
//! [`parse`] takes the text of one file and gives a [`Stack`], or everything that is wrong with the
//! file, each [`Diagnostic`] with its place and what to do about it. What of the format is read, and
//! what `x-portolan` adds to it, is written down in `docs/stack-file.md`.
//!
//! [`Labels`] are the same words for those who have no stack file: `portolan.publish=8080:80/tcp` on a
//! container or on a service of another engine.
//!
//! Nothing here opens a file, touches the network or knows what runs. What must be unique in the whole
//! cluster (VNIs, subnets, VIPs, published ports that no one chose) is left open for the agent to choose.

mod cursor;
mod diagnostic;
mod duration;
mod labels;
mod port;
mod stack;
mod yaml;

pub use diagnostic::Diagnostic;
pub use duration::{DurationError, parse_duration};
pub use labels::{LABEL_PREFIX, Labels, check_alias};
pub use port::{PortError, parse_port};
pub use stack::{Stack, StackNetwork, StaticTask, TaskPlace, parse};
