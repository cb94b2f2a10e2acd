//! Real sockets, on a node whose tasks are addresses of its own: who gets what, and what processes are told. Needs
//! root. Each test has a network namespace and a BPF file system of its own, and attaches its programs to the root of
//! the machine's cgroups, where they leave every other namespace alone.

mod host;
mod tcp;
mod udp;

const PORT: u16 = 8080;
