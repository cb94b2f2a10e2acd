//! Updates under load.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Plane, on_both_planes};
use portolan_testbed::wait_until;

use crate::{
    answered::{DOCKER, Loads, page},
    swarm,
};

on_both_planes! {
    an_update_and_its_rollback_lose_no_request,
}

fn an_update_and_its_rollback_lose_no_request(plane: Plane) -> Result<()> {
    let cluster = swarm("update", plane)?;
    cluster.docker(
        0,
        "service create -d --name web --replicas 2 -p 8080:80 --env START_AFTER_MS=200 \
         --update-parallelism 1 --update-delay 300ms --update-monitor 500ms \
         --rollback-order start-first --rollback-parallelism 2 --rollback-monitor 500ms web:blue",
    )?;
    cluster.wait_served("web", 2)?;

    let updates = [
        (
            "service update -d --image web:green --update-order stop-first web",
            "green",
        ),
        ("service rollback -d web", "blue"),
        (
            "service update -d --image web:green --update-order start-first --update-parallelism 2 web",
            "green",
        ),
    ];
    for (update, becomes) in updates {
        let loads = Loads::start(&cluster, &[0, 1, 2], 8080, 40)?;
        loads.answered(20)?;
        cluster.docker(0, update)?;
        is_all(&cluster, becomes)?;
        loads.answered(20)?;
        for report in loads.none_failed()? {
            ensure!(report.by_body.len() == 2, "{update}: {report}");
            ensure!(
                report.slowest < Duration::from_millis(1500),
                "{update}: {report}"
            );
        }
    }
    Ok(())
}

/// Waits until the last tasks of another page have gone, and the service is whole.
fn is_all(cluster: &Cluster, becomes: &str) -> Result<()> {
    wait_until(DOCKER, format!("every page is {becomes}"), || {
        let state = "service inspect web --format {{.UpdateStatus.State}}";
        let state = cluster.docker(0, state)?;
        ensure!(state.ends_with("completed"), "{state}");
        for at in (0..3).map(|node| cluster.node(node).at(8080)) {
            for _ in 0..4 {
                let page = page(&cluster.client, &at.to_string())?;
                ensure!(page == becomes, "{at}: {page}");
            }
        }
        Ok(Some(()))
    })?;
    cluster.wait_served("web", 2)
}
