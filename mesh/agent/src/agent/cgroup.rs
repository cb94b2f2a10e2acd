//! The root of the cgroups, where the fast path attaches its programs on sockets: found, or mounted for this agent
//! alone.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where the root of the cgroups is.
#[derive(Debug, Default)]
pub(super) struct Cgroup {
    /// A mount without a place in the tree of files: nobody else sees it, and it ends with the agent. What is attached
    /// stays, as it is attached to the cgroup.
    own: Option<OwnedFd>,
}

impl Cgroup {
    /// Its path, as long as this is alive; `None` if this kernel has no cgroup2, or the agent no privilege.
    pub(super) fn root(&mut self) -> Option<PathBuf> {
        if let Some(mounted) = portolan_ebpf::cgroup2_root() {
            return Some(mounted);
        }
        if self.own.is_none() {
            self.own = mount().ok();
        }
        let own = self.own.as_ref()?;
        Some(format!("/proc/self/fd/{}", own.as_raw_fd()).into())
    }
}

fn mount() -> io::Result<OwnedFd> {
    let fs = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&fs)?;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_its_own_is_the_root_of_the_cgroups() {
        let own = mount().expect("root is needed");
        let path = format!("/proc/self/fd/{}/cgroup.controllers", own.as_raw_fd());
        assert!(std::fs::exists(path).unwrap());
    }
}
