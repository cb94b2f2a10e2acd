//! What a kernel holds of networks.

use std::time::Duration;

use anyhow::Result;
use portolan_testbed::{Namespace, wait_until};

/// All that a node's kernel holds of networks, once it has settled: links, addresses, routes, rules, and the packet
/// filter without its counters.
pub fn kernel(node: &Namespace) -> Result<Vec<String>> {
    let questions: [&[&str]; 7] = [
        &["ip", "-o", "link"],
        &["ip", "-o", "address"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["nft", "--stateless", "list", "ruleset"],
    ];
    wait_until(Duration::from_secs(5), "addresses have settled", || {
        let answers = questions.into_iter().map(|args| Ok(node.run(args)?.stdout));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        let tentative = answers.get(1).is_none_or(|text| text.contains("tentative"));
        Ok((!tentative).then_some(answers))
    })
}
