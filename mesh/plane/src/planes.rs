//! Two planes on one node: a slow one that can do everything, and before it a fast one that need not be there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use portolan_model::{PlaneChoice, Snapshot};

use crate::{Actual, DataPlane, Frontend, FrontendSpec, Reconciler, Standing, demand::Demand};

/// Keeps two planes at what the snapshot asks for.
///
/// - The slow plane serves every frontend, always: whatever the fast one does not take before it, or loses, is
///   still served.
/// - The fast plane has those that the slow one holds, less those whose service asks for the relay. So it never takes
///   a port from a process of the node that has bound it. The exception are frontends that another program serves for
///   the same service, and would rather not: see [`Planes::share`].
/// - No failure of the one keeps the other from anything else.
#[derive(Debug)]
pub struct Planes<S, F> {
    slow: Reconciler<S>,
    fast: Option<Reconciler<F>>,
    demand: Demand,
    desired: Actual,
    synced: bool,
    shared: BTreeSet<Frontend>,
}

impl<S: DataPlane, F: DataPlane> Planes<S, F> {
    /// The slow plane alone, asked for what this snapshot asks for.
    pub fn new(slow: S, snapshot: &Arc<Snapshot>) -> Self {
        let mut demand = Demand::default();
        Self {
            desired: demand.follow(snapshot),
            demand,
            synced: snapshot.synced,
            slow: Reconciler::idle(slow),
            fast: None,
            shared: BTreeSet::new(),
        }
    }

    /// Puts a plane before the slow one. What it serves already it keeps, as far as it is asked for; the next step
    /// brings it the rest.
    pub fn set_fast(&mut self, plane: F) {
        self.fast = Some(Reconciler::idle(plane));
    }

    /// Takes the fast plane away as it stands.
    pub fn take_fast(&mut self) -> Option<F> {
        self.fast.take().map(Reconciler::into_plane)
    }

    /// The slow plane.
    pub const fn slow(&self) -> &S {
        self.slow.plane()
    }

    /// The fast plane.
    pub fn fast(&self) -> Option<&F> {
        self.fast.as_ref().map(Reconciler::plane)
    }

    /// The fast plane, for what is not told by plans.
    pub fn fast_mut(&mut self) -> Option<&mut F> {
        self.fast.as_mut().map(Reconciler::plane_mut)
    }

    /// How the slow plane stood after the last step.
    pub const fn slow_standing(&self) -> &Standing {
        self.slow.standing()
    }

    /// How the fast plane stood after the last step; `None` without one.
    pub fn fast_standing(&self) -> Option<&Standing> {
        self.fast.as_ref().map(Reconciler::standing)
    }

    /// Every frontend that is asked for.
    pub fn desired(&self) -> impl Iterator<Item = &Frontend> {
        self.desired.keys()
    }

    /// What was asked for when they were last told.
    pub const fn told(&self) -> &Actual {
        &self.desired
    }

    /// Why a frontend that is asked for is not for the fast plane, whatever that can do.
    pub fn kept_from_fast(&self, frontend: &Frontend) -> Option<String> {
        let spec = self.desired.get(frontend)?;
        self.kept(spec)
    }

    /// Says which frontends another program of the node serves for the same services: those the fast plane may have
    /// though the slow one cannot hold them, from the next step on. Returns whether that is news.
    pub fn share(&mut self, shared: BTreeSet<Frontend>) -> bool {
        let news = self.shared != shared;
        self.shared = shared;
        news
    }

    /// The frontends that another program of the node serves too.
    pub const fn shared(&self) -> &BTreeSet<Frontend> {
        &self.shared
    }

    /// Takes a new snapshot as what is asked for. Returns after how long [`Self::step`] is to be called even if
    /// no other snapshot comes; `None` is not at all.
    pub fn update(&mut self, snapshot: &Arc<Snapshot>) -> Option<Duration> {
        self.desired = self.demand.follow(snapshot);
        self.synced = snapshot.synced;
        self.slow.begin_again();
        if let Some(fast) = &mut self.fast {
            fast.begin_again();
        }
        self.step()
    }

    /// Does what is left to do; the result is as for [`Self::update`].
    pub fn step(&mut self) -> Option<Duration> {
        self.slow.aim(self.desired.clone(), self.synced);
        let slow = self.slow.step();
        let for_fast = self.for_fast();
        let fast = self.fast.as_mut().and_then(|fast| {
            fast.aim(for_fast, self.synced);
            fast.step()
        });
        [slow, fast].into_iter().flatten().min()
    }

    fn for_fast(&self) -> Actual {
        let mut all = self.desired.clone();
        for (frontend, spec) in &self.desired {
            if self.kept(spec).is_some() {
                all.remove(frontend);
            }
        }
        all
    }

    fn kept(&self, spec: &FrontendSpec) -> Option<String> {
        if spec.policy.plane == PlaneChoice::Relay {
            return Some("the service asks for the relay".to_owned());
        }
        // What the slow plane cannot do at all, no one else on this node holds.
        self.slow
            .standing()
            .failures
            .get(&spec.frontend)
            .filter(|_| !self.slow.serves(&spec.frontend) && !self.shared.contains(&spec.frontend))
            .cloned()
    }
}
