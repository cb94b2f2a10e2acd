//! Docker, as its users type it.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, bail};
use portolan_testbed::{Engine, Output, require};

use super::{Cluster, machine::Machine};

/// The program of the images, see `images/web.rs`.
const WEB: &str = concat!(env!("OUT_DIR"), "/web");
const RUNS_WEB: &str = "CMD [\"web\"]";

impl Cluster {
    /// The engine on a node, from 0.
    ///
    /// # Errors
    /// There is none on it.
    pub fn engine(&self, node: usize) -> Result<&Engine> {
        match &self.members[node].machine {
            Machine::Docker(engine) => Ok(engine),
            Machine::Bare(node) => bail!("there is no engine on {}", node.label()),
        }
    }

    /// As [`Cluster::engine`], to stop it, or start it again.
    pub fn engine_mut(&mut self, node: usize) -> Result<&mut Engine> {
        match &mut self.members[node].machine {
            Machine::Docker(engine) => Ok(engine),
            Machine::Bare(node) => bail!("there is no engine on {}", node.label()),
        }
    }

    /// Gives every engine the images of the tests: `web:blue` and `web:green`, whose pages say so, and `redis:7`.
    pub fn import_images(&self) -> Result<()> {
        let engines = (0..self.len()).map(|node| self.engine(node));
        let engines = engines.collect::<Result<Vec<_>>>()?;
        let redis = which("redis-server")?;
        Engine::import(
            &engines,
            &[WEB.as_ref(), &redis],
            &[
                ("web:blue", &[RUNS_WEB, "ENV PAGE=blue", "EXPOSE 80"]),
                ("web:green", &[RUNS_WEB, "ENV PAGE=green", "EXPOSE 80"]),
                (
                    "redis:7",
                    &["CMD [\"redis-server\",\"--protected-mode\",\"no\"]"],
                ),
            ],
        )
    }

    /// Runs `docker` on a node with the words of a line, and gives what it prints. A word with spaces is in single
    /// quotes.
    ///
    /// # Errors
    /// It fails.
    pub fn docker(&self, node: usize, line: &str) -> Result<String> {
        let printed = self.engine(node)?.docker(&words(line));
        printed.with_context(|| format!("n{}: docker {line}", node + 1))
    }

    /// As [`Cluster::docker`], with any exit status.
    pub fn try_docker(&self, node: usize, line: &str) -> Result<Output> {
        self.engine(node)?.docker_output(&words(line))
    }
}

/// The words of a line.
fn words(line: &str) -> Vec<&str> {
    // Every other part stands in quotes.
    let parts = line.split('\'').enumerate();
    parts
        .flat_map(|(number, part)| match number % 2 {
            0 => part.split_whitespace().collect(),
            _ => vec![part],
        })
        .collect()
}

/// The file of an installed program.
fn which(program: &str) -> Result<PathBuf> {
    require(&[program])?;
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|dir| dir.join(program));
    places
        .find(|place| place.is_file())
        .with_context(|| format!("{program} is nowhere"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_may_have_spaces() {
        assert_eq!(words("ps -q"), ["ps", "-q"]);
        assert_eq!(
            words("run --cmd 'test -e x' web"),
            ["run", "--cmd", "test -e x", "web"]
        );
    }
}
