//! The userspace plane: it serves published ports and virtual addresses with ordinary sockets, so it
//! works on every machine, and it is there when the fast path is not.
//!
//! - [`Relay`] is the plane. `apply` opens and closes sockets at once, on the calling thread. TCP connections
//!   stay each on one of its own threads; all else moves in tasks on the tokio runtime that it was given.
//! - TCP: a client is accepted, a backend chosen and connected to (the next one if it does not answer),
//!   and bytes are moved both ways, through a pooled buffer at first and by splice(2) in bulk.
//! - UDP: one connected socket per client flow; equal datagrams that wait together go on as one piece, and
//!   replies leave from the address that the client asked.
//! - Virtual addresses are served on every port by one transparent socket per protocol (TPROXY).
//!
//! The relay decides nothing about what is served: it neither checks the health of tasks nor knows of
//! nodes, networks or records. It hides the client's address from the task, unless the service asks for
//! the PROXY protocol; the fast path keeps it.

mod balance;
mod candidates;
mod config;
mod engine;
mod flows;
mod lanes;
mod listener;
mod passed_over;
mod pool;
mod proxy_protocol;
mod relay;
mod served;
mod sources;
mod tcp;
mod udp;
mod vips;

pub use config::{RelayConfig, raise_open_files};
pub use relay::{Relay, RelayView};
