//! The library's settings as the command's flags.

use crate::cli::Cli;
use crate::error::{Setting, Spelling};
use clap::{Arg, Command, CommandFactory};

/// Names a setting by its flag.
pub const FLAGS: Spelling = Spelling(flag);

/// What to try where memory has run out, and nothing more can be made up.
pub const LESS_MEMORY: &str = "fewer --tokens or --threads";

fn flag(setting: Setting) -> String {
    let longs = longs(&Cli::command(), argument(setting));
    longs.first().map_or_else(|| setting.name().into(), |long| format!("--{long}"))
}

/// The argument that gives it a value, which is the field itself but where the command has another form.
fn argument(setting: Setting) -> &'static str {
    match setting {
        Setting::Resume => "resume",
        Setting::Overwrite => "overwrite",
        Setting::Source => "config",
        field => field.name(),
    }
}

/// The flags of all arguments of this name, here and in the commands below.
fn longs(command: &Command, name: &str) -> Vec<String> {
    let own = command.get_arguments().filter(|arg| arg.get_id() == name).filter_map(Arg::get_long);
    let below = command.get_subcommands().flat_map(|sub| longs(sub, name));
    own.map(String::from).chain(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_one_flag() {
        for &setting in Setting::ALL {
            let longs = longs(&Cli::command(), argument(setting));
            assert!(!longs.is_empty(), "{} is no flag", setting.name());
            assert!(longs.iter().all(|long| *long == longs[0]), "{} is {longs:?}", setting.name());
        }
        for (setting, wanted) in [
            (Setting::MaxLength, "--max-length"),
            (Setting::MaxSeqLength, "--max-length"),
            (Setting::TrainAdapters, "--adapter"),
            (Setting::GradientCheckpointing, "--recompute"),
            (Setting::Resume, "--resume"),
        ] {
            assert_eq!(flag(setting), wanted);
        }
    }
}
