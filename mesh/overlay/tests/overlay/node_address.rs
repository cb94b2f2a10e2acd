//! The node's own address, for its containers.

use anyhow::{Result, ensure};
use portolan_overlay::Overlay;
use portolan_testbed::Namespace;

use crate::cluster::{Cluster, NODE_ADDRESS};

fn addresses(node: &Namespace) -> Result<String> {
    Ok(node.run("ip -4 -o address show dev lo".split(' '))?.stdout)
}

fn pings(from: &Namespace) -> Result<bool> {
    let to = NODE_ADDRESS.to_string();
    Ok(from.output(["ping", "-c1", "-W1", &to])?.status.success())
}

#[test]
fn it_comes_with_the_first_pass_and_goes_when_it_is_not_wanted() -> Result<()> {
    let cluster = Cluster::new("ovn", 1)?;
    let node = &cluster.nodes[0];
    let before = addresses(node)?;
    // As an agent left it that was told of another one.
    node.run("ip address add 169.254.77.54/32 dev lo scope host label lo:portolan".split(' '))?;
    node.run("ip address add 192.0.2.54/32 dev lo".split(' '))?;
    for _ in 0..2 {
        cluster.reconcile()?;
        let now = addresses(node)?;
        ensure!(
            now.contains(&format!("{NODE_ADDRESS}/32 scope host")) && now.contains("lo:portolan"),
            "{now}"
        );
        ensure!(
            !now.contains("169.254.77.54") && now.contains("192.0.2.54"),
            "{now}"
        );
    }
    cluster.overlays[0].run(Overlay::clean).unwrap();
    node.run("ip address del 192.0.2.54/32 dev lo".split(' '))?;
    assert_eq!(addresses(node)?, before);
    Ok(())
}

#[test]
fn one_that_somebody_else_has_put_there_stays_as_it_is() -> Result<()> {
    let cluster = Cluster::new("ovf", 1)?;
    let node = &cluster.nodes[0];
    let add = format!("ip address add {NODE_ADDRESS}/32 dev lo");
    node.run(add.split(' '))?;
    let before = addresses(node)?;
    cluster.reconcile()?;
    assert_eq!(addresses(node)?, before);
    cluster.overlays[0].run(Overlay::clean).unwrap();
    assert_eq!(addresses(node)?, before);
    Ok(())
}

#[test]
fn containers_on_a_bridge_reach_it_and_neighbours_on_the_underlay_do_not() -> Result<()> {
    let cluster = Cluster::new("ovr", 1)?;
    cluster.reconcile()?;
    let node = &cluster.nodes[0];
    let container = cluster.lab.task("box")?;
    let path = container.path().display().to_string();
    for line in [
        "ip link add docker0 type bridge".to_owned(),
        "ip address add 172.17.0.1/16 dev docker0".to_owned(),
        format!("ip link add vethbox type veth peer name eth0 netns {path}"),
        "ip link set vethbox master docker0 up".to_owned(),
        "ip link set docker0 up".to_owned(),
    ] {
        node.run(line.split(' '))?;
    }
    for line in [
        "ip address add 172.17.0.2/16 dev eth0",
        "ip link set eth0 up",
        "ip route add default via 172.17.0.1",
    ] {
        container.run(line.split(' '))?;
    }
    let around = cluster.overlays[0].run(Overlay::around)?;
    let subnets: Vec<String> = around.containers.iter().map(ToString::to_string).collect();
    assert_eq!(subnets, ["172.17.0.0/16"]);
    ensure!(pings(&container)? && pings(node)?);

    // Attached, it is known by every address that it has, also by one that came and one that went later.
    let attached = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let known = |address: &str| -> Result<bool> {
        let around = cluster.overlays[0].run(Overlay::around)?;
        let addresses = around.addresses.get(&"t1".parse()?);
        Ok(addresses.is_some_and(|all| all.contains(&address.parse().unwrap())))
    };
    ensure!(known("10.208.1.2")? && !known("172.18.0.9")?);
    attached.run("ip address add 172.18.0.9/16 dev pt0".split(' '))?;
    ensure!(known("172.18.0.9")?);
    attached.run("ip address del 172.18.0.9/16 dev pt0".split(' '))?;
    ensure!(!known("172.18.0.9")?);

    let neighbour = cluster.lab.client("c1")?;
    let route = format!("ip route add {NODE_ADDRESS}/32 via {}", node.ipv4());
    neighbour.run(route.split(' '))?;
    ensure!(
        !pings(&neighbour)?,
        "{NODE_ADDRESS} is reached from the underlay"
    );
    Ok(())
}
