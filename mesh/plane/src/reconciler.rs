//! The loop that keeps a plane at what the snapshot asks for, without the clock and the thread.

use std::{collections::BTreeMap, time::Duration};

use portolan_model::Snapshot;

use crate::{Actual, DataPlane, Frontend, Op, OpError, Plan, frontends};

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
    /// What the plane does not carry, by frontend, and why. It is asked again, as it may come to.
    pub unsupported: BTreeMap<Frontend, String>,
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
    desired: Actual,
    /// Whether that is all there is, or only all that is known yet.
    synced: bool,
    retry: Option<Duration>,
    standing: Standing,
    /// What the plane served after the last step.
    present: Actual,
}

impl<P: DataPlane> Reconciler<P> {
    /// A reconciler that has not seen a snapshot yet.
    pub fn new(plane: P, snapshot: &Snapshot) -> Self {
        let mut reconciler = Self::idle(plane);
        reconciler.aim(frontends(snapshot), snapshot.synced);
        reconciler
    }

    /// A reconciler that was not told yet what is asked for.
    pub(crate) fn idle(plane: P) -> Self {
        Self {
            plane,
            desired: Actual::new(),
            synced: false,
            retry: None,
            standing: Standing::default(),
            present: Actual::new(),
        }
    }

    /// The plane.
    pub const fn plane(&self) -> &P {
        &self.plane
    }

    /// The plane, for what is not told by plans.
    pub const fn plane_mut(&mut self) -> &mut P {
        &mut self.plane
    }

    /// The plane alone again.
    pub fn into_plane(self) -> P {
        self.plane
    }

    /// How the plane stood after the last step.
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Takes a new snapshot as what is asked for. Returns after how long [`Self::step`] is to be called
    /// even if no other snapshot comes; `None` is not at all.
    pub fn update(&mut self, snapshot: &Snapshot) -> Option<Duration> {
        self.aim(frontends(snapshot), snapshot.synced);
        self.begin_again();
        self.step()
    }

    /// Whether the plane served a frontend after the last step, be it as it was before.
    pub(crate) fn serves(&self, frontend: &Frontend) -> bool {
        self.present.contains_key(frontend)
    }

    /// Lets the next failure be a first one again.
    pub(crate) const fn begin_again(&mut self) {
        self.retry = None;
    }

    /// Says what is asked for from now on, and whether what is not in it may go. Nothing is done yet.
    pub(crate) fn aim(&mut self, desired: Actual, synced: bool) {
        (self.desired, self.synced) = (desired, synced);
    }

    /// Does what is left to do; the result is as for [`Self::update`].
    pub fn step(&mut self) -> Option<Duration> {
        let mut actual = match self.plane.dump() {
            Ok(actual) => actual,
            Err(error) => {
                self.standing.unreadable = Some(with_causes(&error));
                return Some(self.back_off());
            }
        };
        self.standing.unreadable = None;
        let plan = Plan::towards(&self.desired, self.synced, &actual);
        let failures = self.plane.apply(&plan);
        self.standing.applied_total += (plan.ops.len() - failures.len().min(plan.ops.len())) as u64;
        self.standing.failures.clear();
        self.standing.unsupported.clear();
        let failed = !failures.is_empty();
        let mut given_up = Plan::default();
        for failure in failures {
            let words = with_causes(&failure.error);
            if matches!(failure.error, OpError::Unsupported(_)) {
                // It may still serve the frontend as it was before.
                if actual.contains_key(&failure.frontend) {
                    given_up.ops.push(Op::Remove(failure.frontend.clone()));
                }
                self.standing.unsupported.insert(failure.frontend, words);
            } else {
                self.standing.failures.insert(failure.frontend, words);
                self.standing.failed_total += 1;
            }
        }
        // Without a step it would do all that it does beside them once more.
        let failures = if given_up.is_empty() {
            Vec::new()
        } else {
            self.plane.apply(&given_up)
        };
        for failure in failures {
            let words = with_causes(&failure.error);
            self.standing.failures.insert(failure.frontend, words);
            self.standing.failed_total += 1;
        }
        // Reading again what was done without a failure would take longer than doing it.
        self.present = if failed {
            self.plane.dump().unwrap_or_default()
        } else {
            plan.take_into(&mut actual);
            actual
        };
        self.standing.served = self.present.len();
        if self.standing.failures.is_empty() && self.standing.unsupported.is_empty() {
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
