//! Between the snapshot and whatever forwards packets: what a node is to serve ([`frontends`]), how that
//! differs from what a plane serves now ([`Plan`]), and the loop that brings the two together
//! ([`Reconciler`]; with one plane before another, [`Planes`]). A plane implements [`DataPlane`] and decides nothing.
//!
//! No I/O happens here. [`contract`] is the suite that every plane has to pass; [`FakePlane`] and
//! [`FaultyPlane`] pass it too, which shows that the suite asks for no more than the contract.

pub mod contract;
mod data_plane;
mod demand;
mod desired;
mod fake;
mod frontend;
mod plan;
mod planes;
mod reconciler;

pub use data_plane::{
    BackendStats, DataPlane, Failure, FlowView, FrontendStats, OpError, PlaneKind, PlaneStats,
    Unavailable,
};
pub use desired::frontends;
pub use fake::{FakePlane, FaultyPlane};
pub use frontend::{
    Actual, Backend, BackendState, Frontend, FrontendAddress, FrontendSpec, Policy, Sources,
};
pub use plan::{Op, Plan};
pub use planes::Planes;
pub use reconciler::{Reconciler, Standing};
