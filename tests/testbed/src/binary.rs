//! The program under test.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The built `portolan`: `PORTOLAN_BIN` if that is set, or else the one beside the running test
/// in the target directory, or `target/debug/portolan` of this workspace.
///
/// # Errors
/// When there is none: tells how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(given) = env::var_os("PORTOLAN_BIN").map(PathBuf::from) {
        if !given.is_file() {
            bail!("PORTOLAN_BIN is {}, which is no file", given.display());
        }
        return Ok(given);
    }
    let beside = beside(&env::current_exe()?);
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/portolan");
    match beside.into_iter().chain([default]).find(|p| p.is_file()) {
        Some(found) => Ok(found.canonicalize()?),
        None => {
            bail!("portolan is not built: `cargo build -p portolan-agent`, or set PORTOLAN_BIN")
        }
    }
}

/// Cargo puts a test at `target/PROFILE/deps/TEST-HASH`, and the programs into `PROFILE`.
fn beside(test: &Path) -> Option<PathBuf> {
    let profile = test.ancestors().nth(2)?;
    Some(profile.join("portolan"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_beside_the_directory_of_the_tests() {
        let test = Path::new("/x/target/release/deps/demo-0123");
        assert_eq!(beside(test), Some("/x/target/release/portolan".into()));
    }
}
