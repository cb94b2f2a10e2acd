//! A cluster that publishes many services, as one of its nodes knows it.

use std::net::Ipv4Addr;

use portolan_model::{
    Catalog, Endpoint, INGRESS_NETWORK, NetworkAttach, Node, NodeState, Protocol, PublishedPort,
    Record, RecordKey, Service, Slice, Snapshot, Task, TaskState,
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
        let published = (0..services).map(|service| Record::Service(declaration(service, 1)));
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
        let tasks: Vec<Task> = tasks.collect();
        let records = tasks.iter().cloned().map(Record::Task);
        catalog.set_owner(id(2), true, records.chain(node(2)));
        Self { catalog, tasks }
    }

    /// A task as it is in another state, as it comes from its node.
    pub(crate) fn record(&self, task: usize, state: TaskState) -> (Vec<u8>, Vec<u8>) {
        let task = Task {
            state,
            ..self.tasks[task].clone()
        };
        let record = Record::Task(task);
        (record.key().encode(), record.encode().unwrap())
    }

    /// Takes a record that its node has changed.
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) {
        let key = RecordKey::decode(key).unwrap().unwrap();
        let record = Record::decode(&key, value).unwrap();
        self.catalog
            .change_owner(id(2), true, [(key, Some(record))]);
    }

    /// Takes another declaration of a service: that may concern all others, by the ports that it takes.
    pub(crate) fn declare(&mut self, service: usize, version: u64) {
        let record = Record::Service(declaration(service, version));
        self.catalog
            .change_owner(id(1), true, [(record.key(), Some(record))]);
    }

    pub(crate) fn snapshot(&mut self) -> Snapshot {
        self.catalog.snapshot(true)
    }
}

fn declaration(service: usize, version: u64) -> Service {
    let port = PublishedPort::new(FIRST_PORT + service as u16, 80, Protocol::Tcp);
    Service {
        ports: vec![port],
        spec_version: version,
        created_ms: 1,
        ..Service::new(name(service).parse().unwrap())
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
