//! Planes of the tests: one that only remembers, and one that fails on a schedule.

use std::{cell::Cell, collections::BTreeSet, sync::Arc};

use crate::{
    Actual, DataPlane, Failure, FlowView, Frontend, Op, OpError, Plan, PlaneKind, PlaneStats,
    Unavailable,
};

/// A plane that remembers what it was told.
#[derive(Debug, Default)]
pub struct FakePlane {
    actual: Actual,
    /// Every operation applied, in order.
    pub log: Vec<Op>,
}

impl DataPlane for FakePlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Fake
    }

    fn probe(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn dump(&self) -> Result<Actual, OpError> {
        Ok(self.actual.clone())
    }

    fn apply(&mut self, plan: &Plan) -> Vec<Failure> {
        for op in &plan.ops {
            match op {
                Op::Upsert(spec) => {
                    self.actual.insert(spec.frontend.clone(), Arc::clone(spec));
                }
                Op::Remove(frontend) => {
                    self.actual.remove(frontend);
                }
            }
            self.log.push(op.clone());
        }
        Vec::new()
    }

    fn stats(&self) -> PlaneStats {
        PlaneStats::default()
    }

    fn flows(&self, _limit: usize) -> Vec<FlowView> {
        Vec::new()
    }
}

/// A plane that refuses some operations: every `nth` of all, and those on frontends in `refused`.
#[derive(Debug, Default)]
pub struct FaultyPlane {
    inner: FakePlane,
    /// Every how many operations one fails; 0 is none.
    pub nth: u64,
    /// Frontends on which every operation fails.
    pub refused: BTreeSet<Frontend>,
    /// How many further dumps fail.
    pub unreadable: Cell<u32>,
    count: u64,
}

impl DataPlane for FaultyPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Fake
    }

    fn probe(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn dump(&self) -> Result<Actual, OpError> {
        if let Some(left) = self.unreadable.get().checked_sub(1) {
            self.unreadable.set(left);
            return Err(refusal("dump"));
        }
        self.inner.dump()
    }

    fn apply(&mut self, plan: &Plan) -> Vec<Failure> {
        let mut failures = Vec::new();
        for op in &plan.ops {
            self.count += 1;
            let frontend = op.frontend();
            if self.refused.contains(frontend) || self.count.checked_rem(self.nth) == Some(0) {
                failures.push(Failure {
                    frontend: frontend.clone(),
                    error: refusal(&frontend.to_string()),
                });
            } else {
                self.inner.apply(&Plan {
                    ops: vec![op.clone()],
                });
            }
        }
        failures
    }

    fn stats(&self) -> PlaneStats {
        self.inner.stats()
    }

    fn flows(&self, limit: usize) -> Vec<FlowView> {
        self.inner.flows(limit)
    }
}

fn refusal(object: &str) -> OpError {
    OpError::Kernel {
        operation: format!("program {object}"),
        source: std::io::Error::from_raw_os_error(12),
    }
}
