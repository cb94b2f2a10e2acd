//! No text makes the parser panic, overflow its stack or take long.
#![expect(
    clippy::unwrap_used,
    reason = "what a test calls fails the test, as the test itself would"
)]

use portolan_provider::{Diagnostic, Stack, parse};
use proptest::prelude::*;

/// Files that are in order, the last one with every key there is.
fn files() -> Vec<&'static str> {
    let page = include_str!("../../../docs/stack-file.md");
    let (_, example) = page.split_once("```yaml\n").unwrap();
    vec![
        include_str!("stacks/voting-app.yml"),
        include_str!("stacks/traefik.yml"),
        example.split_once("```").unwrap().0,
    ]
}

/// Parses on a small stack: agents parse on threads of 2 MiB, and have used some of it by then.
fn on_a_small_stack(text: String) -> Result<Stack, Vec<Diagnostic>> {
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(move || parse(&text, "stack.yml", None))
        .unwrap()
        .join()
        .unwrap()
}

fn text(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().concat()
}

#[test]
fn deep_files_are_refused() {
    let maps = text((0..1000).map(|i| format!("{}a:\n", " ".repeat(i))));
    for deep in [
        maps,
        "- ".repeat(5000),
        "[".repeat(100_000),
        "{a: ".repeat(5000),
        "? ".repeat(5000),
    ] {
        assert_eq!(on_a_small_stack(deep).unwrap_err().len(), 1);
    }
    let deep = format!("services: {}{}", "{a: ".repeat(25), "}".repeat(25));
    assert_eq!(
        on_a_small_stack(deep).unwrap_err()[0].message,
        "the file is nested deeper than 20 levels"
    );
}

#[test]
fn aliases_of_aliases_do_not_fill_the_memory() {
    let bomb = text(('b'..='j').zip('a'..).map(|(name, before)| {
        format!(
            "{name}: &{name} [{}]\n",
            vec![format!("*{before}"); 10].join(", ")
        )
    }));
    let wrong = on_a_small_stack(format!("a: &a [x, x]\n{bomb}")).unwrap_err();
    assert_eq!(
        wrong[0].message,
        "the file has more than 100000 values, with its aliases filled in"
    );
}

#[test]
fn files_with_too_much_are_refused_before_all_is_compared() {
    let services = text((0..3000).map(|i| format!("  s{i}:\n")));
    let ports = text((1..30_000).map(|i| format!("      - {i}:80\n")));
    for (file, message) in [
        (
            format!("services:\n{services}"),
            "the file declares 3000 services, networks and tasks of at most 2048",
        ),
        (
            format!("services:\n  web:\n    ports:\n{ports}"),
            "the file publishes more than 8192 ports",
        ),
        (
            format!("services: {{}}\n# {}", "x".repeat(5 << 20)),
            "the file has 5242895 bytes of at most 4194304",
        ),
    ] {
        let wrong = parse(&file, "stack.yml", None).unwrap_err();
        assert!(wrong.iter().any(|d| d.message == message), "{}", wrong[0]);
    }
}

/// One change of a text: something cut, doubled, or put in, at character boundaries.
fn mutate(
    text: &str,
    at: prop::sample::Index,
    length: usize,
    insert: &str,
    double: bool,
) -> String {
    let characters: Vec<char> = text.chars().collect();
    let start = at.index(characters.len());
    let end = (start + length).min(characters.len());
    let (before, rest) = characters.split_at(start);
    let (cut, after) = rest.split_at(end - start);
    let twice = if double {
        [cut, cut].concat()
    } else {
        Vec::new()
    };
    before
        .iter()
        .copied()
        .chain(insert.chars())
        .chain(twice)
        .chain(after.iter().copied())
        .collect()
}

/// What stands in stack files, so that changes often give another file that parses.
const WORDS: [&str; 24] = [
    ": ",
    "- ",
    "\n",
    "  ",
    "{",
    "}",
    "[",
    "]",
    "*app",
    "&app ",
    "<<: ",
    "null",
    "~",
    "true",
    "-1",
    "0",
    "65536",
    "'",
    "\"",
    "10.0.0.0/8",
    "::",
    "1e400",
    "!!int ",
    "#",
];

proptest! {
    #[test]
    fn any_text(text: String) {
        if let Err(wrong) = parse(&text, "stack.yml", Some("shop")) {
            prop_assert!(!wrong.is_empty());
        }
    }

    #[test]
    fn files_that_were_changed(
        file in prop::sample::select(files()),
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..40_usize, prop::sample::select(&WORDS[..]), any::<bool>()),
            1..5,
        ),
    ) {
        let text = changes.into_iter().fold(file.to_owned(), |text, (at, length, word, double)| {
            mutate(&text, at, length, word, double)
        });
        match parse(&text, "stack.yml", Some("shop")) {
            Ok(stack) => for service in stack.services {
                prop_assert!(portolan_model::Record::Service(service).encode().is_ok());
            },
            Err(wrong) => prop_assert!(!wrong.is_empty()),
        }
    }
}
