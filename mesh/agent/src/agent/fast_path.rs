//! The fast path as the agent has it: opened where it can work, told what is around it, and lost and found again.

mod around;
mod pins;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use portolan_ebpf::{EbpfError, EbpfPlane, OpenOptions, Predecessor, Surroundings};
use portolan_model::{NodeId, PlaneChoice, Snapshot};
use portolan_overlay::Around;
use portolan_plane::{DataPlane, Frontend, Planes, Standing};

pub(super) use pins::{at_work, clean};

use super::cgroup::Cgroup;
use crate::config::Config;

/// How soon a fast path that could not be opened is tried again.
const REOPEN: Duration = Duration::from_secs(30);
/// How many looks in a row have to fail until others are told: one alone may have met a link that just went.
const PATIENCE: u32 = 2;
/// How soon flows are looked after again that could not be.
const RESWEEP: Duration = Duration::from_secs(1);
/// How long others are not told anything while nobody knows what is around the fast path.
const UNKNOWN: Duration = Duration::from_secs(5);

/// How the fast path stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FastStanding {
    /// Whether it takes packets.
    pub serves: bool,
    /// Why it does not, or what is wrong with it.
    pub reason: Option<String>,
    /// How its frontends stand.
    pub standing: Standing,
    /// Which frontends are the relay's although it serves, and why.
    pub left: BTreeMap<Frontend, String>,
    /// Why processes of the node itself are the relay's although it serves.
    pub sockets: Option<String>,
    /// What is pinned, by name.
    pub pins: Vec<String>,
    /// How many pins someone had removed.
    pub lost_pins: u64,
    /// How many programs someone had detached, while their pins stayed.
    pub detached: u64,
    /// Whether others may rely on it; `None` until that is known.
    pub reliable: Option<bool>,
}

impl FastStanding {
    /// How many frontends it carries.
    pub(super) fn carried(&self) -> usize {
        let present = |frontend: &&Frontend| {
            !self.standing.failures.contains_key(*frontend)
                && !self.standing.unsupported.contains_key(*frontend)
        };
        let left = self.left.keys().filter(present).count();
        self.standing.served.saturating_sub(left)
    }
}

/// The fast path of the thread that has it.
pub(super) struct FastPath {
    choice: PlaneChoice,
    options: OpenOptions,
    underlay: IpAddr,
    cgroup: Cgroup,
    state: State,
    /// What is wrong with it since it was opened.
    flaw: Option<String>,
    /// What was wrong at the last look, and how many looks in a row something was.
    errors: Vec<String>,
    failed_looks: u32,
    /// Since when only what is around it is waited for.
    waiting: Option<Instant>,
    /// Whether programs of other builds were removed.
    alone: bool,
    /// What it is to be told once no frontend leads to the nodes any more that are not in it.
    narrower: Option<Surroundings>,
    /// The other nodes that it knows.
    peers: BTreeMap<NodeId, Ipv4Addr>,
    /// What was pinned after the last look.
    pinned: Vec<String>,
    lost_pins: u64,
    detached: u64,
    /// When its flows are to be looked after.
    sweep_at: Instant,
    unswept: Option<String>,
}

enum State {
    /// Not begun: what an earlier agent left is as it was.
    New,
    /// Not wanted here, or not any more.
    Off(&'static str),
    /// It cannot work here; it is tried again.
    Absent { reason: String, again: Instant },
    /// Open, and left as it is until it is known what is around it: an earlier agent may have left it at work.
    Waiting {
        plane: Box<EbpfPlane>,
        underlay: Ipv4Addr,
    },
    /// It is one of the planes.
    Serving { underlay: Ipv4Addr },
}

impl FastPath {
    /// A fast path that is not opened yet.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            choice: config.plane,
            options: OpenOptions {
                pins: config.bpf_dir.clone(),
                flows: config.fast_path_flows,
            },
            underlay: config.advertise,
            cgroup: Cgroup::default(),
            state: State::New,
            flaw: None,
            errors: Vec::new(),
            failed_looks: 0,
            waiting: None,
            alone: false,
            narrower: None,
            peers: BTreeMap::new(),
            pinned: Vec::new(),
            lost_pins: 0,
            detached: 0,
            sweep_at: Instant::now(),
            unswept: None,
        }
    }

    /// Opens the fast path if it is wanted, or else removes what an earlier agent left: to be called once the relay
    /// serves, as it takes a moment. Only the first call does anything; it returns whether it did.
    pub(super) fn begin(&mut self) -> bool {
        if !matches!(self.state, State::New) {
            return false;
        }
        match self.choice {
            PlaneChoice::Relay => {
                self.state = State::Off("not asked for: --plane relay");
                self.flaw = pins::remove_all(&self.options.pins).err();
            }
            PlaneChoice::Auto | PlaneChoice::Ebpf => self.try_open(),
        }
        true
    }

    /// Tells the fast path what is around it, which also mends it. What nobody knows yet is no reason to change
    /// anything. Nodes that are no more stay known until [`Self::settle`], as frontends still lead there. Returns
    /// whether the planes have something new to do.
    pub(super) fn look<S: DataPlane>(
        &mut self,
        planes: &mut Planes<S, EbpfPlane>,
        snapshot: &Snapshot,
        around: Option<&Around>,
    ) -> bool {
        if matches!(&self.state, State::Absent { again, .. } if *again <= Instant::now()) {
            self.try_open();
        }
        if !snapshot.synced {
            return false;
        }
        let (State::Waiting { underlay, .. } | State::Serving { underlay }) = self.state else {
            return false;
        };
        // Not before it is open, which takes its time: others go on to rely on what an earlier agent left.
        self.waiting.get_or_insert_with(Instant::now);
        let Some(around) = around else {
            return false;
        };
        self.note_lost_pins();
        let exact = around::surroundings(around, snapshot, underlay, self.cgroup.root());
        let peers = std::mem::replace(&mut self.peers, exact.peers.clone());
        let mut surroundings = exact.clone();
        for (node, ip) in peers {
            surroundings.peers.entry(node).or_insert(ip);
        }
        self.narrower = (surroundings != exact).then_some(exact);
        let new = match std::mem::replace(&mut self.state, State::Serving { underlay }) {
            State::Waiting { mut plane, .. } => {
                self.note(plane.surround(&surroundings));
                self.note_detached(&mut plane);
                planes.set_fast(*plane);
                true
            }
            _ => false,
        };
        if !new && let Some(plane) = planes.fast_mut() {
            let surrounded = plane.surround(&surroundings);
            self.note(surrounded);
            self.note_detached(plane);
            // By now its maps are filled, and no packet misses the others.
            if !std::mem::replace(&mut self.alone, true)
                && let Err(error) = pins::remove_other_layouts(&self.options.pins, plane)
            {
                tracing::warn!(error, "programs of another build go on");
                self.flaw.get_or_insert(error);
            }
        }
        self.pinned = pins::names(&self.options.pins);
        new
    }

    /// Lets the fast path forget the nodes that are no more: to be called once the planes have followed the snapshot
    /// of the last look.
    pub(super) fn settle<S: DataPlane>(&mut self, planes: &mut Planes<S, EbpfPlane>) {
        if let (Some(exact), Some(plane)) = (self.narrower.take(), planes.fast_mut()) {
            let surrounded = plane.surround(&exact);
            self.note(surrounded);
        }
    }

    /// Looks after the flows if that is due: idle ones, and those whose backend is gone. Returns when it is due again.
    pub(super) fn sweep<S: DataPlane>(
        &mut self,
        planes: &mut Planes<S, EbpfPlane>,
    ) -> Option<Instant> {
        let plane = planes.fast_mut()?;
        if self.sweep_at <= Instant::now() {
            let swept = plane.sweep();
            let next = swept.as_ref().map_or(RESWEEP, |swept| swept.next);
            self.unswept = swept.err().map(|error| super::with_causes(&error));
            self.sweep_at = Instant::now() + next;
        }
        Some(self.sweep_at)
    }

    /// Takes the fast path down for good: its programs are detached, and nothing stays pinned.
    pub(super) fn take_down<S: DataPlane>(
        &mut self,
        planes: &mut Planes<S, EbpfPlane>,
    ) -> Result<(), String> {
        self.state = State::Off("taken down: this node leaves");
        drop(planes.take_fast());
        self.pinned.clear();
        pins::remove_all(&self.options.pins)
    }

    /// How it stands.
    pub(super) fn standing<S: DataPlane>(&self, planes: &Planes<S, EbpfPlane>) -> FastStanding {
        let serves = matches!(self.state, State::Serving { .. });
        let reason = match &self.state {
            State::New => Some("waits until the cluster is known".to_owned()),
            State::Off(reason) => Some((*reason).to_owned()),
            State::Absent { reason, .. } => Some(reason.clone()),
            State::Waiting { .. } => Some("waits to know what is around it".to_owned()),
            State::Serving { .. } => None,
        };
        let wrong = self.flaw.iter().chain(&self.errors).chain(&self.unswept);
        let wrong: Vec<String> = wrong.cloned().collect();
        let wrong = (!wrong.is_empty()).then(|| wrong.join("; "));
        FastStanding {
            serves,
            reason: wrong.or(reason),
            standing: planes.fast_standing().cloned().unwrap_or_default(),
            left: if serves {
                left(planes)
            } else {
                BTreeMap::new()
            },
            sockets: planes
                .fast()
                .and_then(|plane| plane.sockets().err())
                .map(|why| why.0),
            pins: self.pinned.clone(),
            lost_pins: self.lost_pins,
            detached: self.detached,
            reliable: match self.state {
                State::New => None,
                State::Waiting { .. } if self.waiting.is_none_or(|at| at.elapsed() < UNKNOWN) => {
                    None
                }
                State::Serving { .. } => Some(self.failed_looks < PATIENCE),
                State::Off(_) | State::Absent { .. } | State::Waiting { .. } => Some(false),
            },
        }
    }

    fn try_open(&mut self) {
        self.waiting = None;
        let opened = match self.underlay {
            IpAddr::V4(underlay) => pins::open(&self.options).map(|(plane, flaw)| {
                self.flaw = flaw;
                match plane.predecessor() {
                    Predecessor::None => {}
                    Predecessor::Inherited(from) => {
                        tracing::info!(from = %from.display(), "flows of another build are taken over");
                    }
                    Predecessor::TooDifferent(reason) => {
                        tracing::warn!(reason, "flows of another build end, as its maps differ too much");
                    }
                }
                State::Waiting {
                    plane: Box::new(plane),
                    underlay,
                }
            }),
            IpAddr::V6(_) => Err("the underlay is IPv6, which it does not carry".to_owned()),
        };
        self.state = opened.unwrap_or_else(|reason| {
            let known =
                matches!(&self.state, State::Absent { reason: before, .. } if *before == reason);
            if !known {
                tracing::warn!(reason, "the fast path cannot work here; the relay serves");
            }
            State::Absent {
                reason,
                again: Instant::now() + REOPEN,
            }
        });
    }

    fn note(&mut self, surrounded: Result<(), Vec<EbpfError>>) {
        let errors: Vec<String> = match surrounded {
            Ok(()) => Vec::new(),
            Err(errors) => errors.iter().map(|e| super::with_causes(e)).collect(),
        };
        self.failed_looks = if errors.is_empty() {
            0
        } else {
            self.failed_looks.saturating_add(1)
        };
        for error in errors.iter().filter(|error| !self.errors.contains(error)) {
            tracing::warn!(error, "the fast path is not whole; it is tried again");
        }
        if errors.is_empty() && !self.errors.is_empty() {
            tracing::info!("the fast path is whole again");
        }
        self.errors = errors;
    }

    /// Notes the pins that are gone since the last look. A program goes with the pin of its link: that is mended next.
    fn note_lost_pins(&mut self) {
        let present = pins::names(&self.options.pins);
        let gone = self.pinned.iter().filter(|pin| !present.contains(pin));
        for pin in gone {
            tracing::warn!(
                pin,
                "someone has removed a pin of the fast path; what it held is attached again"
            );
            self.lost_pins += 1;
        }
    }

    /// Notes what someone has detached by the link itself, whose pin stays.
    fn note_detached(&mut self, plane: &mut EbpfPlane) {
        for pin in plane.take_detached() {
            tracing::warn!(
                pin = %pin.display(),
                "someone has detached a program of the fast path; it is attached again"
            );
            self.detached += 1;
        }
    }
}

/// Why frontends are the relay's although the fast path serves.
fn left<S: DataPlane>(planes: &Planes<S, EbpfPlane>) -> BTreeMap<Frontend, String> {
    let (Some(plane), Some(standing)) = (planes.fast(), planes.fast_standing()) else {
        return BTreeMap::new();
    };
    let reasons = planes.desired().filter_map(|frontend| {
        let reason = planes
            .kept_from_fast(frontend)
            .or_else(|| standing.failures.get(frontend).cloned())
            .or_else(|| standing.unsupported.get(frontend).cloned())
            .or_else(|| plane.left_to_relay(frontend))?;
        Some((frontend.clone(), reason))
    });
    reasons.collect()
}
