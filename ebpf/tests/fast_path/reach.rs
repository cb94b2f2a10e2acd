//! Clients reach tasks, and tasks see clients.

use anyhow::{Result, ensure};
use portolan_model::Protocol;
use portolan_testbed::{Namespace, Process, http_get};

use crate::cluster::Cluster;

/// nginx in a task, which tells its own address and the client's.
pub(crate) fn whoami(task: &Namespace) -> Result<Process> {
    let dir = task.dir().to_owned();
    let config = format!(
        "daemon off; user root; worker_processes 1; pid {0}/pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
         uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         server {{ listen 80; listen [::]:80; location / {{ return 200 '$server_addr $remote_addr'; }} }} }}\n",
        dir.display()
    );
    let file = dir.join("whoami.conf");
    std::fs::write(&file, config)?;
    let mut nginx = task.command("nginx");
    nginx.arg("-e").arg("stderr").arg("-c").arg(&file);
    task.spawn(&mut nginx)?.listening(80)
}

#[test]
fn a_task_on_another_node_sees_the_client() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    let _nginx = whoami(&task)?;
    cluster.publish(8080, Protocol::Tcp, &[(2, "10.208.2.2")]);
    let client = cluster.lab.client("c1")?;
    for node in &cluster.nodes {
        let answer = http_get(&client, &node.at(8080).to_string())?;
        assert_eq!(answer.body, format!("10.208.2.2 {}", client.ipv4()));
    }
    ensure!(cluster.counter(1, "new_flow") == 1);
    Ok(())
}

#[test]
fn a_client_is_answered_by_the_link_that_the_nodes_routes_name() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    let _nginx = whoami(&task)?;
    cluster.publish(8080, Protocol::Tcp, &[(2, "10.208.2.2")]);
    // Its packets come by the one link of the node, and its answers have to leave by the other: on the first it does
    // not say that the address is its own.
    let (client, node) = (cluster.lab.client("c1")?, &cluster.nodes[0]);
    let second = [
        "link", "add", "ext1", "type", "veth", "peer", "name", "ext1", "netns",
    ];
    node.run([["ip"].as_slice(), &second, &[client.name()]].concat())?;
    node.run(["ip", "address", "add", "192.0.2.1/24", "dev", "ext1"])?;
    client.run(["ip", "address", "add", "192.0.2.2/24", "dev", "ext1"])?;
    for end in [&client, node] {
        end.run(["ip", "link", "set", "ext1", "up"])?;
        end.set_sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    }
    for link in ["eth0", "ext1"] {
        client.set_sysctl(&format!("net.ipv4.conf.{link}.rp_filter"), "0")?;
        client.set_sysctl(&format!("net.ipv4.conf.{link}.arp_ignore"), "1")?;
        client.set_sysctl(&format!("net.ipv4.conf.{link}.arp_announce"), "2")?;
    }
    client.run(["ip", "address", "add", "198.51.100.9/32", "dev", "lo"])?;
    node.run(["ip", "route", "add", "198.51.100.9", "via", "192.0.2.2"])?;
    let url = format!("http://{}/", node.at(8080));
    let ask = [
        "curl",
        "-sS",
        "--max-time",
        "5",
        "--interface",
        "198.51.100.9",
        &url,
    ];
    let answer = client.run(ask)?.stdout;
    assert_eq!(answer, "10.208.2.2 198.51.100.9");
    ensure!(cluster.counter(1, "new_flow") == 1);
    Ok(())
}
