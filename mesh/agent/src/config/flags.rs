//! The flags of `portolan agent`, made from the table of keys.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::{
    key::{Key, Shape},
    layer::{Entry, Layer, Origin, Value, split},
};

const NO_DOCKER: &str = "no-docker";

/// What the command line says of the configuration, `--socket` aside, which belongs to every command.
#[derive(Debug, Clone, Default)]
pub struct Flags(pub Layer);

fn id(key: Key) -> String {
    key.flag().trim_start_matches('-').to_owned()
}

fn arg(key: Key) -> Arg {
    let arg = Arg::new(id(key))
        .long(id(key))
        .value_name(key.placeholder())
        .help(key.help());
    match key.shape() {
        Shape::List => arg.action(ArgAction::Append),
        Shape::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Shape::TextOrSwitch => arg.num_args(0..=1).default_missing_value("true"),
        Shape::Text | Shape::Number => arg.allow_hyphen_values(true),
    }
}

/// The other word for `--docker=false`.
fn no_docker() -> Arg {
    Arg::new(NO_DOCKER)
        .long(NO_DOCKER)
        .action(ArgAction::SetTrue)
        .conflicts_with(id(Key::Docker))
        .help("Leave the Docker engine of this machine alone")
}

fn keys() -> impl Iterator<Item = Key> {
    Key::ALL.into_iter().filter(|&key| key != Key::Socket)
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(keys().map(arg)).arg(no_docker())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for key in keys() {
            let Some(texts) = matches.get_many::<String>(&id(key)) else {
                continue;
            };
            let origin = Origin::Flag;
            let values = texts
                .flat_map(|text| split(key, text))
                .map(|text| Value {
                    text,
                    origin: origin.clone(),
                })
                .collect();
            self.0.entries.insert(key, Entry { values, origin });
        }
        if matches.get_flag(NO_DOCKER) {
            self.0.set_flag(Key::Docker, "false");
        }
        Ok(())
    }
}
