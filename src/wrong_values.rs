//! For tests of the command lines: a wrong value for each option that there is.

use std::collections::BTreeSet;

use clap::{Arg, Command};

/// No option takes all of these but one that takes any text.
const WRONG: [&str; 5] = ["?", "-1", "A b", "/../", "="];

/// Gives wrong values to every option of every command. `told` gets a command line and returns what is wrong with it. Each
/// message has to name the option and the value. Returns the options that have taken every value.
pub(crate) fn taken(mut command: Command, told: impl Fn(&[String]) -> Option<String>) -> Vec<String> {
    command.build();
    let mut taken = BTreeSet::new();
    each_option(&command, &mut vec![command.get_name().to_owned()], &mut |words, option| {
        let name =
            format!("--{}", option.get_long().unwrap_or_else(|| panic!("{option:?} has no long name")));
        let refused = WRONG.iter().filter(|wrong| {
            let line = [words, &[format!("{name}={wrong}")]].concat();
            let Some(message) = told(&line).filter(|message| !is_about_others(message)) else { return false };
            assert!(message.contains(&name) && message.contains(*wrong), "{line:?}: {message}");
            true
        });
        if refused.count() == 0 {
            taken.insert(name);
        }
    });
    taken.into_iter().collect()
}

/// Whether something else is wrong: an argument or a command that is missing.
fn is_about_others(message: &str) -> bool {
    ["is missing", "were not provided", "requires a subcommand"].iter().any(|text| message.contains(text))
}

fn each_option(command: &Command, words: &mut Vec<String>, work: &mut impl FnMut(&[String], &Arg)) {
    for option in
        command.get_arguments().filter(|arg| !arg.is_positional() && arg.get_action().takes_values())
    {
        work(words, option);
    }
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        words.push(sub.get_name().to_owned());
        each_option(sub, words, work);
        words.pop();
    }
}
