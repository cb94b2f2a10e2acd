//! Opening the fast path: its maps made or taken over, its programs loaded.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::{
    EbpfLoader,
    maps::{Array, Map, MapData},
    programs::SchedClassifier,
};

use portolan_plane::{Actual, OpError};

use super::{EbpfPlane, Free, books::Books, sweep::Sweep};
use crate::{
    ABI, ABSENT, DEFAULT_PINS, EbpfError, OBJECT, Surroundings, error::Doing,
    flow_table::FlowTable, inherit, layout::HostValue, links, maps::Maps, netns, reset::Resets,
    sockets::Sockets, trace,
};

/// How the fast path is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    /// The directory of its pins, on a BPF file system, for this network namespace alone.
    pub pins: PathBuf,
    /// How many flows are known at a time, in each of two directions one; each takes some 200 bytes. The kernel
    /// forgets the ones longest unused.
    pub flows: u32,
}

/// A build with other layouts of the maps, whose programs were at work when this one's came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Predecessor {
    /// There was none.
    None,
    /// What it served goes on, with its flows: this is where its maps are pinned.
    Inherited(PathBuf),
    /// Its maps mean something else, as is said here, or could not be read: its flows end with it.
    TooDifferent(String),
}

impl Predecessor {
    /// Where its maps are pinned, if they mean the same.
    pub(super) fn pins(&self) -> Option<&Path> {
        match self {
            Self::Inherited(pins) => Some(pins),
            Self::None | Self::TooDifferent(_) => None,
        }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            pins: DEFAULT_PINS.into(),
            flows: 524_288,
        }
    }
}

impl EbpfPlane {
    /// Opens the fast path of the calling thread's network namespace. What an earlier agent left at the pins is
    /// adopted: its maps, its frontends, and with the first [`Self::surround`] its links. If it was of a build with
    /// other layouts of the maps, what they hold is copied where it means the same ([`Self::predecessor`]).
    ///
    /// # Errors
    /// The programs cannot be loaded, or the pins are not this namespace's or of another size; no program is
    /// attached, and what is pinned goes on.
    pub fn open(options: &OpenOptions) -> Result<Self, EbpfError> {
        Self::open_with(&options.pins, &[("flows", options.flows)])
    }

    /// The same with the sizes of some maps.
    pub(super) fn open_with(pins: &Path, sizes: &[(&'static str, u32)]) -> Result<Self, EbpfError> {
        if !ABSENT.is_empty() {
            return Err(EbpfError::Absent(ABSENT));
        }
        let others = others(pins);
        let pins = pins.join(ABI);
        let new = !pins.join("flows").exists();
        fs::create_dir_all(&pins).map_err(|source| EbpfError::Pins {
            path: pins.clone(),
            source,
        })?;
        let netns = netns::cookie().map_err(EbpfError::Namespace)?;
        for (name, size) in sizes {
            has_size(&pins.join(name), *size)?;
        }
        is_of(&pins, netns)?;
        let mut loader = EbpfLoader::new();
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut object = loader
            .default_map_pin_directory(&pins)
            .map_pin_path(trace::SECTION, pins.join(trace::TRACED))
            .load(OBJECT)
            .map_err(EbpfError::Load)?;
        for program in links::PROGRAMS.into_iter().chain([links::FROM_AGENT]) {
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
        let mut predecessor = Predecessor::None;
        for from in others.filter(|_| new) {
            match inherit::all(&from, &pins) {
                Ok(()) => {
                    predecessor = Predecessor::Inherited(from);
                    break;
                }
                Err(error) => predecessor = Predecessor::TooDifferent(error.to_string()),
            }
        }
        let mut maps = Maps::take(&mut object)?;
        maps.host
            .set(0, HostValue { netns }, 0)
            .doing(|| "write the network namespace".into())?;
        let table = FlowTable::open(&pins.join("flows")).doing(|| "open the flows".into())?;
        let resets = Resets::open().map_err(|source| OpError::Kernel {
            operation: "open a raw socket".into(),
            source,
        })?;
        let mut plane = Self {
            pins,
            object,
            maps,
            sockets: Sockets::default(),
            surroundings: Surroundings::default(),
            served: BTreeMap::new(),
            specs: Actual::new(),
            places: BTreeMap::new(),
            free_frontends: Free::default(),
            free_backends: Free::default(),
            table,
            sweep: Sweep::default(),
            outdated: Vec::new(),
            books: Books::default(),
            resets,
            predecessor,
            detached: Vec::new(),
        };
        plane.adopt()?;
        Ok(plane)
    }

    /// Whether a build with other layouts was at work when this plane was opened.
    pub const fn predecessor(&self) -> &Predecessor {
        &self.predecessor
    }

    /// Takes over the flows that the predecessor's programs have begun since, or ended, and those of processes' own
    /// sockets. To be called while they are still attached, and once more when they are not.
    ///
    /// # Errors
    /// The maps cannot be read or written; the flows that there were are kept.
    pub fn catch_up(&self) -> Result<(), EbpfError> {
        let Some(from) = self.predecessor.pins() else {
            return Ok(());
        };
        inherit::flows(from, &self.pins)
            .and_then(|()| inherit::sockets(from, &self.pins))
            .map_err(|source| EbpfError::Pins {
                path: from.to_owned(),
                source,
            })
    }
}

/// The directories of other builds' layouts that have flows.
fn others(pins: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(pins).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|dir| !dir.ends_with(ABI) && dir.join("flows").exists())
}

/// A map that is pinned already.
fn pinned(path: &Path) -> Result<Option<MapData>, EbpfError> {
    if !path.exists() {
        return Ok(None);
    }
    let map = MapData::from_pin(path);
    map.map(Some).map_err(|source| EbpfError::Pinned {
        path: path.to_owned(),
        source,
    })
}

/// That a map, if it is there, has this size.
fn has_size(path: &Path, wanted: u32) -> Result<(), EbpfError> {
    let Some(map) = pinned(path)? else {
        return Ok(());
    };
    let info = map.info().map_err(|source| EbpfError::Pinned {
        path: path.to_owned(),
        source,
    })?;
    let present = info.max_entries();
    if present == wanted {
        return Ok(());
    }
    Err(EbpfError::Size {
        path: path.to_owned(),
        present,
        wanted,
    })
}

/// That pins, if there are any, are those of this network namespace.
fn is_of(pins: &Path, netns: u64) -> Result<(), EbpfError> {
    let path = pins.join("host");
    let Some(map) = pinned(&path)? else {
        return Ok(());
    };
    let read = || Array::<_, HostValue>::try_from(Map::Array(map))?.get(&0, 0);
    let host = read().map_err(|source| EbpfError::Pinned { path, source })?;
    if host.netns == 0 || host.netns == netns {
        return Ok(());
    }
    Err(EbpfError::Foreign {
        path: pins.to_owned(),
    })
}
