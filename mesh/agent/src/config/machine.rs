//! What the configuration asks of the machine: its name, its addresses, its files.

use std::{fs, io, net::IpAddr, os::unix::fs::PermissionsExt, path::Path};

use nix::ifaddrs::getifaddrs;
use portolan_gossip::Keyring;

use super::layer::Fault;

/// A machine. Tests have one of their own, so that what they find does not depend on where they run.
pub trait Machine {
    /// Its host name.
    fn host_name(&self) -> Option<String>;
    /// All its addresses, each with the name of the interface.
    fn addresses(&self) -> Vec<(String, IpAddr)>;
    /// The address that the Docker engine at a unix socket has in its Swarm, if there is one that says so.
    fn swarm_address(&self, engine: &Path) -> Option<IpAddr>;
    /// Whether there is anything at a path.
    fn exists(&self, path: &Path) -> bool;
    /// The text of a file, and its permission bits.
    fn read(&self, file: &Path) -> io::Result<(String, u32)>;
}

/// The machine that this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn host_name(&self) -> Option<String> {
        nix::unistd::gethostname().ok()?.into_string().ok()
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        let Ok(interfaces) = getifaddrs() else {
            return Vec::new();
        };
        let mut addresses: Vec<_> = interfaces
            .filter_map(|interface| {
                let address = interface.address?;
                let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                    (Some(v4), _) => IpAddr::V4(v4.ip()),
                    (_, Some(v6)) => IpAddr::V6(v6.ip()),
                    _ => return None,
                };
                Some((interface.interface_name, ip))
            })
            .collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    fn swarm_address(&self, engine: &Path) -> Option<IpAddr> {
        // What has to be known before the agent's runtime is there.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().ok()?;
        let asked = portolan_docker::swarm_address(engine);
        runtime.block_on(asked).ok().flatten()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn read(&self, file: &Path) -> io::Result<(String, u32)> {
        let mode = fs::metadata(file)?.permissions().mode();
        Ok((fs::read_to_string(file)?, mode))
    }
}

/// Whether a file can serve as the key file.
pub(crate) fn check_key_file(machine: &impl Machine, file: &Path) -> Result<(), Fault> {
    let shown = file.display();
    let (text, mode) = machine.read(file).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => format!("make it with `portolan keygen {shown}`"),
            _ => "let the agent's user read it".to_owned(),
        };
        Fault::new(
            format!("{shown} cannot be read: {}", reason(&error)),
            remedy,
        )
    })?;
    if mode & 0o007 != 0 {
        return Err(Fault::new(
            format!(
                "{shown} is open to every user of the machine (mode {:03o})",
                mode & 0o777
            ),
            format!("`chmod 600 {shown}`"),
        ));
    }
    Keyring::parse(&text).map(|_| ()).map_err(|error| {
        let mut message = format!("{shown}: {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        match message.rsplit_once("; ") {
            Some((message, remedy)) => Fault::new(message, remedy),
            None => Fault::new(
                message,
                format!("make a new one with `portolan keygen {shown}`"),
            ),
        }
    })
}

/// What the system said, without the number that `io::Error` adds.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => reason.to_lowercase(),
        None => text,
    }
}

/// Whether an interface was made by Portolan or a container engine: its address is not the machine's.
pub(crate) fn is_foreign(interface: &str) -> bool {
    const PREFIXES: [&str; 11] = [
        "ptbr", "ptvx", "ptv", "docker", "br-", "veth", "cni", "podman", "virbr", "lxcbr", "lxdbr",
    ];
    PREFIXES.iter().any(|prefix| interface.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_loopback_address() {
        let addresses = ThisMachine.addresses();
        assert!(
            addresses
                .iter()
                .any(|(name, ip)| name == "lo" && ip.is_loopback())
        );
    }
}
