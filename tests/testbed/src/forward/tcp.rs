//! Connections.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::sockets::Sockets;
use crate::namespace::Netns;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Accepts until the forward stops; returns when its connections have ended.
pub(super) fn run(listener: &TcpListener, netns: &Netns, target: SocketAddr, sockets: &Sockets) {
    let Ok(_guard) = sockets.add(listener) else {
        return;
    };
    thread::scope(|scope| {
        while !sockets.is_stopped() {
            let started = listener.accept().and_then(|(client, _)| {
                // Whether the connection ended well is for its two ends to know.
                let carry = move || carry(&client, netns, target, sockets).ok();
                thread::Builder::new().spawn_scoped(scope, carry)
            });
            if started.is_err() {
                sockets.rest();
            }
        }
    });
}

fn carry(
    client: &TcpStream,
    netns: &Netns,
    target: SocketAddr,
    sockets: &Sockets,
) -> io::Result<()> {
    netns.enter()?;
    let server = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)?;
    let _guards = (sockets.add(client)?, sockets.add(&server)?);
    thread::scope(|scope| {
        let requests = thread::Builder::new().spawn_scoped(scope, || copy(client, &server))?;
        copy(&server, client);
        // The reader of requests ends with the client; its result is nothing.
        requests.join().ok();
        Ok(())
    })
}

/// Copies to the end, and passes the end on; the other direction goes on.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let end = match io::copy(&mut from, &mut to) {
        Ok(_) => Shutdown::Write,
        Err(_) => Shutdown::Both,
    };
    // An error means that the connection has ended already.
    to.shutdown(end).ok();
}
