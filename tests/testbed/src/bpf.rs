//! What someone may do to another's BPF links.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Commands of bpf(2) (linux/bpf.h).
const OBJ_GET: libc::c_int = 7;
const LINK_DETACH: libc::c_int = 34;

/// Detaches the program of a link that is pinned, as `bpftool link detach pinned PIN` does: the pin stays.
///
/// # Errors
/// There is no such pin, or it is none of a link that can be detached.
pub fn detach_link(pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // The address of the path; no flags.
    let link = bpf(OBJ_GET, [path.as_ptr() as u64, 0])
        .with_context(|| format!("open {}", pin.display()))?;
    // SAFETY: the kernel has just made it, for this call alone.
    #[expect(unsafe_code, reason = "a file descriptor that bpf(2) made")]
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    // A file descriptor of 32 bits, in the order of the machine.
    let mut attributes = [0; 8];
    let (number, _) = attributes.split_at_mut(4);
    number.copy_from_slice(&link.as_raw_fd().to_ne_bytes());
    bpf(LINK_DETACH, [u64::from_ne_bytes(attributes), 0])
        .with_context(|| format!("detach {}", pin.display()))?;
    Ok(())
}

fn bpf(command: libc::c_int, mut attributes: [u64; 2]) -> io::Result<libc::c_int> {
    // SAFETY: both callers are above. A path that `attributes` point to outlives the call.
    #[expect(unsafe_code, reason = "a system call that no crate here wraps")]
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}
