//! The fast path: a plane that forwards packets in the kernel and keeps the client's address.
//!
//! Programs on the node's network cards, on the VXLAN links of its networks and on the tasks' links rewrite and
//! redirect packets (`bpf/fast_path.bpf.c` says how). [`EbpfPlane`] fills their maps: with what is to be served by
//! way of `DataPlane`, and with what is around the node by [`EbpfPlane::surround`]. Programs and maps are pinned: they
//! go on without an agent, and the next one adopts them.
//!
//! Processes of the node itself are connected to tasks at the socket, by programs on the root of the cgroups
//! (`bpf/sockets.bpf.c`); a task sees the node's gateway address on its network as theirs.
//!
//! Both families are carried by the same programs and maps, which hold IPv4 addresses mapped into IPv6. No address is
//! changed into one of the other family: clients of IPv6 go to tasks' IPv6 addresses, on ports of which all tasks have
//! one.
//!
//! What it does not carry is the relay's, which holds the listeners: other clients of IPv6, the PROXY protocol, clients'
//! packets with IP options or extension headers, and fragments of IPv6, or of IPv4 that come before the first one of
//! their packet. Those that a task sends to a client outside are dropped. What it does carry it
//! treats as the relay does (`portolan_plane::contract::traffic` holds both to it), with these differences: who may not
//! begin a flow is left to the relay, which refuses and counts; a task that refuses or does not answer costs its client
//! the time until it repeats itself; idle timeouts fire, and numbers of active flows change, with the next
//! [`EbpfPlane::sweep`]; another `udp_idle_timeout` concerns flows that begin after it.
//!
//! An [`EbpfPlane`] belongs to the network namespace of the thread that opened it, and must be used on that thread.

mod counters;
mod error;
mod flow_table;
mod inherit;
mod layout;
mod links;
mod maps;
mod netns;
mod plane;
mod probe;
mod reset;
mod sockets;
mod surroundings;
mod syscall;
mod trace;

pub use counters::{COUNTERS, Counter};
pub use error::EbpfError;
pub use plane::{EbpfPlane, OpenOptions, Predecessor, Swept};
pub use probe::probe;
pub use sockets::cgroup2_root;
pub use surroundings::{Mesh, Surroundings, TaskLink};
pub use trace::{Ends, Program, Target, TraceEvent, TraceFilter, Tracer, Verdict, Way};

/// The object file with the programs; empty if it could not be compiled.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FAST_PATH_OBJECT"));
/// The object file with the programs on sockets; empty if the other one is.
pub(crate) static SOCKETS: &[u8] = aya::include_bytes_aligned!(env!("SOCKETS_OBJECT"));
/// Why the objects are empty.
pub(crate) const ABSENT: &str = include_str!(env!("FAST_PATH_ABSENT"));
/// The version of the maps' layouts, a part of the path of every pin.
pub(crate) const ABI: &str = "v2";
/// Where pins are, on a machine whose bpffs is where it always is.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/portolan";
