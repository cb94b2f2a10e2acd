//! The difference between what a node is to serve and what a plane serves.

use std::sync::Arc;

use portolan_model::Snapshot;

use crate::{Actual, Frontend, FrontendSpec, frontends};

/// One step. Applying it twice is the same as once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Serve the frontend just so. The plane writes the backends before the frontend leads to them; flows
    /// to backends that stay keep running, those to a backend that is gone are ended.
    Upsert(Arc<FrontendSpec>),
    /// Stop serving it, and end its flows.
    Remove(Frontend),
}

impl Op {
    /// The frontend that it is about.
    pub fn frontend(&self) -> &Frontend {
        match self {
            Self::Upsert(spec) => &spec.frontend,
            Self::Remove(frontend) => frontend,
        }
    }
}

/// Steps in the order in which they are to be taken: additions and changes, then removals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub ops: Vec<Op>,
}

impl Plan {
    /// What turns `actual` into what the snapshot asks for. From a snapshot that is not synced nothing is
    /// concluded from absence: frontends and backends are added and changed, and none is removed.
    pub fn new(snapshot: &Snapshot, actual: &Actual) -> Self {
        Self::towards(&frontends(snapshot), snapshot.synced, actual)
    }

    /// What turns `actual` into `desired`, which is all that is known, or just all that is known yet.
    pub(crate) fn towards(desired: &Actual, synced: bool, actual: &Actual) -> Self {
        let changed = desired
            .iter()
            .filter_map(|(frontend, spec)| match actual.get(frontend) {
                Some(present) if present == spec => None,
                Some(present) if !synced => {
                    let merged = with_backends_of(spec, present);
                    (merged != **present).then(|| Op::Upsert(Arc::new(merged)))
                }
                _ => Some(Op::Upsert(Arc::clone(spec))),
            });
        let mut ops: Vec<Op> = changed.collect();
        if synced {
            let gone = actual
                .keys()
                .filter(|frontend| !desired.contains_key(frontend));
            ops.extend(gone.cloned().map(Op::Remove));
        }
        Self { ops }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// The spec, and beside its own backends those that only the present one has.
fn with_backends_of(spec: &FrontendSpec, present: &FrontendSpec) -> FrontendSpec {
    let mut merged = spec.clone();
    let missing = present
        .backends
        .iter()
        .filter(|old| spec.backends.iter().all(|new| new.task != old.task));
    merged.backends.extend(missing.cloned());
    merged.backends.sort();
    merged
}
