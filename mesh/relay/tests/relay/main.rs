//! The relay with real sockets.

mod balancing;
mod contract;
mod support;
