//! The way from processes of the node itself to tasks: programs on the calls of sockets, attached to the root of the
//! cgroups (`bpf/sockets.bpf.c` says how). They choose from the same maps as the programs on packets.

mod cgroup;
mod links;
mod query;

use std::{
    collections::BTreeMap,
    error::Error,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader};

use crate::{
    EbpfError, SOCKETS, inherit, layout,
    maps::{self, Hash, fill},
    surroundings::Surroundings,
};

pub use cgroup::cgroup2_root;
pub(crate) use links::{is_link, pins};

const NO_CGROUP: &str = "no cgroup2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified";

/// The programs on sockets, and how they are.
#[derive(Default)]
pub(crate) struct Sockets {
    /// From the first time that they are wanted.
    loaded: Option<Loaded>,
    lost: Option<String>,
}

struct Loaded {
    object: Ebpf,
    sources: Hash<u32, layout::Sources>,
}

impl Sockets {
    /// Has the programs on the cgroup of the surroundings, or on none. `sources` are the addresses to connect from, by
    /// the network's place; `pins` has the maps and the links. What a `predecessor` with other layouts knew is copied, and
    /// what someone had detached is added to `detached`.
    pub(crate) fn settle(
        &mut self,
        around: &Surroundings,
        sources: &BTreeMap<u32, &[Ipv4Addr]>,
        pins: &Path,
        predecessor: Option<&Path>,
        detached: &mut Vec<PathBuf>,
    ) {
        let done = match &around.cgroup {
            Some(cgroup) => self.attach(cgroup, sources, pins, predecessor, detached),
            None => self.detach(pins),
        };
        self.lost = match done {
            Err(error) => Some(reason(&error)),
            Ok(()) if around.cgroup.is_none() => Some(NO_CGROUP.into()),
            Ok(()) => None,
        };
    }

    /// Why processes of the node are left to the relay; `None` if they are not.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    fn detach(&mut self, pins: &Path) -> Result<(), EbpfError> {
        self.loaded = None;
        links::detach(pins)
    }

    fn attach(
        &mut self,
        cgroup: &Path,
        sources: &BTreeMap<u32, &[Ipv4Addr]>,
        pins: &Path,
        predecessor: Option<&Path>,
        detached: &mut Vec<PathBuf>,
    ) -> Result<(), EbpfError> {
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => Loaded::new(pins, predecessor)?,
        };
        let loaded = self.loaded.insert(loaded);
        let sources = sources.iter().map(|(network, ips)| (*network, listed(ips)));
        fill(&mut loaded.sources, &sources.collect(), "source addresses")?;
        links::attach(&mut loaded.object, cgroup, pins, detached)
    }
}

impl Loaded {
    /// Loads the programs. The maps say to which network namespace they belong.
    fn new(pins: &Path, predecessor: Option<&Path>) -> Result<Self, EbpfError> {
        let is_new = !inherit::knows_sockets(pins);
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(pins)
            .load(SOCKETS)
            .map_err(EbpfError::Load)?;
        for (hook, _) in links::HOOKS {
            let program = links::program(&mut object, hook)?;
            program
                .load()
                .map_err(|source| links::refused("load", hook, source))?;
        }
        if let Some(from) = predecessor.filter(|_| is_new) {
            inherit::sockets(from, pins).map_err(|source| EbpfError::Pins {
                path: from.to_owned(),
                source,
            })?;
        }
        let sources = maps::take(&mut object, "sources")?;
        Ok(Self { object, sources })
    }
}

fn listed(ips: &[Ipv4Addr]) -> layout::Sources {
    let mut sources = layout::Sources::default();
    for (place, ip) in sources.ip.iter_mut().zip(ips) {
        *place = ip.octets();
        sources.count += 1;
    }
    sources
}

/// An error with its causes.
fn reason(error: &EbpfError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
