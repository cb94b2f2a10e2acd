//! The relay with real sockets.
#![cfg(test)]

mod balancing;
mod contract;
mod support;
mod udp;
