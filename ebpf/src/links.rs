//! Attaching the programs: each by a pinned link, which keeps it attached while no agent runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        ProgramInfo, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
    },
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};

use crate::EbpfError;

pub(crate) const FROM_OUTSIDE: &str = "from_outside";
pub(crate) const FROM_MESH: &str = "from_mesh";
pub(crate) const FROM_TASK: &str = "from_task";
pub(crate) const PROGRAMS: [&str; 3] = [FROM_OUTSIDE, FROM_MESH, FROM_TASK];
/// On no link: the agent runs it.
pub(crate) const FROM_AGENT: &str = "from_agent";

/// The index of a network link in the namespace of the calling thread.
pub(crate) fn index(link: &str) -> Result<u32, EbpfError> {
    let find = || -> io::Result<u32> {
        let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok(name_to_index(socket, link)?)
    };
    find().map_err(|source| EbpfError::NoLink {
        link: link.to_owned(),
        source,
    })
}

/// Attaches each program to the links given, and to no others. What one program could not be attached to is
/// reported; the rest is done. What someone had detached is added to `detached`, by its pin.
pub(crate) fn settle(
    object: &mut Ebpf,
    pins: &Path,
    wanted: &BTreeMap<&'static str, BTreeSet<String>>,
    detached: &mut Vec<PathBuf>,
) -> Vec<EbpfError> {
    let mut errors = Vec::new();
    let mut stay = BTreeSet::new();
    for (&program, links) in wanted {
        for link in links {
            let pin = match index(link) {
                Ok(index) => pins.join(format!("{program}-{index}")),
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            match attach(object, program, link, &pin) {
                Ok(was_detached) => detached.extend(was_detached.then(|| pin.clone())),
                Err(error) => errors.push(error),
            }
            stay.insert(pin);
        }
    }
    for pin in present(pins).into_iter().filter(|pin| !stay.contains(pin)) {
        let removed = fs::remove_file(&pin);
        errors.extend(
            removed
                .err()
                .map(|source| EbpfError::Pins { path: pin, source }),
        );
    }
    errors
}

/// The pins of links.
pub(crate) fn present(pins: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(pins).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            name.split_once('-')
                .is_some_and(|(program, _)| PROGRAMS.contains(&program))
        })
        .collect()
}

/// Whether someone detached a pinned link: its program is not among those that are attached there.
pub(crate) fn is_detached(pin: &Path, attached: &[u32]) -> bool {
    let info = || FdLink::from(PinnedLink::from_pin(pin).ok()?).info().ok();
    info().is_some_and(|info| !attached.contains(&info.program_id()))
}

/// Tells whether there was a pin, and someone had detached what it held.
fn attach(
    object: &mut Ebpf,
    name: &'static str,
    link: &str,
    pin: &Path,
) -> Result<bool, EbpfError> {
    let program: &mut SchedClassifier = object
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(EbpfError::Incomplete(name))?;
    let refused = |doing| {
        move |source| EbpfError::Program {
            doing,
            program: name,
            source,
        }
    };
    let id = program.info().map_err(refused("read"))?.id();
    let mut was_detached = false;
    if pin.exists() {
        let (_, attached) =
            SchedClassifier::query_tcx(link, TcAttachType::Ingress).map_err(refused("query"))?;
        let attached: Vec<u32> = attached.iter().map(ProgramInfo::id).collect();
        if attached.contains(&id) {
            return Ok(false);
        }
        was_detached = is_detached(pin, &attached);
        if replace(program, pin).is_ok() {
            let (_, attached) = SchedClassifier::query_tcx(link, TcAttachType::Ingress)
                .map_err(refused("query"))?;
            if attached.iter().any(|info| info.id() == id) {
                return Ok(was_detached);
            }
        }
        // Of a link that was detached by someone, or of another one that had the index before.
        fs::remove_file(pin).map_err(|source| EbpfError::Pins {
            path: pin.to_owned(),
            source,
        })?;
    }
    let attached = program
        .attach(link, TcAttachType::Ingress)
        .map_err(refused("attach"))?;
    let owned = program.take_link(attached).map_err(refused("attach"))?;
    let adopt = |source| EbpfError::Adopt {
        program: name,
        link: link.to_owned(),
        source,
    };
    let fd: FdLink = owned.try_into().map_err(adopt)?;
    fd.pin(pin).map_err(|source| EbpfError::Pin {
        program: name,
        link: link.to_owned(),
        source,
    })?;
    Ok(was_detached)
}

/// Puts the program behind a link of an earlier agent; no packet passes it by.
fn replace(program: &mut SchedClassifier, pin: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let old = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = program.attach_to_link(old.try_into()?)?;
    let owned = program.take_link(id)?;
    // From here on only the pin holds it.
    let _: FdLink = owned.try_into().map_err(|error: LinkError| error)?;
    Ok(())
}
