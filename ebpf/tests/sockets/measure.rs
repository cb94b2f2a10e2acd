//! What the hooks gain over the relay, for a process of the node. Run by hand, as figures on a busy machine say
//! little: `cargo nextest run --release -p portolan-ebpf --run-ignored only --no-capture what_the_hooks_gain`.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Instant,
};

use anyhow::Result;
use portolan_model::Protocol;
use portolan_testbed::{Namespace, Node};

use crate::{
    cluster::Cluster,
    processes::{OnNode, PORT, TASKS, hook},
};

const RELAYED: u16 = 8090;
const ROUNDS: usize = 7;
const CONNECTIONS: usize = 1000;
const BYTES: usize = 1 << 30;

/// Answers each connection by as many bytes as its first 8 bytes say.
fn serve(task: &Namespace, address: &str) -> Result<()> {
    let listener = task.enter(|| Ok(TcpListener::bind((address, 80))?))?;
    thread::spawn(move || {
        let block = vec![7; 1 << 18];
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut wanted = [0; 8];
            if stream.read_exact(&mut wanted).is_err() {
                continue;
            }
            let mut left = usize::from_be_bytes(wanted);
            while left > 0 {
                let part = left.min(block.len());
                if stream.write_all(&block[..part]).is_err() {
                    break;
                }
                left -= part;
            }
        }
    });
    Ok(())
}

fn fetch(port: u16, bytes: usize) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(&bytes.to_be_bytes())?;
    let mut block = vec![0; 1 << 18];
    let mut left = bytes;
    while left > 0 {
        let length = stream.read(&mut block)?;
        anyhow::ensure!(length > 0, "cut off");
        left -= length;
    }
    Ok(())
}

/// How often per second a process of the node does this.
fn rate(node: &Node, times: usize, work: impl Fn() -> Result<()> + Sync) -> Result<f64> {
    node.enter(|| {
        let start = Instant::now();
        for _ in 0..times {
            work()?;
        }
        Ok(times as f64 / start.elapsed().as_secs_f64())
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "measures, and takes a minute"]
fn what_the_hooks_gain() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [
        cluster.task(1, "t1", TASKS[0].1)?,
        cluster.task(2, "t2", TASKS[1].1)?,
    ];
    serve(&tasks[0], TASKS[0].1)?;
    serve(&tasks[1], TASKS[1].1)?;
    hook(&cluster);
    let node = &cluster.nodes[0];
    let mut relay = OnNode::start(node)?;
    for (place, task) in ["local", "remote"].into_iter().zip(&TASKS) {
        let task = std::slice::from_ref(task);
        cluster.publish(PORT, Protocol::Tcp, task);
        relay.serve(node, RELAYED, Protocol::Tcp, task)?;
        let measures: [(&str, usize, usize, f64); 2] = [
            ("connections/s", CONNECTIONS, 64, 1.0),
            ("Gbit/s", 1, BYTES, BYTES as f64 * 8e-9),
        ];
        for (what, times, bytes, unit) in measures {
            let (mut hooked, mut relayed, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                hooked.push(unit * rate(node, times, || fetch(PORT, bytes))?);
                relayed.push(unit * rate(node, times, || fetch(RELAYED, bytes))?);
                ratios.push(hooked[hooked.len() - 1] / relayed[relayed.len() - 1]);
            }
            let (hooked, relayed, ratio) = (median(hooked), median(relayed), median(ratios));
            println!(
                "{place:<7} {what:<14} hook {hooked:>9.1}  relay {relayed:>9.1}  ratio {ratio:.2}"
            );
        }
    }
    assert!(
        relay.flows() >= 2 * (ROUNDS * (CONNECTIONS + 1)) as u64,
        "the relay was measured"
    );
    assert_eq!(
        cluster.counter(1, "socket_flow"),
        2 * (ROUNDS * (CONNECTIONS + 1)) as u64
    );
    Ok(())
}
