//! The node of the tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use portolan_model::{MacAddress, NodeId, Protocol};
use portolan_plane::{BackendState, DataPlane, FrontendSpec, Op, Plan, contract};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::PORT;
use crate::{EbpfPlane, Mesh, OpenOptions, Predecessor, Surroundings, TaskLink};

pub(super) const TASKS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 208, 1, 2), Ipv4Addr::new(10, 208, 1, 3)];
/// Of a service on the tasks' network.
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(10, 209, 0, 9);
/// Addresses of the node.
pub(super) const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 208, 1, 0);
pub(super) const OWN6: &str = "fd00::11";

pub(super) struct Host {
    pub(super) plane: EbpfPlane,
    pub(super) around: Surroundings,
    pins: PathBuf,
}

/// Runs a test on a thread with namespaces of its own, where the hooks are attached.
pub(super) fn on_host(test: impl FnOnce(&mut Host) + Send) {
    let inside = || {
        let dir = tempfile::tempdir().unwrap();
        isolate(UnshareFlags::NEWNS | UnshareFlags::NEWNET);
        mount_change(
            c"/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
        .unwrap();
        let (bpf, cgroup) = (dir.path().join("bpf"), dir.path().join("cgroup"));
        for (kind, at) in [("bpf", &bpf), ("cgroup2", &cgroup)] {
            fs::create_dir(at).unwrap();
            mount(kind, at, kind, MountFlags::empty(), None).unwrap();
        }
        ip("link set lo up");
        ip("link add pt0 type bridge");
        for address in TASKS.into_iter().chain([OWN, GATEWAY, VIP]) {
            ip(&format!("address add {address}/32 dev lo"));
        }
        ip(&format!("address add {OWN6}/128 dev lo"));
        test(&mut Host::new(&bpf.join("portolan"), &cgroup));
        for at in [&bpf, &cgroup] {
            unmount(at, UnmountFlags::DETACH).unwrap();
        }
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap());
}

pub(super) fn isolate(from: UnshareFlags) {
    // SAFETY: no file descriptor table is unshared, which is what this call is unsafe for.
    #[expect(unsafe_code, reason = "the change is for this thread alone")]
    unsafe { unshare_unsafe(from) }.expect("root is needed");
}

/// Runs `ip` in the namespace of the calling thread.
pub(super) fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status();
    assert!(done.unwrap().success(), "ip {arguments}");
}

impl Host {
    fn new(pins: &Path, cgroup: &Path) -> Self {
        let network: portolan_model::NetworkName = portolan_model::INGRESS_NETWORK.parse().unwrap();
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        let task = TaskLink {
            network: network.clone(),
            link: "pt0".into(),
            mac,
            gateway_mac: mac,
        };
        let around = Surroundings {
            networks: BTreeMap::from([(
                network,
                Mesh {
                    link: "pt0".into(),
                    vni: 4096,
                    subnet: Ipv4Addr::new(10, 208, 0, 0),
                    prefix: 12,
                    gateway: GATEWAY,
                    underlay: OWN,
                    mtu: 1450,
                },
            )]),
            own: BTreeSet::from([OWN.into(), GATEWAY.into(), OWN6.parse().unwrap()]),
            cgroup: Some(cgroup.to_owned()),
            tasks: TASKS.map(|ip| (ip, task.clone())).into(),
            ..Surroundings::default()
        };
        let mut host = Self {
            plane: open(pins),
            around,
            pins: pins.to_owned(),
        };
        host.surround();
        host
    }

    /// Has a build with another layout of the maps follow, whose programs take over.
    pub(super) fn follow(&mut self) {
        let before = EbpfPlane::pins(&self.pins).unwrap();
        let before = before.first().unwrap().parent().unwrap().to_owned();
        let other = self.pins.join("other");
        fs::rename(before, &other).unwrap();
        self.plane = open(&self.pins);
        assert_eq!(
            *self.plane.predecessor(),
            Predecessor::Inherited(other.clone())
        );
        self.surround();
        for pin in fs::read_dir(&other).unwrap() {
            let pin = pin.unwrap().path();
            if EbpfPlane::is_link(&pin) {
                fs::remove_file(pin).unwrap();
            }
        }
        self.plane.catch_up().unwrap();
        fs::remove_dir_all(other).unwrap();
    }

    pub(super) fn surround(&mut self) {
        self.plane.surround(&self.around).unwrap();
    }

    /// Publishes the port, with these tasks behind it.
    pub(super) fn serve(&mut self, protocol: Protocol, tasks: &[Ipv4Addr]) {
        self.upsert(contract::spec(PORT, protocol, tasks));
    }

    /// The same with all tasks, of which one drains.
    pub(super) fn drain(&mut self, protocol: Protocol, task: Ipv4Addr) {
        let mut spec = contract::spec(PORT, protocol, &TASKS);
        for backend in spec
            .backends
            .iter_mut()
            .filter(|backend| backend.ip == task)
        {
            backend.state = BackendState::Draining;
        }
        self.upsert(spec);
    }

    pub(super) fn upsert(&mut self, mut spec: FrontendSpec) {
        for backend in &mut spec.backends {
            backend.node = NodeId::of_name("n1");
        }
        let ops = vec![Op::Upsert(Arc::new(spec))];
        let failures = self.plane.apply(&Plan { ops });
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// Has packets found that no backend answers.
    pub(super) fn pass_over_all(&mut self) {
        for index in 0..8 {
            let mut backend = self.plane.maps().backends.get(&index, 0).unwrap();
            backend.passed_over = u64::MAX;
            self.plane.maps().backends.set(index, backend, 0).unwrap();
        }
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        let counters = self.plane.counters().unwrap();
        counters
            .iter()
            .find(|(counter, _)| counter.name == name)
            .unwrap()
            .1
    }
}

fn open(pins: &Path) -> EbpfPlane {
    EbpfPlane::open(&OpenOptions {
        pins: pins.to_owned(),
        flows: 1024,
    })
    .unwrap()
}

/// A task's TCP server.
pub(super) fn listen(address: Ipv4Addr, port: u16) -> TcpListener {
    let listener = TcpListener::bind((address, port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// How many connections wait to be accepted; none is kept.
pub(super) fn accepted(listener: &TcpListener) -> usize {
    listener
        .incoming()
        .take_while(|connection| {
            let again = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
            match connection {
                Ok(_) => true,
                Err(error) => {
                    assert!(again(error), "{error}");
                    false
                }
            }
        })
        .count()
}

/// A datagram socket that waits for no more than 5 seconds.
pub(super) fn udp(address: &str, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}
