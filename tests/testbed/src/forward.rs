//! From an address of the caller's namespace to one inside another.

mod sockets;
mod tcp;
mod udp;

use std::fmt;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use crate::Namespace;
use sockets::Sockets;

/// A transport protocol; shown as `tcp` or `udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Forwards connections, or datagrams and their answers, until it is dropped.
///
/// It is for a person at a shell, not for measuring: it has a thread per connection and per
/// client of UDP, and the target sees the namespace's own address as the client's.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    sockets: Arc<Sockets>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    /// Listens on `listen`, in the namespace of the calling thread; port 0 takes a free one.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(
        listen: SocketAddr,
        to: &Namespace,
        target: SocketAddr,
        protocol: Protocol,
    ) -> Result<Self> {
        let (netns, sockets) = (to.netns().clone(), Arc::new(Sockets::default()));
        let shared = Arc::clone(&sockets);
        let builder = thread::Builder::new().name(format!("forward-{}", listen.port()));
        let context = || format!("cannot listen on {listen}/{protocol}");
        let (local, thread) = match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(listen).with_context(context)?;
                let local = listener.local_addr()?;
                let run = move || tcp::run(&listener, &netns, target, &shared);
                (local, builder.spawn(run))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(listen).with_context(context)?;
                let local = socket.local_addr()?;
                let run = move || udp::run(&socket, &netns, target, &shared);
                (local, builder.spawn(run))
            }
        };
        Ok(Self {
            local,
            sockets,
            thread: Some(thread.context("cannot start a thread")?),
        })
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.sockets.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been shown already.
            thread.join().ok();
        }
    }
}
