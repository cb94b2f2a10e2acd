//! What must be so.

use std::collections::BTreeMap;

use bytes::Bytes;
use portolan_model::NodeId;

use crate::view::{MemberState, Owner, View};

type Records = BTreeMap<Bytes, Bytes>;

/// Notes where a view, after all is quiet, is not as the owners have it.
pub(super) fn compare(
    viewer: usize,
    view: &View,
    truth: &BTreeMap<NodeId, Records>,
    found: &mut Vec<String>,
) {
    for (node, records) in truth {
        match view.owners.get(node) {
            Some(owner) if owner.visible && owner.records.iter().eq(records) => {}
            None if records.is_empty() => {}
            Some(owner) => found.push(format!(
                "n{viewer} shows {} records of {node} (visible: {}), which has {}",
                owner.records.len(),
                owner.visible,
                records.len()
            )),
            None => found.push(format!("n{viewer} lacks the records of {node}")),
        }
        let state = view.members.get(node).map(|member| member.state);
        if !state.is_some_and(MemberState::is_active) {
            found.push(format!("n{viewer} holds {node} for {state:?}"));
        }
    }
    for (node, owner) in &view.owners {
        if owner.visible && !truth.contains_key(node) {
            found.push(format!("n{viewer} shows records of {node}, which is gone"));
        }
    }
    for (node, member) in &view.members {
        if member.state.is_active() && !truth.contains_key(node) {
            found.push(format!("n{viewer} holds {node} for alive, which is gone"));
        }
    }
}

/// Watches that no viewer ever goes back to an older state of an owner's life.
#[derive(Debug, Default)]
pub(super) struct Witness {
    seen: BTreeMap<(usize, u32, NodeId), Seen>,
}

#[derive(Debug)]
struct Seen {
    boot: u64,
    /// The highest version that any record of the owner had, by key; it stays when the record goes.
    versions: BTreeMap<Bytes, (u64, bool)>,
}

impl Witness {
    /// Compares what a viewer shows now with what it showed before. Values begin with a version
    /// that only grows.
    pub(super) fn look(
        &mut self,
        viewer: (usize, u32),
        node: NodeId,
        owner: &Owner,
    ) -> Result<(), String> {
        if !owner.visible {
            return Ok(());
        }
        let seen = self
            .seen
            .entry((viewer.0, viewer.1, node))
            .or_insert_with(|| Seen {
                boot: 0,
                versions: BTreeMap::new(),
            });
        if owner.boot < seen.boot {
            return Err(format!(
                "n{} went back from life {} of {node} to {}",
                viewer.0, seen.boot, owner.boot
            ));
        }
        if owner.boot > seen.boot {
            seen.boot = owner.boot;
            seen.versions.clear();
        }
        for (key, (version, gone)) in &mut seen.versions {
            match owner.records.get(key).map(version_of) {
                None => *gone = true,
                Some(now) if now < *version || (*gone && now == *version) => {
                    return Err(format!(
                        "n{} went back to version {now} of {key:?} of {node}, after {version}",
                        viewer.0
                    ));
                }
                Some(now) => (*version, *gone) = (now, false),
            }
        }
        for (key, value) in &owner.records {
            seen.versions
                .entry(key.clone())
                .or_insert((version_of(value), false));
        }
        Ok(())
    }
}

fn version_of(value: &Bytes) -> u64 {
    value
        .first_chunk::<8>()
        .map_or(0, |version| u64::from_be_bytes(*version))
}
