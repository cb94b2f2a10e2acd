//! Docker's network driver plugin: what Docker starts as `portolan:latest`, and asks for networks and for the
//! places of containers on them.
//!
//! It is a thin shim. Whatever changes something is passed on to the agent of the node, over the unix socket of
//! its admin API ([`Agent`]); the rest is answered here ([`Call`]). So it needs no privilege and has no state:
//! Docker, which ends it with itself, takes nothing along. While the agent is away a call waits for it for some
//! seconds, and then says so.
//!
//! Not here: what a network is. See `mesh/agent/src/agent/driver.rs`.

mod agent;
mod call;
mod serve;

pub use agent::{Agent, AgentError};
pub use call::{Call, Scope, UnknownScope};
pub use serve::{Plugin, serve};
