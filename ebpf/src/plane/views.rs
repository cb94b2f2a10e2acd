//! What the plane shows: counters and flows.

use std::{collections::BTreeMap, time::Duration};

use aya::maps::PerCpuValues;
use portolan_model::TaskId;
use portolan_plane::{
    BackendStats, FlowView, Frontend, FrontendStats, OpError, PlaneKind, PlaneStats,
};

use super::{
    EbpfPlane,
    books::Ledger,
    life::{Life, way_back},
    sweep::now,
};
use crate::{
    error::Doing,
    flow_table::Slice,
    layout::{BackendCounters, FLOW_FORWARD, Flow, Tuple, read_end},
};

impl EbpfPlane {
    pub(super) fn read_stats(&self) -> PlaneStats {
        let none = Ledger::default();
        let frontends = self.served.iter().map(|(frontend, served)| {
            let ledger = self.books.get(frontend).unwrap_or(&none);
            let here = served.spec.backends.iter().filter_map(|backend| {
                let stats = self.backend_stats(*served.indexes.get(&backend.task)?);
                Some((backend.task.clone(), backend.name.clone(), stats))
            });
            let backends = ledger.rows(here);
            FrontendStats {
                frontend: frontend.clone(),
                service: served.spec.service.clone(),
                service_name: served.spec.service_name.clone(),
                retries: backends.iter().map(|row| row.2.connect_failures).sum(),
                backends,
                // Whom it does not serve it leaves to the relay, which refuses and counts.
                refused: Vec::new(),
                idle_timeouts: ledger.idle_timeouts,
            }
        });
        PlaneStats {
            frontends: frontends.collect(),
        }
    }

    /// What is counted for the backend in this place. Of what cannot be read there is nothing; the next reading may
    /// have it.
    pub(super) fn backend_stats(&self, index: u32) -> BackendStats {
        let backend = self.maps.backends.get(&index, 0);
        let place = (index, backend.map_or(0, |backend| backend.generation));
        let mut stats = BackendStats {
            active: self.sweep.active.get(&place).copied().unwrap_or(0),
            ..BackendStats::default()
        };
        let cpus = self.maps.backend_stats.get(&index, 0);
        for cpu in cpus.iter().flat_map(|values| values.iter()) {
            stats.flows += cpu.flows;
            stats.bytes_in += cpu.bytes_in;
            stats.bytes_out += cpu.bytes_out;
            stats.connect_failures += cpu.failures;
        }
        stats
    }

    pub(super) fn reset_stats(&mut self, index: u32) -> Result<(), OpError> {
        let what = || format!("reset the counters of backend {index}");
        let cpus = self.maps.backend_stats.get(&index, 0).doing(what)?.len();
        let zero =
            PerCpuValues::try_from(vec![BackendCounters::default(); cpus]).map_err(|source| {
                OpError::Kernel {
                    operation: what(),
                    source,
                }
            })?;
        self.maps.backend_stats.set(index, zero, 0).doing(what)
    }

    /// At most that many of the flows that live.
    pub(super) fn live_flows(&self, limit: usize) -> Vec<FlowView> {
        let owners: BTreeMap<u32, (&Frontend, &TaskId)> = self
            .served
            .iter()
            .flat_map(|(frontend, served)| {
                let indexes = served.indexes.iter();
                indexes.map(move |(task, index)| (*index, (frontend, task)))
            })
            .collect();
        let (mut views, mut from, now) = (Vec::new(), None, now());
        // What cannot be read is not shown.
        while let Ok(Slice { entries, next }) = self.table.slice(from) {
            let forward = entries
                .iter()
                .filter(|(_, flow)| flow.kind == FLOW_FORWARD)
                .filter_map(|(tuple, flow)| {
                    let (frontend, task) = owners.get(&flow.backend)?;
                    self.view(tuple, flow, frontend, task, now)
                });
            views.extend(forward.take(limit - views.len()));
            from = next;
            if views.len() == limit || from.is_none() {
                break;
            }
        }
        views
    }

    fn view(
        &self,
        tuple: &Tuple,
        flow: &Flow,
        frontend: &Frontend,
        task: &TaskId,
        now: u64,
    ) -> Option<FlowView> {
        let backend = self.maps.backends.get(&flow.backend, 0).ok()?;
        let back = self.maps.flows.get(&way_back(tuple, flow), 0);
        let back = back.unwrap_or_default();
        let current = backend.generation == flow.generation;
        (Life::of(flow, || back, current, now) == Life::Live).then(|| FlowView {
            client: read_end(tuple.saddr, tuple.sport),
            frontend: frontend.clone(),
            task: task.clone(),
            backend: read_end(flow.ip, flow.port),
            age: Duration::from_nanos(now.saturating_sub(flow.created)),
            bytes_in: flow.bytes,
            bytes_out: back.bytes,
            packets_in: Some(flow.packets),
            packets_out: Some(back.packets),
            plane: PlaneKind::Ebpf,
        })
    }
}
