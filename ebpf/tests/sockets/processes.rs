//! A cluster whose first node has the hooks, and the relay besides.

use std::sync::Arc;

use anyhow::Result;
use portolan_ebpf::cgroup2_root;
use portolan_model::Protocol;
use portolan_plane::{DataPlane, Op, Plan};
use portolan_relay::{Relay, RelayConfig};
use portolan_testbed::Node;
use tokio::runtime::{Builder, Runtime};

use crate::cluster::{Cluster, spec};

pub(crate) const PORT: u16 = 8080;
/// A task on each node.
pub(crate) const TASKS: [(usize, &str); 2] = [(1, "10.208.1.2"), (2, "10.208.2.2")];
/// The gateway addresses of the first node, which are its processes' addresses to tasks.
pub(crate) const GATEWAY: &str = "10.208.1.0";

/// Attaches the hooks on node 1.
pub(crate) fn hook(cluster: &Cluster) {
    cluster.threads[0].run(|inside| {
        inside.surroundings.cgroup = Some(cgroup2_root().expect("cgroup2 has to be mounted"));
        inside.surround();
        inside.plane().sockets().unwrap();
    });
}

/// The relay of a node.
pub(crate) struct OnNode {
    relay: Relay,
    /// Its threads are in the node's namespace.
    _runtime: Runtime,
}

impl OnNode {
    pub(crate) fn start(node: &Node) -> Result<Self> {
        node.enter(|| {
            let runtime = Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            Ok(Self {
                relay: Relay::new(RelayConfig::default(), runtime.handle().clone()),
                _runtime: runtime,
            })
        })
    }

    /// Publishes a port on it.
    pub(crate) fn serve(
        &mut self,
        node: &Node,
        port: u16,
        protocol: Protocol,
        tasks: &[(usize, &str)],
    ) -> Result<()> {
        let ops = vec![Op::Upsert(Arc::new(spec(1, port, protocol, tasks)))];
        node.enter(|| {
            let failures = self.relay.apply(&Plan { ops });
            assert!(failures.is_empty(), "{failures:?}");
            Ok(())
        })
    }

    /// How many flows it has had.
    pub(crate) fn flows(&self) -> u64 {
        let stats = self.relay.stats();
        let backends = stats
            .frontends
            .iter()
            .flat_map(|frontend| &frontend.backends);
        backends.map(|(_, _, stats)| stats.flows).sum()
    }
}
