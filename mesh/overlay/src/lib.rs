//! The overlay of one node: what it programs in its kernel so that tasks on different nodes reach one
//! another.
//!
//! Each network that the node is on has a bridge, of which the local tasks' veth pairs are ports, and a
//! VXLAN link. The two are not bridged but *routed*: a remote node's slice of the subnet is one route,
//! which carries the tunnel's other end (its underlay address and the VNI), and one neighbour, its
//! gateway. There is no FDB, no flooding and no ARP between nodes. Networks are kept apart by a routing
//! table for each, which rules choose by the link that a packet came by, and by a packet filter
//! ([`Counters`]) for the node's own addresses.
//!
//! The desired state is a pure function of the snapshot; a pass compares it with what is in the kernel
//! and changes only what differs. So after a restart an [`Overlay`] adopts what it finds, and packets
//! flow on.
//!
//! An [`Overlay`] belongs to the network namespace of the thread that opened it, and must be used on
//! that thread: sockets keep their namespace, but `/proc/sys/net` and child processes follow the
//! thread. It blocks, for milliseconds.
//!
//! Not here: choosing VNIs, slices and addresses (`portolan_model::claims`), published ports and VIPs
//! (the planes), and any word to other nodes.

mod alias;
mod around;
mod attach;
mod desired;
mod error;
mod guard;
mod inside;
mod links;
mod mtu;
mod names;
mod netlink;
mod netns;
mod nft;
mod node_address;
mod objects;
mod plug;
mod program;
mod settings;
mod surroundings;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    ops::Bound::{Excluded, Unbounded},
};

use ipnetwork::Ipv4Network;
use portolan_model::{Snapshot, TaskId};

use crate::{
    alias::Alias,
    around::Known,
    desired::{Desired, DesiredNetwork},
    error::Doing,
    guard::{Guard, Rules},
    netlink::{Address, Link, Netlink},
    program::Settings,
    surroundings::{FALLBACK_MTU, Surroundings},
};
pub use crate::{
    around::{Around, NetworkLink, TaskEnd},
    attach::{AttachEndpoint, Attachment, PortRange},
    error::{Failure, OverlayError},
    netlink::NetlinkError,
    netns::{NetnsRef, processes},
    plug::Plug,
};

/// The UDP port of VXLAN (RFC 7348).
pub const DEFAULT_PORT: u16 = 4789;

/// The least MTU of a link that has IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// What an [`Overlay`] must be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The node's own address, from which its VXLAN packets are sent; the one of its record.
    pub underlay: IpAddr,
    /// The UDP port of VXLAN packets, the same on all nodes.
    pub data_path_port: u16,
    /// An address that the node gets on its loopback link, for its containers to reach it at, whatever bridge
    /// they are on. Where there is `nft`, packets to it from other links than bridges are dropped.
    pub node_address: Option<Ipv4Addr>,
}

/// Packets that the packet filter has dropped since its table was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// VXLAN packets from addresses that are no members'.
    pub non_member_packets: u64,
    /// Packets to an address of a network from a link that is not the network's, and to the node's own address
    /// for its containers from one that is none of theirs.
    pub misdirected_packets: u64,
    /// Packets on a network from an address that is not the network's.
    pub forged_source_packets: u64,
}

/// The overlay of this node.
#[derive(Debug)]
pub struct Overlay {
    config: Config,
    netlink: Netlink,
    guard: Guard,
    mtu: u32,
    problems: Vec<String>,
    /// The links that have not got the MTU, worded for the user.
    behind: Vec<String>,
    /// The networks by VNI, as they were last asked for.
    known: BTreeMap<u32, Known>,
    /// How many links each task has; one with fewer has lost its namespace.
    attached: BTreeMap<TaskId, usize>,
    /// The addresses inside of what this overlay has attached itself.
    addresses: BTreeMap<TaskId, BTreeSet<Ipv4Addr>>,
    /// The task of which they were read last.
    read: Option<TaskId>,
}

impl Overlay {
    /// Opens the overlay of the calling thread's network namespace. Attachments of an earlier run are
    /// found; nothing is changed.
    ///
    /// # Errors
    /// Without the privilege, or when the kernel's links cannot be listed.
    pub fn open(config: Config) -> Result<Self, OverlayError> {
        let mut overlay = Self {
            netlink: Netlink::open().map_err(OverlayError::Open)?,
            guard: Guard::new(nft::PROGRAM),
            mtu: FALLBACK_MTU,
            problems: Vec::new(),
            behind: Vec::new(),
            known: BTreeMap::new(),
            attached: BTreeMap::new(),
            addresses: BTreeMap::new(),
            read: None,
            config,
        };
        overlay.look_around()?;
        overlay.attached = count(&overlay.links()?);
        Ok(overlay)
    }

    /// Brings the kernel to what the snapshot asks for. Until the snapshot is synced nothing is removed.
    ///
    /// Each failure names its network and operation; everything else was done. The same call again
    /// tries again what failed.
    pub fn reconcile(&mut self, snapshot: &Snapshot) -> Vec<Failure> {
        let surroundings = match self.look_around() {
            Ok(surroundings) => surroundings,
            Err(error) => return vec![failure("overlay", error)],
        };
        let mut desired = Desired::new(snapshot);
        let mut failures: Vec<_> = desired
            .split_off_conflicts(&surroundings.addresses)
            .into_iter()
            .map(|(network, taken)| {
                let object = network.name.to_string();
                failure(&object, subnet_in_use(network, taken))
            })
            .collect();
        // The filter comes first, so that no network is open for a moment.
        let rules = Rules {
            port: self.config.data_path_port,
            node_address: self.config.node_address,
            members: desired
                .members
                .iter()
                .copied()
                .chain([self.config.underlay])
                .collect(),
            networks: desired
                .networks
                .iter()
                .map(|(vni, network)| (*vni, network.ranges().collect()))
                .collect(),
        };
        if let Err(error) = self.guard.apply(rules, snapshot.synced) {
            failures.push(failure("packet filter", error));
        }
        if let Err(error) = node_address::ensure(&mut self.netlink, self.config.node_address) {
            failures.push(failure("node address", error));
        }
        if let Err(error) = settings::tell_routes(true) {
            failures.push(failure("routes of the node", error));
        }
        self.note(&desired);
        let settings = self.settings();
        failures.extend(program::upsert(&mut self.netlink, settings, &desired));
        if snapshot.synced {
            failures.extend(program::remove(&mut self.netlink, settings, &desired));
        }
        failures
    }

    /// Puts a network namespace on its networks, and on no others. Called again it mends what is not as it
    /// should be.
    ///
    /// What a task on the ingress network answers to clients outside leaves by the overlay, whatever other
    /// links the task has; of those that come later the next call knows. Where that cannot be had for UDP,
    /// for want of `nft`, it is among the [`Self::problems`], and in [`TaskEnd::answers_udp`].
    ///
    /// # Errors
    /// Nothing that this call made stays.
    pub fn attach(&mut self, request: &Attachment) -> Result<(), OverlayError> {
        let failures = self.prepare(&request.endpoints)?;
        // What kept a bridge from being made says more than that it lacks.
        let addresses = attach::attach(&mut self.netlink, self.mtu, request)
            .map_err(|error| failures.into_iter().next().map_or(error, |f| f.error))?;
        self.attached
            .insert(request.id.clone(), request.endpoints.len());
        self.addresses.insert(request.id.clone(), addresses);
        Ok(())
    }

    /// Makes a place on a network for a namespace that somebody else makes, and gives the name of the link
    /// to be moved there; addresses and routes inside are theirs to set too. From then on it is attached.
    /// Called again before the link was moved it changes nothing, and after that it makes another.
    ///
    /// # Errors
    /// Nothing that this call made stays.
    pub fn plug(&mut self, plug: &Plug) -> Result<String, OverlayError> {
        let failures = self.prepare(std::slice::from_ref(&plug.endpoint))?;
        let loose = plug::plug(&mut self.netlink, self.mtu, plug)
            .map_err(|error| failures.into_iter().next().map_or(error, |f| f.error))?;
        self.attached.insert(plug.id.clone(), 1);
        Ok(loose)
    }

    /// Takes a task's namespace off all its networks. One that is not attached is fine.
    ///
    /// # Errors
    /// The first link that could not be removed; the others are.
    pub fn detach(&mut self, id: &TaskId) -> Result<(), OverlayError> {
        attach::detach(&mut self.netlink, id)?;
        self.attached.remove(id);
        self.addresses.remove(id);
        Ok(())
    }

    /// What is attached; at first that is what an earlier run left.
    pub fn attachments(&self) -> BTreeSet<TaskId> {
        self.attached.keys().cloned().collect()
    }

    /// The attachments of which a link has gone, and with it most likely the namespace. They are told
    /// until they are detached or attached again.
    pub fn vanished(&mut self) -> Vec<TaskId> {
        let Ok(links) = self.links() else {
            return Vec::new();
        };
        let present = count(&links);
        self.attached
            .iter()
            .filter(|(id, expected)| present.get(*id).is_none_or(|links| links < *expected))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// What the kernel has around the overlay and of it, read anew by two dumps. Networks are known from
    /// [`Self::reconcile`] and [`Self::attach`] on, tasks from the start.
    ///
    /// It is also when the overlay notices what changes by itself: if the MTU of the underlay is another
    /// one than before, all links get theirs, in the tasks too. So to call it twice a second is to follow
    /// such a change in half a second; what could not be changed is among the [`Self::problems`], and
    /// tried again by the next call.
    ///
    /// # Errors
    /// When links or addresses cannot be listed.
    pub fn around(&mut self) -> Result<Around, OverlayError> {
        let (mut links, addresses) = self.look()?;
        self.see(&links, &addresses);
        let (followed, behind) = mtu::follow(&mut self.netlink, &links, self.mtu);
        self.behind = behind;
        if followed {
            links = self.links()?;
        }
        let mut around = Around::new(&links, &addresses, &self.known);
        let subnets = node_address::container_subnets(&links, &addresses, self.config.underlay);
        around.containers.extend(subnets);
        self.read_next(&links);
        around.addresses.clone_from(&self.addresses);
        Ok(around)
    }

    /// What the packet filter has dropped, as of some seconds ago.
    pub fn counters(&mut self) -> Counters {
        self.guard.counters()
    }

    /// Removes everything of ours from the kernel, attachments included.
    ///
    /// # Errors
    /// All of them; what else could be removed is.
    pub fn clean(&mut self) -> Result<(), Vec<OverlayError>> {
        let mut errors = Vec::new();
        match self.links() {
            Ok(links) => {
                for link in links.iter().filter(|link| names::is_host_end(&link.name)) {
                    errors.extend(attach::remove_end(&mut self.netlink, link).err());
                }
            }
            Err(error) => errors.push(error),
        }
        self.attached.clear();
        self.addresses.clear();
        let settings = self.settings();
        let failures = program::remove(&mut self.netlink, settings, &Desired::default());
        errors.extend(failures.into_iter().map(|failure| failure.error));
        errors.extend(node_address::ensure(&mut self.netlink, None).err());
        errors.extend(settings::tell_routes(false).err());
        errors.extend(self.guard.remove().err());
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// The largest packet that fits the overlay's links, in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Why tasks cannot be given IPv6 addresses on this node, worded for the user; `None` if they can.
    pub fn no_ipv6(&self) -> Option<String> {
        let short = (self.mtu < IPV6_MIN_MTU)
            .then(|| format!("the overlay's MTU of {} is too small for IPv6", self.mtu));
        short.or_else(settings::no_ipv6)
    }

    /// What keeps the overlay from working as it should, worded for the user.
    pub fn problems(&self) -> Vec<String> {
        let around = self.problems.iter().chain(&self.behind).cloned();
        around.chain(self.guard.problems()).collect()
    }

    /// Reads anew what addresses the next task in turn has: nothing tells of those that come and go.
    fn read_next(&mut self, links: &[Link]) {
        let after = self.read.as_ref().map_or(Unbounded, Excluded);
        let mut later = self.addresses.range::<TaskId, _>((after, Unbounded));
        let next = later.next().or_else(|| self.addresses.iter().next());
        self.read = next.map(|(task, _)| task.clone());
        let Some(task) = &self.read else { return };
        let mut aliases = links.iter().filter_map(Alias::of);
        let alias = aliases.find(|alias| alias.task == *task);
        // One that cannot be entered now is going, or is read the next time.
        if let Some(addresses) = alias.and_then(|alias| inside::addresses_of(&alias)) {
            self.addresses.insert(task.clone(), addresses);
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            underlay: self.config.underlay,
            port: self.config.data_path_port,
            mtu: self.mtu,
        }
    }

    fn links(&mut self) -> Result<Vec<Link>, OverlayError> {
        self.netlink.links().doing("list", || "links".into())
    }

    /// Sets up the networks of a task that comes before the pass that does it: a bridge without its rules
    /// would route by the node's own table.
    fn prepare(&mut self, endpoints: &[AttachEndpoint]) -> Result<Vec<Failure>, OverlayError> {
        let surroundings = self.look_around()?;
        let conflicts =
            Desired::bare(endpoints.iter()).split_off_conflicts(&surroundings.addresses);
        if let Some((network, taken)) = conflicts.into_iter().next() {
            return Err(subnet_in_use(network, taken));
        }
        self.note(&Desired::bare(endpoints.iter()));
        let links = self.links()?;
        let new = endpoints.iter().filter(|endpoint| {
            let bridge = names::bridge(endpoint.vni);
            links.iter().all(|link| link.name != bridge)
        });
        let (settings, desired) = (self.settings(), Desired::bare(new));
        Ok(program::upsert(&mut self.netlink, settings, &desired))
    }

    fn note(&mut self, desired: &Desired) {
        for (&vni, network) in &desired.networks {
            let known = Known {
                name: network.name.clone(),
                subnet: network.subnet,
                gateway: network.gateway,
            };
            self.known.insert(vni, known);
        }
    }

    fn look_around(&mut self) -> Result<Surroundings, OverlayError> {
        let (links, addresses) = self.look()?;
        Ok(self.see(&links, &addresses))
    }

    fn look(&mut self) -> Result<(Vec<Link>, Vec<Address>), OverlayError> {
        let links = self.links()?;
        let addresses = self.netlink.addresses();
        Ok((links, addresses.doing("list", || "addresses".into())?))
    }

    /// Notes the MTU and what is wrong around the overlay.
    fn see(&mut self, links: &[Link], addresses: &[Address]) -> Surroundings {
        let seen = Surroundings::new(links, addresses, &self.config);
        // An address that goes for a moment takes no packet size with it.
        self.mtu = seen.mtu.unwrap_or(self.mtu);
        self.problems.clone_from(&seen.problems);
        seen
    }
}

fn subnet_in_use(
    network: DesiredNetwork,
    (subnet, address): (Ipv4Network, Ipv4Addr),
) -> OverlayError {
    OverlayError::SubnetInUse {
        network: network.name,
        subnet,
        address,
    }
}

fn failure(object: &str, error: OverlayError) -> Failure {
    Failure {
        object: object.to_owned(),
        error,
    }
}

/// How many links each task has.
fn count(links: &[Link]) -> BTreeMap<TaskId, usize> {
    let mut tasks = BTreeMap::new();
    for task in links.iter().filter_map(attach::owner) {
        *tasks.entry(task).or_insert(0) += 1;
    }
    tasks
}
