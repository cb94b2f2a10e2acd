//! The running agent: every part put together.

use crate::config::Config;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// It could not start, or one of its tasks died.
pub async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("not composed yet")
}
