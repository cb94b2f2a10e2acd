//! Maps of any layout, read and written in slices.

use std::{io, os::fd::AsFd, path::Path};

use aya::maps::MapData;

use super::btf::{Btf, Fields};
use crate::syscall;

/// The most entries that one slice has; no bucket of the kernel's hash tables has as many.
const SLICE: usize = 2048;

/// Types of maps (linux/bpf.h): those with a value for each CPU, hash, array and LRU; and arrays.
const PER_CPU: [u32; 3] = [5, 6, 10];
const ARRAYS: [u32; 2] = [2, 6];

/// A pinned map.
pub(super) struct Table {
    map: MapData,
    pub(super) kind: u32,
    /// The size of a key, in bytes.
    pub(super) key: usize,
    /// The size of a value; of a map with one for each CPU that of one of them, with its padding.
    pub(super) value: usize,
    /// How many values an entry has.
    pub(super) values: usize,
    pub(super) key_fields: Fields,
    pub(super) value_fields: Fields,
}

/// Some of a map: keys and values, one behind the other.
pub(super) struct Slice {
    pub(super) keys: Vec<u8>,
    pub(super) values: Vec<u8>,
    /// Where to go on; `None` is the end.
    pub(super) next: Option<Vec<u8>>,
}

impl Table {
    /// Opens a map by its pin.
    ///
    /// # Errors
    /// It cannot be read, or the kernel does not know its layout.
    pub(super) fn open(pin: &Path) -> io::Result<Self> {
        let map = MapData::from_pin(pin).map_err(io::Error::other)?;
        let about = syscall::map_info(map.fd().as_fd())?;
        let types = syscall::types(about.btf_id)?;
        let unknown = || io::Error::other("the kernel does not know the map's layout");
        let btf = Btf::parse(&types).ok_or_else(unknown)?;
        let (key, value) = (about.key_size as usize, about.value_size as usize);
        let (value, values) = if PER_CPU.contains(&about.kind) {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            (value.next_multiple_of(8), cpus)
        } else {
            (value, 1)
        };
        Ok(Self {
            kind: about.kind,
            key,
            value,
            values,
            key_fields: btf.fields(about.btf_key_type_id).ok_or_else(unknown)?,
            value_fields: btf.fields(about.btf_value_type_id).ok_or_else(unknown)?,
            map,
        })
    }

    /// Whether all its places are always there.
    pub(super) fn is_array(&self) -> bool {
        ARRAYS.contains(&self.kind)
    }

    /// The next entries behind `from`; `None` begins.
    pub(super) fn slice(&self, from: Option<&[u8]>) -> io::Result<Slice> {
        let mut keys = vec![0; SLICE * self.key];
        let mut values = vec![0; SLICE * self.value * self.values];
        let mut next = vec![0; self.key.max(4)];
        let map = self.map.fd().as_fd();
        let (count, more) =
            syscall::lookup_batch(map, from, &mut next, &mut keys, &mut values, SLICE)?;
        keys.truncate(count * self.key);
        values.truncate(count * self.value * self.values);
        Ok(Slice {
            keys,
            values,
            next: more.then_some(next),
        })
    }

    /// Writes entries, over those that are there.
    pub(super) fn write(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        match keys.len().checked_div(self.key) {
            None | Some(0) => Ok(()),
            Some(count) => syscall::update_batch(self.map.fd().as_fd(), keys, values, count),
        }
    }
}
