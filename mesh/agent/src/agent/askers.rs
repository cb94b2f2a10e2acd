//! Tells the DNS server who asks at the node's own address.

use std::sync::Arc;

use ipnetwork::IpNetwork;
use portolan_dns::{Askers, DnsServer};
use tokio::sync::watch;

use super::overlay_thread::OverlayStanding;

/// Follows what is around the overlay. It ends with the overlay's thread.
pub(super) async fn follow(
    dns: Arc<DnsServer>,
    mut overlay: watch::Receiver<OverlayStanding>,
) -> anyhow::Result<()> {
    let mut told = Askers::default();
    loop {
        let now = askers(&overlay.borrow_and_update());
        if now != told {
            dns.set_askers(now.clone());
            told = now;
        }
        let changed = overlay.changed().await;
        changed.map_err(|_| anyhow::anyhow!("the overlay's thread has ended"))?;
    }
}

fn askers(overlay: &OverlayStanding) -> Askers {
    let own = overlay.around.iter().flat_map(|around| &around.own);
    Askers {
        own: own.copied().collect(),
        local: overlay
            .containers
            .iter()
            .copied()
            .map(IpNetwork::V4)
            .collect(),
        ..Askers::default()
    }
}
