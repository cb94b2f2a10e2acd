//! A cluster that publishes many services, as one of its nodes knows it.

use std::net::Ipv4Addr;

use portolan_model::{
    Catalog, Endpoint, INGRESS_NETWORK, NetworkAttach, Node, NodeState, Protocol, PublishedPort,
    Record, Service, Slice, Snapshot, Task, TaskState,
};

use crate::cluster::id;

pub(crate) const SERVICES: usize = 10_000;
pub(crate) const TASKS: usize = 10;
/// The port of the first service; each has the next.
const FIRST_PORT: u16 = 10_000;

/// The records of the two nodes; all tasks run on the second one.
pub(crate) struct World {
    catalog: Catalog,
    tasks: Vec<Task>,
}

impl World {
    /// So many services.
    pub(crate) fn new(services: usize) -> Self {
        let mut catalog = Catalog::new(id(1));
        let published = (0..services).map(|service| {
            let port = PublishedPort::new(FIRST_PORT + service as u16, 80, Protocol::Tcp);
            Record::Service(Service {
                ports: vec![port],
                spec_version: 1,
                created_ms: 1,
                ..Service::new(name(service).parse().unwrap())
            })
        });
        catalog.set_owner(id(1), true, published.chain(node(1)));
        let tasks = (0..services * TASKS).map(|number| Task {
            id: format!("task-{number:06}").parse().unwrap(),
            service: Some(name(number / TASKS).parse().unwrap()),
            slot: (number % TASKS) as u32 + 1,
            endpoints: vec![Endpoint {
                network: INGRESS_NETWORK.parse().unwrap(),
                ip: Ipv4Addr::from_bits(Ipv4Addr::new(10, 209, 0, 0).to_bits() + number as u32)
                    .into(),
                mac: None,
            }],
            state: TaskState::Healthy,
            weight: 1,
        });
        let mut world = Self {
            catalog,
            tasks: tasks.collect(),
        };
        world.publish();
        world
    }

    /// One task's state changes.
    pub(crate) fn set(&mut self, task: usize, state: TaskState) {
        self.tasks[task].state = state;
        self.publish();
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.catalog.snapshot(true)
    }

    fn publish(&mut self) {
        let tasks = self.tasks.iter().cloned().map(Record::Task);
        self.catalog.set_owner(id(2), true, tasks.chain(node(2)));
    }
}

fn name(service: usize) -> String {
    format!("service-{service:05}")
}

fn node(n: u8) -> [Record; 2] {
    let node = Node {
        name: format!("n{n}"),
        underlay: Ipv4Addr::new(10, 77, 0, 10 + n).into(),
        state: NodeState::Up,
        version: String::new(),
        fast_path: true,
        ipv6: false,
    };
    let attach = NetworkAttach {
        network: INGRESS_NETWORK.parse().unwrap(),
        slices: vec![Slice {
            prefix: format!("10.208.{n}.0/24").parse().unwrap(),
            claimed_ms: 1,
        }],
    };
    [Record::Node(node), Record::NetworkAttach(attach)]
}
