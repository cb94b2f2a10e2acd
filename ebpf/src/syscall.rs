//! Calls of bpf(2) that aya does not have: maps read and written in slices, and what the kernel knows of their layouts.
//! Structs and numbers are those of linux/bpf.h.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BTF_GET_FD_BY_ID: libc::c_int = 19;
const LOOKUP_BATCH: libc::c_int = 24;
const UPDATE_BATCH: libc::c_int = 26;

/// The part of `union bpf_attr` for batches.
#[repr(C)]
#[derive(Default)]
struct Batch {
    begin: u64,
    end: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part for information.
#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    max_entries: u32,
    map_flags: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_vmlinux_value_type_id: u32,
    netns_dev: u64,
    netns_ino: u64,
    pub(crate) btf_id: u32,
    pub(crate) btf_key_type_id: u32,
    pub(crate) btf_value_type_id: u32,
    pad: u32,
}

/// The beginning of `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    size: u32,
    id: u32,
}

/// Reads up to `count` entries of a map, those behind `from`; `None` begins. Tells how many there were, and whether
/// more may follow behind what is in `next` then, which takes a key or 4 bytes at least.
///
/// # Errors
/// The kernel's; a slice that is too small is ENOSPC.
pub(crate) fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<&[u8]>,
    next: &mut [u8],
    keys: &mut [u8],
    values: &mut [u8],
    count: usize,
) -> io::Result<(usize, bool)> {
    let mut batch = Batch {
        begin: from.map_or(0, |from| from.as_ptr() as u64),
        end: next.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(count).map_err(io::Error::other)?,
        map: number(map),
        ..Batch::default()
    };
    let more = match bpf(LOOKUP_BATCH, &mut batch) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    Ok((batch.count as usize, more))
}

/// Writes entries of a map, over those that are there.
///
/// # Errors
/// The kernel's; those before the one that failed are written.
pub(crate) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: usize,
) -> io::Result<()> {
    let mut batch = Batch {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(count).map_err(io::Error::other)?,
        map: number(map),
        ..Batch::default()
    };
    bpf(UPDATE_BATCH, &mut batch).map(drop)
}

/// What the kernel knows of a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut about = MapInfo::default();
    info(map, &mut about)?;
    Ok(about)
}

/// The types of an object that is loaded, as BTF.
pub(crate) fn types(id: u32) -> io::Result<Vec<u8>> {
    let fd = bpf(BTF_GET_FD_BY_ID, &mut [id, 0, 0, 0])?;
    // SAFETY: the kernel has just made it, for this call alone.
    #[expect(unsafe_code, reason = "a file descriptor that bpf(2) made")]
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut about = BtfInfo::default();
    info(fd.as_fd(), &mut about)?;
    let mut types = vec![0_u8; about.size as usize];
    about.btf = types.as_mut_ptr() as u64;
    info(fd.as_fd(), &mut about)?;
    Ok(types)
}

fn info<T>(of: BorrowedFd<'_>, into: &mut T) -> io::Result<()> {
    let mut attributes = InfoByFd {
        fd: number(of),
        length: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(into) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes).map(drop)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    let (at, size) = (std::ptr::from_mut(attributes), size_of::<T>());
    // SAFETY: all callers are above. Each pointer in `attributes` is to memory that outlives the call and is as large as
    // what the kernel reads or writes there, which its callers answer for where that depends on a map.
    #[expect(unsafe_code, reason = "a system call that no crate here wraps")]
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, at, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}
