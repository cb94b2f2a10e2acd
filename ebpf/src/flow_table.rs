//! The table of flows, read in slices: `BPF_MAP_LOOKUP_BATCH` of bpf(2), which aya does not have. One call reads some
//! thousand entries and tells where to go on; entry by entry it would be two calls for each.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use aya::maps::{MapData, MapError};

use crate::layout::{Flow, Tuple};

/// The most entries that one slice has; no bucket of the kernel's table has as many.
const SLICE: usize = 2048;

const LOOKUP_BATCH: libc::c_long = 24;

/// Where to go on in the table: a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor(u32);

/// `union bpf_attr` for batches (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Some of the table.
pub(crate) struct Slice {
    pub(crate) entries: Vec<(Tuple, Flow)>,
    /// Where to go on; `None` is the end.
    pub(crate) next: Option<Cursor>,
}

/// A handle of its own to the pinned map.
pub(crate) struct FlowTable {
    map: MapData,
}

impl FlowTable {
    pub(crate) fn open(pin: &Path) -> Result<Self, MapError> {
        MapData::from_pin(pin).map(|map| Self { map })
    }

    /// The next entries behind `from`; `None` begins. An entry that is there from begin to end is read once.
    pub(crate) fn slice(&self, from: Option<Cursor>) -> io::Result<Slice> {
        let mut keys = vec![Tuple::default(); SLICE];
        let mut values = vec![Flow::default(); SLICE];
        let (start, mut end) = (from.map_or(0, |cursor| cursor.0), 0_u32);
        let mut attributes = Attributes {
            in_batch: from.map_or(0, |_| &raw const start as u64),
            out_batch: &raw mut end as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: SLICE as u32,
            map_fd: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            ..Attributes::default()
        };
        // SAFETY: all pointers are to memory that outlives the call, of the sizes that the map was checked to have,
        // `count` times; the cursor of a hash table is a u32. Keys and values are plain bytes.
        #[expect(unsafe_code, reason = "a system call that no crate here wraps")]
        let done = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        let next = if done == 0 {
            Some(Cursor(end))
        } else {
            let error = io::Error::last_os_error();
            // The last slice.
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(error);
            }
            None
        };
        let count = attributes.count as usize;
        Ok(Slice {
            entries: keys.into_iter().zip(values).take(count).collect(),
            next,
        })
    }
}
