//! From what the sources say to a configuration, or to everything that is wrong with it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use portolan_ebpf::OpenOptions;
use portolan_model::PlaneChoice;

use super::{
    Config, ConfigProblem, DockerChoice, LogFormat,
    key::{DEFAULT_DNS_ADDRESS, DEFAULT_DOCKER, DEFAULT_SOCKET, Key},
    layer::{Entry, Fault, Layer, Origin, Value},
    machine::{Machine, check_key_file, is_foreign, reason},
    value::{self, Seed},
};

/// Puts the sources together, later over earlier, fills in the defaults and checks all of it.
///
/// # Errors
/// Everything that is wrong, in the order of the sources and then of the keys.
pub fn resolve(
    layers: impl IntoIterator<Item = Layer>,
    machine: &impl Machine,
) -> Result<Config, Vec<ConfigProblem>> {
    let mut reader = Reader {
        entries: BTreeMap::new(),
        problems: Vec::new(),
    };
    for layer in layers {
        reader.entries.extend(layer.entries);
        reader.problems.extend(layer.problems);
    }
    let config = reader.config(machine);
    match config {
        Some(config) if reader.problems.is_empty() => Ok(config),
        _ => Err(reader.problems),
    }
}

/// There once a node has been in a Swarm, also before its engine starts.
const SWARM_STATE: &str = "/var/lib/docker/swarm";

/// The ports of a node that is given none.
struct Ports {
    gossip: u16,
    data_path: u16,
}

impl Ports {
    /// A Swarm's own gossip and overlay have 7946 and 4789, on each of its nodes, now or later.
    fn beside(docker: Option<&DockerChoice>, machine: &impl Machine) -> Self {
        let there = match docker {
            Some(DockerChoice::At(_)) => true,
            Some(DockerChoice::Auto) => [DEFAULT_DOCKER, SWARM_STATE]
                .into_iter()
                .any(|path| machine.exists(Path::new(path))),
            Some(DockerChoice::Off) | None => false,
        };
        if there {
            Self {
                gossip: 7948,
                data_path: 4799,
            }
        } else {
            Self {
                gossip: 7946,
                data_path: 4789,
            }
        }
    }
}

struct Reader {
    entries: BTreeMap<Key, Entry>,
    problems: Vec<ConfigProblem>,
}

impl Reader {
    /// Reads every key before it gives up on any, so that all problems are found.
    fn config(&mut self, machine: &impl Machine) -> Option<Config> {
        let name = self.name(machine);
        let dns_address = self.one(
            Key::DnsAddress,
            Some(DEFAULT_DNS_ADDRESS),
            value::node_address,
        );
        let docker = self.one(Key::Docker, DockerChoice::Auto, value::docker);
        let engine = docker.as_ref().and_then(DockerChoice::socket);
        let advertise = self.advertise(machine, dns_address.flatten(), engine);
        let ports = Ports::beside(docker.as_ref(), machine);
        let gossip_port = self.one(Key::GossipPort, ports.gossip, value::port);
        let join = self.join(gossip_port.unwrap_or(ports.gossip));
        let key_file = self.one(Key::KeyFile, None, |text| {
            let file = value::path(text)?;
            check_key_file(machine, &file)?;
            Ok(Some(file))
        });
        let insecure = self.one(Key::Insecure, false, value::switch);
        let cluster = self.one(Key::Cluster, "portolan".into(), value::name);
        let state_dir = self.one(Key::StateDir, "/var/lib/portolan".into(), value::path);
        let socket = self.one(Key::Socket, DEFAULT_SOCKET.into(), value::socket);
        let http = self.one(
            Key::Http,
            SocketAddr::from(([127, 0, 0, 1], 7947)),
            value::listen,
        );
        let data_path_port = self.one(Key::DataPathPort, ports.data_path, value::port);
        let stacks = self.stacks(machine);
        let plane = self.one(Key::Plane, PlaneChoice::Auto, value::plane);
        let bpf_dir = self.one(
            Key::BpfDir,
            portolan_ebpf::DEFAULT_PINS.into(),
            value::absolute,
        );
        let fast_path_flows = self.one(
            Key::FastPathFlows,
            OpenOptions::default().flows,
            value::flows,
        );
        let dns_upstream = self.many(Key::DnsUpstream, value::resolver);
        let dns_port = self.one(Key::DnsPort, 53, value::port);
        let log_format = self.one(Key::LogFormat, LogFormat::Text, value::log_format);
        let log = self.one(Key::Log, "info".into(), value::log);
        let max_connections = self.one(Key::MaxConnections, 100_000, value::limit);

        if let (Some(advertise), Some(None), Some(false)) = (advertise, &key_file, insecure) {
            self.require_key(advertise);
        }
        if let (Some(gossip), Some(data)) = (gossip_port, data_path_port)
            && gossip == data
        {
            self.wrong(
                Key::DataPathPort,
                Fault::new(
                    format!("port {data}/udp is gossip_port already"),
                    "give another port to one of the two",
                ),
            );
        }
        if let (Some(advertise), Some(Some(address))) = (advertise, dns_address)
            && advertise == address
        {
            self.wrong(
                Key::DnsAddress,
                Fault::new(
                    format!("{address} is advertise already"),
                    "give one that is nobody's, such as 169.254.77.53, or none",
                ),
            );
        }
        if let (Some(gossip), Some(http)) = (gossip_port, http)
            && gossip == http.port()
            && (http.ip().is_unspecified() || advertise == Some(http.ip()))
        {
            self.wrong(
                Key::Http,
                Fault::new(
                    format!("port {gossip}/tcp is gossip_port already"),
                    "give another port to one of the two",
                ),
            );
        }
        Some(Config {
            name: name?,
            advertise: advertise?,
            gossip_port: gossip_port?,
            join: join?,
            key_file: key_file?,
            insecure: insecure?,
            cluster: cluster?,
            state_dir: state_dir?,
            socket: socket?,
            http: http?,
            data_path_port: data_path_port?,
            stacks: stacks?,
            docker: docker?,
            plane: plane?,
            bpf_dir: bpf_dir?,
            fast_path_flows: fast_path_flows?,
            dns_upstream: dns_upstream?,
            dns_port: dns_port?,
            dns_address: dns_address?,
            log_format: log_format?,
            log: log?,
            max_connections: max_connections?,
        })
    }

    fn name(&mut self, machine: &impl Machine) -> Option<String> {
        if self.entries.contains_key(&Key::Name) {
            return self.one(Key::Name, String::new(), value::name);
        }
        let host = machine.host_name().unwrap_or_default();
        match value::name(&host) {
            Ok(name) => Some(name),
            Err(fault) => {
                let message = format!(
                    "not given, and the host name will not do: {}",
                    fault.message
                );
                self.wrong(Key::Name, Fault::new(message, "give one with --name"));
                None
            }
        }
    }

    /// `besides` is an address that an agent has given this machine. Of several the one is taken that `engine`, the
    /// socket of Docker's, has in its Swarm: so one stack file does for all nodes.
    fn advertise(
        &mut self,
        machine: &impl Machine,
        besides: Option<Ipv4Addr>,
        engine: Option<&Path>,
    ) -> Option<IpAddr> {
        if self.entries.contains_key(&Key::Advertise) {
            let placeholder = IpAddr::from([127, 0, 0, 1]);
            return self.one(Key::Advertise, placeholder, value::unicast);
        }
        let candidates: Vec<_> = machine
            .addresses()
            .into_iter()
            .filter(|(interface, ip)| !is_foreign(interface) && is_global(*ip))
            .filter(|(_, ip)| besides.is_none_or(|besides| *ip != besides))
            .collect();
        let mut by_ipv4 = candidates.iter().filter(|(_, ip)| ip.is_ipv4());
        // A machine with both families is reached by IPv4, as the overlay is.
        let only = match (by_ipv4.next(), by_ipv4.next(), candidates.as_slice()) {
            (Some((_, only)), None, _) | (None, None, [(_, only)]) => Some(*only),
            _ => None,
        };
        if only.is_some() {
            return only;
        }
        let engine = engine.filter(|socket| machine.exists(socket));
        let in_swarm = engine.and_then(|socket| machine.swarm_address(socket));
        // One of another machine, behind which this one is, cannot be bound here.
        if in_swarm.is_some_and(|address| candidates.iter().any(|(_, ip)| *ip == address)) {
            return in_swarm;
        }
        let message = if candidates.is_empty() {
            "not given, and this machine has no address that other nodes could reach".to_owned()
        } else {
            let shown: Vec<_> = candidates
                .iter()
                .map(|(interface, ip)| format!("{ip} ({interface})"))
                .collect();
            format!(
                "not given, and this machine has several addresses: {}",
                shown.join(", ")
            )
        };
        let remedy = "give the one that other nodes reach with --advertise";
        self.wrong(Key::Advertise, Fault::new(message, remedy));
        None
    }

    fn join(&mut self, default_port: u16) -> Option<Vec<Seed>> {
        let mut seeds = self.many(Key::Join, |text| value::seed(text, default_port))?;
        let mut seen = Vec::new();
        seeds.retain(|seed| {
            let new = !seen.contains(seed);
            seen.push(seed.clone());
            new
        });
        Some(seeds)
    }

    fn stacks(&mut self, machine: &impl Machine) -> Option<Vec<PathBuf>> {
        self.many(Key::Stack, |text| {
            let file = value::path(text)?;
            machine.read(&file).map_err(|error| {
                Fault::new(
                    format!("{text} cannot be read: {}", reason(&error)),
                    "give the path of a stack file",
                )
            })?;
            Ok(file)
        })
    }

    fn require_key(&mut self, advertise: IpAddr) {
        if advertise.is_loopback() {
            return;
        }
        self.wrong(
            Key::KeyFile,
            Fault::new(
                format!(
                    "not given, and {advertise} is reached by others: without a key anybody there could \
                     take part"
                ),
                "make one with `portolan keygen FILE`, copy it to every node and give it with \
                 --key-file; or say --insecure",
            ),
        );
    }

    /// Notes what is wrong with a key, at its place.
    fn wrong(&mut self, key: Key, fault: Fault) {
        let origin = self
            .entries
            .get(&key)
            .map_or(&Origin::Default, |entry| &entry.origin);
        self.problems.push(fault.at(origin.place(key)));
    }

    /// The one value of a key. `None`: it is wrong, and that is noted.
    fn one<T>(
        &mut self,
        key: Key,
        default: T,
        parse: impl Fn(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let values = self.many(key, parse)?;
        Some(values.into_iter().next_back().unwrap_or(default))
    }

    /// All values of a key. `None`: at least one is wrong, and all that are are noted.
    fn many<T>(&mut self, key: Key, parse: impl Fn(&str) -> Result<T, Fault>) -> Option<Vec<T>> {
        let Self { entries, problems } = self;
        let values = entries.get(&key).map_or(&[][..], |entry| &entry.values);
        let parsed: Vec<_> = values
            .iter()
            .filter_map(|Value { text, origin }| {
                parse(text)
                    .map_err(|fault| problems.push(fault.at(origin.place(key))))
                    .ok()
            })
            .collect();
        (parsed.len() == values.len()).then_some(parsed)
    }
}

/// Whether other machines could reach the address.
fn is_global(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}
