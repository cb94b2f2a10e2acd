//! Datagrams that are larger than every MTU on their way.

use std::{net::UdpSocket, thread, time::Duration};

use anyhow::Result;
use portolan_model::Protocol;
use portolan_testbed::wait_until;

use crate::cluster::Cluster;

#[test]
fn large_datagrams_pass_both_ways_whole() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [(1, "10.208.1.2"), (2, "10.208.2.2")];
    let mut namespaces = Vec::new();
    for (node, address) in tasks {
        let task = cluster.task(node, &format!("t{node}"), address)?;
        let socket = task.enter(|| Ok(UdpSocket::bind((address, 80))?))?;
        // It ends with the test's process.
        thread::spawn(move || {
            let mut datagram = vec![0; 65_536];
            while let Ok((length, from)) = socket.recv_from(&mut datagram) {
                datagram[..length].reverse();
                let _ = socket.send_to(&datagram[..length], from);
            }
        });
        namespaces.push(task);
    }
    cluster.publish(8080, Protocol::Udp, &tasks);
    let client = cluster.lab.client("c1")?;
    let node = cluster.nodes[0].at(8080);
    for size in [1_400, 1_440, 1_473, 1_481, 4_000, 30_000] {
        for _ in tasks {
            let socket = client.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let question: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
            let answered = || {
                socket.send_to(&question, node)?;
                let mut answer = vec![0; 65_536];
                let (length, from) = socket.recv_from(&mut answer)?;
                answer[..length].reverse();
                Ok(Some((from, answer[..length].to_vec())))
            };
            // That it does not fit in one piece a client may have to be told first.
            let answer = wait_until(Duration::from_secs(3), format!("{size} bytes"), answered)?;
            assert!(
                answer == (node, question),
                "{size} bytes arrive as they were"
            );
        }
    }
    // It was told once.
    assert_eq!(cluster.counter(1, "too_big"), 1);
    let counts = |name| [1, 2].map(|node| cluster.counter(node, name));
    assert_eq!(counts("to_relay_fragment"), [0, 0]);
    assert_eq!(counts("drop_not_carried"), [0, 0]);
    Ok(())
}
