//! Terminals that a container without a terminal of its own gets.

use super::args::Verb;
use crate::error::Result;
use crate::ops::oci::{read_process, standard_terminals, wants_terminal};

/// What the caller should know of the standard streams: they are passed on as they are, as by runc, and whoever has a terminal
/// open reads what is typed there. None if there is nothing to say.
pub(super) fn warning(verb: &Verb) -> Option<String> {
    let terminals = standard_terminals();
    if terminals.is_empty() || has_own(verb).unwrap_or(true) {
        return None;
    }
    let (what, is) = match &terminals[..] {
        [one] => ((*one).to_owned(), "is a terminal"),
        [first, second] => (format!("{first} and {second}"), "are a terminal"),
        all => (all.join(", "), "are a terminal"),
    };
    Some(format!(
        "{what} {is} of the host, which goes into the container: what runs there can read what is typed here, also after this \
         command. Give the process a terminal of its own (`terminal` in config.json, `exec --tty`), or pass pipes \
         and files: `</dev/null 2>&1 | cat`"
    ))
}

/// Whether the process gets a terminal of its own, or none is started. What cannot be read is told of elsewhere.
fn has_own(verb: &Verb) -> Result<bool> {
    match verb {
        Verb::Create(args) => wants_terminal(&args.of.bundle),
        Verb::Run(args) => wants_terminal(&args.of.bundle),
        Verb::Exec(args) if args.tty => Ok(true),
        Verb::Exec(args) => match &args.process {
            Some(path) => Ok(read_process(path)?.terminal().unwrap_or(false)),
            None => Ok(false),
        },
        _ => Ok(true),
    }
}
