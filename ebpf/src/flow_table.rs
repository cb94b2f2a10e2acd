//! The table of flows, read in slices: one call reads some thousand entries and tells where to go on; entry by entry it
//! would be two calls for each.

use std::{io, os::fd::AsFd, path::Path};

use aya::maps::{MapData, MapError};

use zerocopy::IntoBytes;

use crate::{
    layout::{Flow, Tuple},
    syscall,
};

/// The most entries that one slice has; no bucket of the kernel's table has as many.
const SLICE: usize = 2048;

/// Where to go on in the table: a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor([u8; 4]);

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
        let mut next = [0; 4];
        let (count, more) = syscall::lookup_batch(
            self.map.fd().as_fd(),
            from.as_ref().map(|cursor| cursor.0.as_slice()),
            &mut next,
            keys.as_mut_bytes(),
            values.as_mut_bytes(),
            SLICE,
        )?;
        Ok(Slice {
            entries: keys.into_iter().zip(values).take(count).collect(),
            next: more.then_some(Cursor(next)),
        })
    }
}
