//! What is wrong with files, without starting anything.

use std::{fmt::Write as _, path::Path};

use super::{args::CheckArgs, ask::read_stack, failure::Failure, node, print};

/// Checks a configuration, if one is given or nothing else is, and stack files.
pub(crate) fn check(socket: Option<String>, args: CheckArgs) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    let mut good = String::new();
    let mut stacks = args.stacks;
    if args.sources.is_given() || stacks.is_empty() {
        match node::configuration(socket, args.sources) {
            Ok(config) => {
                let _ = writeln!(
                    good,
                    "configuration: ok, node {} at {}",
                    config.name, config.advertise
                );
                stacks.extend(config.stacks);
            }
            Err(failure) => wrong.extend(failure.lines()),
        }
    }
    for stack in &stacks {
        match stack_file(stack) {
            Ok(line) => good.push_str(&line),
            Err(failure) => wrong.extend(failure.lines()),
        }
    }
    print(&good)?;
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::Input(wrong))
    }
}

/// Checks one stack file, and says in a line what it declares.
pub(crate) fn stack_file(file: &Path) -> Result<String, Failure> {
    let (text, source) = read_stack(file)?;
    let stack = portolan_provider::parse(&text, &source, None)
        .map_err(|wrong| Failure::Input(wrong.iter().map(ToString::to_string).collect()))?;
    let mut line = format!(
        "{source}: ok, services {}, networks {}, tasks {}",
        stack.services.len(),
        stack.networks.len(),
        stack.tasks.len()
    );
    if !stack.ignored.is_empty() {
        let _ = write!(line, "; ignored: {}", stack.ignored.join(", "));
    }
    line.push('\n');
    Ok(line)
}
