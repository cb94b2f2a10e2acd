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
    // A test is target/PROFILE/deps/TEST-HASH.
    let exe = env::current_exe()?;
    let beside = exe.ancestors().nth(2).map(|dir| dir.join("portolan"));
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/portolan");
    match beside.into_iter().chain([default]).find(|p| p.is_file()) {
        Some(found) => Ok(found.canonicalize()?),
        None => bail!("portolan is not built: `cargo build -p portolan`, or set PORTOLAN_BIN"),
    }
}
