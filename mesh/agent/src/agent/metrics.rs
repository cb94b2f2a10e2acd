//! The metrics, in Prometheus' text format. The parts of the agent count with plain numbers; here they are
//! read at each scrape and given their names. `docs/metrics.md` says what each one means.

mod definitions;
mod exposition;
mod process;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use anyhow::Context;
use portolan_dns::DnsStats;
use portolan_model::{Snapshot, TaskState};
use portolan_plane::{Frontend, FrontendAddress, FrontendStats, PlaneKind, Standing};
use prometheus::TextEncoder;

use super::{
    plane_thread::PlanesStats,
    shared::Shared,
    views::{Facts, member_word, task_word},
};
use definitions as d;
use exposition::Exposition;
use portolan_gossip::{MemberState, Stats};
use process::Process;

/// All metrics of this moment.
///
/// # Errors
/// The encoder refuses them.
pub(super) async fn text(shared: &Shared) -> anyhow::Result<String> {
    let counted = Counted {
        facts: Facts::gather(shared).await,
        plane: shared.plane.stats().await,
        gossip: shared.gossip.stats(),
        dns: shared.dns.stats(),
        process: Process::read(),
    };
    let families = counted.expose().families();
    TextEncoder::new()
        .encode_to_string(&families)
        .context("the metrics cannot be encoded")
}

/// What the parts of the agent have counted.
#[derive(Debug, Clone)]
struct Counted {
    facts: Facts,
    plane: PlanesStats,
    gossip: Stats,
    dns: DnsStats,
    /// `None` where `/proc` does not tell.
    process: Option<Process>,
}

impl Counted {
    fn expose(&self) -> Exposition {
        let mut to = Exposition::default();
        to.add(
            &d::BUILD_INFO,
            &[super::VERSION, env!("PORTOLAN_RUSTC_VERSION")],
            1_u8,
        );
        self.expose_cluster(&mut to);
        self.expose_planes(&mut to);
        self.expose_overlay(&mut to);
        self.expose_dns(&mut to);
        self.expose_gossip(&mut to);
        if let Some(process) = &self.process {
            process.expose(&mut to);
        }
        to
    }

    fn expose_cluster(&self, to: &mut Exposition) {
        let (facts, snapshot) = (&self.facts, &self.facts.snapshot);
        to.add(&d::NODE_READY, &[], facts.waiting_for.is_empty());
        to.add(&d::NODE_PROBLEMS, &[], facts.problems().len());
        to.add(&d::CLUSTER_NODES, &[], snapshot.nodes.len());
        to.add(&d::CLUSTER_NETWORKS, &[], snapshot.networks.len());
        to.add(&d::CLUSTER_SERVICES, &[], snapshot.services.len());
        for (state, (here, all)) in tasks_by_state(snapshot) {
            to.add(&d::NODE_TASKS, &[state], here);
            to.add(&d::CLUSTER_TASKS, &[state], all);
        }
    }

    fn expose_planes(&self, to: &mut Exposition) {
        let planes = self.facts.planes.clone().unwrap_or_default();
        let relay = self.facts.planes.is_some() && planes.relay.unreadable.is_none();
        let fast = &planes.fast;
        expose_standing(
            to,
            PlaneKind::Relay,
            relay,
            planes.relay.served,
            &planes.relay,
        );
        expose_standing(
            to,
            PlaneKind::Ebpf,
            fast.serves,
            fast.carried(),
            &fast.standing,
        );
        for (kind, stats) in &self.plane.planes {
            for frontend in &stats.frontends {
                expose_frontend(to, &kind.to_string(), frontend);
            }
        }
        to.add(&d::FAST_PATH_LOST_PINS, &[], fast.lost_pins);
        to.add(&d::FAST_PATH_DETACHED, &[], fast.detached);
        for (counter, packets) in &self.plane.packets {
            to.add(&d::FAST_PATH_PACKETS, &[counter.name], *packets);
        }
    }

    fn expose_overlay(&self, to: &mut Exposition) {
        let overlay = &self.facts.overlay;
        to.add(&d::OVERLAY_ERRORS, &[], overlay.failed_total);
        to.add(&d::OVERLAY_MTU, &[], overlay.mtu);
        let dropped = &overlay.counters;
        to.add(
            &d::OVERLAY_DROPPED,
            &["non_member"],
            dropped.non_member_packets,
        );
        to.add(
            &d::OVERLAY_DROPPED,
            &["misdirected"],
            dropped.misdirected_packets,
        );
        to.add(
            &d::OVERLAY_DROPPED,
            &["forged_source"],
            dropped.forged_source_packets,
        );
    }

    fn expose_dns(&self, to: &mut Exposition) {
        let dns = &self.dns;
        for cell in &dns.queries {
            to.add(&d::DNS_QUERIES, &[cell.qtype, cell.rcode], cell.count);
        }
        to.add(&d::DNS_FORWARDED, &[], dns.forwarded);
        to.add(&d::DNS_CACHE_HITS, &[], dns.cache_hits);
        to.add(&d::DNS_FORWARD_FAILURES, &[], dns.forward_failures);
        to.add(&d::DNS_LISTENERS, &[], dns.listeners);
    }

    fn expose_gossip(&self, to: &mut Exposition) {
        let gossip = &self.gossip;
        for (state, count) in [
            (MemberState::Alive, gossip.members_alive),
            (MemberState::Suspect, gossip.members_suspect),
            (MemberState::Down, gossip.members_down),
            (MemberState::Left, gossip.members_left),
        ] {
            to.add(&d::GOSSIP_MEMBERS, &[member_word(state)], count);
        }
        to.add(&d::GOSSIP_PACKETS, &["in"], gossip.udp_packets_in);
        to.add(&d::GOSSIP_PACKETS, &["out"], gossip.udp_packets_out);
        to.add(&d::GOSSIP_STREAMS, &["in"], gossip.tcp_streams_in);
        to.add(&d::GOSSIP_STREAMS, &["out"], gossip.tcp_streams_out);
        to.add(&d::GOSSIP_BYTES, &["in", "udp"], gossip.udp_bytes_in);
        to.add(&d::GOSSIP_BYTES, &["out", "udp"], gossip.udp_bytes_out);
        to.add(&d::GOSSIP_BYTES, &["in", "tcp"], gossip.tcp_bytes_in);
        to.add(&d::GOSSIP_BYTES, &["out", "tcp"], gossip.tcp_bytes_out);
        to.add(&d::GOSSIP_SEND_ERRORS, &[], gossip.udp_send_errors);
        let drops = &gossip.drops;
        for (reason, count) in [
            ("malformed", drops.malformed),
            ("version", drops.version),
            ("unknown_key", drops.unknown_key),
            ("decrypt", drops.decrypt),
            ("replay", drops.replay),
            ("rate_limited", drops.rate_limited),
            ("limit", drops.limit),
            ("stale", drops.stale),
            ("misdirected", drops.misdirected),
        ] {
            to.add(&d::GOSSIP_DROPS, &[reason], count);
        }
        let pulls = &gossip.pulls;
        for (event, count) in [
            ("started", pulls.started),
            ("served", pulls.served),
            ("failed", pulls.failed),
            ("useful", pulls.useful),
            ("busy", pulls.busy),
        ] {
            to.add(&d::GOSSIP_PULLS, &[event], count);
        }
        to.add(&d::GOSSIP_HASH_MISMATCHES, &[], gossip.hash_mismatches);
        to.add(&d::GOSSIP_OWNERS, &[], gossip.owners);
        to.add(&d::GOSSIP_RECORDS, &[], gossip.records);
        to.add(&d::GOSSIP_TABLE_BYTES, &[], gossip.record_bytes);
        to.add(&d::GOSSIP_REJECTED, &[], gossip.records_rejected);
        to.add(&d::GOSSIP_QUEUE, &[], gossip.queue);
        to.add(&d::GOSSIP_QUEUE_OVERFLOWS, &[], gossip.queue_overflows);
        to.add(&d::GOSSIP_REFUTATIONS, &[], gossip.refutations);
        to.add(&d::GOSSIP_HEALTH, &[], gossip.health);
        to.add(&d::GOSSIP_JOINS, &[], gossip.joins);
        to.add(&d::GOSSIP_DOWNS, &[], gossip.downs);
        to.add(&d::GOSSIP_PROTOCOL_ERRORS, &[], gossip.protocol_errors);
    }
}

fn expose_standing(
    to: &mut Exposition,
    plane: PlaneKind,
    serves: bool,
    served: usize,
    standing: &Standing,
) {
    let plane = plane.to_string();
    let failed = standing.failures.len();
    to.add(&d::PLANE_SERVING, &[&plane], serves);
    to.add(&d::PLANE_FRONTENDS, &[&plane, "served"], served);
    to.add(&d::PLANE_FRONTENDS, &[&plane, "failed"], failed);
    let (applied, failed) = (standing.applied_total, standing.failed_total);
    to.add(&d::PLANE_OPERATIONS, &[&plane, "applied"], applied);
    to.add(&d::PLANE_OPERATIONS, &[&plane, "failed"], failed);
}

fn expose_frontend(to: &mut Exposition, plane: &str, stats: &FrontendStats) {
    let (port, protocol) = (port(&stats.frontend), stats.frontend.protocol.to_string());
    let service = [
        plane,
        stats.service_name.as_str(),
        port.as_str(),
        protocol.as_str(),
    ];
    let and = |last| [service.as_slice(), &[last]].concat();
    for (_, task, backend) in &stats.backends {
        let labels = and(task.as_str());
        to.add(&d::PLANE_FLOWS, &labels, backend.flows);
        to.add(&d::PLANE_FLOWS_ACTIVE, &labels, backend.active);
        to.add(
            &d::PLANE_BYTES,
            &[labels.as_slice(), &["in"]].concat(),
            backend.bytes_in,
        );
        to.add(
            &d::PLANE_BYTES,
            &[labels.as_slice(), &["out"]].concat(),
            backend.bytes_out,
        );
        to.add(
            &d::PLANE_CONNECT_FAILURES,
            &labels,
            backend.connect_failures,
        );
    }
    to.add(&d::PLANE_RETRIES, &service, stats.retries);
    to.add(&d::PLANE_IDLE_TIMEOUTS, &service, stats.idle_timeouts);
    for (reason, count) in &stats.refused {
        to.add(&d::PLANE_REFUSED, &and(reason), *count);
    }
}

/// The published port, or `vip` for a virtual address, which has every port.
fn port(frontend: &Frontend) -> String {
    match frontend.address {
        FrontendAddress::Vip(..) => "vip".to_owned(),
        FrontendAddress::Node | FrontendAddress::Ip(_) => frontend.port.to_string(),
    }
}

/// How many tasks are in each state, on this node and on all.
fn tasks_by_state(snapshot: &Snapshot) -> BTreeMap<&'static str, (usize, usize)> {
    let states = [
        TaskState::Starting,
        TaskState::Healthy,
        TaskState::Unhealthy,
        TaskState::Draining,
    ];
    let mut counts: BTreeMap<_, _> = states.map(|state| (task_word(state), (0, 0))).into();
    for view in snapshot.tasks.values() {
        let (here, all) = counts.entry(task_word(view.state)).or_default();
        *here += usize::from(view.node == snapshot.me);
        *all += 1;
    }
    counts
}
