//! What the kernel does not keep of a frontend: the counters of tasks that are gone, and the idle timeouts.

use std::collections::BTreeMap;

use portolan_model::TaskId;
use portolan_plane::{BackendStats, Frontend};

/// How many tasks that are gone keep their counters: a service that restarts for ever must not grow.
const GONE_ROWS: usize = 256;

/// By frontend. They begin anew with the agent.
#[derive(Default)]
pub(super) struct Books {
    ledgers: BTreeMap<Frontend, Ledger>,
}

/// Of one frontend.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) idle_timeouts: u64,
    /// Tasks that were here before; they may come again, and then their counters go on.
    rows: BTreeMap<TaskId, Row>,
    next_row: u64,
}

struct Row {
    name: String,
    stats: BackendStats,
    /// The order in which rows were written.
    written: u64,
}

impl Books {
    pub(super) fn idle_timeout(&mut self, frontend: &Frontend) {
        self.ledger(frontend).idle_timeouts += 1;
    }

    /// A task left a place in the kernel, which counted this for it.
    pub(super) fn leave(
        &mut self,
        frontend: &Frontend,
        task: &TaskId,
        name: &str,
        counted: &BackendStats,
    ) {
        let ledger = self.ledger(frontend);
        ledger.next_row += 1;
        let row = ledger.rows.entry(task.clone()).or_insert_with(|| Row {
            name: String::new(),
            stats: BackendStats::default(),
            written: 0,
        });
        name.clone_into(&mut row.name);
        row.written = ledger.next_row;
        add(&mut row.stats, counted);
        while ledger.rows.len() > GONE_ROWS {
            let oldest = ledger.rows.iter().min_by_key(|(_, row)| row.written);
            let Some(task) = oldest.map(|(task, _)| task.clone()) else {
                return;
            };
            ledger.rows.remove(&task);
        }
    }

    pub(super) fn close(&mut self, frontend: &Frontend) {
        self.ledgers.remove(frontend);
    }

    pub(super) fn get(&self, frontend: &Frontend) -> Option<&Ledger> {
        self.ledgers.get(frontend)
    }

    fn ledger(&mut self, frontend: &Frontend) -> &mut Ledger {
        self.ledgers.entry(frontend.clone()).or_default()
    }
}

impl Ledger {
    /// All rows of a frontend by task: what was counted before, and what is counted for tasks that are here.
    pub(super) fn rows(
        &self,
        here: impl Iterator<Item = (TaskId, String, BackendStats)>,
    ) -> Vec<(TaskId, String, BackendStats)> {
        let before = self.rows.iter();
        let mut rows: BTreeMap<TaskId, (String, BackendStats)> = before
            .map(|(task, row)| (task.clone(), (row.name.clone(), row.stats.clone())))
            .collect();
        for (task, name, stats) in here {
            let row = rows.entry(task).or_default();
            row.0 = name;
            row.1.active = stats.active;
            add(&mut row.1, &stats);
        }
        let rows = rows.into_iter();
        rows.map(|(task, (name, stats))| (task, name, stats))
            .collect()
    }
}

/// All that only grows.
fn add(to: &mut BackendStats, counted: &BackendStats) {
    to.flows += counted.flows;
    to.bytes_in += counted.bytes_in;
    to.bytes_out += counted.bytes_out;
    to.connect_failures += counted.connect_failures;
}

#[cfg(test)]
mod tests {
    use portolan_model::Protocol;
    use portolan_plane::contract;

    use super::*;

    fn stats(flows: u64, active: u64) -> BackendStats {
        BackendStats {
            flows,
            active,
            ..BackendStats::default()
        }
    }

    #[test]
    fn a_task_that_comes_again_counts_on_and_old_ones_go() {
        let frontend = contract::spec(1, Protocol::Udp, &[]).frontend;
        let task = |n: usize| -> TaskId { format!("t{n}").parse().unwrap() };
        let mut books = Books::default();
        for n in 0..300 {
            books.leave(&frontend, &task(n), "web", &stats(2, 1));
        }
        books.leave(&frontend, &task(299), "web", &stats(3, 1));
        let here = [(task(299), "web.1".to_owned(), stats(4, 2))];
        let rows = books.get(&frontend).unwrap().rows(here.into_iter());
        assert_eq!(rows.len(), GONE_ROWS);
        let row = |n| rows.iter().find(|row| row.0 == task(n)).cloned();
        assert_eq!(row(299), Some((task(299), "web.1".into(), stats(9, 2))));
        assert_eq!(row(298), Some((task(298), "web".into(), stats(2, 0))));
        assert_eq!(row(0), None);
        books.close(&frontend);
        assert!(books.get(&frontend).is_none());
    }
}
