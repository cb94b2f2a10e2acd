//! Docker's calls to its network driver: answered when what they ask for is done.

use std::{
    collections::BTreeSet,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
};
use portolan_model::{MacAddress, NetworkName, Snapshot, TaskId, claims};
use portolan_overlay::{AttachEndpoint, Plug};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    commands::{Answer, ask},
    refusal::Refusal,
};
use crate::agent::{
    command::Command,
    driver::{self, Call, CallError},
    node::{DriverChange, Joined, check_driver_network},
    shared::Shared,
    state::DriverNetwork,
};

/// How long a call waits for what it needs to become known: the cluster after a start, a network that another node
/// has just declared. Docker itself gives a call 30 seconds.
const PATIENCE: Duration = Duration::from_secs(8);

pub(super) async fn driver(
    State(shared): State<Shared>,
    Path(call): Path<String>,
    body: Bytes,
) -> Answer<Value> {
    Ok(Json(answer(&shared, Call::parse(&call, &body)?).await?))
}

async fn answer(shared: &Shared, call: Call) -> Result<Value, Refusal> {
    match call {
        Call::AllocateNetwork(id, network) => {
            let snapshot = fits(shared, &network).await?;
            // As good as a name: it is the same whichever manager is asked.
            let name: NetworkName = id
                .parse()
                .map_err(|error| Refusal::bad_input(format!("the network's identity: {error}")))?;
            let vni = network.vni;
            let vni = vni.unwrap_or_else(|| claims::vni(&snapshot, &name));
            Ok(driver::allocated(vni))
        }
        Call::CreateNetwork(id, network) => {
            fits(shared, &network).await?;
            done(shared, DriverChange::AddNetwork(id, network)).await
        }
        Call::DeleteNetwork(id) => done(shared, DriverChange::RemoveNetwork(id)).await,
        Call::CreateEndpoint {
            id,
            network,
            address,
            mac: chosen,
        } => {
            let mac = chosen.unwrap_or_else(|| MacAddress::of_address(address));
            let change = DriverChange::AddEndpoint {
                id,
                network,
                address,
                mac,
            };
            done(shared, change).await?;
            Ok(driver::created(chosen.is_none().then_some(mac)))
        }
        Call::Join { id, netns } => {
            let joined = joined(shared, &id, &netns).await?;
            let plugged = plug(shared, &id, netns, joined).await;
            if plugged.is_err() {
                done(shared, DriverChange::Leave(id)).await?;
            }
            plugged
        }
        Call::Leave(id) => {
            // First nobody sends it anything any more.
            done(shared, DriverChange::Leave(id.clone())).await?;
            let detached = shared.overlay.detach(id).await;
            detached.map(|()| json!({})).map_err(failed)
        }
        Call::DeleteEndpoint(id) => done(shared, DriverChange::RemoveEndpoint(id)).await,
    }
}

/// Waits until a network can stand beside the others; one that is being removed may be in its place.
async fn fits(shared: &Shared, network: &DriverNetwork) -> Result<Arc<Snapshot>, Refusal> {
    let known = |s: &Snapshot| s.synced && check_driver_network(s, network).is_ok();
    if let Some(snapshot) = until(shared, known).await {
        return Ok(snapshot);
    }
    check_driver_network(&shared.snapshot(), network)
        .map_err(|error| Refusal::new(StatusCode::CONFLICT, error.to_string()))?;
    Err(Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the agent does not know the cluster yet; try again, and see `portolan status`",
    ))
}

/// The first snapshot of which something is true; `None` if there is none in time.
async fn until(shared: &Shared, is_so: impl Fn(&Snapshot) -> bool) -> Option<Arc<Snapshot>> {
    let mut snapshots = shared.snapshots.clone();
    let found = timeout(PATIENCE, snapshots.wait_for(|snapshot| is_so(snapshot))).await;
    found.ok()?.ok().map(|snapshot| Arc::clone(&snapshot))
}

/// Joins an endpoint to its network, as soon as that is known here.
async fn joined(shared: &Shared, id: &TaskId, netns: &FilePath) -> Result<Joined, Refusal> {
    let until = Instant::now() + PATIENCE;
    let mut snapshots = shared.snapshots.clone();
    loop {
        snapshots.mark_unchanged();
        let (id, netns) = (id.clone(), netns.to_owned());
        let joined = ask(shared, |reply| Command::DriverJoin { id, netns, reply }).await?;
        match joined {
            Ok(joined) => return Ok(joined),
            Err(errors) => {
                let changed = timeout_at(until, snapshots.changed()).await;
                if !matches!(changed, Ok(Ok(()))) {
                    let status = StatusCode::CONFLICT;
                    return Err(Refusal { status, errors });
                }
            }
        }
    }
}

/// Makes the link, once the node has an address on the network.
async fn plug(
    shared: &Shared,
    id: &TaskId,
    netns: PathBuf,
    joined: Joined,
) -> Result<Value, Refusal> {
    let present = until(shared, |snapshot| endpoint(snapshot, &joined).is_some()).await;
    let endpoint = present.and_then(|snapshot| endpoint(&snapshot, &joined));
    let endpoint = endpoint.ok_or_else(|| {
        let network = &joined.network;
        let message =
            format!("this node has got no address on network {network}; see `portolan networks`");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })?;
    let plug = Plug {
        id: id.clone(),
        endpoint: endpoint.clone(),
        netns,
    };
    let link = shared.overlay.plug(plug).await.map_err(failed)?;
    // Before the container runs: the fast path would not know what to do with its packets.
    shared.plane.surrounded().await;
    Ok(driver::joined(&link, &endpoint))
}

fn endpoint(snapshot: &Snapshot, joined: &Joined) -> Option<AttachEndpoint> {
    let view = snapshot.networks.get(&joined.network)?;
    let standing = view.problems.is_empty().then_some(view)?;
    Some(AttachEndpoint {
        network: joined.network.clone(),
        vni: standing.network.vni,
        subnet: standing.network.subnet,
        own_range: standing.network.own_range,
        gateway: standing.gateway(&snapshot.me)?,
        address: joined.address,
        mac: joined.mac,
        ipv6: BTreeSet::new(),
    })
}

async fn done(shared: &Shared, change: DriverChange) -> Result<Value, Refusal> {
    let done = ask(shared, |reply| Command::Driver(change, reply)).await?;
    let status = StatusCode::CONFLICT;
    done.map(|()| json!({}))
        .map_err(|errors| Refusal { status, errors })
}

fn failed(error: String) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        Self::bad_input(error.to_string())
    }
}
