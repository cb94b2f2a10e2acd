//! Datagrams, one socket inside per client.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use anyhow::Result;

use super::sockets::Sockets;
use crate::namespace::Netns;
use crate::udp::connected;

const IDLE: Duration = Duration::from_secs(30);
const LARGEST: usize = 65_535;

/// Takes datagrams until the forward stops.
pub(super) fn run(socket: &UdpSocket, netns: &Netns, target: SocketAddr, sockets: &Sockets) {
    let Ok(_guard) = sockets.add(socket) else {
        return;
    };
    let relay = Relay {
        socket,
        netns,
        target,
        sockets,
        sessions: Mutex::default(),
    };
    let mut buffer = vec![0; LARGEST];
    thread::scope(|scope| {
        while !sockets.is_stopped() {
            let received = socket.recv_from(&mut buffer);
            if sockets.is_stopped() {
                return;
            }
            match received {
                Ok((length, client)) => {
                    let payload = buffer.get(..length).unwrap_or_default();
                    // A datagram that cannot be sent on is lost, as datagrams may be.
                    relay.pass(scope, client, payload).ok();
                }
                Err(_) => sockets.rest(),
            }
        }
    });
}

struct Relay<'a> {
    socket: &'a UdpSocket,
    netns: &'a Netns,
    target: SocketAddr,
    sockets: &'a Sockets,
    sessions: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
}

impl Relay<'_> {
    fn pass<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        client: SocketAddr,
        payload: &[u8],
    ) -> Result<()> {
        let known = self.sessions().get(&client).cloned();
        let session = match known {
            Some(session) => session,
            None => self.open(scope, client)?,
        };
        session.send(payload)?;
        Ok(())
    }

    fn open<'s>(&'s self, scope: &'s Scope<'s, '_>, client: SocketAddr) -> Result<Arc<UdpSocket>> {
        let session = Arc::new(self.netns.run(|| connected(self.target))?);
        session.set_read_timeout(Some(IDLE))?;
        self.sessions().insert(client, Arc::clone(&session));
        let answers = Arc::clone(&session);
        let answer = move || {
            // It ends when it was idle, or when the forward stops.
            self.answer(&answers, client).ok();
            self.sessions().remove(&client);
        };
        if let Err(error) = thread::Builder::new().spawn_scoped(scope, answer) {
            self.sessions().remove(&client);
            return Err(error.into());
        }
        Ok(session)
    }

    fn answer(&self, session: &UdpSocket, client: SocketAddr) -> io::Result<()> {
        let _guard = self.sockets.add(session)?;
        let mut buffer = vec![0; LARGEST];
        while !self.sockets.is_stopped() {
            let length = match session.recv(&mut buffer) {
                Ok(length) => length,
                // Nobody is there now; somebody may be for the next datagram.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            };
            if !self.sockets.is_stopped() {
                let payload = buffer.get(..length).unwrap_or_default();
                self.socket.send_to(payload, client)?;
            }
        }
        Ok(())
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<UdpSocket>>> {
        // No code that could panic runs under the lock.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
