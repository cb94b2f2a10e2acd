//! Real servers, and one of our own.

mod who;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::{Namespace, Process};
pub use who::UdpWho;

/// Starts nginx, one worker, on all addresses of the namespace, IPv4 and IPv6, and waits until
/// it accepts. Every `GET` is answered by `body`.
pub fn nginx(namespace: &Namespace, port: u16, body: &str) -> Result<Process> {
    let dir = namespace.dir().join(format!("nginx-{port}"));
    let config = dir.join("nginx.conf");
    let write = || {
        fs::create_dir_all(&dir)?;
        // A file, as nginx would see variables in a body that stands in the configuration.
        fs::write(dir.join("body"), body)?;
        fs::write(&config, nginx_config(&dir, port))
    };
    write().with_context(|| dir.display().to_string())?;
    let mut command = namespace.command("nginx");
    command.arg("-e").arg("stderr").arg("-c").arg(&config);
    namespace.spawn(&mut command)?.listening(port)
}

/// Starts redis-server, in memory only, on all addresses of the namespace, and waits until it
/// accepts.
pub fn redis(namespace: &Namespace, port: u16) -> Result<Process> {
    let mut command = namespace.command("redis-server");
    command
        .args(["--port", &port.to_string()])
        .args(["--bind", "0.0.0.0", "-::", "--protected-mode", "no"])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .arg("--dir")
        .arg(namespace.dir());
    namespace.spawn(&mut command)?.listening(port)
}

fn nginx_config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "\
daemon off;
user root;
worker_processes 1;
pid {dir}/pid;
error_log stderr;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  default_type text/plain;
  client_body_temp_path {dir}/client;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  server {{
    listen {port};
    listen [::]:{port} ipv6only=on;
    root {dir};
    location / {{ try_files /body =404; }}
  }}
}}
"
    )
}
