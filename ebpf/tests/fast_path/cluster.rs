//! Nodes, each with the overlay and the fast path, as the agent will have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use portolan_ebpf::{EbpfPlane, Mesh, OpenOptions, Surroundings, TaskLink};
use portolan_model::{
    MacAddress, NetworkView, Node as NodeRecord, NodeId, NodeState, Protocol, Slice, Snapshot,
    claims, ipv6_of,
};
use portolan_overlay::{
    AttachEndpoint, Attachment, Config, DEFAULT_PORT, NetnsRef, Overlay, PortRange,
};
use portolan_plane::{Backend, DataPlane, Frontend, FrontendSpec, Op, Plan, contract};
use portolan_testbed::{Lab, Namespace, Node};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

type Job = Box<dyn FnOnce(&mut Inside) + Send>;

/// What lives on a node's thread.
pub(crate) struct Inside {
    pub(crate) overlay: Overlay,
    /// `None` while the agent is away.
    pub(crate) plane: Option<EbpfPlane>,
    pub(crate) pins: PathBuf,
    pub(crate) surroundings: Surroundings,
}

impl Inside {
    pub(crate) fn plane(&mut self) -> &mut EbpfPlane {
        self.plane.as_mut().unwrap()
    }

    pub(crate) fn surround(&mut self) {
        let surroundings = self.surroundings.clone();
        self.plane().surround(&surroundings).unwrap();
    }

    /// A new agent after the last one.
    pub(crate) fn open(&mut self) {
        self.plane = Some(EbpfPlane::open(&options(&self.pins)).unwrap());
    }
}

/// How the tests open the fast path.
pub(crate) fn options(pins: &Path) -> OpenOptions {
    OpenOptions {
        pins: pins.to_owned(),
        flows: 65_536,
    }
}

/// A thread in a node's network namespace, with a BPF file system of its own.
pub(crate) struct NodeThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl NodeThread {
    fn start(node: &Node) -> Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (opened, is_open) = mpsc::channel();
        let (netns, underlay) = (node.path(), node.ipv4());
        let thread = thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            let open = || -> Result<Inside> {
                let file = std::fs::File::open(netns)?;
                move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&file),
                    Some(LinkNameSpaceType::Network),
                )?;
                private_bpffs(dir.path())?;
                let overlay = Overlay::open(Config {
                    underlay: underlay.into(),
                    data_path_port: DEFAULT_PORT,
                    node_address: None,
                })?;
                let pins = dir.path().join("portolan");
                let plane = Some(EbpfPlane::open(&options(&pins))?);
                Ok(Inside {
                    overlay,
                    plane,
                    pins,
                    surroundings: Surroundings::default(),
                })
            };
            match open() {
                Ok(mut inside) => {
                    opened.send(Ok(())).unwrap();
                    for job in todo {
                        job(&mut inside);
                    }
                }
                Err(error) => opened.send(Err(error)).unwrap(),
            }
            // The mount is this thread's alone, and would keep the directory busy until its end.
            let _ = rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH);
        });
        is_open.recv()??;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Inside) -> T + Send + 'static,
    ) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move |inside: &mut Inside| done.send(job(inside)).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("the job panicked")
    }
}

impl Drop for NodeThread {
    fn drop(&mut self) {
        self.jobs.take();
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

/// Mounts a BPF file system that only the calling thread sees, so that nothing of the machine is touched.
pub(crate) fn private_bpffs(at: &Path) -> Result<()> {
    // SAFETY: no file descriptor table is unshared, which is what this call is unsafe for.
    #[expect(unsafe_code, reason = "the change is for this thread alone")]
    unsafe {
        unshare_unsafe(UnshareFlags::NEWNS)?;
    }
    mount_change(
        c"/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    mount("bpf", at, "bpf", MountFlags::empty(), None)?;
    Ok(())
}

/// Some nodes, and what all of them know.
pub(crate) struct Cluster {
    pub(crate) threads: Vec<NodeThread>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) lab: Lab,
    world: Snapshot,
}

impl Cluster {
    pub(crate) fn new(count: usize) -> Result<Self> {
        Self::build(Lab::unique("bp")?, count)
    }

    pub(crate) fn build(lab: Lab, count: usize) -> Result<Self> {
        let nodes = (1..=count)
            .map(|n| lab.node(&format!("n{n}")))
            .collect::<Result<Vec<_>>>()?;
        let mut world = Snapshot::empty(id(1));
        world.synced = true;
        let network = claims::ingress_network();
        let mut slices = BTreeMap::new();
        for (at, node) in nodes.iter().enumerate() {
            let record = NodeRecord {
                name: node.label().to_owned(),
                underlay: node.ipv4().into(),
                state: NodeState::Up,
                version: String::new(),
                fast_path: false,
                ipv6: false,
            };
            world.nodes.insert(id(at + 1), Arc::new(record));
            let prefix = format!("10.208.{}.0/24", at + 1).parse()?;
            slices.insert(
                id(at + 1),
                vec![Slice {
                    prefix,
                    claimed_ms: 1,
                }],
            );
        }
        let view = NetworkView {
            network: Arc::new(network.clone()),
            declared_by: BTreeSet::new(),
            slices,
            problems: Vec::new(),
        };
        world.networks.insert(network.name, view);
        let threads = nodes
            .iter()
            .map(NodeThread::start)
            .collect::<Result<Vec<_>>>()?;
        let cluster = Self {
            threads,
            nodes,
            lab,
            world,
        };
        for n in 1..=count {
            cluster.begin(n).with_context(|| format!("node {n}"))?;
        }
        Ok(cluster)
    }

    fn begin(&self, n: usize) -> Result<()> {
        let snapshot = Snapshot {
            me: id(n),
            ..self.world.clone()
        };
        let network = claims::ingress_network();
        let underlay = self.nodes[n - 1].ipv4();
        let peers = (1..)
            .zip(&self.nodes)
            .filter(|(m, _)| *m != n)
            .map(|(m, node)| (id(m), node.ipv4()))
            .collect();
        let own = BTreeSet::from([underlay.into(), self.nodes[n - 1].ipv6().into()]);
        let gateway = format!("10.208.{n}.0").parse()?;
        let outside = BTreeSet::from([self.nodes[n - 1].underlay().to_owned()]);
        self.threads[n - 1].run(move |inside| {
            let failures = inside.overlay.reconcile(&snapshot);
            ensure!(failures.is_empty(), "{failures:#?}");
            let mesh = Mesh {
                link: format!("ptvx{}", network.vni),
                vni: network.vni,
                subnet: network.subnet.ip(),
                prefix: network.subnet.prefix(),
                gateway,
                underlay,
                mtu: inside.overlay.mtu(),
            };
            inside.surroundings = Surroundings {
                networks: BTreeMap::from([(network.name, mesh)]),
                outside,
                own,
                peers,
                tasks: BTreeMap::new(),
                ..Surroundings::default()
            };
            inside.surround();
            Ok(())
        })
    }

    /// A task on node `n` with this address, reached by the fast path.
    pub(crate) fn task(&self, n: usize, name: &str, address: &str) -> Result<Namespace> {
        let task = self.lab.task(name)?;
        let ip: Ipv4Addr = address.parse()?;
        let network = claims::ingress_network();
        let gateway: Ipv4Addr = format!("10.208.{n}.0").parse()?;
        let served = [Protocol::Tcp, Protocol::Udp].map(|protocol| PortRange {
            protocol,
            first: 80,
            last: 80,
        });
        let request = Attachment {
            id: name.parse()?,
            netns: NetnsRef::Path(task.path()),
            endpoints: vec![AttachEndpoint {
                ipv6: served.into(),
                network: network.name.clone(),
                vni: network.vni,
                subnet: network.subnet,
                own_range: network.own_range,
                gateway,
                address: ip,
                mac: MacAddress::of_address(ip),
            }],
        };
        self.threads[n - 1].run(move |inside| inside.overlay.attach(&request))?;
        // Replies from the overlay's address go back by the overlay, whatever other routes the task has.
        task.run(["ip", "rule", "add", "from", address, "table", "100"])?;
        task.run([
            "ip",
            "route",
            "add",
            "default",
            "via",
            &gateway.to_string(),
            "dev",
            "pt0",
            "table",
            "100",
        ])?;
        let links = self.nodes[n - 1].run(["ip", "-o", "link"])?.stdout;
        let alias = format!("portolan:{name}:");
        let link = links
            .lines()
            .find(|line| line.contains(&alias))
            .context("no link of the task")?;
        let link = link
            .split([':', '@'])
            .nth(1)
            .context("no name")?
            .trim()
            .to_owned();
        let bridge = format!(" ptbr{}: ", network.vni);
        let bridge = links
            .lines()
            .find(|line| line.contains(&bridge))
            .context("no bridge")?;
        let ether = bridge.split("link/ether ").nth(1).context("no address")?;
        let mut octets = [0; 6];
        for (to, hex) in octets.iter_mut().zip(ether.split([':', ' '])) {
            *to = u8::from_str_radix(hex, 16)?;
        }
        let entry = TaskLink {
            network: network.name,
            link,
            mac: MacAddress::of_address(ip),
            gateway_mac: MacAddress(octets),
        };
        self.threads[n - 1].run(move |inside| {
            inside.surroundings.tasks.insert(ip, entry);
            inside.surround();
        });
        Ok(task)
    }

    /// Publishes a port on all nodes, with tasks at these addresses.
    pub(crate) fn publish(&self, port: u16, protocol: Protocol, tasks: &[(usize, &str)]) {
        for n in 1..=self.nodes.len() {
            let spec = spec(n, port, protocol, tasks);
            self.threads[n - 1].run(move |inside| {
                let plan = Plan {
                    ops: vec![Op::Upsert(Arc::new(spec))],
                };
                let failures = inside.plane().apply(&plan);
                assert!(failures.is_empty(), "{failures:?}");
            });
        }
    }

    /// A counter of node `n`.
    pub(crate) fn counter(&self, n: usize, name: &'static str) -> u64 {
        self.threads[n - 1].run(move |inside| {
            let counters = inside.plane().counters().unwrap();
            counters
                .iter()
                .find(|(counter, _)| counter.name == name)
                .expect(name)
                .1
        })
    }
}

/// The frontend of a port as node `n` sees it.
pub(crate) fn spec(
    n: usize,
    port: u16,
    protocol: Protocol,
    tasks: &[(usize, &str)],
) -> FrontendSpec {
    let addresses: Vec<Ipv4Addr> = tasks.iter().map(|(_, ip)| ip.parse().unwrap()).collect();
    let mut spec = contract::spec(port, protocol, &addresses);
    let places = tasks.iter().zip(addresses);
    for (backend, ((at, _), ip)) in spec.backends.iter_mut().zip(places) {
        *backend = Backend {
            ipv6: Some(ipv6_of(claims::ingress_network().vni, ip)),
            node: id(*at),
            local: *at == n,
            ..backend.clone()
        };
    }
    spec.backends.sort();
    spec
}

pub(crate) fn frontend(port: u16, protocol: Protocol) -> Frontend {
    contract::spec(port, protocol, &[]).frontend
}

pub(crate) fn id(n: usize) -> NodeId {
    NodeId::of_name(&format!("n{n}"))
}
