//! Where the cgroups are.

use std::{fs, path::PathBuf};

/// The root of the cgroup2 hierarchy as the calling thread sees it mounted; `None` if it is not.
///
/// In a container with a cgroup namespace of its own this is the container's own cgroup, and hooks on it see its
/// processes alone: such an agent needs the machine's hierarchy (`--cgroupns host`).
pub fn cgroup2_root() -> Option<PathBuf> {
    find(&fs::read_to_string("/proc/thread-self/mountinfo").ok()?)
}

/// Of the lines of a mountinfo (proc(5)): `31 23 0:28 / /sys/fs/cgroup rw,relatime shared:1 - cgroup2 cgroup2 rw`.
fn find(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (kind.split(' ').next()? == "cgroup2" && root == "/").then(|| PathBuf::from(unescape(at)))
    })
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
    }
}
