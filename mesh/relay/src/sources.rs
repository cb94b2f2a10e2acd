//! The addresses from which this node connects to backends. To one backend each address has some 28,000
//! ports, which a busy minute uses up.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use portolan_plane::Sources;
use socket2::Socket;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Turns(AtomicUsize);

impl Turns {
    /// The addresses to try for a connection to `to`, beginning with the one whose turn it is; `None`, the
    /// last, is for the kernel to choose.
    pub(crate) fn of<'a>(
        &self,
        sources: Option<&'a Sources>,
        to: SocketAddr,
    ) -> impl Iterator<Item = Option<Ipv4Addr>> + 'a {
        let addresses = match (sources, to.ip()) {
            (Some(sources), IpAddr::V4(ip)) if sources.within.contains(ip) => {
                &sources.addresses[..]
            }
            _ => &[],
        };
        let turn = match addresses.len() {
            0 => 0,
            count => self.0.fetch_add(1, Ordering::Relaxed) % count,
        };
        let (later, sooner) = addresses.split_at(turn);
        let addresses = sooner.iter().chain(later).copied();
        addresses.map(Some).chain([None])
    }
}

/// Binds to an address and leaves the port to connect(2), which knows the whole 4-tuple (ip(7)).
pub(crate) fn bind(socket: &Socket, from: Ipv4Addr) -> io::Result<()> {
    setsockopt(socket, IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(from.into(), 0).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_take_turns_and_only_within_their_network() {
        let [a, b] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        let sources = Sources {
            within: "10.0.0.0/8".parse().unwrap(),
            addresses: vec![a, b],
        };
        let turns = Turns::default();
        let of = |to: &str| -> Vec<_> { turns.of(Some(&sources), to.parse().unwrap()).collect() };
        assert_eq!(of("10.9.0.1:80"), [Some(a), Some(b), None]);
        assert_eq!(of("10.9.0.1:80"), [Some(b), Some(a), None]);
        assert_eq!(of("11.9.0.1:80"), [None]);
        assert_eq!(of("[2001:db8::1]:80"), [None]);
    }
}
