//! A server that tells its clients who they are.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Namespace;

/// How soon a thread notices that it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Answers datagrams on many ports until it is dropped: `hostname: LABEL` and, on a second line, `client: ADDRESS:PORT`
/// of who asked, as `portolan whoami` does on one port.
#[derive(Debug)]
pub struct UdpWho {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl UdpWho {
    /// Binds the ports on every IPv4 address of a namespace, and starts.
    pub fn start(
        inside: &Namespace,
        label: &str,
        ports: impl IntoIterator<Item = u16>,
    ) -> Result<Self> {
        let mut server = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for port in ports {
            let socket = inside.enter(|| {
                UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("bind {port}/udp"))
            })?;
            socket.set_read_timeout(Some(LOOK))?;
            let (stop, label) = (Arc::clone(&server.stop), label.to_owned());
            let thread = thread::Builder::new().name(format!("who-{port}"));
            server.threads.push(thread.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // What went wrong with one client's datagram is that client's to notice.
                    answer(&socket, &label).ok();
                }
            })?);
        }
        Ok(server)
    }
}

fn answer(socket: &UdpSocket, label: &str) -> io::Result<()> {
    let (_, client) = socket.recv_from(&mut [0; 64])?;
    socket.send_to(
        format!("hostname: {label}\nclient: {client}\n").as_bytes(),
        client,
    )?;
    Ok(())
}

impl Drop for UdpWho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there was told by its message.
            thread.join().ok();
        }
    }
}
