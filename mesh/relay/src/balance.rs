//! The order in which backends take their turns, and the choice by the client's address.

use std::net::IpAddr;

/// The longest schedule; weights that would need a longer one are rounded to fit.
const LONGEST: u64 = 4096;

/// A smooth weighted round robin, laid out once: in any window of its length each member has exactly its
/// share, and a counter is all the state that a choice needs. (The order is that of nginx.)
pub(crate) fn schedule(weights: &[u16]) -> Vec<usize> {
    let weights = reduced(weights);
    let total: u64 = weights.iter().sum();
    let mut credit: Vec<i64> = vec![0; weights.len()];
    (0..total)
        .filter_map(|_| {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += weight.cast_signed();
            }
            let (at, best) = credit
                .iter_mut()
                .enumerate()
                .rev()
                .max_by_key(|(_, credit)| **credit)?;
            *best -= total.cast_signed();
            Some(at)
        })
        .collect()
}

fn reduced(weights: &[u16]) -> Vec<u64> {
    let divisor = u64::from(weights.iter().copied().fold(0, gcd)).max(1);
    let total: u64 = weights.iter().map(|w| u64::from(*w)).sum::<u64>() / divisor;
    let longest = LONGEST.max(weights.len() as u64);
    weights
        .iter()
        .map(|weight| u64::from(*weight) / divisor)
        .map(|weight| match weight {
            0 => 0,
            _ if total > longest => (weight * longest / total).max(1),
            _ => weight,
        })
        .collect()
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// How well a task suits a client: the greatest score wins. Weighted rendezvous hashing: when a task comes
/// or goes, only the clients that it gains or loses move, and every node chooses alike.
pub(crate) fn affinity(client: IpAddr, task: &str, weight: u16) -> f64 {
    let hash = match client {
        IpAddr::V4(ip) => hash(&ip.octets(), task),
        IpAddr::V6(ip) => hash(&ip.octets(), task),
    };
    // The upper 53 bits as a number in (0, 1).
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(weight) / -uniform.ln()
}

/// FNV-1a, and the finaliser of splitmix64, without which neighbouring addresses would go together.
fn hash(address: &[u8], task: &str) -> u64 {
    let mut hash = address
        .iter()
        .chain(task.as_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn shares(weights: &[u16]) -> Vec<usize> {
        let schedule = schedule(weights);
        (0..weights.len())
            .map(|member| schedule.iter().filter(|turn| **turn == member).count())
            .collect()
    }

    #[test]
    fn equal_weights_take_plain_turns() {
        assert_eq!(schedule(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(schedule(&[700, 700, 700]), [0, 1, 2]);
        assert_eq!(schedule(&[]), [0; 0]);
    }

    #[test]
    fn shares_are_exact_and_spread_out() {
        assert_eq!(schedule(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(shares(&[300, 200, 100]), [3, 2, 1]);
    }

    #[test]
    fn zero_is_none() {
        assert_eq!(schedule(&[1, 0, 1]), [0, 2]);
        assert_eq!(schedule(&[0, 0]), [0; 0]);
    }

    #[test]
    fn odd_weights_are_rounded_to_a_schedule_that_fits() {
        let shares = shares(&[65_535, 65_534, 1]);
        assert!(shares.iter().sum::<usize>() <= 4096 + 3);
        assert_eq!(shares[2], 1, "the smallest keeps a turn");
        assert!(shares[0].abs_diff(shares[1]) <= 1);
    }

    #[test]
    fn affinity_follows_the_weights_and_moves_few_clients() {
        let tasks = [("a", 1), ("b", 1), ("c", 2)];
        let best = |client: u32, tasks: &[(&'static str, u16)]| {
            let client = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + client));
            tasks
                .iter()
                .max_by(|x, y| affinity(client, x.0, x.1).total_cmp(&affinity(client, y.0, y.1)))
                .map(|task| task.0)
        };
        let count = |name| (0..8000).filter(|c| best(*c, &tasks) == Some(name)).count();
        for (name, expected) in [("a", 2000_usize), ("b", 2000), ("c", 4000)] {
            assert!(
                count(name).abs_diff(expected) < 300,
                "{name}: {}",
                count(name)
            );
        }
        for client in 0..8000 {
            let before = best(client, &tasks);
            if before != Some("b") {
                assert_eq!(best(client, &[tasks[0], tasks[2]]), before);
            }
        }
    }
}
