//! Tells the DNS server who asks at the node's own address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnetwork::IpNetwork;
use portolan_dns::{Askers, DnsServer};
use portolan_model::{NetworkName, TaskId};
use portolan_overlay::Around;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::overlay_thread::OverlayStanding;

/// Follows what is around the overlay until it is told to end: the overlay's thread outlives the parts.
pub(super) async fn follow(
    dns: Arc<DnsServer>,
    mut overlay: watch::Receiver<OverlayStanding>,
    ends: CancellationToken,
) -> anyhow::Result<()> {
    let mut told = None;
    loop {
        let now = Some(askers(&overlay.borrow_and_update()));
        if now != told {
            dns.set_askers(now.clone().unwrap_or_default());
            told = now;
        }
        tokio::select! {
            () = ends.cancelled() => return Ok(()),
            changed = overlay.changed() => {
                changed.map_err(|_| anyhow::anyhow!("the overlay's thread has ended"))?;
            }
        }
    }
}

fn askers(overlay: &OverlayStanding) -> Askers {
    let containers = &overlay.containers;
    let mut askers = Askers {
        local: containers.iter().copied().map(IpNetwork::V4).collect(),
        incomplete: true,
        ..Askers::default()
    };
    let Some(around) = &overlay.around else {
        return askers;
    };
    askers.own.clone_from(&around.own);
    let networks = networks(around);
    // By then a new agent has attached again what the one before it had, and knows what addresses they have.
    askers.incomplete = false;
    for (task, addresses) in &around.addresses {
        let Some(networks) = networks.get(task) else {
            continue;
        };
        // A container may give itself any address; only on its own bridge can it be that of nobody else.
        let local = |ip: &&Ipv4Addr| containers.iter().any(|subnet| subnet.contains(**ip));
        let theirs = addresses.iter().filter(local);
        let theirs = theirs.map(|ip| (IpAddr::V4(*ip), networks.clone()));
        askers.tasks.extend(theirs);
    }
    askers
}

/// The networks of each attached task.
fn networks(around: &Around) -> BTreeMap<&TaskId, BTreeSet<NetworkName>> {
    let mut networks: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for end in around.tasks.values() {
        let of_task = networks.entry(&end.task).or_default();
        of_task.insert(end.network.clone());
    }
    networks
}

#[cfg(test)]
mod tests {
    use portolan_model::MacAddress;
    use portolan_overlay::TaskEnd;

    use super::*;

    fn end(task: &str, network: &str) -> TaskEnd {
        TaskEnd {
            task: task.parse().unwrap(),
            network: network.parse().unwrap(),
            link: "ptv0".to_owned(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            gateway_mac: MacAddress([2, 0, 0, 0, 0, 2]),
            answers_udp: true,
        }
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_task_asks_by_its_address_on_a_bridge_and_not_by_one_it_made_up() {
        let addresses = [ip("172.17.0.2"), ip("10.77.0.99")];
        let around = Around {
            tasks: [
                (ip("10.208.1.2"), end("t1", "ingress")),
                (ip("10.224.1.2"), end("t1", "app")),
            ]
            .into(),
            addresses: [("t1".parse().unwrap(), addresses.into())].into(),
            ..Around::default()
        };
        let mut overlay = OverlayStanding {
            containers: ["172.17.0.0/16".parse().unwrap()].into(),
            around: Some(around),
            ..OverlayStanding::default()
        };
        let told = askers(&overlay);
        let networks: BTreeSet<NetworkName> =
            ["app", "ingress"].map(|name| name.parse().unwrap()).into();
        assert_eq!(told.tasks, [(ip("172.17.0.2").into(), networks)].into());
        assert!(!told.incomplete);

        overlay.around = None;
        let early = askers(&overlay);
        assert!(early.incomplete && early.tasks.is_empty() && early.local.len() == 1);
    }
}
