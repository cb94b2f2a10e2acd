//! What the `portolan` binary consists of. It is a library so that tests and fuzz targets reach the parts;
//! nothing else depends on it.

pub mod agent;
pub mod api;
pub mod config;
