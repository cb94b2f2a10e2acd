//! Who has no key is no member, and what no member sent counts for nothing.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Options, PATIENCE, Plane, on_both_planes};
use portolan_testbed::{http_get, nginx, wait_until};

on_both_planes! {
    overlay_packets_of_strangers_are_dropped_and_counted,
}

#[test]
fn another_key_does_not_join_and_is_counted() -> Result<()> {
    let mut cluster = Cluster::prepare("keys", Options::nodes(3))?;
    cluster.write_key(2, &"77".repeat(32))?;
    for node in [0, 1] {
        cluster.start_agent(node)?;
    }
    cluster.wait_ready()?;
    cluster.start_agent(2)?;
    wait_until(PATIENCE, "n1 to refuse what n3 sends", || {
        let refused = cluster.metric(0, "portolan_gossip_drops_total", &["unknown_key"])?;
        Ok((refused > 0.0).then_some(()))
    })?;
    let nodes = cluster.json(0, &["nodes"])?;
    ensure!(
        nodes.as_array().is_some_and(|rows| rows.len() == 2),
        "{nodes:#}"
    );
    let log = cluster.agent(2)?.log_text()?;
    ensure!(
        log.contains("key"),
        "n3 does not say why it is alone: {log}"
    );
    Ok(())
}

#[test]
fn keys_are_rotated_on_a_live_cluster() -> Result<()> {
    let cluster = Cluster::start("rotate", Options::nodes(3))?;
    let old = cluster.json(0, &["keys", "list"])?["ids"][0]
        .as_str()
        .context("no id")?
        .to_owned();
    let new = cluster.file(0, "new.key");
    fs::write(&new, format!("{}\n", "5a".repeat(32)))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    let new = new.display().to_string();
    for node in 0..3 {
        cluster.cli(node, &["keys", "install", &new])?;
    }
    let ids = cluster.json(0, &["keys", "list"])?;
    let ids: Vec<&str> = ids["ids"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str())
        .collect();
    let id = ids
        .iter()
        .find(|id| **id != old)
        .context("the new key is not there")?
        .to_string();
    for step in [
        ["keys", "use", id.as_str()],
        ["keys", "remove", old.as_str()],
    ] {
        for node in 0..3 {
            cluster.cli(node, &step)?;
        }
    }
    // A change made now travels under the new key alone.
    cluster.apply(0, "services: {late: {ports: ['8090:80']}}\n")?;
    cluster.wait_healthy_everywhere("late", 0)?;
    let kept = fs::read_to_string(cluster.file(1, "key"))?;
    ensure!(
        !kept.contains(&"6b".repeat(32)),
        "n2 would start with the old key again"
    );
    for node in 0..3 {
        let members = cluster.json(node, &["nodes"])?;
        let rows = members.as_array().context("rows")?;
        ensure!(
            rows.iter().all(|row| row["membership"] == "alive"),
            "{members:#}"
        );
    }
    Ok(())
}

/// Writes 20 gossip datagrams that come in, whole IP packets as hexadecimal lines, to a file.
const CAPTURE: &str = r"
import socket, struct, sys
target, path = sys.argv[1:3]
raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
seen = []
while len(seen) < 20:
    packet = raw.recv(65535)
    head = (packet[0] & 15) * 4
    port = struct.unpack('!H', packet[head + 2:head + 4])[0]
    if packet[9] == 17 and port == 7946 and socket.inet_ntoa(packet[16:20]) == target:
        packet = packet[:struct.unpack('!H', packet[2:4])[0]]
        # A veth leaves the checksum to a NIC that there is not; 0 is none (RFC 768).
        seen.append((packet[:head + 6] + b'\0\0' + packet[head + 8:]).hex())
open(path, 'w').write('\n'.join(seen))
";

/// Sends captured packets again, under the address that they came from, and then noise.
const REPLAY: &str = r"
import socket, sys
target, path = sys.argv[1:3]
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for line in open(path):
    out.sendto(bytes.fromhex(line), (target, 0))
noise = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(50):
    noise.sendto(bytes((i * 7 + k) % 256 for k in range(20 + i * 8)), (target, 7946))
";

#[test]
fn repeated_and_forged_packets_are_counted_and_change_nothing() -> Result<()> {
    let cluster = Cluster::start("replay", Options::nodes(2))?;
    cluster.apply(0, "services: {web: {ports: ['8080:80']}}\n")?;
    cluster.wait_healthy_everywhere("web", 0)?;
    let before = cluster.table_hash(0)?;
    let (capture, replay, packets) = (
        cluster.file(0, "capture.py"),
        cluster.file(0, "replay.py"),
        cluster.file(0, "packets"),
    );
    fs::write(&capture, CAPTURE)?;
    fs::write(&replay, REPLAY)?;
    let target = cluster.node(0).ipv4().to_string();
    let text = |path: std::path::PathBuf| path.display().to_string();
    let (capture, replay, packets) = (text(capture), text(replay), text(packets));
    cluster
        .node(0)
        .run(["python3", &capture, &target, &packets])?;
    cluster
        .client
        .run(["python3", &replay, &target, &packets])?;
    let dropped = |reason| cluster.metric(0, "portolan_gossip_drops_total", &[reason]);
    wait_until(PATIENCE, "both kinds to be counted", || {
        let counted = (
            dropped("replay")?,
            dropped("malformed")? + dropped("version")? + dropped("unknown_key")?,
        );
        Ok((counted.0 >= 20.0 && counted.1 >= 25.0).then_some(()))
    })?;
    ensure!(cluster.table_hash(0)? == before);
    let members = cluster.json(0, &["nodes"])?;
    ensure!(
        members
            .as_array()
            .is_some_and(|rows| rows.iter().all(|r| r["membership"] == "alive"))
    );
    Ok(())
}

/// A VXLAN packet of VNI 4096 with an ICMP echo request in it, to a task; from where it is run.
const FORGE: &str = r"
import socket, struct, sys
node, task, gateway = sys.argv[1:4]
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return 0xffff - (total + (total >> 16)) & 0xffff
icmp = b'\x08\x00' + b'\x00\x00' + b'\x12\x34\x00\x01'
icmp = icmp[:2] + struct.pack('!H', checksum(icmp)) + icmp[4:]
head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(icmp), 1, 0, 64, 1, 0, socket.inet_aton(gateway), socket.inet_aton(task))
head = head[:10] + struct.pack('!H', checksum(head)) + head[12:]
inner = b'\xff' * 6 + b'\x02' * 6 + b'\x08\x00' + head + icmp
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(20):
    s.sendto(b'\x08\x00\x00\x00' + (4096).to_bytes(3, 'big') + b'\x00' + inner, (node, 4789))
";

fn overlay_packets_of_strangers_are_dropped_and_counted(plane: Plane) -> Result<()> {
    let cluster = Cluster::start("forged", Options::nodes(2).plane(plane))?;
    cluster.apply(0, "services: {web: {ports: ['8080:80']}}\n")?;
    let netns = cluster.lab.task("web1")?;
    let _nginx = nginx(&netns, 80, "web1")?;
    let task = cluster.add_task(netns, 1, "web")?;
    cluster.wait_served("web", 1)?;
    let script = cluster.file(0, "forge.py");
    fs::write(&script, FORGE)?;
    let script = script.display().to_string();
    let (node, address) = (
        cluster.node(1).ipv4().to_string(),
        task.address("ingress")?.to_owned(),
    );
    let dropped = || cluster.metric(1, "portolan_overlay_dropped_packets_total", &["non_member"]);
    let before = dropped()?;
    let line = [
        "python3",
        script.as_str(),
        node.as_str(),
        address.as_str(),
        "10.208.9.1",
    ];
    cluster.client.run(line)?;
    wait_until(PATIENCE, "20 packets to be counted", || {
        Ok((dropped()? - before >= 20.0).then_some(()))
    })?;
    // Members are still heard.
    let answer = http_get(&cluster.client, &format!("{}/", cluster.node(0).at(8080)))?;
    ensure!(answer.status == 200);
    Ok(())
}
