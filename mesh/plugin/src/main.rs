//! The plugin as Docker starts it. What it is told comes by the environment, which is set with
//! `docker plugin set`: `PORTOLAN_SOCKET`, the agent's socket, and `SCOPE`, `global` or `local`.

use std::{env, fs, io, path::Path};

use anyhow::{Context, Result};
use portolan_plugin::{Agent, Plugin, Scope, serve};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};

/// Where Docker looks for the plugin's socket: `interface.socket` of its configuration.
const SOCKET: &str = "/run/docker/plugins/portolan.sock";
/// The agent's socket, as the mount of the configuration shows it.
const AGENT: &str = "/host/run/portolan/portolan.sock";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let variable = |name| env::var(name).ok().filter(|text| !text.is_empty());
    let plugin = Plugin {
        agent: Agent::new(variable("PORTOLAN_SOCKET").unwrap_or_else(|| AGENT.to_owned())),
        scope: variable("SCOPE").map_or(Ok(Scope::Global), |text| text.parse())?,
    };
    let socket = env::args().nth(1).unwrap_or_else(|| SOCKET.to_owned());
    let listener = listen(Path::new(&socket)).with_context(|| socket.clone())?;
    // The first process of a container ends by no signal that it does not take.
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        () = serve(listener, plugin) => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Listens, also where an earlier life of the plugin did.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir)?;
    }
    UnixListener::bind(socket)
}
