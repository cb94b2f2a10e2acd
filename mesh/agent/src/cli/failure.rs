//! How a command fails.

use std::process::ExitCode;

use crate::{client::ClientError, config::ConfigProblem};

/// Why a command did not do what it was asked, with the lines to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was tried and failed, or the agent refused it.
    Failed(Vec<String>),
    /// What was typed, or a file, is wrong; nothing was tried.
    Input(Vec<String>),
    /// There is no agent to ask.
    Unreachable(String),
}

impl Failure {
    pub(crate) fn failed(line: impl Into<String>) -> Self {
        Self::Failed(vec![line.into()])
    }

    pub(crate) fn input(line: impl Into<String>) -> Self {
        Self::Input(vec![line.into()])
    }

    /// The exit code that scripts go by.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Input(_) => 2,
            Self::Unreachable(_) => 3,
        })
    }

    /// What to show. Lines about input begin with their own place; the rest says who speaks.
    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            Self::Input(lines) => lines.clone(),
            Self::Failed(lines) => lines
                .iter()
                .map(|line| format!("portolan: {line}"))
                .collect(),
            Self::Unreachable(line) => vec![format!("portolan: {line}")],
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(body) => Self::Failed(body.errors),
            ClientError::Unreachable { .. } => Self::Unreachable(error.to_string()),
            ClientError::Broken { .. } | ClientError::Timeout { .. } => {
                Self::Failed(vec![with_causes(&error)])
            }
        }
    }
}

impl From<Vec<ConfigProblem>> for Failure {
    fn from(problems: Vec<ConfigProblem>) -> Self {
        Self::Input(problems.iter().map(ToString::to_string).collect())
    }
}

/// An error with all that led to it, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}
