//! The maps, each with its types.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, lpm_trie::LpmTrie},
};

use portolan_plane::OpError;

use crate::{
    EbpfError,
    error::Doing,
    layout::{
        Address, BackendCounters, BackendLabel, BackendValue, Chunk, ChunkKey, Flow, FrontendKey,
        FrontendLabel, FrontendValue, HostValue, Listed, NetworkValue, SlotKey, TaskValue, Tuple,
    },
};

pub(crate) type Hash<K, V> = HashMap<MapData, K, V>;

/// All maps of the object.
pub(crate) struct Maps {
    pub(crate) host: Array<MapData, HostValue>,
    pub(crate) networks: Array<MapData, NetworkValue>,
    pub(crate) links: Hash<u32, u32>,
    pub(crate) frontends: Hash<FrontendKey, FrontendValue>,
    pub(crate) answers: Array<MapData, u64>,
    pub(crate) allowed: LpmTrie<MapData, Listed, u32>,
    pub(crate) chunks: Hash<ChunkKey, Chunk>,
    pub(crate) load: Array<MapData, u32>,
    pub(crate) slots: Hash<SlotKey, u32>,
    pub(crate) backends: Array<MapData, BackendValue>,
    pub(crate) backend_stats: PerCpuArray<MapData, BackendCounters>,
    pub(crate) flows: Hash<Tuple, Flow>,
    pub(crate) own: Hash<Address, u32>,
    pub(crate) peers: Hash<u32, u32>,
    pub(crate) tasks: Hash<Address, TaskValue>,
    pub(crate) counters: PerCpuArray<MapData, u64>,
    pub(crate) backend_labels: Hash<u32, BackendLabel>,
    pub(crate) frontend_labels: Hash<u32, FrontendLabel>,
}

impl Maps {
    pub(crate) fn take(object: &mut Ebpf) -> Result<Self, EbpfError> {
        Ok(Self {
            host: take(object, "host")?,
            networks: take(object, "networks")?,
            links: take(object, "links")?,
            frontends: take(object, "frontends")?,
            answers: take(object, "answers")?,
            allowed: take(object, "allowed")?,
            chunks: take(object, "chunks")?,
            load: take(object, "load")?,
            slots: take(object, "slots")?,
            backends: take(object, "backends")?,
            backend_stats: take(object, "backend_stats")?,
            flows: take(object, "flows")?,
            own: take(object, "own")?,
            peers: take(object, "peers")?,
            tasks: take(object, "tasks")?,
            counters: take(object, "counters")?,
            backend_labels: take(object, "backend_labels")?,
            frontend_labels: take(object, "frontend_labels")?,
        })
    }
}

pub(crate) fn take<M: TryFrom<Map>>(object: &mut Ebpf, name: &'static str) -> Result<M, EbpfError> {
    let map = object.take_map(name).ok_or(EbpfError::Incomplete(name))?;
    M::try_from(map).map_err(|_| EbpfError::Incomplete(name))
}

/// Makes a map hold just this, the additions first; tells whether that changed anything.
pub(crate) fn fill<K: aya::Pod + Ord, V: aya::Pod + PartialEq>(
    map: &mut Hash<K, V>,
    wanted: &BTreeMap<K, V>,
    what: &str,
) -> Result<bool, OpError> {
    let present = read(map, what)?;
    let mut changed = false;
    for (key, value) in wanted {
        if present.get(key) != Some(value) {
            map.insert(key, value, 0)
                .doing(|| format!("write {what}"))?;
            changed = true;
        }
    }
    for key in present.keys().filter(|key| !wanted.contains_key(key)) {
        map.remove(key).doing(|| format!("remove from {what}"))?;
        changed = true;
    }
    Ok(changed)
}

/// All that a map holds.
pub(crate) fn read<K: aya::Pod + Ord, V: aya::Pod>(
    map: &Hash<K, V>,
    what: &str,
) -> Result<BTreeMap<K, V>, OpError> {
    map.iter()
        .collect::<Result<_, _>>()
        .doing(|| format!("read {what}"))
}
