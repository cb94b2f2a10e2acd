//! Service-name DNS: on each network's gateway address this node answers the tasks of that network
//! about the services there, and forwards what is not ours to the node's own resolvers.
//!
//! - [`DnsServer`] follows the snapshot: it binds UDP and TCP listeners where this node has a gateway,
//!   and swaps in a new zone at each change. Queries read the zone without a lock.
//! - The zone is a pure function of the [`portolan_model::Snapshot`]; answering is a pure function of
//!   the zone and the query. Only forwarding waits for anything.
//! - Sockets, messages, the client that asks upstreams and its cache are those of [`hickory_server`].
//!
//! What it does *not* do: recursion, zone transfers, dynamic updates, DNSSEC signing or validation
//! (the upstream's AD bit and signatures are passed on), and answers to anyone who is not on the network.
//!
//! # Names
//! On the network `prod`, each also with `.prod` behind it:
//!
//! | name | answer |
//! |---|---|
//! | `web`, an alias of it | A: the VIP; with dnsrr, or before there is a VIP, as `tasks.web` but without tasks of weight 0 |
//! | `tasks.web` | A, AAAA: its healthy tasks, rotated; the draining ones if no other is left |
//! | `web.1`, `1.tasks.web` | A, AAAA: the task of that slot, whatever its state; of several the best |
//! | `_80._tcp.web`, `_http._tcp.web` | SRV: its healthy tasks, by target or published port |
//! | `1.0.96.10.in-addr.arpa` | PTR: `web.1.prod` for a task, `web.prod` for a VIP |
//!
//! A client that is a task of further networks is answered about the names there too, the asked
//! network first: a stub resolver takes the first server's word that a name does not exist.
//!
//! Unknown names of one label and addresses of the mesh are NXDOMAIN, once the snapshot is synced;
//! before that SERVFAIL, so that a restart teaches no client that a name is gone. Other names are
//! forwarded, but not from an internal network: there NXDOMAIN to clients that are on no other network
//! (to musl a REFUSED is a timeout), and REFUSED to those that can ask elsewhere.

mod answer;
mod askers;
mod config;
mod forward;
mod ports;
mod reply;
mod server;
mod stats;
#[cfg(any(test, feature = "fuzzing"))]
mod testing;
mod zone;

#[cfg(feature = "fuzzing")]
mod fuzzing;

pub use askers::Askers;
pub use config::{DnsConfig, DnsError, Upstreams};
#[cfg(feature = "fuzzing")]
pub use fuzzing::fuzz_query;
pub use server::DnsServer;
pub use stats::{DnsStats, QueryCount};
