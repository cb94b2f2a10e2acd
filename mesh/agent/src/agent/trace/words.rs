//! Events in the words of the cluster: names of nodes and tasks, times of the day.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use portolan_ebpf::{Counter, Program, TraceEvent, Verdict, Way};
use portolan_model::{Snapshot, ipv6_of};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    agent::shared::Shared,
    api::{TraceHop, TraceSide, TraceVerdict},
};

/// TCP's flags, by their bits.
const FLAGS: [(u8, &str); 6] = [
    (2, "SYN"),
    (16, "ACK"),
    (1, "FIN"),
    (4, "RST"),
    (8, "PSH"),
    (32, "URG"),
];

/// What names are made of.
pub(super) struct Names {
    node: String,
    snapshot: Arc<Snapshot>,
    /// Tasks by address, with the names of their nodes.
    tasks: BTreeMap<IpAddr, (String, String)>,
    /// When the monotonic clock began, by the other one.
    began: SystemTime,
}

impl Names {
    pub(super) fn new(shared: &Shared) -> Self {
        Self::of(shared.config.name.clone(), shared.snapshot(), began())
    }

    /// Learns what is new.
    pub(super) fn renew(&mut self, shared: &Shared) {
        let snapshot = shared.snapshot();
        if Arc::ptr_eq(&snapshot, &self.snapshot) {
            // The clock may have been set.
            self.began = began();
        } else {
            *self = Self::new(shared);
        }
    }

    fn of(node: String, snapshot: Arc<Snapshot>, began: SystemTime) -> Self {
        let tasks = snapshot.tasks.values().flat_map(|view| {
            let names = (
                snapshot.task_name(&view.task),
                snapshot.node_name(&view.node),
            );
            let networks = &snapshot.networks;
            let ips = view.task.endpoints.iter().flat_map(move |endpoint| {
                let network = networks.get(&endpoint.network);
                let ipv6 = network.and_then(|view| match endpoint.ip {
                    IpAddr::V4(ip) => Some(ipv6_of(view.network.vni, ip).into()),
                    IpAddr::V6(_) => None,
                });
                [endpoint.ip].into_iter().chain(ipv6)
            });
            ips.map(move |ip| (ip, names.clone()))
        });
        Self {
            node,
            tasks: tasks.collect(),
            snapshot,
            began,
        }
    }

    /// An event as it is told.
    pub(super) fn hop(&self, event: TraceEvent) -> TraceHop {
        let said = self.said(&event);
        let flags = FLAGS.iter().filter(|(bit, _)| event.tcp_flags & bit != 0);
        TraceHop {
            time: rfc3339(self.began + event.at),
            node: self.node.clone(),
            cpu: event.cpu,
            link: event.link,
            side: match event.program {
                Program::FromOutside => TraceSide::Outside,
                Program::FromMesh => TraceSide::Tunnel,
                Program::FromTask => TraceSide::Task,
            },
            protocol: event.protocol,
            from: end(event.before.from),
            to: end(event.before.to),
            from_after: end(event.after.from),
            to_after: end(event.after.to),
            length: event.length,
            flags: flags.map(|(_, name)| (*name).to_owned()).collect(),
            icmp_error: event.icmp_error,
            first: event.first,
            verdict: said.verdict,
            reason: said.reason.map(|counter| counter.name.to_owned()),
            meaning: said.reason.map(|counter| counter.meaning.to_owned()),
            task: said.task,
            peer: said.peer,
        }
    }

    fn said(&self, event: &TraceEvent) -> Said {
        let (to, from) = (event.after.to, event.before.from);
        let said = |verdict| Said {
            verdict,
            reason: None,
            task: None,
            peer: None,
        };
        match &event.verdict {
            Verdict::Forwarded { target, way } => Said {
                task: self.task(&target.name, to),
                peer: self.peer(*way, to),
                ..said(TraceVerdict::Forwarded)
            },
            Verdict::GivenBack { target, way } => Said {
                task: self.task(&target.name, from),
                peer: self.peer(*way, from),
                ..said(TraceVerdict::GivenBack)
            },
            Verdict::Delivered { node } => Said {
                task: self.task("", to),
                peer: Some(self.node_at(*node)),
                ..said(TraceVerdict::Delivered)
            },
            Verdict::SentBack { node } => Said {
                task: self.task("", from),
                peer: Some(self.node_at(*node)),
                ..said(TraceVerdict::SentBack)
            },
            Verdict::Left(reason) => Said {
                reason: *reason,
                ..said(TraceVerdict::Left)
            },
            Verdict::Dropped(reason) => Said {
                reason: *reason,
                ..said(TraceVerdict::Dropped)
            },
            Verdict::Relayed => said(TraceVerdict::Relayed),
            Verdict::Redirected => said(TraceVerdict::Redirected),
        }
    }

    /// A task by the name that the fast path has for it, or by its address.
    fn task(&self, name: &str, at: SocketAddr) -> Option<String> {
        if !name.is_empty() {
            return Some(name.to_owned());
        }
        let (name, _) = self.tasks.get(&at.ip())?;
        Some(name.clone())
    }

    /// The other node that a task is on.
    fn peer(&self, way: Way, task: SocketAddr) -> Option<String> {
        match way {
            Way::Here => None,
            Way::Tunnel(node) => Some(self.node_at(node)),
            Way::Routed => {
                let known = self.tasks.get(&task.ip());
                Some(known.map_or_else(|| "another node".to_owned(), |(_, node)| node.clone()))
            }
        }
    }

    fn node_at(&self, underlay: Ipv4Addr) -> String {
        let nodes = self.snapshot.nodes.values();
        let mut found = nodes.filter(|node| node.underlay == underlay);
        found
            .next()
            .map_or_else(|| underlay.to_string(), |node| node.name.clone())
    }
}

/// What a verdict comes to.
struct Said {
    verdict: TraceVerdict,
    reason: Option<Counter>,
    task: Option<String>,
    peer: Option<String>,
}

fn end(end: SocketAddr) -> String {
    match end.port() {
        0 => end.ip().to_string(),
        _ => end.to_string(),
    }
}

fn began() -> SystemTime {
    let monotonic = clock_gettime(ClockId::Monotonic);
    let since = Duration::new(monotonic.tv_sec.cast_unsigned(), monotonic.tv_nsec as u32);
    SystemTime::now()
        .checked_sub(since)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A time as in RFC 3339, UTC, with nanoseconds.
fn rfc3339(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

/// The date of a day after 1970-01-01, by counting in years that begin in March, after the leap day.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests;
