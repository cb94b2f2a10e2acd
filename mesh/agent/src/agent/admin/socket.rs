//! The unix socket of the admin API.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::FileTypeExt, net::UnixStream},
    },
    path::Path,
};

use anyhow::{Context, bail};
use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens on a socket that only the agent's user can open. Its directory is made if it is not there, and
/// a socket that a dead agent left is replaced.
///
/// # Errors
/// Another agent answers there, or the system refuses.
pub(in crate::agent) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)
            .with_context(|| format!("socket: cannot create {}", dir.display()))?;
    }
    make_room(path)?;
    listen(path).with_context(|| {
        format!(
            "socket: cannot listen on {}; give another path with --socket",
            path.display()
        )
    })
}

/// Removes the socket; one that is gone already is fine.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("socket: cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a socket on which no one answers.
fn make_room(path: &Path) -> anyhow::Result<()> {
    let present = match fs::symlink_metadata(path) {
        Ok(present) => present,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("socket: cannot look at {}", path.display()));
        }
    };
    if !present.file_type().is_socket() {
        bail!(
            "socket: {} exists and is no socket; move it away or give another path with --socket",
            path.display()
        );
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("socket: cannot ask who is on {}", path.display()))
        }
        Ok(_) => bail!(
            "socket: another agent runs and answers on {}; stop it, or give this one another path with --socket",
            path.display()
        ),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file gets the mode that the socket has when it is bound (unix_bind in the kernel), so there is
    // no moment at which others could open it.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_closed_to_others_and_its_directory_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/portolan/agent.sock");
        let _listener = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(bind(&path).unwrap());
        assert!(path.exists());
        let _living = bind(&path).unwrap();
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("another agent runs"), "{error}");
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("is no socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_path_too_long_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = bind(&dir.path().join("x".repeat(200))).unwrap_err();
        assert!(error.to_string().contains("--socket"), "{error}");
    }
}
