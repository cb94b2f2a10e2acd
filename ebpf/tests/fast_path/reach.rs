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
