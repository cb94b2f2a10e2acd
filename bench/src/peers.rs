//! The configuration of the peers, as their manuals advise for this use.

use std::{fs, net::Ipv4Addr};

use anyhow::Result;
use portolan_testbed::{Node, Process};

use crate::{contender::Contender, layout::OVERLAY, measure::Traffic};

const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// HAProxy on the entry node, and waits until it accepts.
pub(crate) fn haproxy(entry: &Node, task: Ipv4Addr) -> Result<Process> {
    let listens = [Traffic::Http, Traffic::Bulk].map(|traffic| {
        format!(
            "listen {traffic:?}\n  bind :{}\n  server task {task}:{}\n",
            Contender::HaProxy.port(traffic),
            traffic.task_port()
        )
    });
    let config = format!(
        "\
global
  nbthread 2
  maxconn 2000
defaults
  mode tcp
  balance roundrobin
  option splice-auto
  timeout connect 5s
  timeout client 60s
  timeout server 60s
{}",
        listens.concat()
    );
    let path = entry.dir().join("haproxy.cfg");
    fs::write(&path, config)?;
    let mut command = entry.command("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    let port = Contender::HaProxy.port(Traffic::Http);
    entry.spawn(&mut command)?.listening(port)
}

/// nginx with the stream module on the entry node, connecting from `source`; waits until it accepts.
pub(crate) fn nginx_stream(entry: &Node, task: Ipv4Addr, source: Ipv4Addr) -> Result<Process> {
    let servers = Traffic::ALL.map(|traffic| {
        let listen = Contender::Nginx.port(traffic);
        // Each worker needs a socket of its own, or a client's datagrams change between them.
        let kind = match traffic {
            Traffic::Datagrams => " udp reuseport",
            Traffic::Bulk | Traffic::Http => "",
        };
        let to = traffic.task_port();
        format!("  server {{ listen {listen}{kind}; proxy_pass {task}:{to}; }}\n")
    });
    let dir = entry.dir().display();
    let config = format!(
        "\
load_module {NGINX_STREAM};
daemon off;
user root;
worker_processes 2;
worker_rlimit_nofile 16384;
pid {dir}/nginx-stream.pid;
error_log stderr;
events {{ worker_connections 8000; }}
stream {{
  proxy_timeout 60s;
  proxy_bind {source};
{}}}
",
        servers.concat()
    );
    let path = entry.dir().join("nginx-stream.conf");
    fs::write(&path, config)?;
    let mut command = entry.command("nginx");
    command.arg("-e").arg("stderr").arg("-c").arg(&path);
    let port = Contender::Nginx.port(Traffic::Http);
    entry.spawn(&mut command)?.listening(port)
}

/// Loads DNAT in turns, over all backends (here one), and the SNAT that brings replies back
/// this way.
pub(crate) fn nft_up(entry: &Node, task: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
    let turns = Traffic::ALL.map(|traffic| {
        let protocol = match traffic {
            Traffic::Datagrams => "udp",
            Traffic::Bulk | Traffic::Http => "tcp",
        };
        let (port, to) = (Contender::Nft.port(traffic), traffic.task_port());
        format!(
            "    {protocol} dport {port} dnat to numgen inc mod 1 map {{ 0 : {task} . {to} }}\n"
        )
    });
    let script = format!(
        "\
table ip bench {{
  chain in {{
    type nat hook prerouting priority dstnat;
{}  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    iifname eth0 ip daddr {OVERLAY} snat to {gateway}
  }}
}}
",
        turns.concat()
    );
    let path = entry.dir().join("dnat.nft");
    fs::write(&path, script)?;
    entry.run(["nft".as_ref(), "-f".as_ref(), path.as_os_str()])?;
    Ok(())
}

/// Removes it.
pub(crate) fn nft_down(entry: &Node) -> Result<()> {
    entry.run(["nft", "delete", "table", "ip", "bench"])?;
    Ok(())
}
