//! What gossip says of the other nodes, taken into the catalog: of each only what changed since the last time, as a node
//! may have thousands of tasks and change one.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use imbl::{OrdMap, ordmap::DiffItem};
use portolan_gossip::{Owner, View};
use portolan_model::{Catalog, NodeId, Record, RecordKey};

/// What was taken into the catalog last, by node.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<NodeId, Arc<Owner>>);

impl Heard {
    /// Takes all that is new into the catalog, which nobody else tells of other nodes.
    pub(super) fn take(&mut self, view: &View, catalog: &mut Catalog) {
        let others = || view.owners.iter().filter(|(id, _)| **id != view.me);
        let nothing = OrdMap::new();
        for (id, owner) in others() {
            let known = self.0.get(id);
            if known.is_some_and(|known| Arc::ptr_eq(known, owner)) {
                continue;
            }
            let before = known.map_or(&nothing, |known| &known.records);
            let changes = changes(*id, before, &owner.records);
            catalog.change_owner(*id, owner.visible, changes);
        }
        for id in self.0.keys().filter(|id| !view.owners.contains_key(id)) {
            catalog.remove_owner(id);
        }
        self.0 = others()
            .map(|(id, owner)| (*id, Arc::clone(owner)))
            .collect();
    }
}

/// The records that are not as they were. One that does not parse is none.
fn changes<'a>(
    owner: NodeId,
    before: &'a OrdMap<Bytes, Bytes>,
    after: &'a OrdMap<Bytes, Bytes>,
) -> impl Iterator<Item = (RecordKey, Option<Record>)> + 'a {
    before.diff(after).filter_map(move |item| match item {
        DiffItem::Add(key, value)
        | DiffItem::Update {
            new: (key, value), ..
        } => {
            let key = parsed(owner, RecordKey::decode(key)).flatten()?;
            let record = parsed(owner, Record::decode(&key, value));
            Some((key, record))
        }
        // Whether its key parses was said when it came.
        DiffItem::Remove(key, _) => Some((RecordKey::decode(key).ok().flatten()?, None)),
    })
}

fn parsed<T>(owner: NodeId, result: Result<T, portolan_model::DecodeError>) -> Option<T> {
    let passed_over = |error| {
        tracing::warn!(%owner, error = super::with_causes(&error), "a record that does not parse is passed over");
    };
    result.map_err(passed_over).ok()
}

#[cfg(test)]
mod tests {
    use portolan_model::{Task, TaskState};

    use super::*;

    fn task(id: &str, state: TaskState) -> (Bytes, Bytes) {
        let record = Record::Task(Task {
            id: id.parse().unwrap(),
            service: None,
            slot: 0,
            endpoints: Vec::new(),
            state,
            weight: 1,
        });
        let value = record.encode().unwrap();
        (record.key().encode().into(), value.into())
    }

    fn view(owners: impl IntoIterator<Item = (&'static str, OrdMap<Bytes, Bytes>)>) -> View {
        let owners = owners.into_iter().map(|(name, records)| {
            let owner = Owner {
                boot: 1,
                visible: true,
                records,
            };
            (NodeId::of_name(name), Arc::new(owner))
        });
        View {
            me: NodeId::of_name("me"),
            members: BTreeMap::new(),
            owners: owners.collect(),
            synced: true,
            table_hash: 0,
            membership_hash: 0,
        }
    }

    fn tasks(catalog: &mut Catalog) -> Vec<(String, TaskState)> {
        let snapshot = catalog.snapshot(true);
        let tasks = snapshot.tasks.iter();
        tasks
            .map(|(id, view)| (id.to_string(), view.state))
            .collect()
    }

    #[test]
    fn the_catalog_has_what_the_last_view_shows_of_others() {
        let (mut heard, mut catalog) = (Heard::default(), Catalog::new(NodeId::of_name("me")));
        let t1 = task("t1", TaskState::Healthy);
        let all = OrdMap::from_iter([t1.clone(), task("t2", TaskState::Healthy)]);
        let own = OrdMap::from_iter([task("mine", TaskState::Healthy)]);
        heard.take(&view([("n1", all.clone()), ("me", own)]), &mut catalog);
        let healthy = |id: &str| (id.to_owned(), TaskState::Healthy);
        assert_eq!(tasks(&mut catalog), [healthy("t1"), healthy("t2")]);

        let (key, value) = task("t2", TaskState::Draining);
        let changed = all.update(key, value);
        heard.take(&view([("n1", changed.clone())]), &mut catalog);
        let draining = ("t2".to_owned(), TaskState::Draining);
        assert_eq!(tasks(&mut catalog), [healthy("t1"), draining.clone()]);

        heard.take(&view([("n1", changed.without(&t1.0))]), &mut catalog);
        assert_eq!(tasks(&mut catalog), [draining]);
        heard.take(&view([]), &mut catalog);
        assert_eq!(tasks(&mut catalog), []);
        assert_eq!(catalog.owners().count(), 0);
    }

    #[test]
    fn a_record_that_does_not_parse_any_more_is_gone() {
        let (mut heard, mut catalog) = (Heard::default(), Catalog::new(NodeId::of_name("me")));
        let (key, value) = task("t1", TaskState::Healthy);
        let all = OrdMap::from_iter([(key.clone(), value), task("t2", TaskState::Healthy)]);
        heard.take(&view([("n1", all.clone())]), &mut catalog);
        let junk = Bytes::from_static(b"\xff");
        let spoilt = all.update(key, junk.clone()).update(junk.clone(), junk);
        heard.take(&view([("n1", spoilt)]), &mut catalog);
        assert_eq!(tasks(&mut catalog), [("t2".to_owned(), TaskState::Healthy)]);
    }

    #[test]
    fn only_what_changed_is_read() {
        let all = (0..2_000).map(|id| task(&format!("t{id}"), TaskState::Healthy));
        let before: OrdMap<Bytes, Bytes> = all.collect();
        let (key, value) = task("t77", TaskState::Draining);
        let after = before.update(key, value);
        let changes = changes(NodeId::of_name("n1"), &before, &after);
        assert_eq!(changes.count(), 1);
    }
}
