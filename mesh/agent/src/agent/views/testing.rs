//! A small cluster as a node sees it, for tests.

use std::net::{IpAddr, Ipv4Addr};

use portolan_model::PlaneChoice;
use portolan_model::{
    Catalog, Endpoint, HealthCheck, HealthProbe, INGRESS_NETWORK, NetworkAttach, NetworkName, Node,
    NodeId, Protocol, PublishMode, PublishedPort, Record, Service, Slice, Task, TaskState,
};
use portolan_plane::{Actual, DataPlane, FakePlane, Plan, Standing};

use super::*;
use crate::config::{DockerChoice, LogFormat};

pub(in crate::agent) fn config() -> Config {
    Config {
        name: "n1".to_owned(),
        advertise: IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)),
        gossip_port: 7946,
        join: Vec::new(),
        key_file: None,
        insecure: true,
        cluster: "portolan".to_owned(),
        state_dir: "/var/lib/portolan".into(),
        socket: "/run/portolan.sock".into(),
        http: ([127, 0, 0, 1], 7947).into(),
        data_path_port: 4789,
        stacks: Vec::new(),
        docker: DockerChoice::Off,
        plane: PlaneChoice::Auto,
        fast_path_flows: 1024,
        bpf_dir: "/sys/fs/bpf/portolan".into(),
        dns_upstream: Vec::new(),
        dns_port: 53,
        dns_address: None,
        log_format: LogFormat::Text,
        log: "info".to_owned(),
        max_connections: 1000,
    }
}

pub(super) fn node(name: &str, state: NodeState) -> Record {
    let last = name.trim_start_matches('n').parse().unwrap();
    Record::Node(Node {
        name: name.to_owned(),
        underlay: IpAddr::V4(Ipv4Addr::new(10, 77, 0, last)),
        state,
        version: "1.2.3".to_owned(),
        fast_path: false,
        ipv6: false,
    })
}

fn slice(network: &str, prefix: &str) -> Record {
    let slices = vec![Slice {
        prefix: prefix.parse().unwrap(),
        claimed_ms: 1,
    }];
    Record::NetworkAttach(NetworkAttach {
        network: network.parse().unwrap(),
        slices,
    })
}

pub(super) fn task(id: &str, service: Option<&str>, slot: u32, ip: &str, state: TaskState) -> Task {
    let endpoint = Endpoint {
        network: NetworkName::ingress(),
        ip: ip.parse().unwrap(),
        mac: None,
    };
    let (id, service) = (id.parse().unwrap(), service.map(|id| id.parse().unwrap()));
    Task {
        id,
        service,
        slot,
        endpoints: vec![endpoint],
        state,
        weight: 1,
    }
}

pub(super) fn web() -> Service {
    let mut web = Service::new("web".parse().unwrap());
    web.ports = vec![
        PublishedPort::new(8080, 80, Protocol::Tcp),
        PublishedPort {
            mode: PublishMode::Host,
            ..PublishedPort::new(9090, 90, Protocol::Udp)
        },
    ];
    web.health = Some(HealthCheck {
        probe: HealthProbe::Tcp { port: 0 },
        interval_ms: 1000,
        timeout_ms: 1000,
        rise: 1,
        fall: 1,
    });
    web
}

/// Three nodes: n1 is asked, n2 drains, n3 is down; web has one task on n1 and one on n2.
pub(in crate::agent) fn facts() -> Facts {
    let [n1, n2, n3] = ["n1", "n2", "n3"].map(NodeId::of_name);
    let mut catalog = Catalog::new(n1);
    let mut first = task("t1", Some("web"), 1, "10.208.1.2", TaskState::Healthy);
    first.weight = 3;
    catalog.set_owner(
        n1,
        true,
        [
            node("n1", NodeState::Up),
            slice(INGRESS_NETWORK, "10.208.1.1/24"),
            Record::Service(web()),
            Record::Task(first),
        ],
    );
    catalog.set_owner(
        n2,
        true,
        [
            node("n2", NodeState::Draining),
            slice(INGRESS_NETWORK, "10.208.2.1/24"),
            Record::Task(task("t2", Some("web"), 2, "10.208.2.2", TaskState::Healthy)),
            Record::Task(task("a1", None, 0, "10.208.2.3", TaskState::Healthy)),
        ],
    );
    let since = SystemTime::UNIX_EPOCH;
    let member = |name: &str, last, state| Member {
        name: name.to_owned(),
        addr: ([10, 77, 0, last], 7946).into(),
        boot: 1,
        state,
        since,
    };
    let members = [
        (n1, member("n1", 1, MemberState::Alive)),
        (n2, member("n2", 2, MemberState::Alive)),
        (n3, member("n3", 3, MemberState::Down)),
    ];
    let snapshot = Arc::new(catalog.snapshot(true));
    let mut plane = FakePlane::default();
    assert!(
        plane
            .apply(&Plan::new(&snapshot, &Actual::new()))
            .is_empty()
    );
    let told = plane.dump().unwrap();
    let served = told.len();
    Facts {
        config: Arc::new(config()),
        now: since + Duration::from_mins(5),
        uptime: Duration::from_millis(61_500),
        snapshot,
        view: Arc::new(View {
            me: n1,
            members: members.into(),
            owners: BTreeMap::new(),
            synced: true,
            table_hash: 0xabc,
            membership_hash: 0,
        }),
        reasons: Reasons::default(),
        overlay: OverlayStanding {
            programmed: true,
            mtu: 1450,
            ..OverlayStanding::default()
        },
        planes: Some(PlanesStanding {
            told,
            relay: Standing {
                served,
                ..Standing::default()
            },
            ..PlanesStanding::default()
        }),
        docker: None,
        dns_problems: Vec::new(),
        key: None,
        waiting_for: Vec::new(),
    }
}
