//! What this node is to serve, from one snapshot to the next: made anew only for the services that a change is about,
//! as a cluster may have thousands of others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::ordmap::DiffItem;
use portolan_model::{ServiceId, Snapshot};

use crate::{Actual, FrontendSpec, desired};

/// The frontends of the last snapshot, by service. Those that stay as they were are the same [`Arc`]s.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    of: Option<Arc<Snapshot>>,
    services: BTreeMap<ServiceId, Vec<Arc<FrontendSpec>>>,
    all: Actual,
}

impl Demand {
    /// The same as [`crate::frontends`] of this snapshot.
    pub(crate) fn follow(&mut self, snapshot: &Arc<Snapshot>) -> Actual {
        let changed = match self.of.replace(Arc::clone(snapshot)) {
            Some(before) if before.me == snapshot.me && before.networks == snapshot.networks => {
                changed(&before, snapshot)
            }
            _ => {
                let known = self.services.keys();
                known.chain(snapshot.services.keys()).cloned().collect()
            }
        };
        let (mut replaced, mut others) = (Vec::new(), false);
        for service in changed {
            let before = self.services.remove(&service).unwrap_or_default();
            let after = remade(snapshot, &service, &before);
            let pairs = before.iter().zip(&after);
            others |=
                before.len() != after.len() || pairs.clone().any(|(a, b)| a.frontend != b.frontend);
            replaced.extend(pairs.map(|(a, b)| (Arc::clone(a), Arc::clone(b))));
            if !after.is_empty() {
                self.services.insert(service, after);
            }
        }
        if others {
            let specs = self.services.values().flatten();
            let all = specs.map(|spec| (spec.frontend.clone(), Arc::clone(spec)));
            self.all = all.collect();
        } else {
            for (old, new) in replaced {
                // Of two services that want the same frontend, one has it.
                let known = self.all.get(&new.frontend);
                if known.is_some_and(|known| Arc::ptr_eq(known, &old)) {
                    self.all.insert(new.frontend.clone(), new);
                }
            }
        }
        self.all.clone()
    }
}

/// A service's frontends, those that are as they were taken from before.
fn remade(
    snapshot: &Snapshot,
    service: &ServiceId,
    before: &[Arc<FrontendSpec>],
) -> Vec<Arc<FrontendSpec>> {
    let view = snapshot.services.get(service).into_iter();
    let specs = view
        .flat_map(|view| desired::of_service(snapshot, view))
        .map(|spec| {
            let same = before.iter().find(|known| ***known == spec);
            same.map_or_else(|| Arc::new(spec), Arc::clone)
        });
    specs.collect()
}

/// The services of which something differs that their frontends are made of, networks aside.
fn changed(before: &Snapshot, after: &Snapshot) -> BTreeSet<ServiceId> {
    let services = before.services.diff(&after.services);
    let services = services.filter_map(|item| match item {
        // Which tasks it has is the tasks' word.
        DiffItem::Update { old, new }
            if old.1.service == new.1.service && old.1.ports == new.1.ports =>
        {
            None
        }
        DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. } => {
            Some(id.clone())
        }
    });
    let tasks = before.tasks.diff(&after.tasks);
    let tasks = tasks.flat_map(|item| match item {
        DiffItem::Add(_, task) | DiffItem::Remove(_, task) => [Some(task), None],
        DiffItem::Update { old, new } => [Some(old.1), Some(new.1)],
    });
    let of_tasks = tasks.filter_map(|task| task?.task.service.clone());
    services.chain(of_tasks).collect()
}
