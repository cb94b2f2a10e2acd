//! Swarm's own mesh, where it lives: its dockerd listens on the ports that the Swarm publishes, and IPVS forwards
//! them. Nothing can be bound there; but packets reach the fast path first, and what that lets pass is served by
//! Docker as it was before.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use portolan_docker::is_of_swarm;
use portolan_model::{Protocol, Snapshot};
use portolan_plane::{Actual, Frontend, FrontendAddress};

/// `/proc/net` of the calling thread's namespace.
const NET: &str = "/proc/thread-self/net";
/// Who holds the ports.
const DAEMON: &str = "dockerd";
/// `TCP_LISTEN` and, of UDP, `TCP_CLOSE`, as `/proc/net` shows them (`include/net/tcp_states.h`).
const LISTENS: [&str; 2] = ["0A", "07"];

/// Frontends that Docker itself serves.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub frontends: BTreeSet<Frontend>,
    /// Docker's sockets could not be seen: each port of a Swarm's service that is taken counts as one of them.
    pub guessed: bool,
}

/// Those of some frontends which Docker itself serves for the same services: a process with another purpose that has
/// the port of a Swarm's service keeps it.
pub(super) fn held<'a>(
    frontends: impl IntoIterator<Item = &'a Frontend>,
    told: &Actual,
    snapshot: &Snapshot,
) -> Held {
    let mut published = frontends.into_iter().filter(|frontend| {
        let spec = told.get(*frontend);
        let view = spec.and_then(|spec| snapshot.services.get(&spec.service));
        frontend.address == FrontendAddress::Node
            && view.is_some_and(|view| is_of_swarm(view.service.spec_version))
    });
    let Some(first) = published.next() else {
        return Held::default();
    };
    let sockets = Sockets::of_docker();
    let all = [first].into_iter().chain(published);
    let held = all.filter(|frontend| sockets.have(frontend.protocol, frontend.port));
    Held {
        frontends: held.cloned().collect(),
        guessed: matches!(sockets, Sockets::Unseen),
    }
}

/// What is to be known of Docker's sockets.
enum Sockets {
    /// Their inodes.
    Known(BTreeSet<u64>),
    /// Its process cannot be seen, or not its files, from within a container say, and IPVS is there.
    Unseen,
}

impl Sockets {
    fn of_docker() -> Self {
        let daemons = processes_called(DAEMON);
        let sockets = daemons.iter().map(|dir| sockets_of(dir));
        match sockets.collect::<io::Result<Vec<_>>>() {
            Ok(sockets) if !sockets.is_empty() => {
                Self::Known(sockets.into_iter().flatten().collect())
            }
            _ if Path::new(NET).join("ip_vs").exists() => Self::Unseen,
            _ => Self::Known(BTreeSet::new()),
        }
    }

    fn have(&self, protocol: Protocol, port: u16) -> bool {
        match self {
            Self::Known(inodes) => listeners(protocol, port).any(|inode| inodes.contains(&inode)),
            Self::Unseen => true,
        }
    }
}

/// The directories in `/proc` of the processes of a name.
fn processes_called(name: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(portolan_overlay::processes());
    let all = all.into_iter().flatten().flatten();
    let all = all.map(|entry| entry.path());
    let called = |dir: &PathBuf| {
        fs::read_to_string(dir.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    all.filter(called).collect()
}

/// The inodes of a process's sockets. One that has ended has none.
///
/// # Errors
/// Its files are not to be read: that takes `CAP_SYS_PTRACE` (proc(5)), and a security module may forbid it.
fn sockets_of(process: &Path) -> io::Result<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    let files = match fs::read_dir(process.join("fd")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(inodes),
        files => files?,
    };
    for file in files {
        let target = match file.and_then(|file| fs::read_link(file.path())) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(error),
            // Closed since.
            Err(_) => continue,
            Ok(target) => target,
        };
        inodes.extend(socket(&target));
    }
    Ok(inodes)
}

/// The inode of a socket, as the files of a process show it.
fn socket(target: &Path) -> Option<u64> {
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}

/// The inodes of the sockets that listen on a port, at whichever address.
fn listeners(protocol: Protocol, port: u16) -> impl Iterator<Item = u64> {
    ["", "6"].into_iter().flat_map(move |family| {
        let table = fs::read_to_string(format!("{NET}/{protocol}{family}")).unwrap_or_default();
        let inodes: Vec<u64> = table
            .lines()
            .filter_map(|line| listener(line, port))
            .collect();
        inodes
    })
}

/// The inode in a line of `/proc/net/tcp` and its like (proc(5)), if it is one of a socket that listens on the port.
fn listener(line: &str, port: u16) -> Option<u64> {
    let mut fields = line.split_whitespace();
    let (_, local) = fields.nth(1)?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    let listens = u16::from_str_radix(local, 16) == Ok(port) && LISTENS.contains(&state);
    // After the queues, the timer, the retransmissions, the user and the timeout.
    listens.then(|| fields.nth(5)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process::Command};

    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1 0 100 0 0 10 0\n   \
            1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 42 1 0 20 4 30 10 -1\n   \
            2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1 0 100 0 0 10 0\n";
        let found: Vec<u64> = table.lines().filter_map(|l| listener(l, 8080)).collect();
        assert_eq!(found, [41]);
    }

    #[test]
    fn a_port_is_its_holders() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inodes: BTreeSet<u64> = listeners(Protocol::Tcp, port).collect();
        assert_eq!(inodes.len(), 1);
        let own = sockets_of(Path::new("/proc/self")).unwrap();
        assert!(own.is_superset(&inodes));
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let theirs = sockets_of(Path::new(&format!("/proc/{}", other.id()))).unwrap();
        let theirs = Sockets::Known(theirs);
        assert!(!theirs.have(Protocol::Tcp, port) && Sockets::Known(own).have(Protocol::Tcp, port));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
