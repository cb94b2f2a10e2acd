//! What the programs count.

/// One counter, by its place in the kernel's array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Its name in metrics: `drop_no_back`.
    pub name: &'static str,
    /// What it counts.
    pub meaning: &'static str,
}

const TABLE: &[(&str, &str)] = include!(env!("FAST_PATH_COUNTERS"));

/// All counters, in the order of `bpf/counters.h`.
pub const COUNTERS: [Counter; TABLE.len()] = {
    let mut all = [Counter {
        name: "",
        meaning: "",
    }; TABLE.len()];
    let mut at = 0;
    while at < TABLE.len() {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            all[at] = Counter {
                name: TABLE[at].0,
                meaning: TABLE[at].1,
            };
        }
        at += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Adds the text of all tests below a directory.
    fn tests(of: &Path, text: &mut String) {
        if of.is_dir() {
            for entry in fs::read_dir(of).unwrap() {
                tests(&entry.unwrap().path(), text);
            }
        } else {
            text.push_str(&fs::read_to_string(of).unwrap());
        }
    }

    #[test]
    fn every_reason_is_in_a_test() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut text = String::new();
        for place in [
            "src/plane/packets",
            "src/sockets/tests",
            "tests",
            "../tests/e2e/tests",
        ] {
            tests(&root.join(place), &mut text);
        }
        let untested = COUNTERS
            .iter()
            .map(|counter| counter.name)
            .filter(|name| !text.contains(&format!("\"{name}\"")));
        assert_eq!(untested.collect::<Vec<_>>(), Vec::<&str>::new());
    }
}
