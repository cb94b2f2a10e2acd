//! The programs that are driven, and the Debian packages that have them.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use crate::process::{Output, complete};

const LIMIT: Duration = Duration::from_secs(30);

/// Checks that every one of `programs` is on the `PATH`.
///
/// # Errors
/// Names all that are missing, each with the Debian package that has it.
pub fn require(programs: &[&str]) -> Result<()> {
    let missing: Vec<String> = programs
        .iter()
        .filter(|program| !is_installed(program))
        .map(|program| hint(program))
        .collect();
    if !missing.is_empty() {
        bail!("not installed: {}", missing.join(", "));
    }
    Ok(())
}

/// Runs `ip` with these arguments.
pub(crate) fn ip<S: AsRef<OsStr>>(args: &[S]) -> Result<Output> {
    complete(Command::new("ip").args(args), "", LIMIT)?.success()
}

/// Runs the lines of `script` by one `ip -batch`, inside the named namespace.
pub(crate) fn ip_batch(namespace: &str, script: &str) -> Result<Output> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "-batch", "-"]);
    complete(&mut command, script, LIMIT)?.success()
}

/// Loads an nft script, as one transaction, inside the named namespace.
pub(crate) fn nft(namespace: &str, script: &str) -> Result<Output> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "nft", "-f", "-"]);
    complete(&mut command, script, LIMIT)?.success()
}

/// Why a program could not be started, with the remedy where that is known.
pub(crate) fn start_error(program: &OsStr, error: io::Error) -> anyhow::Error {
    let name = program.to_string_lossy();
    if error.kind() == io::ErrorKind::NotFound && !is_installed(&name) {
        return anyhow!("not installed: {}", hint(&name));
    }
    anyhow::Error::new(error).context(format!("cannot start {name}"))
}

fn hint(program: &str) -> String {
    match package_of(program) {
        Some(package) => format!("{program} (apt-get install {package})"),
        None => program.to_owned(),
    }
}

fn is_installed(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn package_of(program: &str) -> Option<&'static str> {
    Some(match program {
        "bridge" | "ip" | "ss" | "tc" => "iproute2",
        "busybox" => "busybox-static",
        "curl" => "curl",
        "dig" => "dnsutils",
        "docker" | "dockerd" => "docker.io",
        "ethtool" => "ethtool",
        "iperf3" => "iperf3",
        "iptables" => "iptables",
        "nc" => "netcat-openbsd",
        "nft" => "nftables",
        "nginx" => "nginx-light",
        "ping" => "iputils-ping",
        "promtool" => "prometheus",
        "redis-cli" => "redis-tools",
        "redis-server" => "redis-server",
        "socat" => "socat",
        "tcpdump" => "tcpdump",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_missing_programs_are_named_at_once() {
        let error = require(&["sh", "pt-absent-1", "pt-absent-2"]).unwrap_err();
        assert_eq!(error.to_string(), "not installed: pt-absent-1, pt-absent-2");
        assert!(require(&["sh", "/bin/sh"]).is_ok());
    }

    #[test]
    fn the_hint_names_the_package() {
        assert_eq!(hint("dig"), "dig (apt-get install dnsutils)");
    }
}
