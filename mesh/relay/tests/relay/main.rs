//! The relay with real sockets.
#![cfg(test)]

mod balancing;
mod contract;
mod failures;
mod ipv6;
mod load;
mod support;
mod tcp;
mod traffic;
mod udp;
mod vips;
