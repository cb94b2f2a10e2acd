//! The kernel settings of a link (`net.ipv4.conf.LINK`, `net.ipv6.conf.LINK`), never those of the whole
//! namespace.
//!
//! `/proc/sys/net` shows the namespace of the thread that looks, unlike `/proc/net`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::OverlayError;

/// Where containers have the machine's `/proc/sys/net` to write to: at its own place it is read-only there.
const IN_CONTAINERS: &str = "/host/sysnet";

/// Makes a link of ours a router's, and takes IPv6 from it, which the overlay does not carry.
pub(crate) fn write(link: &str) -> Result<(), OverlayError> {
    // The kernel takes the greater of the link's value and that for all. Where that is strict, this
    // makes it loose here: packets that another node sends on come from addresses beyond the link.
    let rp_filter = match read(&path(4, "all", "rp_filter")).as_deref() {
        Ok("0") => "0",
        _ => "2",
    };
    for (key, value) in [
        ("forwarding", "1"),
        ("rp_filter", rp_filter),
        ("send_redirects", "0"),
        ("accept_redirects", "0"),
    ] {
        set(path(4, link, key), value)?;
    }
    match disable_ipv6(link) {
        // A kernel without IPv6.
        Err(OverlayError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

/// Whether programs may ask which way packets of the node itself take to an IPv4 address (`bpf_fib_lookup`): the kernel
/// answers for links that forward only, and for the node itself the loopback stands. It forwards nothing by that.
pub(crate) fn tell_routes(tell: bool) -> Result<(), OverlayError> {
    let before = || read(&path(4, "default", "forwarding")).unwrap_or_else(|_| "0".to_owned());
    let value = if tell { "1".to_owned() } else { before() };
    set(path(4, "lo", "forwarding"), &value)
}

/// Lets a link have IPv6 addresses, those that it is given and no others: what others on the link
/// advertise is not believed. Containers mostly have IPv6 disabled.
pub(crate) fn enable_ipv6(link: &str) -> Result<(), OverlayError> {
    const NONE: &str = "1";
    for (key, value) in [
        ("addr_gen_mode", NONE),
        ("accept_ra", "0"),
        ("accept_redirects", "0"),
        ("disable_ipv6", "0"),
    ] {
        set(path(6, link, key), value)?;
    }
    Ok(())
}

/// Takes IPv6 from a link, and with it the addresses, routes and neighbours that it has.
pub(crate) fn disable_ipv6(link: &str) -> Result<(), OverlayError> {
    set(disables_ipv6(link), "1")
}

/// The setting that takes IPv6 from a link.
pub(crate) fn disables_ipv6(link: &str) -> PathBuf {
    path(6, link, "disable_ipv6")
}

/// Whether this kernel has IPv6.
pub(crate) fn has_ipv6() -> bool {
    disables_ipv6("default").exists()
}

/// Why no link can be let have IPv6 addresses; `None` if it can.
pub(crate) fn no_ipv6() -> Option<String> {
    let path = disables_ipv6("default");
    let open = |path| fs::OpenOptions::new().write(true).open(path);
    let opened = open(path.clone()).or_else(|error| open(elsewhere(&path)).map_err(|_| error));
    opened.err().map(|error| match error.kind() {
        io::ErrorKind::NotFound => "this kernel has no IPv6".to_owned(),
        _ => format!("/proc/sys/net cannot be written: {error}"),
    })
}

fn path(version: u8, link: &str, key: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv{version}/conf/{link}/{key}"))
}

/// Writes only what is not so already: also where `/proc/sys` is read-only, what is right is right.
fn set(path: PathBuf, value: &str) -> Result<(), OverlayError> {
    if read(&path).is_ok_and(|now| now == value) {
        return Ok(());
    }
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            fs::write(elsewhere(&path), value).map_err(|_| OverlayError::ReadOnly { path })
        }
        done => done.map_err(|source| OverlayError::Setting { path, source }),
    }
}

/// The same setting at the other place.
fn elsewhere(path: &Path) -> PathBuf {
    let inside = path.strip_prefix("/proc/sys/net").unwrap_or(path);
    Path::new(IN_CONTAINERS).join(inside)
}

fn read(path: &PathBuf) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim_end().to_owned())
}
