//! The Docker engine of this node: followed as long as the agent runs, and the members that its Swarm names joined.

use std::{collections::BTreeSet, net::SocketAddr};

use portolan_docker::{Link, Seen, Watcher};
use portolan_gossip::Gossip;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// The engine that the configuration asks to follow, and where it is seen. Nothing is connected yet.
pub(super) fn watcher(config: &Config) -> Option<(Watcher, watch::Receiver<Seen>)> {
    config.docker.socket().map(portolan_docker::watch)
}

/// Follows the engine, and joins the agents at the addresses of the Swarm's other nodes.
pub(super) async fn follow(
    watcher: Option<Watcher>,
    seen: Option<watch::Receiver<Seen>>,
    gossip: Gossip,
    port: u16,
    ends: CancellationToken,
) -> anyhow::Result<()> {
    if let (Some(watcher), Some(seen)) = (watcher, seen) {
        tokio::select! {
            () = ends.cancelled() => {}
            () = watcher.run() => anyhow::bail!("nobody follows the Docker engine any more"),
            () = join_peers(seen, gossip, port) => {}
        }
    }
    ends.cancelled().await;
    Ok(())
}

async fn join_peers(mut seen: watch::Receiver<Seen>, gossip: Gossip, port: u16) {
    let (mut joined, mut link) = (BTreeSet::new(), Link::Connecting);
    loop {
        let seen_now = seen.borrow_and_update().clone();
        log_change(&link, &seen_now.link);
        link = seen_now.link;
        let peers = seen_now.known.iter().flat_map(|known| &known.wanted.peers);
        let new: Vec<SocketAddr> = peers
            .map(|peer| SocketAddr::new(*peer, port))
            .filter(|peer| joined.insert(*peer))
            .collect();
        if !new.is_empty() {
            tracing::info!(peers = ?new, "joining by the nodes of the Swarm");
            gossip.join(new);
        }
        // The watcher has ended, and so will this.
        if seen.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn log_change(before: &Link, now: &Link) {
    match now {
        _ if before == now => {}
        Link::Connecting => {}
        Link::Up => tracing::info!("following the Docker engine"),
        // An engine that was never there is no news.
        Link::Absent(reason) if *before == Link::Connecting => {
            tracing::debug!(reason, "no Docker engine");
        }
        Link::Absent(reason) | Link::Down(reason) => {
            tracing::warn!(reason, "the Docker engine is away");
        }
        Link::Troubled(reason) => {
            tracing::warn!(reason, "the Docker engine does not answer everything");
        }
    }
}
