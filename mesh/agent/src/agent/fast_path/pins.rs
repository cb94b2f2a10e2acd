//! What is pinned of the fast path: a directory of pins for each layout of its maps that ran here, `v1/flows`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use portolan_ebpf::{EbpfError, EbpfPlane, OpenOptions};

use crate::agent::{bpf_fs, with_causes};

/// Removes all pins below a directory, and the file system that an agent mounted for them.
///
/// # Errors
/// What could not be removed.
pub(in crate::agent) fn clean(dir: &Path) -> Result<(), String> {
    remove_all(dir)?;
    bpf_fs::release(dir).map_err(|e| format!("{e:#}"))
}

/// Whether programs of an earlier agent are at work, whatever its build.
pub(in crate::agent) fn at_work(dir: &Path) -> bool {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let mut pins = entries(dir).flat_map(|layout| entries(&layout.path()));
    pins.any(|pin| pin.file_name().to_string_lossy().starts_with("from_mesh-"))
}

/// Detaches all programs and removes all pins, those of other builds with other layouts too.
pub(super) fn remove_all(dir: &Path) -> Result<(), String> {
    if !dir.exists() {
        return Ok(());
    }
    let others = remove_layouts(dir, None).map_err(|e| format!("{e:#}"));
    others.and(EbpfPlane::clean(dir).map_err(|e| with_causes(&e)))
}

/// Removes what builds with other layouts of the maps have pinned, once the programs of this one are attached: those
/// would go on beside them, by tables that nobody keeps. Their flows are this plane's then, to the last one.
pub(super) fn remove_other_layouts(dir: &Path, plane: &EbpfPlane) -> Result<(), String> {
    let pins = EbpfPlane::pins(dir).map_err(|e| with_causes(&e))?;
    let current = pins.first().and_then(|pin| pin.parent());
    let caught_up = || plane.catch_up().map_err(|e| with_causes(&e));
    caught_up()?;
    remove_pins(dir, current, EbpfPlane::is_link).map_err(|e| format!("{e:#}"))?;
    let last = caught_up();
    last.and(remove_layouts(dir, current).map_err(|e| format!("{e:#}")))
}

/// The names of all pins of this build's layout: `v1/flows`. Links, which say where programs are attached, come first.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let pins = EbpfPlane::pins(dir).unwrap_or_default();
    let mut names: Vec<String> = pins
        .iter()
        .filter_map(|pin| Some(pin.strip_prefix(dir).ok()?.display().to_string()))
        .collect();
    names.sort_by_key(|name| (!EbpfPlane::is_link(Path::new(name)), name.clone()));
    names
}

/// The fast path, and what is wrong with it. Where it cannot be opened, what an earlier agent left is removed: its
/// programs would go on by tables that nobody keeps.
pub(super) fn open(options: &OpenOptions) -> Result<(EbpfPlane, Option<String>), String> {
    bpf_fs::prepare(&options.pins).map_err(|e| format!("{e:#}"))?;
    if let Err(unavailable) = portolan_ebpf::probe(&options.pins) {
        // A build without the programs may follow one that had them.
        remove_all(&options.pins)?;
        return Err(unavailable.to_string());
    }
    let opened = match EbpfPlane::open(options) {
        // Its flows are worth more than the number.
        Err(error @ EbpfError::Size { present, .. }) => {
            let kept = OpenOptions {
                flows: present,
                ..options.clone()
            };
            EbpfPlane::open(&kept).map(|plane| (plane, Some(error.to_string())))
        }
        opened => opened.map(|plane| (plane, None)),
    };
    opened.map_err(|error| {
        let reason = with_causes(&error);
        let others = matches!(error, EbpfError::Foreign { .. });
        match (!others).then(|| remove_all(&options.pins)) {
            Some(Err(left)) => format!("{reason}; and what is pinned goes on: {left}"),
            _ => reason,
        }
    })
}

/// Removes the directories of pins but one.
fn remove_layouts(dir: &Path, but: Option<&Path>) -> Result<()> {
    remove_pins(dir, but, |_| true)?;
    layouts(dir, but)?
        .iter()
        .try_for_each(|layout| fs::remove_dir(layout).with_context(|| layout.display().to_string()))
}

/// Removes some of the pins of all layouts but one.
fn remove_pins(dir: &Path, but: Option<&Path>, which: impl Fn(&Path) -> bool) -> Result<()> {
    for layout in layouts(dir, but)? {
        for pin in fs::read_dir(&layout).with_context(|| layout.display().to_string())? {
            let pin = pin.with_context(|| layout.display().to_string())?.path();
            if !which(&pin) {
                continue;
            }
            match fs::remove_file(&pin) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| pin.display().to_string());
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The directories of pins but one.
fn layouts(dir: &Path, but: Option<&Path>) -> Result<Vec<PathBuf>> {
    let mut layouts = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry.with_context(|| dir.display().to_string())?.path();
        if path.is_dir() && Some(path.as_path()) != but {
            layouts.push(path);
        }
    }
    Ok(layouts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_layouts_go_and_the_present_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        for pin in ["v1/flows", "v1/from_outside-2", "v2/flows"] {
            let pin = dir.path().join(pin);
            fs::create_dir_all(pin.parent().unwrap()).unwrap();
            fs::write(pin, "").unwrap();
        }
        let present = dir.path().join("v2");
        remove_layouts(dir.path(), Some(&present)).unwrap();
        assert!(!dir.path().join("v1").exists());
        assert!(present.join("flows").exists());
        remove_layouts(dir.path(), None).unwrap();
        assert!(!present.exists());
    }
}
