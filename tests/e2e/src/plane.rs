//! The planes, and tests that hold for each of them.

/// What a node forwards by: what `--plane` says, and `status` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// The relay alone.
    Relay,
    /// The fast path, with the relay behind it; a node is ready only when it has it.
    Ebpf,
}

impl Plane {
    /// Its word on the command line and in what the agent shows.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Ebpf => "ebpf",
        }
    }
}

/// Makes two tests, `NAME::relay` and `NAME::ebpf`, of each function `fn NAME(plane: Plane) -> Result<()>`.
///
/// The function has to start its cluster on that plane, and to ask by way of the cluster: on the fast path
/// [`Cluster::wait_served`](crate::Cluster::wait_served) waits until it carries the service's ports, and
/// [`Cluster::ask`](crate::Cluster::ask) and [`Cluster::load`](crate::Cluster::load) fail where the task does not see
/// the client's own address. So the relay cannot stand in for it in silence.
#[macro_export]
macro_rules! on_both_planes {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn relay() -> ::anyhow::Result<()> {
                super::$name($crate::Plane::Relay)
            }

            #[test]
            fn ebpf() -> ::anyhow::Result<()> {
                super::$name($crate::Plane::Ebpf)
            }
        }
    )+};
}
