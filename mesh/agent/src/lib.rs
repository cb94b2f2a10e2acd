//! What the `portolan` binary consists of. It is a library so that tests and fuzz targets reach the parts;
//! nothing else depends on it.

pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
pub mod whoami;
