//! What the log says of the planes: each failure when it begins and when it is over, however often it is tried in
//! between.

use std::collections::BTreeMap;

use portolan_plane::Frontend;

use super::PlanesStanding;

type Failures<'a> = BTreeMap<&'a Frontend, &'a String>;

pub(super) fn changes(before: Option<&PlanesStanding>, now: &PlanesStanding) {
    let over = |of: fn(&PlanesStanding) -> Failures<'_>, what| {
        failures(&before.map(of).unwrap_or_default(), &of(now), what);
    };
    over(of_relay, "not served; it is tried again");
    over(of_fast, "left to the relay; the fast path tries again");
    if before.is_some_and(|before| before.fast.serves) != now.fast.serves {
        let reason = now.fast.reason.as_deref();
        if now.fast.serves {
            tracing::info!(problem = reason, "the fast path serves");
        } else {
            tracing::info!(reason, "the fast path does not serve");
        }
    }
}

fn of_relay(standing: &PlanesStanding) -> Failures<'_> {
    let relay = &standing.relay;
    relay.failures.iter().chain(&relay.unsupported).collect()
}

fn of_fast(standing: &PlanesStanding) -> Failures<'_> {
    standing.fast.standing.failures.iter().collect()
}

fn failures(before: &Failures<'_>, now: &Failures<'_>, what: &str) {
    for (frontend, error) in now {
        if before.get(frontend) != Some(error) {
            tracing::warn!(%frontend, error, "{what}");
        }
    }
    for frontend in before
        .keys()
        .filter(|frontend| !now.contains_key(*frontend))
    {
        tracing::info!(%frontend, "no longer failing");
    }
}
