//! Nodes for tests: each on an address of its own in 127.0.0.0/8, with a directory of its own.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use portolan_gossip::{
    Config, Driver, DriverError, Gossip, Key, Keyring, Limits, Stats, Timing, View,
};
use portolan_model::NodeId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn records(records: &[(&str, &str)]) -> BTreeMap<Bytes, Bytes> {
    let owned = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    records.iter().map(|(k, v)| (owned(k), owned(v))).collect()
}

/// What the nodes of a test have in common.
pub(crate) struct Setup {
    key: Key,
    dir: tempfile::TempDir,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self {
            key: Key::generate().unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A node to be. Tests run at one time, so `host` tells their nodes apart.
    pub(crate) fn node(&self, name: &str, host: u8) -> Plan {
        let addr = format!("127.0.5.{host}:7946").parse().unwrap();
        Plan {
            config: Config {
                node: NodeId::of_name(name),
                name: name.to_owned(),
                bind: addr,
                advertise: addr,
                cluster: "test".to_owned(),
                join: Vec::new(),
                keyring: Some(Keyring::new(self.key.clone())),
                state_dir: self.dir.path().join(name),
                limits: Limits::default(),
                timing: Timing::default(),
            },
            dir: self.dir.path().to_owned(),
        }
    }
}

pub(crate) struct Plan {
    config: Config,
    dir: PathBuf,
}

impl Plan {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.config.advertise
    }

    pub(crate) fn joining(self, nodes: &[&Node]) -> Self {
        let seeds: Vec<_> = nodes.iter().map(|node| node.addr).collect();
        self.seeds(&seeds)
    }

    pub(crate) fn seeds(mut self, seeds: &[SocketAddr]) -> Self {
        self.config.join = seeds.to_vec();
        self
    }

    pub(crate) fn keys(mut self, keyring: Option<Keyring>) -> Self {
        self.config.keyring = keyring;
        self
    }

    pub(crate) fn cluster(mut self, cluster: &str) -> Self {
        cluster.clone_into(&mut self.config.cluster);
        self
    }

    pub(crate) fn advertise(mut self, addr: SocketAddr) -> Self {
        self.config.advertise = addr;
        self
    }

    pub(crate) fn fresh_disk(mut self) -> Self {
        self.config.state_dir = self.dir.join(format!("{}-fresh", self.config.name));
        self
    }

    pub(crate) fn boot(self, boot: u64) -> Self {
        fs::create_dir_all(&self.config.state_dir).unwrap();
        fs::write(self.config.state_dir.join("gossip.boot"), boot.to_string()).unwrap();
        self
    }

    pub(crate) async fn start(self) -> Node {
        let (id, addr) = (self.config.node, self.config.advertise);
        let (gossip, driver) = Gossip::start(self.config).await.unwrap();
        Node::run(id, addr, gossip, driver)
    }
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) addr: SocketAddr,
    pub(crate) gossip: Gossip,
    tasks: JoinSet<Result<(), DriverError>>,
}

impl Node {
    fn run(id: NodeId, addr: SocketAddr, gossip: Gossip, driver: Driver) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run(CancellationToken::new()));
        Self {
            id,
            addr,
            gossip,
            tasks,
        }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.gossip.view().borrow().clone()
    }

    /// Stops it as a crash would: nobody is told.
    pub(crate) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    /// How its driver ended.
    pub(crate) async fn ended(mut self) -> Result<(), DriverError> {
        let end = tokio::time::timeout(PATIENCE, self.tasks.join_next());
        end.await.expect("the driver ends").unwrap().unwrap()
    }

    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&View) -> bool) {
        let mut views = self.gossip.view();
        let wait = views.wait_for(|view| condition(view));
        let met = tokio::time::timeout(PATIENCE, wait).await.is_ok();
        assert!(met, "waited for {what} in vain; view {:#?}", self.view());
    }

    pub(crate) async fn until_stats(&self, what: &str, condition: impl Fn(&Stats) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !condition(&self.gossip.stats()) {
            let now = tokio::time::Instant::now();
            assert!(
                now < deadline,
                "waited for {what} in vain: {:#?}",
                self.gossip.stats()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it shows exactly these records of another.
    pub(crate) async fn sees(&self, owner: &Node, wanted: &[(&str, &str)]) {
        let wanted = records(wanted);
        let what = format!("{wanted:?} of {}", owner.addr);
        self.until(&what, |view| {
            let owner = view.owners.get(&owner.id);
            owner.is_some_and(|owner| owner.visible && owner.records.iter().eq(&wanted))
        })
        .await;
    }
}
