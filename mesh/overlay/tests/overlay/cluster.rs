//! Nodes with an overlay each, and hand-made snapshots.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use portolan_model::{
    EndpointMode, MacAddress, Network, NetworkName, NetworkView, Node as NodeRecord, NodeId,
    NodeState, Slice, Snapshot, claims,
};
use portolan_overlay::{AttachEndpoint, Attachment, Config, DEFAULT_PORT, NetnsRef, Overlay};
use portolan_testbed::{Lab, Namespace, Node};

/// The address that each node has besides.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 53);

type Job = Box<dyn FnOnce(&mut Overlay) + Send>;

/// An overlay on a thread of its own inside a node's namespace, as the agent runs it.
pub(crate) struct OverlayThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl OverlayThread {
    pub(crate) fn start(node: &Node, underlay: IpAddr) -> Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (opened, is_open) = mpsc::channel();
        let netns = node.path();
        let thread = thread::spawn(move || {
            let open = || -> Result<Overlay> {
                let file = std::fs::File::open(netns)?;
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&file),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )?;
                Ok(Overlay::open(Config {
                    underlay,
                    data_path_port: DEFAULT_PORT,
                    node_address: Some(NODE_ADDRESS),
                })?)
            };
            match open() {
                Ok(mut overlay) => {
                    opened.send(Ok(())).unwrap();
                    for job in todo {
                        job(&mut overlay);
                    }
                }
                Err(error) => opened.send(Err(error)).unwrap(),
            }
        });
        is_open.recv()??;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Overlay) -> T + Send + 'static,
    ) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move |overlay: &mut Overlay| done.send(job(overlay)).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("the job panicked")
    }

    pub(crate) fn reconcile(&self, snapshot: &Snapshot) -> Result<()> {
        let snapshot = snapshot.clone();
        let failures = self.run(move |overlay| overlay.reconcile(&snapshot));
        ensure!(failures.is_empty(), "{failures:#?}");
        Ok(())
    }
}

impl Drop for OverlayThread {
    fn drop(&mut self) {
        self.jobs.take();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Some nodes, their overlays, and what all of them know.
pub(crate) struct Cluster {
    pub(crate) overlays: Vec<OverlayThread>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) lab: Lab,
    pub(crate) world: Snapshot,
    ipv6: bool,
}

pub(crate) fn net(text: &str) -> ipnetwork::Ipv4Network {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

impl Cluster {
    pub(crate) fn new(prefix: &str, nodes: usize) -> Result<Self> {
        Self::build(Lab::unique(prefix)?, nodes, false)
    }

    pub(crate) fn over_ipv6(prefix: &str, nodes: usize) -> Result<Self> {
        Self::build(Lab::unique(prefix)?, nodes, true)
    }

    pub(crate) fn build(lab: Lab, count: usize, ipv6: bool) -> Result<Self> {
        let nodes = (1..=count)
            .map(|n| lab.node(&format!("n{n}")))
            .collect::<Result<Vec<_>>>()?;
        let mut world = Snapshot::empty(id(1));
        world.synced = true;
        for (at, node) in nodes.iter().enumerate() {
            world.nodes.insert(
                id(at + 1),
                Arc::new(NodeRecord {
                    name: node.label().to_owned(),
                    underlay: underlay(node, ipv6),
                    state: NodeState::Up,
                    version: String::new(),
                    fast_path: false,
                    ipv6: false,
                }),
            );
        }
        let overlays = nodes
            .iter()
            .map(|node| OverlayThread::start(node, underlay(node, ipv6)))
            .collect::<Result<_>>()?;
        let mut cluster = Self {
            overlays,
            nodes,
            lab,
            world,
            ipv6,
        };
        cluster.network(&claims::ingress_network());
        for n in 1..=count {
            cluster.slice("ingress", n, &format!("10.208.{n}.0/24"));
        }
        Ok(cluster)
    }

    pub(crate) fn restart(&mut self, n: usize) -> Result<()> {
        let node = &self.nodes[n - 1];
        self.overlays[n - 1] = OverlayThread::start(node, underlay(node, self.ipv6))?;
        Ok(())
    }

    pub(crate) fn network(&mut self, network: &Network) {
        self.world.networks.insert(
            network.name.clone(),
            NetworkView {
                network: Arc::new(network.clone()),
                declared_by: BTreeSet::new(),
                slices: BTreeMap::new(),
                problems: Vec::new(),
            },
        );
    }

    /// A user's network.
    pub(crate) fn add_network(&mut self, name: &str, vni: u32, subnet: &str) {
        let network = Network {
            name: name.parse().unwrap(),
            vni,
            subnet: net(subnet),
            ..claims::ingress_network()
        };
        self.network(&network);
    }

    pub(crate) fn slice(&mut self, network: &str, n: usize, prefix: &str) {
        let view = self.view(network);
        view.slices.entry(id(n)).or_default().push(Slice {
            prefix: net(prefix),
            claimed_ms: 1,
        });
    }

    pub(crate) fn view(&mut self, network: &str) -> &mut NetworkView {
        let name: NetworkName = network.parse().unwrap();
        self.world.networks.get_mut(&name).unwrap()
    }

    pub(crate) fn snapshot(&self, n: usize) -> Snapshot {
        Snapshot {
            me: id(n),
            ..self.world.clone()
        }
    }

    pub(crate) fn reconcile(&self) -> Result<()> {
        for n in 1..=self.nodes.len() {
            self.overlays[n - 1]
                .reconcile(&self.snapshot(n))
                .with_context(|| format!("node {n}"))?;
        }
        Ok(())
    }

    pub(crate) fn attachment(
        &self,
        n: usize,
        task: &Namespace,
        name: &str,
        on: &[(&str, &str)],
    ) -> Attachment {
        let endpoints = on
            .iter()
            .map(|(network, address)| self.endpoint(n, network, address));
        Attachment {
            id: name.parse().unwrap(),
            netns: NetnsRef::Path(task.path()),
            endpoints: endpoints.collect(),
        }
    }

    pub(crate) fn endpoint(&self, n: usize, network: &str, address: &str) -> AttachEndpoint {
        let name: NetworkName = network.parse().unwrap();
        let view = &self.world.networks[&name];
        AttachEndpoint {
            network: name,
            vni: view.network.vni,
            subnet: view.network.subnet,
            own_range: view.network.own_range,
            gateway: view.gateway(&id(n)).unwrap(),
            address: ip(address),
            mac: MacAddress::of_address(ip(address)),
            ipv6: BTreeSet::new(),
        }
    }

    /// A namespace attached to networks at addresses, on node `n`.
    pub(crate) fn task(&self, n: usize, name: &str, on: &[(&str, &str)]) -> Result<Namespace> {
        let task = self.lab.task(name)?;
        let request = self.attachment(n, &task, name, on);
        self.overlays[n - 1].run(move |overlay| overlay.attach(&request))?;
        Ok(task)
    }

    /// Publishes a service's virtual address on a network.
    pub(crate) fn vip(&mut self, service: &str, network: &str, vip: &str) {
        let mut declared = portolan_model::Service::new(service.parse().unwrap());
        declared.endpoint_mode = EndpointMode::Vip;
        declared.networks.push(portolan_model::ServiceNetwork {
            name: network.parse().unwrap(),
            aliases: Vec::new(),
            vip: Some(ip(vip)),
        });
        self.world.services.insert(
            declared.id.clone(),
            portolan_model::ServiceView {
                service: Arc::new(declared),
                declared_by: BTreeSet::new(),
                ports: Vec::new(),
                tasks: Vec::new(),
                problems: Vec::new(),
            },
        );
    }
}

pub(crate) fn id(n: usize) -> NodeId {
    NodeId::of_name(&format!("n{n}"))
}

fn underlay(node: &Node, ipv6: bool) -> IpAddr {
    if ipv6 {
        node.ipv6().into()
    } else {
        node.ipv4().into()
    }
}

/// Whether a ping from inside a namespace is answered.
pub(crate) fn pings(from: &Namespace, to: &str) -> Result<bool> {
    let output = from.output(["ping", "-c1", "-W1", to])?;
    Ok(output.status.success())
}
