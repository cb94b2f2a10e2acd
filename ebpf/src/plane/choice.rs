//! How new flows of a frontend are given backends, and where the programs find that.

use std::collections::BTreeMap;

use portolan_model::{Balancing, TaskId};
use portolan_plane::{Backend, BackendState, FrontendSpec, OpError};

use super::{EbpfPlane, Place};
use crate::{
    error::Doing,
    layout::{Chunk, ChunkKey, FrontendValue, SlotKey},
};

/// The most turns that one round has; weights are made smaller where they need more.
const MAX_SLOTS: u32 = 4096;
/// `CHUNK`, `MEMBERS` and `MAX_MEMBERS` of `bpf/layout.h`.
const CHUNK: usize = 64;
const MEMBERS: u32 = 0x10000;
const MAX_MEMBERS: usize = 256;

/// Backends by their places in the array.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// One round, or with `LeastConnections` each backend once. Without any, new flows are left to the relay.
    pub(super) slots: Vec<u32>,
    /// A Maglev table, of the same tasks in the same places on every node.
    pub(super) table: Vec<u32>,
    /// All that may have flows, the draining ones too; the first 256.
    pub(super) members: Vec<u32>,
}

/// Whether a backend is given new flows.
pub(super) fn takes_flows(backend: &Backend) -> bool {
    backend.state == BackendState::Active && backend.weight > 0
}

impl Choice {
    /// The choice among backends in these places; `None` is out of reach.
    pub(super) fn of(spec: &FrontendSpec, places: &BTreeMap<TaskId, (u32, Option<Place>)>) -> Self {
        let members = places.values().map(|(index, _)| *index);
        let members = members.take(MAX_MEMBERS).collect();
        let mut candidates: Vec<&Backend> = spec
            .backends
            .iter()
            .filter(|backend| takes_flows(backend))
            .collect();
        if spec.policy.local_first && candidates.iter().any(|backend| backend.local) {
            candidates.retain(|backend| backend.local);
        }
        let reached = candidates.iter().copied().filter_map(|backend| {
            let (index, place) = places.get(&backend.task)?;
            place.is_some().then_some((backend, *index))
        });
        let active: Vec<(&Backend, u32)> = reached.collect();
        // Only some of them would not be what was asked for: then the relay has all.
        if active.len() < candidates.len() {
            return Self {
                members,
                ..Self::default()
            };
        }
        Self {
            slots: match spec.policy.balancing {
                Balancing::LeastConnections => active.iter().map(|(_, index)| *index).collect(),
                Balancing::RoundRobin | Balancing::SourceHash => round(&active),
            },
            table: maglev(&active),
            members,
        }
    }

    /// The table and the members in the pieces that the map holds.
    fn chunks(&self) -> impl Iterator<Item = (u32, Chunk)> {
        let chunk = |part: &[u32]| {
            let mut backends = [0; CHUNK];
            for (to, from) in backends.iter_mut().zip(part) {
                *to = *from;
            }
            Chunk { backends }
        };
        let table = (0..).zip(self.table.chunks(CHUNK));
        let members = (MEMBERS..).zip(self.members.chunks(CHUNK));
        table
            .chain(members)
            .map(move |(number, part)| (number, chunk(part)))
    }
}

impl EbpfPlane {
    pub(super) fn write_choice(
        &mut self,
        spec: &FrontendSpec,
        frontend: u32,
        generation: u32,
        choice: &Choice,
    ) -> Result<(), OpError> {
        for (slot, index) in (0..).zip(&choice.slots) {
            let at = SlotKey {
                frontend,
                generation,
                slot,
            };
            self.maps
                .slots
                .insert(at, index, 0)
                .doing(|| format!("write a slot of {}", spec.frontend))?;
        }
        for (number, chunk) in choice.chunks() {
            let at = ChunkKey {
                frontend,
                generation,
                number,
            };
            self.maps
                .chunks
                .insert(at, chunk, 0)
                .doing(|| format!("write the table of {}", spec.frontend))?;
        }
        Ok(())
    }

    /// What an earlier agent wrote. Where something is missing it differs from any that is wanted, and is written anew.
    pub(super) fn read_choice(&self, value: &FrontendValue) -> Choice {
        let (frontend, generation) = (value.id, value.generation);
        let slot = |slot| {
            let at = SlotKey {
                frontend,
                generation,
                slot,
            };
            self.maps.slots.get(&at, 0).ok()
        };
        let list = |first: u32, length: u32| {
            let numbers = first..first + length.div_ceil(CHUNK as u32);
            let chunks = numbers.filter_map(|number| {
                let at = ChunkKey {
                    frontend,
                    generation,
                    number,
                };
                self.maps.chunks.get(&at, 0).ok()
            });
            let all = chunks.flat_map(|chunk| chunk.backends);
            all.take(length as usize).collect()
        };
        Choice {
            slots: (0..value.slots).filter_map(slot).collect(),
            table: list(0, value.table),
            members: list(MEMBERS, value.members),
        }
    }

    /// Removes a choice, or what was written of it.
    pub(super) fn drop_choice(&mut self, frontend: u32, generation: u32, choice: &Choice) {
        for slot in 0..choice.slots.len() as u32 {
            // One that is not there is what is wanted.
            let _ = self.maps.slots.remove(&SlotKey {
                frontend,
                generation,
                slot,
            });
        }
        for (number, _) in choice.chunks() {
            let _ = self.maps.chunks.remove(&ChunkKey {
                frontend,
                generation,
                number,
            });
        }
    }
}

/// A task on its way round the table.
struct Turn {
    index: u32,
    weight: u16,
    credit: u32,
    next: u64,
    skip: u64,
}

/// A Maglev table (Eisenbud et al., NSDI 2016, section 3.4): each task takes places in an order of its own, as often as
/// its weight says. Every node that knows the same tasks has the same table, and few places change with one of them.
fn maglev(active: &[(&Backend, u32)]) -> Vec<u32> {
    let heaviest = active.iter().map(|(backend, _)| backend.weight).max();
    let Some(heaviest) = heaviest.filter(|weight| *weight > 0) else {
        return Vec::new();
    };
    // Primes, so that each order visits every place; ten places and more for each task, as far as it goes.
    let size: u64 = match active.len() {
        ..=25 => 251,
        26..=100 => 1021,
        _ => 4093,
    };
    let mut turns: Vec<Turn> = active
        .iter()
        .map(|(backend, index)| {
            let hash = hash(backend.task.as_str());
            Turn {
                index: *index,
                weight: backend.weight,
                credit: 0,
                next: (hash >> 32) % size,
                skip: (hash & 0xffff_ffff) % (size - 1) + 1,
            }
        })
        .collect();
    let mut table = vec![None; size as usize];
    let mut left = size;
    loop {
        for turn in &mut turns {
            turn.credit += u32::from(turn.weight);
            if turn.credit < u32::from(heaviest) {
                continue;
            }
            turn.credit -= u32::from(heaviest);
            // While a place is left, the order comes to it.
            while let Some(Some(_)) = table.get(turn.next as usize) {
                turn.next = (turn.next + turn.skip) % size;
            }
            if let Some(place) = table.get_mut(turn.next as usize) {
                *place = Some(turn.index);
            }
            left -= 1;
            if left == 0 {
                return table.into_iter().flatten().collect();
            }
        }
    }
}

/// FNV-1a, and the finaliser of splitmix64.
fn hash(task: &str) -> u64 {
    let mut hash = task.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// One round: every active backend as often as its weight says, the turns of each far apart.
fn round(active: &[(&Backend, u32)]) -> Vec<u32> {
    let gcd = active
        .iter()
        .fold(0, |gcd, (backend, _)| common(gcd, backend.weight))
        .max(1);
    let total: u32 = active
        .iter()
        .map(|(backend, _)| u32::from(backend.weight / gcd))
        .sum();
    let shrink = total.div_ceil(MAX_SLOTS).max(1);
    let mut turns: Vec<(u32, u32, u32)> = Vec::new();
    for (backend, index) in active {
        let weight = (u32::from(backend.weight / gcd) / shrink).max(1);
        // In the middle of each of its shares of the round, in units that no weight divides.
        turns.extend((0..weight).map(|turn| {
            (
                (2 * turn + 1) * (u32::MAX / (2 * weight + 1)) / 2,
                *index,
                turn,
            )
        }));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, index, _)| index).collect()
}

fn common(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { common(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use portolan_model::Protocol;
    use portolan_plane::contract;

    use super::*;

    fn backends(count: u8) -> Vec<Backend> {
        let ips: Vec<Ipv4Addr> = (0..count).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
        contract::spec(80, Protocol::Tcp, &ips).backends
    }

    /// The table in terms of tasks, which are the same on every node.
    fn table(backends: &[Backend], first: u32) -> Vec<TaskId> {
        let active: Vec<_> = backends.iter().zip(first..).collect();
        let table = maglev(&active);
        let task = |index| backends[(index - first) as usize].task.clone();
        table.into_iter().map(task).collect()
    }

    fn share(table: &[TaskId], backend: &Backend) -> usize {
        table.iter().filter(|task| **task == backend.task).count()
    }

    #[test]
    fn a_table_is_the_same_wherever_the_backends_have_their_places() {
        assert_eq!(table(&backends(7), 0), table(&backends(7), 1000));
        assert!(maglev(&[]).is_empty());
    }

    #[test]
    fn places_are_shared_evenly_and_by_weight() {
        for count in [1, 2, 10, 60, 200] {
            let backends = backends(count);
            let table = table(&backends, 0);
            let fair = table.len() / backends.len();
            assert!(fair >= 10);
            for backend in &backends {
                assert!(share(&table, backend).abs_diff(fair) <= 1);
            }
        }
        let mut weighted = backends(2);
        weighted[1].weight = 3;
        let table = table(&weighted, 0);
        assert!(share(&table, &weighted[1]).abs_diff(188) <= 1);
    }

    #[test]
    fn few_places_change_with_one_task() {
        let all = backends(10);
        let (with, without) = (table(&all, 0), table(&all[..9], 0));
        let pairs = with.iter().zip(&without);
        let moved = pairs.filter(|(a, b)| a != b && **a != all[9].task).count();
        assert!(moved < 50, "{moved} of 251");
    }

    #[test]
    fn a_round_has_each_backend_by_its_weight() {
        let mut some = backends(3);
        some[0].weight = 4;
        let active: Vec<_> = some.iter().zip(0..).collect();
        let round = round(&active);
        assert_eq!(round.len(), 6);
        assert_eq!(round.iter().filter(|index| **index == 0).count(), 4);
    }
}
