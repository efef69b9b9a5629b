//! `cmd://name`: what a command of the user's own configuration prints.

use std::ffi::OsString;

use super::{Asked, Host, Secret, Source, failed};
use crate::domain::secret::Reference;
use crate::error::Result;
use crate::sys::process::Ended;

pub(super) struct Commands;

impl Source for Commands {
    fn resolve(&self, host: &Host, wanted: &[&Reference]) -> Result<Vec<Secret>> {
        wanted.iter().map(|reference| output(host, reference)).collect()
    }
}

fn output(host: &Host, reference: &Reference) -> Result<Secret> {
    let name = reference.rest();
    let Some(argv) = host.settings.commands.get(name) else {
        let why = format!("there is no secret command `{name}` in your configuration");
        let hint = "add it under `[secret-commands]` in ~/.config/spark/config.toml: a record names a command, and never \
                    brings one";
        return Err(failed(reference, why, hint));
    };
    let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
    let program = argv.first().map(|p| p.to_string_lossy().escape_default().to_string()).unwrap_or_default();
    let Some(done) = host.run(&argv, None, &Asked::one(&format!("`{program}`"), reference))? else {
        return Err(failed(
            reference,
            format!("there is no program `{program}`"),
            "correct it in your configuration",
        ));
    };
    match done.ended {
        Ended::Exited(0) => Ok(done.output.into_secret()),
        // Not its words: nobody knows what it says.
        ended => Err(failed(
            reference,
            format!("the command ended with status {}", ended.status()),
            "run it yourself to see what it says",
        )),
    }
}
