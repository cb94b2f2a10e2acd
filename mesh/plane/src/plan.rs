//! The difference between what a node is to serve and what a plane serves.

use std::sync::Arc;

use imbl::ordmap::DiffItem;
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
        let (mut ops, mut removals) = (Vec::new(), Vec::new());
        let differing = actual.diff(desired).map(|item| match item {
            DiffItem::Add(frontend, new) => (frontend, None, Some(new)),
            DiffItem::Update { old, new } => (new.0, Some(old.1), Some(new.1)),
            DiffItem::Remove(frontend, old) => (frontend, Some(old), None),
        });
        for (frontend, present, wanted) in differing {
            match (present, wanted) {
                (Some(present), Some(spec)) if !synced => {
                    let merged = with_backends_of(spec, present);
                    if merged != **present {
                        ops.push(Op::Upsert(Arc::new(merged)));
                    }
                }
                (_, Some(spec)) => ops.push(Op::Upsert(Arc::clone(spec))),
                (_, None) if synced => removals.push(Op::Remove(frontend.clone())),
                (_, None) => {}
            }
        }
        ops.append(&mut removals);
        Self { ops }
    }

    /// What is served once all of it is done where just this was.
    pub(crate) fn take_into(self, actual: &mut Actual) {
        for op in self.ops {
            match op {
                Op::Upsert(spec) => drop(actual.insert(spec.frontend.clone(), spec)),
                Op::Remove(frontend) => drop(actual.remove(&frontend)),
            }
        }
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
