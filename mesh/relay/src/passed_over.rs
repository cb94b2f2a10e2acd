//! Backends that did not answer, and for how long new flows pass them over.

use std::{
    io::{self, ErrorKind},
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use dashmap::{DashMap, Entry};
use portolan_model::Protocol;
use portolan_plane::Backend;

/// How long a backend is passed over after its first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The longest that it is.
const LAST: Duration = Duration::from_secs(10);
/// How long the one flow that asks it again may take before another may.
const PROBE: Duration = Duration::from_millis(1500);

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    /// The whole task: it does not answer at all.
    Address(IpAddr),
    /// One port of it, which refuses.
    Port(IpAddr, Protocol, u16),
}

/// The ways in which a backend fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It refused: the task is there, the port is not open.
    Refused,
    /// No answer, or no way there.
    Silent,
}

impl Fault {
    /// What an error tells of the backend; nothing if the fault is this node's own, as when it is out of
    /// descriptors.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Some(Self::Refused),
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                Some(Self::Silent)
            }
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Passed {
    until: Instant,
    wait: Duration,
    probing: bool,
}

/// The backends that are passed over, shared by all frontends that lead to them.
#[derive(Debug, Default)]
pub(crate) struct PassedOver {
    places: DashMap<Place, Passed>,
    /// How many there are, so that in the usual case, none, no lock is touched.
    count: AtomicUsize,
}

impl PassedOver {
    /// Whether a new flow is to go elsewhere.
    pub(crate) fn skips(&self, backend: &Backend, protocol: Protocol, now: Instant) -> bool {
        self.count.load(Ordering::Relaxed) > 0
            && places(backend, protocol).any(|place| {
                let passed = self.places.get(&place);
                passed.is_some_and(|passed| now < passed.until)
            })
    }

    /// Takes the right to ask a backend again whose time is over; one flow gets it. A backend that is not
    /// passed over at all is anyone's.
    pub(crate) fn claim(&self, backend: &Backend, protocol: Protocol, now: Instant) -> bool {
        self.count.load(Ordering::Relaxed) == 0
            || places(backend, protocol).all(|place| {
                let Some(mut passed) = self.places.get_mut(&place) else {
                    return true;
                };
                let free = now >= passed.until;
                if free {
                    passed.until = now + PROBE;
                    passed.probing = true;
                }
                free
            })
    }

    /// The backend failed. A refusal on a port that the client chose says nothing of the task.
    pub(crate) fn failed(&self, backend: &Backend, protocol: Protocol, fault: Fault, now: Instant) {
        let place = match fault {
            Fault::Silent => Place::Address(backend.ip),
            Fault::Refused if backend.port == 0 => return,
            Fault::Refused => Place::Port(backend.ip, protocol, backend.port),
        };
        match self.places.entry(place) {
            Entry::Vacant(entry) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                entry.insert(Passed {
                    until: now + FIRST,
                    wait: FIRST,
                    probing: false,
                });
            }
            Entry::Occupied(mut entry) => {
                let passed = entry.get_mut();
                // Flows that were under way when the first one failed tell nothing new.
                if passed.probing || now >= passed.until {
                    passed.wait = (passed.wait * 2).min(LAST);
                    passed.until = now + passed.wait;
                    passed.probing = false;
                }
            }
        }
    }

    /// The backend answered.
    pub(crate) fn answered(&self, backend: &Backend, protocol: Protocol) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        for place in places(backend, protocol) {
            self.forget(place);
        }
    }

    /// Forgets everything about addresses that no frontend leads to any more.
    pub(crate) fn retain(&self, known: impl Fn(IpAddr) -> bool) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let gone: Vec<Place> = self
            .places
            .iter()
            .map(|entry| *entry.key())
            .filter(|place| match place {
                Place::Address(ip) | Place::Port(ip, ..) => !known(*ip),
            })
            .collect();
        for place in gone {
            self.forget(place);
        }
    }

    fn forget(&self, place: Place) {
        if self.places.remove(&place).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn places(backend: &Backend, protocol: Protocol) -> impl Iterator<Item = Place> {
    [
        Place::Address(backend.ip),
        Place::Port(backend.ip, protocol, backend.port),
    ]
    .into_iter()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use portolan_plane::contract;

    use super::*;

    fn backend(port: u16) -> Backend {
        let spec = contract::spec(1, Protocol::Tcp, &[Ipv4Addr::new(10, 0, 0, 1)]);
        Backend {
            port,
            ..spec.backends[0].clone()
        }
    }

    #[test]
    fn one_flow_probes_and_the_wait_doubles_up_to_its_limit() {
        let (passed, backend, tcp) = (PassedOver::default(), backend(80), Protocol::Tcp);
        let mut now = Instant::now();
        assert!(passed.claim(&backend, tcp, now));
        for wait in [1, 2, 4, 8, 10, 10].map(Duration::from_secs) {
            passed.failed(&backend, tcp, Fault::Silent, now);
            passed.failed(&backend, tcp, Fault::Silent, now);
            assert!(passed.skips(&backend, tcp, now + wait.mul_f32(0.999)));
            now += wait;
            assert!(!passed.skips(&backend, tcp, now));
            assert!(passed.claim(&backend, tcp, now), "one flow asks it again");
            assert!(!passed.claim(&backend, tcp, now), "and only one");
        }
        passed.answered(&backend, tcp);
        assert!(!passed.skips(&backend, tcp, now));
    }

    #[test]
    fn a_refusal_is_of_one_port_and_silence_of_the_task() {
        let (passed, now) = (PassedOver::default(), Instant::now());
        passed.failed(&backend(80), Protocol::Tcp, Fault::Refused, now);
        assert!(passed.skips(&backend(80), Protocol::Tcp, now));
        assert!(!passed.skips(&backend(80), Protocol::Udp, now));
        assert!(!passed.skips(&backend(81), Protocol::Tcp, now));
        passed.failed(&backend(81), Protocol::Udp, Fault::Silent, now);
        assert!(passed.skips(&backend(82), Protocol::Tcp, now));
    }

    #[test]
    fn a_port_that_the_client_chose_tells_nothing() {
        let (passed, now) = (PassedOver::default(), Instant::now());
        passed.failed(&backend(0), Protocol::Tcp, Fault::Refused, now);
        assert!(!passed.skips(&backend(0), Protocol::Tcp, now));
    }

    #[test]
    fn what_is_no_longer_served_is_forgotten() {
        let (passed, now) = (PassedOver::default(), Instant::now());
        passed.failed(&backend(80), Protocol::Tcp, Fault::Silent, now);
        passed.retain(|_| false);
        assert!(!passed.skips(&backend(80), Protocol::Tcp, now));
    }
}
