//! Looking after flows: what no packet does. Connections that are idle for too long, or whose backend is gone, are reset
//! at both ends; what is over is forgotten, so that it is not kept at the cost of flows that live; and those that live
//! are counted.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use aya::{
    TestRunOptions,
    programs::{SchedClassifier, TestRun},
};
use portolan_model::Balancing;
use portolan_plane::{Frontend, OpError};
use rustix::time::{ClockId, clock_gettime};

use super::{
    EbpfPlane,
    life::{Life, RST, way_back},
};
use crate::{
    error::Doing,
    flow_table::{Cursor, Slice},
    layout::{FLOW_FORWARD, Flow, Tuple, read_end},
    links::FROM_AGENT,
    reset,
};

/// How long one sweep may take before it leaves the rest to the next.
const BUDGET: Duration = Duration::from_millis(10);
/// How long after a whole sweep the next is due.
const INTERVAL: Duration = Duration::from_secs(1);
/// How soon the rest is due: with the budget, a tenth of one processor at most.
const REST: Duration = Duration::from_millis(90);
/// How long the end of a connection is remembered: packets of it may still come.
const LINGER: u64 = 120_000_000_000;
const TCP: u8 = 6;
/// `BPF_EXIST`.
const EXIST: u64 = 2;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Connections reset because they were idle.
    pub idle: u64,
    /// Connections reset because their backend is gone.
    pub ended: u64,
    /// Flows forgotten: datagrams' that were idle, and connections that were over.
    pub forgotten: u64,
    /// Resets that could not be sent: these ends learn it from their next packet.
    pub untold: u64,
    /// When the next sweep is due.
    pub next: Duration,
}

/// How far the sweep has come.
#[derive(Default)]
pub(super) struct Sweep {
    from: Option<Cursor>,
    counting: Active,
    /// As the last whole sweep found it.
    pub(super) active: Active,
}

/// How many live flows there are, by the backend's place and its generation.
type Active = HashMap<(u32, u32), u64>;

/// What one call has read already.
#[derive(Default)]
struct Known {
    generations: HashMap<u32, Option<u32>>,
    frontends: Option<HashMap<u32, Frontend>>,
}

impl EbpfPlane {
    /// Looks after the flows, or some of them if there are many: in 10 ms some 10,000. To be called when it is
    /// due, on the plane's thread; until then no idle timeout fires, no end of a connection is told that its backend
    /// is gone, and the numbers of active flows stay as they are.
    ///
    /// # Errors
    /// The table cannot be read; the next call begins anew.
    pub fn sweep(&mut self) -> Result<Swept, OpError> {
        let begun = Instant::now();
        for (frontend, generation, choice) in std::mem::take(&mut self.outdated) {
            self.drop_choice(frontend, generation, &choice);
        }
        let mut known = Known::default();
        let mut swept = Swept::default();
        loop {
            let from = self.sweep.from.take();
            let Slice { entries, next } =
                self.table.slice(from).map_err(|source| OpError::Kernel {
                    operation: "read the flows".into(),
                    source,
                })?;
            let now = now();
            for (tuple, flow) in entries {
                if flow.kind == FLOW_FORWARD {
                    self.look_after(&mut known, &mut swept, &tuple, &flow, now);
                }
            }
            self.sweep.from = next;
            if next.is_none() {
                self.sweep.active = std::mem::take(&mut self.sweep.counting);
                self.write_load()?;
                swept.next = INTERVAL;
                return Ok(swept);
            }
            if begun.elapsed() >= BUDGET {
                swept.next = REST;
                return Ok(swept);
            }
        }
    }

    /// Tells the programs how many flows each backend has.
    fn write_load(&mut self) -> Result<(), OpError> {
        let least = self
            .served
            .values()
            .filter(|served| served.spec.policy.balancing == Balancing::LeastConnections);
        for index in least.flat_map(|served| served.indexes.values()) {
            let backend = self.maps.backends.get(index, 0);
            let generation = backend.doing(|| "read a backend".into())?.generation;
            let active = self.sweep.active.get(&(*index, generation));
            let active = active.map_or(0, |active| u32::try_from(*active).unwrap_or(u32::MAX));
            self.maps
                .load
                .set(*index, active, 0)
                .doing(|| format!("write the load of backend {index}"))?;
        }
        Ok(())
    }

    fn look_after(
        &mut self,
        known: &mut Known,
        swept: &mut Swept,
        tuple: &Tuple,
        flow: &Flow,
        now: u64,
    ) {
        let way_back = way_back(tuple, flow);
        let back = || self.maps.flows.get(&way_back, 0).unwrap_or_default();
        let current = self.is_current(known, flow);
        match (Life::of(flow, back, current, now), tuple.proto) {
            (Life::Live, _) => {
                let place = (flow.backend, flow.generation);
                *self.sweep.counting.entry(place).or_default() += 1;
            }
            (life @ (Life::Idle | Life::Gone), TCP) => {
                swept.untold += self.reset(tuple, flow, &back());
                self.mark_reset(tuple, flow);
                self.mark_reset(&way_back, flow);
                if life == Life::Gone {
                    swept.ended += 1;
                } else {
                    swept.idle += 1;
                    let frontends = known.frontends.get_or_insert_with(|| self.frontends());
                    if let Some(frontend) = frontends.get(&flow.frontend) {
                        self.books.idle_timeout(frontend);
                    }
                }
            }
            (Life::Over, _) if now.saturating_sub(flow.seen.max(back().seen)) < LINGER => {}
            (Life::Over | Life::Idle | Life::Gone, _) => {
                self.forget(tuple, flow);
                self.forget(&way_back, flow);
                swept.forgotten += 1;
            }
        }
    }

    /// Tells both ends; returns how many could not be told.
    fn reset(&self, tuple: &Tuple, flow: &Flow, back: &Flow) -> u64 {
        let client = read_end(tuple.saddr, tuple.sport);
        let frontend = read_end(tuple.daddr, tuple.dport);
        let task = read_end(flow.ip, flow.port);
        let ends = [(frontend, client, flow.ack), (client, task, back.ack)];
        // An end that has acknowledged nothing has no connection to be reset.
        let ends = ends.into_iter().filter(|(_, _, ack)| *ack != 0);
        ends.filter(|(from, to, ack)| {
            let acknowledged = u32::from_be(*ack);
            // The kernel has no way to a task's IPv6 address.
            if *to == task && task.is_ipv6() {
                return !self.reset_as_client(client, frontend, acknowledged);
            }
            self.resets.send(*from, *to, acknowledged).is_err()
        })
        .count() as u64
    }

    /// Resets the task of a flow by a packet such as its client would send; tells whether that was possible.
    fn reset_as_client(&self, client: SocketAddr, frontend: SocketAddr, sequence: u32) -> bool {
        let frame = reset::frame(client, frontend, sequence);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ..TestRunOptions::new()
        };
        let program = self.object.program(FROM_AGENT);
        let program = program.and_then(|program| <&SchedClassifier>::try_from(program).ok());
        let run = program.and_then(|program| program.test_run(options).ok());
        run.is_some_and(|run| run.return_value == 0)
    }

    /// Has an entry say that the connection was reset. Packets of it are still sent on: the other end, which knows,
    /// answers them by a RST of its own.
    fn mark_reset(&mut self, tuple: &Tuple, of: &Flow) {
        if let Some(flow) = self.same(tuple, of) {
            let closing = flow.closing | RST;
            // One that has just been lost needs no mark.
            let _ = self
                .maps
                .flows
                .insert(tuple, Flow { closing, ..flow }, EXIST);
        }
    }

    fn forget(&mut self, tuple: &Tuple, of: &Flow) {
        if self.same(tuple, of).is_some() {
            // One that has just been lost is what is wanted.
            let _ = self.maps.flows.remove(tuple);
        }
    }

    /// An entry as it is now, if no new flow has taken its place.
    fn same(&self, tuple: &Tuple, of: &Flow) -> Option<Flow> {
        let flow = self.maps.flows.get(tuple, 0).ok()?;
        (flow.created == of.created).then_some(flow)
    }

    fn is_current(&self, known: &mut Known, flow: &Flow) -> bool {
        let read = || Some(self.maps.backends.get(&flow.backend, 0).ok()?.generation);
        let generation = known.generations.entry(flow.backend).or_insert_with(read);
        *generation == Some(flow.generation)
    }

    fn frontends(&self) -> HashMap<u32, Frontend> {
        let served = self.served.iter();
        served
            .map(|(frontend, served)| (served.id, frontend.clone()))
            .collect()
    }
}

/// The programs' clock in ns. A finer one would run ahead of it: the agent would take a flow for idle that the next
/// packet still goes by.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let now = Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
