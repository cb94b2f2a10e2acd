//! What ARCHITECTURE.md says of the structure is true: the direction of dependencies, the length of files,
//! and that the places it names exist.

#![expect(clippy::indexing_slicing, reason = "a test of missing JSON has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// What each crate may depend on, of the crates of this workspace. Planes, providers, gossip, overlay and
/// DNS do not see one another.
const ALLOWED: &[(&str, &[&str])] = &[
    ("portolan-model", &[]),
    ("portolan-gossip", &["portolan-model"]),
    ("portolan-overlay", &["portolan-model"]),
    ("portolan-provider", &["portolan-model"]),
    ("portolan-docker", &["portolan-model", "portolan-provider"]),
    ("portolan-plugin", &[]),
    ("portolan-dns", &["portolan-model"]),
    ("portolan-plane", &["portolan-model"]),
    ("portolan-relay", &["portolan-model", "portolan-plane"]),
    ("portolan-ebpf", &["portolan-model", "portolan-plane"]),
    ("portolan-testbed", &[]),
    (
        "portolan-agent",
        &[
            "portolan-model",
            "portolan-gossip",
            "portolan-overlay",
            "portolan-provider",
            "portolan-docker",
            "portolan-dns",
            "portolan-plane",
            "portolan-relay",
            "portolan-ebpf",
            "portolan-testbed",
        ],
    ),
    ("portolan-e2e", &["portolan-testbed"]),
    ("portolan-bench", &["portolan-testbed", "portolan-e2e"]),
];

/// Crates that do no I/O, and so have no use for these.
const PURE: &[&str] = &["portolan-model", "portolan-plane"];
const IMPURE: &[&str] = &[
    "tokio",
    "socket2",
    "rustix",
    "rtnetlink",
    "hickory-server",
    "axum",
];

/// Names that say nothing.
const NAMELESS: &[&str] = &[
    "common", "util", "utils", "helper", "helpers", "types", "misc",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The normal dependencies of each crate of the workspace, by name.
fn dependencies() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {stderr}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let name = |v: &serde_json::Value| v["name"].as_str().map(str::to_owned);
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().into_iter().flatten();
            let normal = all.filter(|d| d["kind"].is_null()).filter_map(name);
            Ok((
                name(package).context("a package without a name")?,
                normal.collect(),
            ))
        })
        .collect()
}

#[test]
fn crates_depend_in_one_direction() -> Result<()> {
    let found = dependencies()?;
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    ensure!(
        found.len() >= allowed.len(),
        "too few crates: {:?}",
        found.keys()
    );
    for (name, dependencies) in &found {
        let may = allowed
            .get(name.as_str())
            .with_context(|| format!("{name} has no line in ALLOWED"))?;
        for dependency in dependencies.iter().filter(|d| d.starts_with("portolan-")) {
            ensure!(
                may.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}"
            );
        }
        let pure = PURE.contains(&name.as_str());
        for dependency in dependencies.iter().filter(|_| pure) {
            ensure!(
                !IMPURE.contains(&dependency.as_str()),
                "{name} does no I/O: why {dependency}?"
            );
        }
    }
    Ok(())
}

/// Every Rust file of the workspace.
fn rust_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["mesh", "dns", "tests", "bench", "ebpf"]
        .iter()
        .map(|f| root().join(f))
        .collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

#[test]
fn files_fit_in_the_head_and_have_names() -> Result<()> {
    let files = rust_files()?;
    ensure!(files.len() > 50, "only {} files found", files.len());
    for file in files {
        let lines = std::fs::read_to_string(&file)?.lines().count();
        ensure!(
            lines <= 600,
            "{} has {lines} lines; split it by idea",
            file.display()
        );
        let stem = file
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        ensure!(
            !NAMELESS.contains(&stem),
            "{}: name it after what is in it",
            file.display()
        );
        ensure!(stem != "mod", "{}: foo.rs beside foo/", file.display());
    }
    Ok(())
}

#[test]
fn the_architecture_page_names_what_exists() -> Result<()> {
    let page =
        std::fs::read_to_string(root().join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    ensure!(
        page.lines().count() < 300,
        "ARCHITECTURE.md is a page, not a book"
    );
    let code = page.split('`').skip(1).step_by(2);
    let named: Vec<&str> = code
        .filter(|text| text.contains('/') && !text.contains(char::is_whitespace))
        .filter(|text| {
            let first = text.split('/').next().unwrap_or_default();
            ["mesh", "dns", "tests", "docs", ".ci"].contains(&first)
        })
        .collect();
    ensure!(named.len() > 15, "only {} places named", named.len());
    for place in named {
        ensure!(
            root().join(place).exists(),
            "ARCHITECTURE.md names {place}, which is not there"
        );
    }
    Ok(())
}
