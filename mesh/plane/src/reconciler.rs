//! The loop that keeps a plane at what the snapshot asks for, without the clock and the thread.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use portolan_model::Snapshot;

use crate::{DataPlane, Frontend, Plan};

/// The first wait after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// The longest wait.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How a plane stands after a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many frontends it serves.
    pub served: usize,
    /// What failed, by frontend, in words with their cause. They are tried again.
    pub failures: BTreeMap<Frontend, String>,
    /// Set if the plane could not even be read.
    pub unreadable: Option<String>,
    /// Operations that failed since the start.
    pub failed_total: u64,
    /// Operations applied since the start.
    pub applied_total: u64,
}

/// Brings one plane to each snapshot in turn, and retries what failed.
#[derive(Debug)]
pub struct Reconciler<P> {
    plane: P,
    snapshot: Arc<Snapshot>,
    retry: Option<Duration>,
    standing: Standing,
}

impl<P: DataPlane> Reconciler<P> {
    /// A reconciler that has not seen a snapshot yet.
    pub fn new(plane: P, snapshot: Arc<Snapshot>) -> Self {
        Self {
            plane,
            snapshot,
            retry: None,
            standing: Standing::default(),
        }
    }

    /// The plane.
    pub const fn plane(&self) -> &P {
        &self.plane
    }

    /// How the plane stood after the last step.
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Takes a new snapshot as what is asked for. Returns after how long [`Self::step`] is to be called
    /// even if no other snapshot comes; `None` is not at all.
    pub fn update(&mut self, snapshot: Arc<Snapshot>) -> Option<Duration> {
        self.snapshot = snapshot;
        self.retry = None;
        self.step()
    }

    /// Does what is left to do; the result is as for [`Self::update`].
    pub fn step(&mut self) -> Option<Duration> {
        let actual = match self.plane.dump() {
            Ok(actual) => actual,
            Err(error) => {
                self.standing.unreadable = Some(with_causes(&error));
                return Some(self.back_off());
            }
        };
        self.standing.unreadable = None;
        let plan = Plan::new(&self.snapshot, &actual);
        let failures = self.plane.apply(&plan);
        self.standing.applied_total += (plan.ops.len() - failures.len().min(plan.ops.len())) as u64;
        self.standing.failed_total += failures.len() as u64;
        self.standing.failures = failures
            .into_iter()
            .map(|failure| (failure.frontend, with_causes(&failure.error)))
            .collect();
        self.standing.served = self.plane.dump().map_or(0, |actual| actual.len());
        if self.standing.failures.is_empty() {
            self.retry = None;
            None
        } else {
            Some(self.back_off())
        }
    }

    fn back_off(&mut self) -> Duration {
        let wait = self
            .retry
            .map_or(FIRST_RETRY, |last| (last * 2).min(LAST_RETRY));
        self.retry = Some(wait);
        wait
    }
}

/// An error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
