//! `pass://path`: the first line of an entry of the standard Unix password store, which is the password there.

use super::{Asked, Host, Secret, Source, failed, secret};
use crate::domain::secret::Reference;
use crate::error::Result;
use crate::sys::process::Ended;

pub(super) struct Pass;

impl Source for Pass {
    fn resolve(&self, host: &Host, wanted: &[&Reference]) -> Result<Vec<Secret>> {
        wanted.iter().map(|reference| show(host, reference)).collect()
    }
}

fn show(host: &Host, reference: &Reference) -> Result<Secret> {
    let argv = ["pass", "show", "--", reference.rest()].map(Into::into);
    let Some(done) = host.run(&argv, None, &Asked::one("`pass`", reference))? else {
        return Err(failed(reference, "the host has no `pass`", "install it: `apt-get install pass`"));
    };
    let errors = String::from_utf8_lossy(&done.errors);
    if done.ended == Ended::Exited(0) {
        let line = done.output.bytes().split(|b| *b == b'\n').next().unwrap_or_default();
        return secret(line);
    }
    let user = &host.caller.name;
    Err(if errors.contains("is not in the password store") {
        failed(reference, format!("it is not in {user}'s password store"), "see what is there with `pass ls`")
    } else if errors.contains("No secret key") || errors.contains("decryption failed") {
        let why = format!("gpg cannot decrypt it with {user}'s keys");
        failed(reference, why, "see whether `pass show` does; unlock the key first if it has a passphrase")
    } else {
        let why = format!("`pass` ended with status {}", done.ended.status());
        failed(reference, why, "see what `pass show` says when you run it yourself")
    })
}
