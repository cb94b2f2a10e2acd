//! What an agent is on.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use portolan_testbed::{Engine, Lab, Node, Swarm};

/// What is on the machines of a cluster beside the agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machines {
    /// Nothing.
    Bare,
    /// A Docker engine on each.
    Engines,
    /// A Docker engine on each, and they are a Swarm, with the first as its manager.
    Swarm,
}

/// A machine of a cluster.
pub(super) enum Machine {
    Bare(Node),
    Docker(Box<Engine>),
}

impl Machine {
    pub(super) fn node(&self) -> &Node {
        match self {
            Self::Bare(node) => node,
            Self::Docker(engine) => engine.node(),
        }
    }

    /// Where its agent has its files.
    pub(super) fn dir(&self) -> PathBuf {
        match self {
            Self::Bare(node) => node.dir().to_owned(),
            Self::Docker(engine) => engine.dir(),
        }
    }

    /// A command that will run on it, with the engine's mounts if there is one.
    pub(super) fn command(&self, program: &Path) -> Command {
        match self {
            Self::Bare(node) => node.command(program),
            Self::Docker(engine) => engine.command(program),
        }
    }
}

/// Makes the machines n1, n2 and so on.
pub(super) fn machines(lab: &Lab, kind: Machines, count: usize) -> Result<Vec<Machine>> {
    let engines = match kind {
        Machines::Bare => {
            let nodes = (1..=count).map(|number| lab.node(&format!("n{number}")));
            return nodes.map(|node| Ok(Machine::Bare(node?))).collect();
        }
        Machines::Engines => Engine::start_many(lab, count as u32)?,
        Machines::Swarm => Swarm::start(lab, count as u32)?.engines,
    };
    let engines = engines.into_iter().map(Box::new);
    Ok(engines.map(Machine::Docker).collect())
}
