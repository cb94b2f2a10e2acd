//! What the plane shows: counters and flows.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use aya::maps::PerCpuValues;
use portolan_model::TaskId;
use portolan_plane::{
    BackendStats, FlowView, Frontend, FrontendStats, OpError, PlaneKind, PlaneStats,
};
use rustix::time::{ClockId, clock_gettime};

use super::EbpfPlane;
use crate::{
    error::Doing,
    layout::{BackendCounters, FLOW_FORWARD, Flow, Tuple},
};

impl EbpfPlane {
    pub(super) fn read_stats(&self) -> PlaneStats {
        let mut active: HashMap<u32, u64> = HashMap::new();
        for (_, flow) in self.current_flows() {
            *active.entry(flow.backend).or_default() += 1;
        }
        let frontends = self.served.iter().map(|(frontend, served)| FrontendStats {
            frontend: frontend.clone(),
            service: served.spec.service.clone(),
            service_name: served.spec.service_name.clone(),
            backends: served
                .spec
                .backends
                .iter()
                .filter_map(|backend| {
                    let index = *served.indexes.get(&backend.task)?;
                    let sum = self.backend_sum(index);
                    let stats = BackendStats {
                        flows: sum.flows,
                        active: active.get(&index).copied().unwrap_or(0),
                        bytes_in: sum.bytes_in,
                        bytes_out: sum.bytes_out,
                        connect_failures: sum.failures,
                    };
                    Some((backend.task.clone(), backend.name.clone(), stats))
                })
                .collect(),
            retries: served
                .indexes
                .values()
                .map(|index| self.backend_sum(*index).failures)
                .sum(),
            refused: Vec::new(),
            idle_timeouts: 0,
        });
        PlaneStats {
            frontends: frontends.collect(),
        }
    }

    fn backend_sum(&self, index: u32) -> BackendCounters {
        let mut sum = BackendCounters::default();
        // Counters that cannot be read count nothing; the next reading may have them.
        for cpu in self
            .maps
            .backend_stats
            .get(&index, 0)
            .iter()
            .flat_map(|values| values.iter())
        {
            sum.flows += cpu.flows;
            sum.bytes_in += cpu.bytes_in;
            sum.bytes_out += cpu.bytes_out;
            sum.failures += cpu.failures;
        }
        sum
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

    pub(super) fn live_flows(&self) -> impl Iterator<Item = FlowView> + '_ {
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32);
        let owners: BTreeMap<u32, (&Frontend, &TaskId)> = self
            .served
            .iter()
            .flat_map(|(frontend, served)| {
                served
                    .indexes
                    .iter()
                    .map(move |(task, index)| (*index, (frontend, task)))
            })
            .collect();
        self.current_flows().filter_map(move |(tuple, flow)| {
            let (frontend, task) = owners.get(&flow.backend)?;
            let way_back = Tuple {
                saddr: flow.ip,
                daddr: tuple.saddr,
                sport: flow.port,
                dport: tuple.sport,
                ..tuple
            };
            let back = self.maps.flows.get(&way_back, 0).unwrap_or_default();
            Some(FlowView {
                client: address(tuple.saddr, tuple.sport),
                frontend: (*frontend).clone(),
                task: (*task).clone(),
                backend: address(flow.ip, flow.port),
                age: now.saturating_sub(Duration::from_nanos(flow.created)),
                bytes_in: flow.bytes,
                bytes_out: back.bytes,
                packets_in: Some(flow.packets),
                packets_out: Some(back.packets),
                plane: PlaneKind::Ebpf,
            })
        })
    }

    /// Flows from clients that are open and whose backend is still there.
    fn current_flows(&self) -> impl Iterator<Item = (Tuple, Flow)> + '_ {
        self.maps.flows.iter().flatten().filter(|(_, flow)| {
            flow.kind == FLOW_FORWARD
                && flow.closing == 0
                && self
                    .maps
                    .backends
                    .get(&flow.backend, 0)
                    .is_ok_and(|backend| backend.generation == flow.generation)
        })
    }
}

fn address(ip: [u8; 4], port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), u16::from_be_bytes(port))
}
