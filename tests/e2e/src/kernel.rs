//! What a kernel holds of networks, and of eBPF.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{FromRawFd, OwnedFd},
    time::Duration,
};

use anyhow::Result;
use portolan_testbed::{Namespace, wait_until};

/// All that a node's kernel holds of networks, once it has settled: links, addresses, routes, rules, and the packet
/// filter without its counters.
pub fn kernel(node: &Namespace) -> Result<Vec<String>> {
    let questions: [&[&str]; 7] = [
        &["ip", "-o", "link"],
        &["ip", "-o", "address"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["nft", "--stateless", "list", "ruleset"],
    ];
    wait_until(Duration::from_secs(5), "addresses have settled", || {
        let answers = questions.into_iter().map(|args| Ok(node.run(args)?.stdout));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        let tentative = answers.get(1).is_none_or(|text| text.contains("tentative"));
        Ok((!tentative).then_some(answers))
    })
}

/// `BPF_PROG_GET_FD_BY_ID` and `BPF_MAP_GET_FD_BY_ID` (linux/bpf.h).
const PROG_BY_ID: libc::c_int = 13;
const MAP_BY_ID: libc::c_int = 14;

/// What the kernel has loaded of eBPF, by its number, which is given to nothing else later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bpf {
    /// A program, which is there as long as it is held, pinned or attached.
    Program(u32),
    /// A map, which is there as long as it is held or pinned, or a program is that uses it.
    Map(u32),
}

impl Bpf {
    /// All that a process holds.
    pub fn of(pid: u32) -> Result<BTreeSet<Self>> {
        let mut all = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // Its descriptors come and go meanwhile.
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            all.extend(text.lines().filter_map(|line| {
                let (key, id) = line.split_once(":\t")?;
                match key {
                    "prog_id" => Some(Self::Program(id.parse().ok()?)),
                    "map_id" => Some(Self::Map(id.parse().ok()?)),
                    _ => None,
                }
            }));
        }
        Ok(all)
    }

    /// Whether the kernel still has it, in whatever namespace.
    pub fn is_loaded(self) -> Result<bool> {
        let (command, id) = match self {
            Self::Program(id) => (PROG_BY_ID, id),
            Self::Map(id) => (MAP_BY_ID, id),
        };
        // The part of `union bpf_attr` that both take: the number, the one to go on from, and flags.
        let attributes = [id, 0, 0];
        // SAFETY: the kernel reads as much as it is told that there is.
        #[expect(unsafe_code, reason = "there is no other way to ask")]
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::NotFound => Ok(false),
                _ => Err(error.into()),
            };
        }
        // SAFETY: the kernel has just given it to us.
        #[expect(unsafe_code, reason = "it comes from a bare call")]
        let held = unsafe { OwnedFd::from_raw_fd(i32::try_from(result)?) };
        drop(held);
        Ok(true)
    }
}
