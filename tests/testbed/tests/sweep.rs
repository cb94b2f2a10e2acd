//! What a killed owner leaves is removed. Needs root.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use portolan_testbed::{Lab, nginx, sweep};

const PREFIX: &str = "tb-swept";

#[test]
#[ignore = "it is the process that the test below kills, and runs until then"]
fn owner() -> Result<()> {
    let lab = Lab::new(PREFIX)?;
    let n1 = lab.node("n1")?;
    n1.set_resolver([10, 77, 0, 1].into(), &[], &[])?;
    let web = nginx(&n1, 80, "hello")?;
    println!("\nready {}", web.pid());
    loop {
        thread::park();
    }
}

#[test]
fn what_a_killed_owner_left_is_removed() -> Result<()> {
    let (mut owner, web) = start_owner()?;
    let proc = format!("/proc/{web}");
    let left = [
        &proc,
        "/run/netns/pt-tb-swept-n1",
        "/run/netns/pt-tb-swept-sw",
        "/run/portolan-testbed/pt-tb-swept-n1/nginx-80",
        "/etc/netns/pt-tb-swept-n1",
    ];
    let left = left.map(Path::new);

    sweep()?;
    assert!(left.iter().all(|path| path.exists()), "its owner lives");
    assert!(Lab::new(PREFIX).is_err(), "its owner lives");

    // The owner stays a zombie: even so it is gone.
    owner.kill()?;
    wait_for_zombie(&owner)?;
    assert!(left.iter().all(|path| path.exists()));
    let lab = Lab::new(PREFIX)?;
    drop(lab);
    for path in left {
        let is_zombie = fs::read_to_string(path.join("stat")).is_ok_and(|s| s.contains(") Z "));
        assert!(!path.exists() || is_zombie, "{} is left", path.display());
    }
    owner.wait()?;
    Ok(())
}

fn start_owner() -> Result<(Child, u32)> {
    let mut owner = Command::new(env::current_exe()?)
        .args(["--exact", "owner", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(owner.stdout.take().context("stdout")?).lines();
    for line in lines {
        if let Some(pid) = line?.strip_prefix("ready ") {
            return Ok((owner, pid.parse()?));
        }
    }
    anyhow::bail!("the owner ended before it was ready: {}", owner.wait()?)
}

fn wait_for_zombie(child: &Child) -> Result<()> {
    let stat = format!("/proc/{}/stat", child.id());
    portolan_testbed::wait_until(std::time::Duration::from_secs(5), "it is dead", || {
        Ok(fs::read_to_string(&stat)?.contains(") Z ").then_some(()))
    })
}
