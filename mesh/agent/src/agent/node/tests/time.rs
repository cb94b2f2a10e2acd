//! What is over, when, and that nothing wakes the node for it again.

use super::*;

fn drain_ms() -> u64 {
    u64::from(Service::DEFAULT_DRAIN_MS)
}

fn with_tasks(ids: &[&str]) -> Node {
    let mut node = node("n1");
    node.apply(&stack(&[("web", 8080)]), false, NOW).unwrap();
    node.refresh(NOW);
    for id in ids {
        add(&mut node, id, "web");
    }
    node
}

fn state_of(node: &Node, task: &str) -> Option<TaskState> {
    let id: TaskId = task.parse().unwrap();
    node.snapshot().tasks.get(&id).map(|view| view.state)
}

#[test]
fn what_is_past_wakes_no_one() {
    let mut node = with_tasks(&["t1"]);
    assert_eq!(node.next_deadline_ms(), None);
    node.set_draining(true, NOW);
    node.refresh(NOW);
    assert_eq!(node.next_deadline_ms(), Some(NOW + drain_ms()));
    node.refresh(NOW + drain_ms());
    assert_eq!(state_of(&node, "t1"), None);
    assert_eq!(node.next_deadline_ms(), None);
}

#[test]
fn a_removal_that_waits_for_a_node_that_is_away_wakes_no_one() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    nodes[0]
        .apply(&stack(&[("web", 8080)]), false, NOW)
        .unwrap();
    exchange(&mut nodes, NOW);
    add(&mut nodes[1], "t1", "web");
    let (second, old) = (nodes[1].identity.id, nodes[1].records(NOW));
    let first = &mut nodes[0];
    first.catalog().set_owner(second, false, old);
    first.remove("shop", NOW + 1).unwrap();
    let later = NOW + 60 * 60 * 1000;
    first.refresh(later);
    assert!(
        first.state().services.values().all(|s| s.removed) && first.state().services.len() == 1
    );
    assert_eq!(first.next_deadline_ms(), None);
    first.catalog().remove_owner(&second);
    first.refresh(later + 1);
    assert!(first.state().services.is_empty() && first.state().networks.is_empty());
}

#[test]
fn a_task_drained_twice_ends_when_the_first_drain_does() {
    let mut node = with_tasks(&["t1"]);
    let id: TaskId = "t1".parse().unwrap();
    node.drain_task(&id, NOW).unwrap();
    node.drain_task(&id, NOW + 500).unwrap();
    node.refresh(NOW + drain_ms());
    assert!(node.state().tasks.is_empty());
}

#[test]
fn a_clock_that_is_set_back_keeps_nothing_draining_for_long() {
    let mut node = with_tasks(&["t1", "t2"]);
    node.drain_task(&"t1".parse().unwrap(), NOW).unwrap();
    node.set_draining(true, NOW);
    node.refresh(NOW);
    let back = NOW - 900_000;
    node.refresh(back);
    node.refresh(back + drain_ms());
    assert_eq!(node.state().tasks.len(), 1);
    assert_eq!(state_of(&node, "t2"), None);
}

#[test]
fn a_node_that_drains_does_so_over_a_restart_until_it_is_activated() {
    let mut before = with_tasks(&["t1"]);
    before.set_draining(true, NOW - drain_ms());
    before.refresh(NOW);
    let mut after = restarted("n1", before.state().clone());
    assert_eq!(state_of(&after, "t1"), None);
    assert!(
        after
            .wanted_attachments()
            .contains_key(&"t1".parse().unwrap())
    );
    after.set_draining(false, NOW);
    after.refresh(NOW);
    assert_eq!(state_of(&after, "t1"), Some(TaskState::Healthy));
}

#[test]
fn a_slice_is_kept_for_a_minute_after_its_last_task() {
    let mut node = with_tasks(&["t1"]);
    let slices = node.state().slices[&app()].slices.clone();
    node.remove_task(&"t1".parse().unwrap());
    node.refresh(NOW);
    assert_eq!(node.next_deadline_ms(), Some(NOW + 60_000));
    node.refresh(NOW + 59_999);
    add(&mut node, "t2", "web");
    node.refresh(NOW + 60_000);
    assert_eq!(node.state().slices[&app()].slices, slices);
    node.remove_task(&"t2".parse().unwrap());
    node.refresh(NOW + 60_000);
    node.refresh(NOW + 120_000);
    assert!(!node.state().slices.contains_key(&app()));
    assert_eq!(node.next_deadline_ms(), None);
}

#[test]
fn nothing_is_made_anew_when_nothing_changed() {
    let mut node = with_tasks(&["t1"]);
    let (revision, snapshot) = (node.catalog().revision(), Arc::clone(node.snapshot()));
    node.refresh(NOW + 1);
    assert_eq!(node.catalog().revision(), revision);
    assert!(Arc::ptr_eq(&snapshot, node.snapshot()));
}

#[test]
fn a_draining_node_takes_no_new_task() {
    let mut node = node("n1");
    node.apply(&stack(&[("web", 8080)]), false, NOW).unwrap();
    node.set_draining(true, NOW);
    node.refresh(NOW);
    let place = || Place::Address("10.77.0.11".parse().unwrap());
    let mut add = |file| node.add_task("t1".parse().unwrap(), "web", place(), None, None, file);
    assert_eq!(add(None), Err(TaskError::NodeDrains));
    // What a file says stands, and begins when the node is active again.
    add(Some("shop.yml".to_owned())).unwrap();
}
