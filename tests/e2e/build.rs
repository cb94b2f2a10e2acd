//! Makes the program of the images that the Docker tests use: alone in a container there is no library for it.

use std::{env, error::Error, path::Path, process::Command};

const SOURCE: &str = "images/web.rs";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let rustc = env::var_os("RUSTC").ok_or("cargo gives RUSTC")?;
    let out = env::var_os("OUT_DIR").ok_or("cargo gives OUT_DIR")?;
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-name", "web", "-O"])
        .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .args(["-D", "warnings"])
        .arg("-o")
        .arg(Path::new(&out).join("web"))
        .arg(SOURCE)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{SOURCE} was not compiled: {status}").into())
    }
}
