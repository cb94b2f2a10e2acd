//! Which programs are attached to a cgroup. It is how a link that someone detached is noticed: its pin stays.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// `BPF_PROG_QUERY` (linux/bpf.h).
const PROG_QUERY: libc::c_int = 16;
/// The most programs that the kernel has at one hook of a cgroup (`BPF_CGROUP_MAX_PROGS`).
const MOST: usize = 64;

/// The part of `union bpf_attr` that the call takes.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// The numbers of the programs at one hook of a cgroup.
pub(super) fn attached(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MOST as u32,
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes what `query` holds, of the size that is given, and at most `prog_cnt`
    // numbers where `prog_ids` points to; both outlive the call.
    #[expect(unsafe_code, reason = "aya asks this of network links alone")]
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(query.prog_cnt as usize);
    Ok(ids)
}
