//! Members given by name: looked up until each has an address, since a node may start before its resolver.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use portolan_gossip::Gossip;
use tokio::{net::lookup_host, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Seed;

/// How long a look-up may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon names that did not resolve are looked up again.
const RETRY: Duration = Duration::from_secs(2);

/// The addresses of the members to join by, and the names that have none yet.
pub(super) async fn look_up(seeds: &[Seed]) -> (BTreeSet<SocketAddr>, Vec<(String, u16)>) {
    let (mut found, mut missing) = (BTreeSet::new(), Vec::new());
    for seed in seeds {
        match seed {
            Seed::Address(address) => drop(found.insert(*address)),
            Seed::Name(name, port) => match addresses(name, *port).await {
                Ok(addresses) => found.extend(addresses),
                Err(error) => {
                    tracing::warn!(
                        name,
                        error,
                        "a member to join by does not resolve; it is tried again"
                    );
                    missing.push((name.clone(), *port));
                }
            },
        }
    }
    (found, missing)
}

/// Looks up names until all have been found, and joins by each that is.
pub(super) async fn follow(
    gossip: Gossip,
    mut missing: Vec<(String, u16)>,
    ends: CancellationToken,
) -> anyhow::Result<()> {
    while !missing.is_empty() {
        tokio::select! {
            () = ends.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
        }
        let mut still = Vec::new();
        for (name, port) in missing {
            match addresses(&name, port).await {
                Ok(addresses) => {
                    tracing::info!(name, ?addresses, "a member to join by resolves");
                    gossip.join(addresses);
                }
                Err(_) => still.push((name, port)),
            }
        }
        missing = still;
    }
    ends.cancelled().await;
    Ok(())
}

async fn addresses(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match timeout(PATIENCE, lookup_host((name, port))).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.collect();
            if found.is_empty() {
                Err("it has no address".to_owned())
            } else {
                Ok(found)
            }
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_resolve_is_left_for_later_and_keeps_nothing_else_back() {
        let named = |name: &str| Seed::Name(name.to_owned(), 7946);
        let address = "10.0.0.5:7946".parse().unwrap();
        let seeds = [
            named("localhost"),
            Seed::Address(address),
            named("no-such-name.invalid"),
        ];
        let (found, missing) = look_up(&seeds).await;
        assert!(found.contains(&address));
        assert!(
            found.iter().any(|seed| seed.ip().is_loopback()),
            "{found:?}"
        );
        assert_eq!(missing, [("no-such-name.invalid".to_owned(), 7946)]);
    }
}
