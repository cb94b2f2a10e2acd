//! An underlay with nodes on it.

mod faults;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

use crate::forward::{Forward, Protocol};
use crate::namespace::{Namespace, sweep};
use crate::programs::{ip, ip_batch, nft, require};
use faults::Faults;

/// An underlay, 10.77.0.0/24 and `fd77::/64`: a bridge in a namespace of its own, to which nodes
/// and clients are joined. Namespaces are called `pt-PREFIX-LABEL`, the bridge's `pt-PREFIX-sw`; programs inside
/// have the label as their host name.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    switch: Namespace,
    mtu: u32,
    faults: Mutex<Faults>,
}

impl Lab {
    /// Makes the bridge, after a sweep of what killed labs left.
    ///
    /// # Errors
    /// When a lab of this prefix runs, without root, or when `ip` or `nft` is not installed.
    pub fn new(prefix: &str) -> Result<Self> {
        require(&["ip", "nft"])?;
        sweep()?;
        let switch = Namespace::create(&format!("pt-{prefix}-sw"))?;
        // Snooping would hold IPv6 neighbour solicitations back from ports it has not learned.
        let bridge = "link add br0 type bridge mcast_snooping 0\nlink set br0 up\n";
        ip_batch(switch.name(), bridge)?;
        Ok(Self {
            prefix: prefix.to_owned(),
            switch,
            mtu: 1500,
            faults: Mutex::default(),
        })
    }

    /// As [`Lab::new`], with a prefix that no other lab has: PREFIX, the process id, a number.
    pub fn unique(prefix: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::new(&format!("{prefix}-{}-{number}", process::id()))
    }

    /// Sets the MTU, in bytes, of the nodes and clients that are joined from now on.
    #[must_use]
    pub fn with_mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// The prefix of its namespaces.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The namespace of the bridge; each of its ports is called by its node's label.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Joins a node: `n1` has 10.77.0.11 and `fd77::11`, `n89` 10.77.0.99.
    pub fn node(&self, label: &str) -> Result<Node> {
        self.join(label, host_number(label, 10, 89)?)
    }

    /// Joins a client: `c1` has 10.77.0.101 and `fd77::101`, `c99` 10.77.0.199.
    ///
    /// It can open some 60,000 connections per second to one address: with the kernel's own
    /// settings a load would run out of source ports, and fail where the product does not.
    pub fn client(&self, label: &str) -> Result<Node> {
        let client = self.join(label, host_number(label, 100, 99)?)?;
        client.set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        // Ports may be used again one second after their connection, not sixty.
        client.set_sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        Ok(client)
    }

    /// Makes a namespace that is joined to nothing: a task, to be attached to an overlay.
    pub fn task(&self, label: &str) -> Result<Namespace> {
        let name = format!("pt-{}-{label}", self.prefix);
        Ok(Namespace::create(&name)?.with_hostname(label))
    }

    /// Drops all between a node and the underlay. Its own loopback goes on.
    ///
    /// Faults are made on the bridge, not in the node: so they hold for every packet, also for
    /// those that pass the node's own hooks by, and leave no trace in the node's rules.
    pub fn cut(&self, node: &Node) -> Result<()> {
        self.change(|faults| faults.cut(node.label()))
    }

    /// Drops all between two nodes, in both directions.
    pub fn cut_between(&self, a: &Node, b: &Node) -> Result<()> {
        self.change(|faults| {
            faults.cut_from_to(a.label(), b.label());
            faults.cut_from_to(b.label(), a.label());
        })
    }

    /// Drops all from one node to another; the other direction goes on.
    pub fn cut_from_to(&self, from: &Node, to: &Node) -> Result<()> {
        self.change(|faults| faults.cut_from_to(from.label(), to.label()))
    }

    /// Drops packets at random, in each direction, between a node and the underlay.
    pub fn loss(&self, node: &Node, percent: f64) -> Result<()> {
        if !(0.0..=100.0).contains(&percent) {
            bail!("loss of {percent} percent: must be 0 to 100");
        }
        let per_mille = (percent * 10.0).round() as u32;
        self.change(|faults| faults.lose(node.label(), per_mille))
    }

    /// Ends the cuts and the loss of a node.
    pub fn heal(&self, node: &Node) -> Result<()> {
        self.change(|faults| faults.heal(node.label()))
    }

    /// Ends all cuts and all loss.
    pub fn heal_all(&self) -> Result<()> {
        self.change(|faults| *faults = Faults::default())
    }

    /// Takes the carrier from a node's underlay link, as if its cable were pulled.
    pub fn link_down(&self, node: &Node) -> Result<()> {
        self.set_port(node, "down")
    }

    /// Gives the carrier back.
    pub fn link_up(&self, node: &Node) -> Result<()> {
        self.set_port(node, "up")
    }

    /// Forwards from an address in the caller's own namespace to one inside another.
    pub fn forward(
        &self,
        listen: SocketAddr,
        to: &Namespace,
        target: SocketAddr,
        protocol: Protocol,
    ) -> Result<Forward> {
        Forward::start(listen, to, target, protocol)
    }

    fn join(&self, label: &str, host: u8) -> Result<Node> {
        let node = Node {
            port: Port {
                switch: self.switch.name().to_owned(),
                label: label.to_owned(),
            },
            namespace: self.task(label)?,
            ipv4: Ipv4Addr::new(10, 77, 0, host),
            ipv6: ipv6_of(host),
        };
        let (name, switch, mtu) = (node.name(), self.switch.name(), self.mtu);
        // Always the same, so that a node that is made anew is known to its neighbours at once.
        let mac = format!("02:00:0a:4d:00:{host:02x}");
        ip_batch(
            name,
            &format!(
                "link add {UNDERLAY} address {mac} mtu {mtu} type veth peer name {label} mtu {mtu} netns {switch}\n\
                 address add {ipv4}/24 dev {UNDERLAY}\n\
                 address add {ipv6}/64 dev {UNDERLAY} nodad\n\
                 link set {UNDERLAY} up\n",
                ipv4 = node.ipv4,
                ipv6 = node.ipv6,
            ),
        )?;
        ip_batch(switch, &format!("link set {label} master br0 up\n"))?;
        Ok(node)
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) -> Result<()> {
        // The set of faults is whole at any time, also after a panic elsewhere.
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut faults);
        nft(self.switch.name(), &faults.ruleset())?;
        Ok(())
    }

    fn set_port(&self, node: &Node, state: &str) -> Result<()> {
        let switch = self.switch.name();
        ip(&["-n", switch, "link", "set", node.label(), state])?;
        Ok(())
    }
}

/// The name of every node's link to the underlay.
const UNDERLAY: &str = "eth0";

/// A namespace that is joined to the underlay by its link `eth0`.
///
/// It is a [`Namespace`] with addresses, and can be used as one.
#[derive(Debug)]
pub struct Node {
    // Dropped first: a namespace that something still holds open would keep the port, and with
    // it the label, in use.
    port: Port,
    namespace: Namespace,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl Node {
    /// Its name in the lab, such as `n1`; [`Namespace::name`] is that of the namespace.
    pub fn label(&self) -> &str {
        &self.port.label
    }

    /// Its IPv4 address on the underlay.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// Its IPv6 address on the underlay.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }

    /// Its IPv4 address on the underlay, with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (IpAddr::V4(self.ipv4), port).into()
    }

    /// Its IPv6 address on the underlay, with a port.
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        (IpAddr::V6(self.ipv6), port).into()
    }

    /// The name of its link to the underlay.
    pub fn underlay(&self) -> &'static str {
        UNDERLAY
    }

    /// Changes the MTU of both ends of its underlay link, in bytes.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let mtu = mtu.to_string();
        let port = &self.port;
        ip(&["-n", self.name(), "link", "set", UNDERLAY, "mtu", &mtu])?;
        ip(&["-n", &port.switch, "link", "set", &port.label, "mtu", &mtu])?;
        Ok(())
    }
}

impl Deref for Node {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// A node's end on the bridge.
#[derive(Debug)]
struct Port {
    switch: String,
    label: String,
}

impl Drop for Port {
    fn drop(&mut self) {
        // An error means that the lab, and with it the port, is gone already.
        ip(&["-n", &self.switch, "link", "del", &self.label]).ok();
    }
}

/// `base` plus the number at the end of the label.
fn host_number(label: &str, base: u8, most: u8) -> Result<u8> {
    let name = label.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = label.strip_prefix(name).and_then(|n| n.parse::<u8>().ok());
    let number = number.filter(|n| (1..=most).contains(n));
    // Linux's limit for the name of a link.
    let (Some(number), 1..=15) = (number, label.len()) else {
        bail!("label {label:?}: must end in a number of 1 to {most}, and have at most 15 letters");
    };
    Ok(base + number)
}

/// `fd77::N` with the same decimal digits as 10.77.0.N.
fn ipv6_of(host: u8) -> Ipv6Addr {
    let digits = u16::from(host / 100) << 8 | u16::from(host / 10 % 10) << 4 | u16::from(host % 10);
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_gives_the_addresses() {
        assert_eq!(host_number("n1", 10, 89).unwrap(), 11);
        assert_eq!(host_number("node89", 10, 89).unwrap(), 99);
        for bad in ["n", "n0", "n90", "", "n1x", "a-very-long-name1"] {
            assert!(host_number(bad, 10, 89).is_err(), "{bad}");
        }
        assert_eq!(ipv6_of(11).to_string(), "fd77::11");
        assert_eq!(ipv6_of(101).to_string(), "fd77::101");
    }
}
