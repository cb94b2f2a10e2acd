//! The plane itself: what it was told, written into the maps.

mod adopt;
#[cfg(test)]
mod packets;
mod served;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{Ebpf, EbpfLoader, maps::MapError, programs::SchedClassifier};
use portolan_plane::{
    Actual, Backend, DataPlane, Failure, FlowView, Frontend, Op, OpError, Plan, PlaneKind,
    PlaneStats, Unavailable,
};

use crate::{
    ABI, ABSENT, COUNTERS, Counter, EbpfError, OBJECT, Surroundings,
    error::Doing,
    layout::{BackendValue, FLOW_DELIVER, NodeValue, TaskValue, host_order},
    links::{self, FROM_MESH, FROM_OUTSIDE, FROM_TASK},
    maps::{Hash, Maps},
    probe,
    surroundings::TaskLink,
};
use served::Served;

/// Bytes of IPv4 and TCP headers without options.
const HEADERS: u32 = 40;

/// The eBPF plane.
pub struct EbpfPlane {
    pins: PathBuf,
    object: Ebpf,
    maps: Maps,
    surroundings: Surroundings,
    served: BTreeMap<Frontend, Served>,
    /// Places in the kernel's arrays that no frontend and no backend has.
    free_frontends: Free,
    free_backends: Free,
}

/// Where a backend is to be reached; all zero is nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    /// The task's node, host order; 0 is this one.
    node: u32,
    ifindex: u32,
    macs: [u8; 12],
}

impl Place {
    fn of(value: &BackendValue) -> Self {
        Self {
            node: value.node,
            ifindex: value.ifindex,
            macs: value.macs,
        }
    }
}

impl EbpfPlane {
    /// Opens the fast path of the calling thread's network namespace, with its pins below `pins`. What an earlier
    /// agent left there is adopted: its maps, its frontends, and with the first [`Self::surround`] its links.
    ///
    /// # Errors
    /// The programs cannot be loaded; none is attached.
    pub fn open(pins: &Path) -> Result<Self, EbpfError> {
        if !ABSENT.is_empty() {
            return Err(EbpfError::Absent(ABSENT));
        }
        let pins = pins.join(ABI);
        fs::create_dir_all(&pins).map_err(|source| EbpfError::Pins {
            path: pins.clone(),
            source,
        })?;
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .load(OBJECT)
            .map_err(EbpfError::Load)?;
        for program in links::PROGRAMS {
            let loaded: &mut SchedClassifier = object
                .program_mut(program)
                .and_then(|program| program.try_into().ok())
                .ok_or(EbpfError::Incomplete(program))?;
            loaded.load().map_err(|source| EbpfError::Program {
                doing: "load",
                program,
                source,
            })?;
        }
        let maps = Maps::take(&mut object)?;
        let mut plane = Self {
            pins,
            object,
            maps,
            surroundings: Surroundings::default(),
            served: BTreeMap::new(),
            free_frontends: Free::default(),
            free_backends: Free::default(),
        };
        plane.adopt()?;
        Ok(plane)
    }

    /// Takes notice of what is around: writes it into the maps, attaches the programs to the links named, and to
    /// no others, and mends links that someone detached. To be called before the first plan is applied, at each
    /// change, and now and then.
    ///
    /// # Errors
    /// All of them; what else could be done is.
    pub fn surround(&mut self, surroundings: &Surroundings) -> Result<(), Vec<EbpfError>> {
        self.surroundings = surroundings.clone();
        let mut errors = Vec::new();
        let moved = self.write_surroundings().unwrap_or_else(|error| {
            errors.push(error);
            true
        });
        if moved {
            let served = self.served.values();
            let frontends: Vec<_> = served.map(|served| Arc::clone(&served.spec)).collect();
            for spec in frontends {
                errors.extend(self.upsert(&spec).err().map(EbpfError::Map));
            }
        }
        let tasks = surroundings.tasks.values().map(|task| task.link.clone());
        let wanted = BTreeMap::from([
            (FROM_OUTSIDE, surroundings.outside.clone()),
            (
                FROM_MESH,
                surroundings
                    .mesh
                    .iter()
                    .map(|mesh| mesh.link.clone())
                    .collect(),
            ),
            (FROM_TASK, tasks.collect::<BTreeSet<_>>()),
        ]);
        errors.extend(links::settle(&mut self.object, &self.pins, &wanted));
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Every counter since the maps were made.
    ///
    /// # Errors
    /// The kernel's array cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, OpError> {
        (0..)
            .zip(COUNTERS)
            .map(|(at, counter)| {
                let values = self
                    .maps
                    .counters
                    .get(&at, 0)
                    .doing(|| "read the counters".into())?;
                Ok((counter, values.iter().sum()))
            })
            .collect()
    }

    /// Why a frontend that is served is left to the relay for now; `None` if the fast path carries it.
    pub fn left_to_relay(&self, frontend: &Frontend) -> Option<String> {
        let served = self.served.get(frontend)?;
        served.slots.is_empty().then(|| {
            let active = served
                .spec
                .backends
                .iter()
                .filter(|backend| served::takes_flows(backend));
            let mut lost = active.filter(|backend| self.place(backend).is_none());
            lost.next().map_or_else(
                || "no backend takes new flows".to_owned(),
                |backend| format!("the fast path does not reach {}", backend.name),
            )
        })
    }

    /// What is pinned.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn pins(pins: &Path) -> Result<Vec<PathBuf>, EbpfError> {
        let dir = pins.join(ABI);
        let read = || -> io::Result<Vec<PathBuf>> {
            fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect()
        };
        read().map_err(|source| EbpfError::Pins {
            path: dir.clone(),
            source,
        })
    }

    /// Detaches all programs and removes all pins; nothing of the fast path stays.
    ///
    /// # Errors
    /// The first pin that could not be removed; the others are.
    pub fn clean(pins: &Path) -> Result<(), EbpfError> {
        let dir = pins.join(ABI);
        if !dir.exists() {
            return Ok(());
        }
        // Programs before maps: while one is attached, it has all of them.
        let links = links::present(&dir);
        let all = links.into_iter().chain(Self::pins(pins)?);
        let mut first = Ok(());
        for path in all.filter(|path| path.exists()).collect::<Vec<_>>() {
            if let Err(source) = fs::remove_file(&path)
                && path.exists()
            {
                first = first.and(Err(EbpfError::Pins { path, source }));
            }
        }
        first.and(fs::remove_dir(&dir).map_err(|source| EbpfError::Pins { path: dir, source }))
    }

    /// Whether backends may now be elsewhere.
    fn write_surroundings(&mut self) -> Result<bool, EbpfError> {
        let around = &self.surroundings;
        let mut errors = Vec::new();
        let mut tasks = BTreeMap::new();
        for (ip, task) in &around.tasks {
            match links::index(&task.link) {
                Ok(ifindex) => {
                    tasks.insert(
                        ip.octets(),
                        TaskValue {
                            ifindex,
                            macs: macs(task),
                        },
                    );
                }
                Err(error) => errors.push(error),
            }
        }
        let node = match &around.mesh {
            None => NodeValue::default(),
            Some(mesh) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(mesh.prefix.min(32)))
                    .unwrap_or(0);
                NodeValue {
                    mesh_ifindex: links::index(&mesh.link)?,
                    vni: mesh.vni,
                    subnet: (host_order(mesh.subnet) & mask).to_be_bytes(),
                    mask: mask.to_be_bytes(),
                    underlay: host_order(mesh.underlay),
                    mss: mesh.mtu.saturating_sub(HEADERS),
                }
            }
        };
        let before = self
            .maps
            .nodes
            .get(&0, 0)
            .doing(|| "read the node".into())?;
        self.maps
            .nodes
            .set(0, node, 0)
            .doing(|| "write the node".into())?;
        let own = around.own.iter().map(|ip| (ip.octets(), 1)).collect();
        fill(&mut self.maps.own, &own, "own addresses")?;
        let peers = around.peers.values();
        let peers = peers.map(|ip| (host_order(*ip), 1)).collect();
        let mut moved = fill(&mut self.maps.peers, &peers, "members")?;
        if fill(&mut self.maps.tasks, &tasks, "tasks")? {
            self.forget_deliveries(&tasks)?;
            moved = true;
        }
        errors.pop().map_or(Ok(moved || before != node), Err)
    }

    /// Forgets the way to tasks that are gone, so that the next packet for a new one of the same address finds it.
    fn forget_deliveries(&mut self, tasks: &BTreeMap<[u8; 4], TaskValue>) -> Result<(), OpError> {
        // An entry that vanishes while it is read was forgotten by the kernel.
        let flows = self.maps.flows.iter().flatten();
        let stale: Vec<_> = flows
            .filter(|(tuple, flow)| {
                let task = tasks.get(&tuple.daddr);
                flow.kind == FLOW_DELIVER && task.is_none_or(|task| task.ifindex != flow.ifindex)
            })
            .map(|(tuple, _)| tuple)
            .collect();
        for tuple in stale {
            match self.maps.flows.remove(&tuple) {
                Err(MapError::KeyNotFound) => {}
                done => done.doing(|| "forget a flow to a task that is gone".into())?,
            }
        }
        Ok(())
    }

    /// Where a backend is, if the fast path reaches it.
    fn place(&self, backend: &Backend) -> Option<Place> {
        let IpAddr::V4(ip) = backend.ip else {
            return None;
        };
        if backend.local {
            let task = self.surroundings.tasks.get(&ip)?;
            return Some(Place {
                node: 0,
                ifindex: links::index(&task.link).ok()?,
                macs: macs(task),
            });
        }
        self.surroundings.mesh.as_ref()?;
        let node = host_order(*self.surroundings.peers.get(&backend.node)?);
        Some(Place {
            node,
            ifindex: 0,
            macs: [0; 12],
        })
    }
}

impl DataPlane for EbpfPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Ebpf
    }

    fn probe(&self) -> Result<(), Unavailable> {
        probe(&self.pins)
    }

    fn dump(&self) -> Result<Actual, OpError> {
        let served = self.served.iter();
        Ok(served
            .map(|(frontend, served)| (frontend.clone(), Arc::clone(&served.spec)))
            .collect())
    }

    fn apply(&mut self, plan: &Plan) -> Vec<Failure> {
        let mut failures = Vec::new();
        for op in &plan.ops {
            let done = match op {
                Op::Upsert(spec) => self.upsert(spec),
                Op::Remove(frontend) => self.remove(frontend),
            };
            failures.extend(done.err().map(|error| Failure {
                frontend: op.frontend().clone(),
                error,
            }));
        }
        failures
    }

    fn stats(&self) -> PlaneStats {
        self.read_stats()
    }

    fn flows(&self, limit: usize) -> Vec<FlowView> {
        self.live_flows().take(limit).collect()
    }
}

fn macs(task: &TaskLink) -> [u8; 12] {
    let mut macs = [0; 12];
    let both = task.mac.0.iter().chain(&task.gateway_mac.0);
    for (to, byte) in macs.iter_mut().zip(both) {
        *to = *byte;
    }
    macs
}

/// Makes a map hold just this, the additions first; tells whether that changed anything.
fn fill<K: aya::Pod + Ord, V: aya::Pod + PartialEq>(
    map: &mut Hash<K, V>,
    wanted: &BTreeMap<K, V>,
    what: &str,
) -> Result<bool, OpError> {
    let present = read(map, what)?;
    let mut changed = false;
    for (key, value) in wanted {
        if present.get(key) != Some(value) {
            map.insert(key, value, 0)
                .doing(|| format!("write {what}"))?;
            changed = true;
        }
    }
    for key in present.keys().filter(|key| !wanted.contains_key(key)) {
        map.remove(key).doing(|| format!("remove from {what}"))?;
        changed = true;
    }
    Ok(changed)
}

/// All that a map holds.
fn read<K: aya::Pod + Ord, V: aya::Pod>(
    map: &Hash<K, V>,
    what: &str,
) -> Result<BTreeMap<K, V>, OpError> {
    map.iter()
        .collect::<Result<_, _>>()
        .doing(|| format!("read {what}"))
}

/// The address of the programs' key for a frontend; 0.0.0.0 is every address of the node.
fn key_address(frontend: &Frontend) -> Option<Ipv4Addr> {
    match frontend.address {
        portolan_plane::FrontendAddress::Node => Some(Ipv4Addr::UNSPECIFIED),
        portolan_plane::FrontendAddress::Ip(IpAddr::V4(ip)) => Some(ip),
        _ => None,
    }
}

/// Numbers that are not taken, the smallest first.
#[derive(Debug, Default)]
struct Free {
    taken: BTreeSet<u32>,
    /// Below it all are taken.
    from: u32,
}

impl Free {
    fn take(&mut self, limit: u32) -> Option<u32> {
        let number = (self.from..limit).find(|number| !self.taken.contains(number))?;
        self.taken.insert(number);
        self.from = number + 1;
        Some(number)
    }

    fn mark(&mut self, number: u32) {
        self.taken.insert(number);
    }

    fn release(&mut self, number: u32) {
        self.taken.remove(&number);
        self.from = self.from.min(number);
    }
}
