//! Chains of others that drop what is forwarded, and with it the overlay's packets.
//!
//! Docker's has a chain before it, `DOCKER-USER`, for rules of others: there the overlay's packets are let through.
//! For any other it takes the user.

use crate::nft::{self, Failed};

/// The chain that Docker leaves to others (<https://docs.docker.com/engine/network/packet-filtering-firewalls/>).
const DOCKERS: &str = "ip filter DOCKER-USER";
/// The ways of the overlay's packets: between nodes, and between tasks of one node. Nothing goes out of a network.
const WAYS: [(&str, &str); 3] = [("ptbr*", "ptvx*"), ("ptvx*", "ptbr*"), ("ptbr*", "ptbr*")];

/// Lets the overlay's packets through Docker's chain, and gives the other chains that drop them.
pub(super) fn let_through(program: &str) -> Result<Vec<String>, Failed> {
    let chains = nft::run(program, &["list", "chains"], "")?;
    let dropping = dropping(&chains).filter(|(table, _)| {
        let list = format!("list table {table}");
        let Ok(rules) = nft::run(program, &list.split(' ').collect::<Vec<_>>(), "") else {
            return false;
        };
        // One that knows of the overlay's links is taken to let them through.
        let dockers = rules.contains("chain DOCKER-USER {");
        !(rules.contains("ptbr") || dockers && add(program))
    });
    Ok(dropping
        .map(|(table, chain)| format!("{table} {chain}"))
        .collect())
}

fn add(program: &str) -> bool {
    let rules: String = WAYS
        .iter()
        .map(|(from, to)| {
            format!("insert rule {DOCKERS} iifname \"{from}\" oifname \"{to}\" counter accept\n")
        })
        .collect();
    nft::run(program, &["-f", "-"], &rules).is_ok()
}

/// Takes the rules out of Docker's chain.
pub(super) fn take_back(program: &str) -> Result<(), Failed> {
    let list: Vec<&str> = ["-a", "list", "chain"]
        .into_iter()
        .chain(DOCKERS.split(' '))
        .collect();
    // There need be no Docker.
    let Ok(listing) = nft::run(program, &list, "") else {
        return Ok(());
    };
    let delete: String = own_rules(&listing)
        .map(|handle| format!("delete rule {DOCKERS} handle {handle}\n"))
        .collect();
    if delete.is_empty() {
        return Ok(());
    }
    nft::run(program, &["-f", "-"], &delete).map(drop)
}

/// The handles of the overlay's rules in `nft -a list chain`.
fn own_rules(listing: &str) -> impl Iterator<Item = u64> {
    listing.lines().filter_map(|line| {
        let (rule, handle) = line.rsplit_once(" # handle ")?;
        let of = |(from, to): &(&str, &str)| {
            rule.contains(&format!("iifname \"{from}\" oifname \"{to}\""))
        };
        WAYS.iter().any(of).then(|| handle.trim().parse().ok())?
    })
}

/// The base chains of `nft list chains` that drop forwarded packets unless a rule says otherwise, as
/// (table, chain). Tables of bridges and of IPv6 do not see the overlay's packets.
fn dropping(listing: &str) -> impl Iterator<Item = (String, String)> {
    let (mut table, mut chain) = (None, None);
    listing.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("table ") {
            table = name.strip_suffix(" {").map(str::to_owned);
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.strip_suffix(" {").map(str::to_owned);
        }
        let drops = line.contains("hook forward") && line.contains("policy drop");
        let (table, chain) = (table.clone()?, chain.clone()?);
        (drops && (table.starts_with("ip ") || table.starts_with("inet ")))
            .then_some((table, chain))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_drop_what_is_forwarded_are_found() {
        let listing = "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy \
                       drop;\n\t}\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy \
                       drop;\n\t}\n\tchain DOCKER {\n\t}\n}\ntable ip6 filter {\n\tchain FORWARD {\n\t\t\
                       type filter hook forward priority filter; policy drop;\n\t}\n}\n";
        let found: Vec<_> = dropping(listing).collect();
        assert_eq!(found, [("ip filter".to_owned(), "FORWARD".to_owned())]);
    }

    #[test]
    fn only_the_overlays_rules_are_taken_back() {
        let listing = "table ip filter {\n\tchain DOCKER-USER { # handle 7\n\
                       \t\tiifname \"ptbr*\" oifname \"ptbr*\" counter packets 1 bytes 60 accept # handle 31\n\
                       \t\tiifname \"ptvx*\" oifname \"ptbr*\" counter packets 0 bytes 0 accept # handle 30\n\
                       \t\tiifname \"eth0\" oifname \"ptbr*\" counter packets 0 bytes 0 drop # handle 29\n\
                       \t\tcounter packets 0 bytes 0 return # handle 8\n\t}\n}\n";
        assert_eq!(own_rules(listing).collect::<Vec<_>>(), [31, 30]);
    }
}
