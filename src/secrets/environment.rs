//! `env://NAME`: a variable of who called `spark`.

use std::os::unix::ffi::OsStrExt;

use super::{Host, Secret, Source, failed, secret, too_large};
use crate::domain::secret::{MAX_VALUE, Reference};
use crate::error::Result;

pub(super) struct Environment;

impl Source for Environment {
    fn resolve(&self, _: &Host, wanted: &[&Reference]) -> Result<Vec<Secret>> {
        wanted.iter().map(|reference| variable(reference)).collect()
    }
}

fn variable(reference: &Reference) -> Result<Secret> {
    let name = reference.rest();
    let Some(value) = std::env::var_os(name) else {
        let hint = format!("set it, and under sudo let it through: `sudo --preserve-env={name} spark …`");
        return Err(failed(reference, "the variable is not set", hint));
    };
    if value.len() > MAX_VALUE {
        return Err(too_large(reference));
    }
    secret(value.as_bytes())
}
