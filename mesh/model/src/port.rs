//! Published ports.

use std::{fmt, net::IpAddr};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// The transport of a published port.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Protocol {
    /// TCP.
    #[n(0)]
    Tcp,
    /// UDP.
    #[n(1)]
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Where a published port answers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum PublishMode {
    /// On every node, with any task behind it.
    #[n(0)]
    Ingress,
    /// On a task's own node only, with that node's tasks behind it.
    #[n(1)]
    Host,
}

/// One published port, or a range of them: `published + i` leads to `target + i` for `i < count`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
pub struct PublishedPort {
    /// The outside port. 0 asks for one of 30000-32767; a record always carries the port chosen.
    #[n(0)]
    pub published: u16,
    /// The port in the task.
    #[n(1)]
    pub target: u16,
    /// How many ports the range has, at least 1.
    #[n(2)]
    pub count: u16,
    /// TCP or UDP.
    #[n(3)]
    pub protocol: Protocol,
    /// Ingress or host mode.
    #[n(4)]
    pub mode: PublishMode,
    /// The one address of a node on which it answers; `None` is every address.
    #[n(5)]
    pub address: Option<IpAddr>,
}

impl PublishedPort {
    /// One port in ingress mode at every address.
    pub fn new(published: u16, target: u16, protocol: Protocol) -> Self {
        Self {
            published,
            target,
            count: 1,
            protocol,
            mode: PublishMode::Ingress,
            address: None,
        }
    }

    /// The pairs (published, target) of the range; those past 65535 are left out.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let (published, target) = (self.published, self.target);
        (0..self.count.max(1))
            .map_while(move |i| Some((published.checked_add(i)?, target.checked_add(i)?)))
    }

    /// Whether the two can not both be served by one node: same protocol, overlapping outside ports,
    /// and addresses that are equal or one of them every address.
    pub fn conflicts(&self, other: &Self) -> bool {
        let end = |p: &Self| u32::from(p.published) + u32::from(p.count.max(1));
        self.protocol == other.protocol
            && u32::from(self.published) < end(other)
            && u32::from(other.published) < end(self)
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }
}

impl fmt::Display for PublishedPort {
    /// As the user writes it: `8080:80/tcp`, `10.0.0.5:8000-8010:80-90/udp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(address) => write!(f, "{address}:")?,
            None => {}
        }
        let last = |first: u16| first.saturating_add(self.count.max(1) - 1);
        if self.count > 1 {
            write!(
                f,
                "{}-{}:{}-{}",
                self.published,
                last(self.published),
                self.target,
                last(self.target)
            )?;
        } else {
            write!(f, "{}:{}", self.published, self.target)?;
        }
        write!(f, "/{}", self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(published: u16, target: u16, count: u16) -> PublishedPort {
        PublishedPort {
            count,
            ..PublishedPort::new(published, target, Protocol::Tcp)
        }
    }

    #[test]
    fn ranges_pair_up_and_end_at_65535() {
        assert_eq!(
            range(8000, 80, 3).pairs().collect::<Vec<_>>(),
            [(8000, 80), (8001, 81), (8002, 82)]
        );
        assert_eq!(range(65535, 80, 3).pairs().count(), 1);
    }

    #[test]
    fn overlapping_ports_conflict_unless_address_or_protocol_part_them() {
        let web = range(8000, 80, 10);
        assert!(web.conflicts(&range(8009, 1, 1)));
        assert!(!web.conflicts(&range(8010, 1, 1)));
        let udp = PublishedPort {
            protocol: Protocol::Udp,
            ..web
        };
        assert!(!web.conflicts(&udp));
        let at = |a: &str| PublishedPort {
            address: a.parse().ok(),
            ..web
        };
        assert!(!at("10.0.0.1").conflicts(&at("10.0.0.2")));
        assert!(at("10.0.0.1").conflicts(&web));
    }

    #[test]
    fn display_is_what_the_user_wrote() {
        assert_eq!(range(8080, 80, 1).to_string(), "8080:80/tcp");
        assert_eq!(range(8000, 80, 11).to_string(), "8000-8010:80-90/tcp");
    }
}
