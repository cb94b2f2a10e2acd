//! Where the cgroups are.

use std::{fs, path::PathBuf};

/// The root of the cgroup2 hierarchy as the calling thread sees it mounted; `None` if it is not.
///
/// In a container with a cgroup namespace of its own that is the container's own cgroup, and hooks on it see its
/// processes alone: such an agent needs the machine's hierarchy, mounted anywhere (as deploy/portolan-stack.yml does) or
/// by `--cgroupns host`.
pub fn cgroup2_root() -> Option<PathBuf> {
    find(&fs::read_to_string("/proc/thread-self/mountinfo").ok()?)
}

/// Of the lines of a mountinfo (proc(5)): `31 23 0:28 / /sys/fs/cgroup rw,relatime shared:1 - cgroup2 cgroup2 rw`.
///
/// What is above the root of the reader's own cgroup namespace is shown as `/../..`: of such mounts the highest counts.
fn find(mountinfo: &str) -> Option<PathBuf> {
    let roots = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let mut steps = root.split('/').filter(|step| !step.is_empty());
        let is_root = kind.split(' ').next()? == "cgroup2" && steps.all(|step| step == "..");
        is_root.then_some((root.len(), at))
    });
    // Of several at one height the first.
    let highest = roots.reduce(|best, other| if other.0 > best.0 { other } else { best });
    highest.map(|(_, at)| PathBuf::from(unescape(at)))
}

/// Blanks, tabs, newlines and backslashes are written as octal numbers.
fn unescape(path: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_cgroup2_is_found() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            40 31 0:38 /system.slice /elsewhere rw shared:1 - cgroup2 cgroup2 rw\n\
            41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:5 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(find(hybrid), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        let without = hybrid.lines().take(3).collect::<Vec<_>>().join("\n");
        assert_eq!(find(&without), None);
        assert_eq!(find("nonsense"), None);
        let container = "31 23 0:28 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n\
            32 23 0:28 /../../.. /host/cgroup ro,nosuid - cgroup2 cgroup2 rw\n\
            33 23 0:28 /../../system.slice /elsewhere rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find(container), Some(PathBuf::from("/host/cgroup")));
    }
}
