//! The backends that one flow tries, in order.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use portolan_model::{Balancing, TaskId};

use crate::{
    balance::affinity,
    passed_over::PassedOver,
    served::{Live, Reserved, Route, Served, Tier, lock},
};

/// Gives each active backend once: those that answer first, then those that are passed over, since they
/// are better than none.
pub(crate) struct Candidates<'a> {
    served: &'a Served,
    passed_over: &'a PassedOver,
    route: Arc<Route>,
    client: IpAddr,
    tried: Vec<usize>,
}

impl<'a> Candidates<'a> {
    pub(crate) fn new(served: &'a Served, passed_over: &'a PassedOver, client: IpAddr) -> Self {
        Self {
            served,
            passed_over,
            route: served.route(),
            client,
            tried: Vec::new(),
        }
    }

    /// The backends and the policy from which it chooses.
    pub(crate) fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Leaves these tasks out.
    pub(crate) fn exclude(&mut self, tasks: &[TaskId]) {
        let backends = (0..).zip(&self.route.backends);
        let excluded = backends.filter(|(_, live)| tasks.contains(&live.spec.task));
        self.tried.extend(excluded.map(|(at, _)| at));
    }

    /// The next one, and a place at it.
    pub(crate) fn next(&mut self) -> Option<Reserved> {
        let now = Instant::now();
        let route = Arc::clone(&self.route);
        let mut tiers = route.tiers.iter();
        let (at, reserved) = tiers
            .find_map(|tier| self.choose(&route, tier, Some(now)))
            .or_else(|| {
                let mut tiers = route.tiers.iter();
                tiers.find_map(|tier| self.choose(&route, tier, None))
            })?;
        self.tried.push(at);
        Some(reserved)
    }

    /// With a time, among those that are not passed over then.
    fn choose(
        &self,
        route: &Route,
        tier: &Tier,
        now: Option<Instant>,
    ) -> Option<(usize, Reserved)> {
        let protocol = self.served.frontend.protocol;
        let open = |at: usize| {
            let live = route.backends.get(at)?;
            let skipped = now.is_some_and(|now| self.passed_over.skips(&live.spec, protocol, now));
            (!skipped && !self.tried.contains(&at)).then_some(live)
        };
        let claimed =
            |live: &Live| now.is_none_or(|now| self.passed_over.claim(&live.spec, protocol, now));
        let reserve =
            |at: usize, live: &Arc<Live>| claimed(live).then(|| (at, Reserved::new(live)));
        match route.spec.policy.balancing {
            Balancing::RoundRobin => self.in_turn(tier, |at| reserve(at, open(at)?)),
            Balancing::LeastConnections => {
                let _choosing = lock(&self.served.choosing);
                let first = self.turn(tier.members.len());
                let (later, sooner) = tier.members.split_at_checked(first)?;
                let members = || sooner.iter().chain(later);
                until_reserved(reserve, || {
                    let open = members().filter_map(|at| Some((*at, open(*at)?)));
                    open.min_by(|(_, a), (_, b)| load(a).total_cmp(&load(b)))
                })
            }
            Balancing::SourceHash => until_reserved(reserve, || {
                let open = tier.members.iter().filter_map(|at| Some((*at, open(*at)?)));
                open.max_by(|(_, a), (_, b)| self.affinity(a).total_cmp(&self.affinity(b)))
            }),
        }
    }

    /// Draws turns until one is of a backend that may be taken. A turn that is not used is left out rather
    /// than handed to the next in line, who would otherwise get a double share.
    fn in_turn<T>(&self, tier: &Tier, take: impl Fn(usize) -> Option<T>) -> Option<T> {
        let draws = tier.schedule.len();
        let drawn = (0..draws).find_map(|_| take(*tier.schedule.get(self.turn(draws))?));
        // Other flows draw at the same time, so it may be that none of these turns was of use.
        drawn.or_else(|| tier.members.iter().find_map(|at| take(*at)))
    }

    fn turn(&self, of: usize) -> usize {
        let turn = self.served.turn.fetch_add(1, Ordering::Relaxed);
        turn.checked_rem(of).unwrap_or(0)
    }

    fn affinity(&self, live: &Live) -> f64 {
        affinity(self.client, live.spec.task.as_str(), live.spec.weight)
    }
}

/// The best one that can be reserved. One that cannot has just been claimed by another flow, and is not
/// open when the best is asked for again.
fn until_reserved<'a>(
    reserve: impl Fn(usize, &Arc<Live>) -> Option<(usize, Reserved)>,
    best: impl Fn() -> Option<(usize, &'a Arc<Live>)>,
) -> Option<(usize, Reserved)> {
    loop {
        let (at, live) = best()?;
        if let Some(reserved) = reserve(at, live) {
            return Some(reserved);
        }
    }
}

/// Flows in proportion to the weight, the new one included.
fn load(live: &Live) -> f64 {
    let active = live.counters.active.load(Ordering::Relaxed) + 1;
    active as f64 / f64::from(live.spec.weight)
}
