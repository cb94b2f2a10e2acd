//! The plane itself: what it was told, written into the maps.

mod adopt;
mod allow;
mod around;
mod backends;
mod books;
mod choice;
mod life;
mod open;
#[cfg(test)]
mod packets;
mod served;
mod sweep;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::Ebpf;
use portolan_plane::{
    Actual, DataPlane, Failure, FlowView, Frontend, FrontendAddress, Op, OpError, Plan, PlaneKind,
    PlaneStats, Unavailable,
};

use crate::{
    ABI, COUNTERS, Counter, EbpfError, Surroundings,
    error::Doing,
    flow_table::FlowTable,
    layout::{Address, BackendValue, address},
    links::{self, FROM_MESH, FROM_OUTSIDE, FROM_TASK},
    maps::Maps,
    probe,
    reset::Resets,
    sockets::{self, Sockets},
};
use books::Books;
use choice::Choice;
pub use open::{OpenOptions, Predecessor};
use served::Served;
use sweep::Sweep;
pub use sweep::Swept;

/// The eBPF plane.
pub struct EbpfPlane {
    pins: PathBuf,
    object: Ebpf,
    maps: Maps,
    sockets: Sockets,
    surroundings: Surroundings,
    served: BTreeMap<Frontend, Served>,
    /// The same as it was told.
    specs: Actual,
    /// The place of each network in the kernel's array, by VNI.
    places: BTreeMap<u32, u32>,
    /// Places in the kernel's arrays that no frontend and no backend has.
    free_frontends: Free,
    free_backends: Free,
    /// The flows once more, for reading in slices.
    table: FlowTable,
    sweep: Sweep,
    /// Choices that no frontend leads to any more, by frontend and generation: a program may have found its way there
    /// before. The next sweep removes them.
    outdated: Vec<(u32, u32, Choice)>,
    books: Books,
    resets: Resets,
    predecessor: Predecessor,
    /// What someone had detached, since it was asked for.
    detached: Vec<PathBuf>,
}

/// Where a backend is to be reached; all zero is nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    /// The task's node, host order; 0 is this one.
    node: u32,
    /// The network's place.
    network: u32,
    ifindex: u32,
    macs: [u8; 12],
}

impl Place {
    fn of(value: &BackendValue) -> Self {
        Self {
            node: value.node,
            network: value.network,
            ifindex: value.ifindex,
            macs: value.macs,
        }
    }
}

impl EbpfPlane {
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
        let meshes = surroundings.networks.values().map(|mesh| mesh.link.clone());
        let wanted = BTreeMap::from([
            (FROM_OUTSIDE, surroundings.outside.clone()),
            (FROM_MESH, meshes.collect()),
            (FROM_TASK, tasks.collect()),
        ]);
        errors.extend(links::settle(
            &mut self.object,
            &self.pins,
            &wanted,
            &mut self.detached,
        ));
        // Without them the relay has the node's own processes, as `sockets` tells; all else is whole.
        self.sockets.settle(
            surroundings,
            &sources(&self.served, surroundings, &self.places),
            &self.pins,
            self.predecessor.pins(),
            &mut self.detached,
        );
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Whether processes of the node itself reach tasks without the relay, since the last [`Self::surround`].
    ///
    /// # Errors
    /// They do not, with the reason in the words of a user; all else works as it does with them.
    pub fn sockets(&self) -> Result<(), Unavailable> {
        let lost = self.sockets.lost();
        lost.map_or(Ok(()), |why| Err(Unavailable(why.to_owned())))
    }

    /// The programs that someone had detached although their pins are there, by their pins, since the last call:
    /// [`Self::surround`] has attached them again.
    pub fn take_detached(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.detached)
    }

    #[cfg(test)]
    pub(crate) fn maps(&mut self) -> &mut Maps {
        &mut self.maps
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
        served.choice.slots.is_empty().then(|| {
            let active = served
                .spec
                .backends
                .iter()
                .filter(|backend| choice::takes_flows(backend));
            let mut lost = active.filter(|backend| self.place(frontend, backend).is_none());
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

    /// Whether a pin is that of a link, with which a program is attached: named by where that is, or by the call of
    /// sockets.
    pub fn is_link(pin: &Path) -> bool {
        let name = pin.file_name().unwrap_or_default().to_string_lossy();
        name.contains('-') || sockets::is_link(&name)
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
        let links = sockets::pins(&dir).into_iter().chain(links::present(&dir));
        let all = links.chain(Self::pins(pins)?);
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
}

impl DataPlane for EbpfPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Ebpf
    }

    fn probe(&self) -> Result<(), Unavailable> {
        probe(&self.pins)
    }

    fn dump(&self) -> Result<Actual, OpError> {
        Ok(self.specs.clone())
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
        self.live_flows(limit)
    }
}

/// From where connections to tasks begin, by the place of their network.
fn sources<'a>(
    served: &'a BTreeMap<Frontend, Served>,
    around: &Surroundings,
    places: &BTreeMap<u32, u32>,
) -> BTreeMap<u32, &'a [Ipv4Addr]> {
    let sources = served
        .values()
        .filter_map(|served| served.spec.sources.as_ref());
    let places = sources.filter_map(|sources| {
        let (_, mesh) = around.network_of(sources.within.network())?;
        Some((*places.get(&mesh.vni)?, &sources.addresses[..]))
    });
    places.collect()
}

/// The address of the programs' key for a frontend.
fn key_address(frontend: &Frontend) -> Option<Address> {
    match frontend.address {
        FrontendAddress::Node => Some(Address::default()),
        FrontendAddress::Ip(ip) | FrontendAddress::Vip(_, ip @ IpAddr::V4(_)) => Some(address(ip)),
        FrontendAddress::Vip(..) => None,
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
