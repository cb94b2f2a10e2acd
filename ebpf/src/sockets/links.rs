//! Attaching the programs on sockets: each by a pinned link, which keeps it attached while no agent runs.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};

use super::query;
use crate::{EbpfError, links};

/// The programs, named after the calls that they are attached to, with the kernel's numbers of these
/// (`enum bpf_attach_type`). What restores an address comes before what changes it, so that no process ever sees
/// the one without the other.
pub(super) const HOOKS: [(&str, u32); 7] = [
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("sendmsg4", 14),
    ("connect4", 10),
    ("connect6", 11),
];

/// What a new link is pinned as until it takes the place of the old one.
const NEW: &str = "-new";

pub(super) fn program<'a>(
    object: &'a mut Ebpf,
    hook: &'static str,
) -> Result<&'a mut CgroupSockAddr, EbpfError> {
    object
        .program_mut(hook)
        .and_then(|program| program.try_into().ok())
        .ok_or(EbpfError::Incomplete(hook))
}

/// Whether a pin is one of these links.
pub(crate) fn is_link(pin: &str) -> bool {
    let hook = pin.strip_suffix(NEW).unwrap_or(pin);
    HOOKS.iter().any(|(name, _)| *name == hook)
}

/// The pins of links that are there; of those that change addresses first.
pub(crate) fn pins(dir: &Path) -> Vec<PathBuf> {
    let hooks = HOOKS.iter().rev();
    hooks
        .flat_map(|(hook, _)| [dir.join(hook), dir.join(format!("{hook}{NEW}"))])
        .filter(|pin| pin.exists())
        .collect()
}

/// Takes the programs off.
pub(super) fn detach(dir: &Path) -> Result<(), EbpfError> {
    pins(dir).into_iter().try_for_each(|pin| unpin(&pin))
}

/// Attaches the programs to a cgroup, and to no other. What someone had detached is added to `detached`, by its pin.
pub(super) fn attach(
    object: &mut Ebpf,
    cgroup: &Path,
    dir: &Path,
    detached: &mut Vec<PathBuf>,
) -> Result<(), EbpfError> {
    let root = File::open(cgroup).map_err(|source| EbpfError::Cgroup {
        path: cgroup.to_owned(),
        source,
    })?;
    HOOKS.iter().try_for_each(|&(hook, number)| {
        let id = program(object, hook)?
            .info()
            .map_err(|source| refused("read", hook, source))?
            .id();
        let attached =
            query::attached(root.as_fd(), number).map_err(|source| EbpfError::Cgroup {
                path: cgroup.to_owned(),
                source,
            })?;
        let pin = dir.join(hook);
        if pin.exists() && attached.contains(&id) {
            return Ok(());
        }
        let was_detached = links::is_detached(&pin, &attached);
        attach_one(program(object, hook)?, hook, &root, &pin)?;
        detached.extend(was_detached.then_some(pin));
        Ok(())
    })
}

/// Attaches a program before the one that an earlier agent attached is taken off. For a moment both run, of which
/// the second finds nothing to do: a backend is no frontend, and an address that was restored is no backend.
fn attach_one(
    program: &mut CgroupSockAddr,
    hook: &'static str,
    root: &File,
    pin: &Path,
) -> Result<(), EbpfError> {
    let new = pin.with_file_name(format!("{hook}{NEW}"));
    if new.exists() {
        unpin(&new)?;
    }
    // By a link this never shuts out what others attach, whatever the mode.
    let attached = program
        .attach(root, CgroupAttachMode::Single)
        .map_err(|source| refused("attach", hook, source))?;
    let owned = program
        .take_link(attached)
        .map_err(|source| refused("attach", hook, source))?;
    let on = || "the cgroup".to_owned();
    let fd: FdLink = owned.try_into().map_err(|source| EbpfError::Adopt {
        program: hook,
        link: on(),
        source,
    })?;
    fd.pin(&new).map_err(|source| EbpfError::Pin {
        program: hook,
        link: on(),
        source,
    })?;
    fs::rename(&new, pin).map_err(|source| EbpfError::Pins { path: new, source })
}

fn unpin(pin: &Path) -> Result<(), EbpfError> {
    fs::remove_file(pin).map_err(|source| EbpfError::Pins {
        path: pin.to_owned(),
        source,
    })
}

pub(super) fn refused(
    doing: &'static str,
    program: &'static str,
    source: aya::programs::ProgramError,
) -> EbpfError {
    EbpfError::Program {
        doing,
        program,
        source,
    }
}
