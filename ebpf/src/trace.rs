//! What becomes of a client's packets, as the programs tell it while someone listens (`bpf/trace.h`).

mod event;

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
    time::Duration,
};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use portolan_model::Protocol;
use portolan_plane::OpError;
use rustix::time::{ClockId, clock_gettime};
use zerocopy::FromBytes;

use crate::{
    ABI, COUNTERS, EbpfError,
    error::Doing,
    layout::{BackendLabel, Event, FrontendLabel, Traced, address, number},
    maps::Hash,
};
pub use event::{Ends, Program, Target, TraceEvent, Verdict, Way};

/// The section of the object that says whose packets are told, and its pin; names of pins have no dots.
pub(crate) const SECTION: &str = ".bss.traced";
pub(crate) const TRACED: &str = "traced";

/// Whose packets are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceFilter {
    /// The client's address.
    pub client: IpAddr,
    /// Its port; `None` is any.
    pub client_port: Option<u16>,
    /// The frontend's address; `None` is any. Between the nodes the frontend is not to be seen: there all packets
    /// of the client are told.
    pub frontend: Option<IpAddr>,
    /// Its port; `None` is any, and leaves out what is not addressed to a frontend.
    pub frontend_port: Option<u16>,
    /// `None` is any.
    pub protocol: Option<Protocol>,
}

impl TraceFilter {
    fn traced(&self, until: u64) -> Traced {
        let port = |port: Option<u16>| port.unwrap_or_default().to_be_bytes();
        Traced {
            until,
            client: address(self.client),
            frontend: self.frontend.map(address).unwrap_or_default(),
            client_port: port(self.client_port),
            frontend_port: port(self.frontend_port),
            proto: self.protocol.map(number).unwrap_or_default(),
            pad: [0; 3],
        }
    }
}

/// Listens to the programs of one node, which tell nothing to nobody: dropped, it switches them off. There is one at
/// a time, as there is one filter in the kernel; a second one takes the events of the first.
///
/// It wants [`Self::keep`] called more often than [`Self::LEASE`]: one whose process was killed is over by itself.
/// Its file descriptor is readable when there are events.
pub struct Tracer {
    filter: TraceFilter,
    pub(crate) traced: Array<MapData, Traced>,
    events: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    lost_before: u64,
    backends: Hash<u32, BackendLabel>,
    frontends: Hash<u32, FrontendLabel>,
}

impl Tracer {
    /// How long the programs go on telling after the last [`Self::keep`].
    pub const LEASE: Duration = Duration::from_secs(5);

    /// Listens to the programs that an agent has pinned below `pins`, from now on.
    ///
    /// # Errors
    /// There are none, or their maps cannot be used. Nothing is told then.
    pub fn start(pins: &Path, filter: TraceFilter) -> Result<Self, EbpfError> {
        let dir = pins.join(ABI);
        let mut tracer = Self {
            filter,
            traced: Array::try_from(Map::Array(pinned(&dir, TRACED)?)).doing(unusable(TRACED))?,
            events: RingBuf::try_from(Map::RingBuf(pinned(&dir, "events")?))
                .doing(unusable("events"))?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(pinned(&dir, "counters")?))
                .doing(unusable("counters"))?,
            lost_before: 0,
            backends: HashMap::try_from(Map::HashMap(pinned(&dir, "backend_labels")?))
                .doing(unusable("backend_labels"))?,
            frontends: HashMap::try_from(Map::HashMap(pinned(&dir, "frontend_labels")?))
                .doing(unusable("frontend_labels"))?,
        };
        // Of an earlier listener.
        while tracer.events.next().is_some() {}
        tracer.lost_before = tracer.lost_ever()?;
        tracer.keep()?;
        Ok(tracer)
    }

    /// Has the programs go on telling.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn keep(&mut self) -> Result<(), OpError> {
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32);
        self.set((now + Self::LEASE).as_nanos() as u64)
    }

    /// What was told next, if anything.
    pub fn next_event(&mut self) -> Option<TraceEvent> {
        loop {
            let item = self.events.next()?;
            if let Ok(event) = Event::read_from_bytes(&item) {
                drop(item);
                return Some(TraceEvent::read(&event, &self.backends, &self.frontends));
            }
        }
    }

    /// How many events there was no room for, as they were not read fast enough.
    ///
    /// # Errors
    /// The counter cannot be read.
    pub fn lost(&self) -> Result<u64, OpError> {
        Ok(self.lost_ever()?.saturating_sub(self.lost_before))
    }

    fn lost_ever(&self) -> Result<u64, OpError> {
        let place = COUNTERS
            .iter()
            .position(|counter| counter.name == "trace_lost");
        let counters = self
            .counters
            .get(&(place.unwrap_or_default() as u32), 0)
            .doing(|| "read the count of lost events".into())?;
        Ok(counters.iter().sum())
    }

    pub(crate) fn set(&mut self, until: u64) -> Result<(), OpError> {
        self.traced
            .set(0, self.filter.traced(until), 0)
            .doing(|| "say whose packets to tell".into())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // If it cannot be written, the programs stop by themselves when the lease is over.
        let _ = self.set(0);
    }
}

impl AsRawFd for Tracer {
    fn as_raw_fd(&self) -> i32 {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Tracer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn pinned(dir: &Path, name: &str) -> Result<MapData, EbpfError> {
    let path = dir.join(name);
    MapData::from_pin(&path).map_err(|source| EbpfError::Pinned { path, source })
}

fn unusable(name: &'static str) -> impl FnOnce() -> String {
    move || format!("use map {name}")
}
