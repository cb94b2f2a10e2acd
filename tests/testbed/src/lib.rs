//! Nodes as network namespaces on one machine.
//!
//! A [`Lab`] is an underlay, a bridge in a namespace of its own, with [`Node`]s joined to it by
//! veth pairs. Programs run inside as [`Process`]es, the network is broken by [`Lab::cut`],
//! [`Lab::loss`] and [`Lab::link_down`], and traffic is made by [`Load`], [`http_get`],
//! [`udp_ask`] and, from many addresses at once, [`ask_from`]:
//!
//! ```no_run
//! # use portolan_testbed::{Lab, http_get, nginx};
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::unique("doc")?;
//! let (n1, c1) = (lab.node("n1")?, lab.client("c1")?);
//! let _web = nginx(&n1, 80, "hello")?;
//! assert_eq!(http_get(&c1, "10.77.0.11:80")?.body, "hello");
//! lab.cut(&n1)?;
//! assert!(http_get(&c1, "10.77.0.11:80").is_err());
//! # Ok(())
//! # }
//! ```
//!
//! Everything is removed on drop: processes, namespaces, files. What an owner that was killed
//! left behind is removed by [`sweep`], which every new lab calls. Nothing is ever added to the
//! namespace of the caller, so that labs can run side by side.
//!
//! It needs root, and drives `ip` and `nft` as programs. It knows nothing of Portolan but the
//! place of its [`binary`].

mod binary;
mod bpf;
mod clients;
mod docker;
mod forward;
mod http;
mod lab;
mod load;
mod namespace;
mod process;
mod programs;
mod servers;
mod udp;
mod wait;

pub use binary::binary;
pub use bpf::detach_link;
pub use clients::{Asked, UdpClients, ask_from};
pub use docker::{Engine, Swarm};
pub use forward::{Forward, Protocol};
pub use http::{Response, http_get};
pub use lab::{Lab, Node};
pub use load::{Check, Failure, Load, LoadOptions, Record, Report};
pub use namespace::{Namespace, sweep};
pub use process::{Output, Process, Signal, output_within};
pub use programs::require;
pub use servers::{UdpWho, nginx, redis};
pub use udp::{udp_ask, udp_exchange};
pub use wait::wait_until;
