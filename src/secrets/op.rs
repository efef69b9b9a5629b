//! `op://vault/item[/section]/field`: 1Password, through its program `op`, or a Connect server where there is none.
//!
//! Reads are rate-limited, and failed ones count: all references of a start are one call, and nothing is tried twice.

use std::fmt::Write as _;

use super::{Asked, Host, Secret, Source, connect, failed, secret};
use crate::domain::secret::{MAX_ALL, Reference};
use crate::error::{Error, Result};
use crate::sys::job::Done;
use crate::sys::process::Ended;

pub(super) struct Op;

impl Source for Op {
    fn resolve(&self, host: &Host, wanted: &[&Reference]) -> Result<Vec<Secret>> {
        let found = match wanted {
            [one] => read(host, one)?.map(|value| vec![value]),
            several => inject(host, several)?,
        };
        if let Some(values) = found {
            return Ok(values);
        }
        if let Some(server) = connect::Server::configured() {
            return connect::resolve(host, &server, wanted);
        }
        let hint =
            "install it from 1Password, or set OP_CONNECT_HOST and OP_CONNECT_TOKEN to use a Connect server";
        Err(failed(wanted[0], "the host has no `op`", hint))
    }
}

/// One reference, one call. `None` without `op`.
fn read(host: &Host, reference: &Reference) -> Result<Option<Secret>> {
    let argv = ["op", "read", "--no-newline", reference.as_str()].map(Into::into);
    let Some(done) = host.run(&argv, None, &Asked::one("`op`", reference))? else { return Ok(None) };
    check(host, reference, &done)?;
    Ok(Some(done.output.into_secret()))
}

/// Several references, one call: a template with a mark that nobody can know between them.
fn inject(host: &Host, wanted: &[&Reference]) -> Result<Option<Vec<Secret>>> {
    let mark = format!("--spark-{}-{}--", crate::domain::spark::Id::generate(), std::process::id());
    let mut template = mark.clone();
    for reference in wanted {
        let _ = write!(template, "{{{{ {reference} }}}}{mark}");
    }
    let most = MAX_ALL + template.len();
    let asked = Asked { program: "`op`", reference: wanted[0], most };
    let argv = ["op", "inject"].map(Into::into);
    let Some(done) = host.run(&argv, Some(template.as_bytes()), &asked)? else { return Ok(None) };
    let blamed = blamed(wanted, &done);
    check(host, blamed, &done)?;
    let values = between(done.output.bytes(), mark.as_bytes());
    if values.len() != wanted.len() {
        let hint = "see whether `op inject` works when you run it yourself";
        return Err(failed(wanted[0], "`op inject` gave another number of values than was asked for", hint));
    }
    values.into_iter().map(secret).collect::<Result<Vec<_>>>().map(Some)
}

/// What is between marks, of which one is at either end but for white space.
fn between<'a>(text: &'a [u8], mark: &[u8]) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    let mut begin = None;
    let mut at = 0;
    while at + mark.len() <= text.len() {
        if text[at..].starts_with(mark) {
            if let Some(begin) = begin {
                found.push(&text[begin..at]);
            }
            at += mark.len();
            begin = Some(at);
        } else {
            at += 1;
        }
    }
    found
}

/// Of several references the one that `op` complains of, where it says which.
fn blamed<'a>(wanted: &[&'a Reference], done: &Done) -> &'a Reference {
    let said = String::from_utf8_lossy(&done.errors);
    // The longest, since one may begin with another.
    let named = wanted.iter().filter(|r| said.contains(r.as_str())).max_by_key(|r| r.as_str().len());
    let by_item = || {
        wanted.iter().find(|r| r.rest().split('/').nth(1).is_some_and(|i| said.contains(&format!("\"{i}\""))))
    };
    named.or_else(by_item).unwrap_or(&wanted[0])
}

fn check(host: &Host, reference: &Reference, done: &Done) -> Result<()> {
    match done.ended {
        Ended::Exited(0) => Ok(()),
        Ended::Exited(status) => Err(told(host, reference, &String::from_utf8_lossy(&done.errors), status)),
        Ended::Signaled(signal) => Err(failed(
            reference,
            format!("signal {signal} ended `op`"),
            "see whether `op read` works when you run it yourself",
        )),
    }
}

/// What `op` says when it fails: `[ERROR] date time message`. Its texts are matched, not passed on.
fn told(host: &Host, reference: &Reference, said: &str, status: i32) -> Error {
    let says = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    let user = &host.caller.name;
    let sign_in = format!(
        "sign in as {user} with `op signin`, or give OP_SERVICE_ACCOUNT_TOKEN; under sudo: `sudo --preserve-env=OP_SERVICE_ACCOUNT_TOKEN spark …`"
    );
    let (why, hint) = if says(&["isn't a vault in this account"]) {
        ("there is no such vault in this account", "see the vaults with `op vault list`".to_owned())
    } else if says(&[
        "More than one item matches",
        "more than one item matches",
        "More than one vault matches",
    ]) {
        (
            "more than one item matches",
            "write the item's id instead of its name: `op item list` shows it".into(),
        )
    } else if says(&["isn't an item in", "could not find item"]) {
        ("there is no such item in the vault", "see the items with `op item list --vault VAULT`".into())
    } else if says(&[
        "isn't a field in",
        "does not have a field",
        "isn't a section in",
        "could not find field",
    ]) {
        ("the item has no such field", "see its fields with `op item get ITEM`".into())
    } else if says(&["(429)", "Too Many Requests", "rate limit"]) {
        ("1Password's rate limit is reached", "wait: `op service-account ratelimit` says how long".into())
    } else if says(&[
        "not signed in",
        "o accounts configured",
        "o account found",
        "session expired",
        "signin",
    ]) {
        ("`op` is not signed in", sign_in)
    } else if says(&["(401)", "(403)", "Unauthorized", "Forbidden", "invalid token"]) {
        ("1Password refuses the token", "see whether the token is right, and may read this vault".into())
    } else if says(&["invalid secret reference", "invalid reference"]) {
        ("1Password takes this for no reference", "copy it anew in 1Password: Copy Secret Reference".into())
    } else if says(&["dial tcp", "no such host", "connection refused", "timeout", "network is unreachable"]) {
        ("`op` cannot reach 1Password", "see whether this host has a way to 1Password".into())
    } else {
        let hint = format!("see what `op read` says when {user} runs it");
        return failed(reference, format!("`op` ended with status {status}"), hint);
    };
    failed(reference, why, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_stands_between_the_marks_whatever_is_in_them() {
        let text = b"##one\ntwo####{{x}}##\n";
        assert_eq!(between(text, b"##"), [&b"one\ntwo"[..], b"", b"{{x}}"]);
        assert!(between(b"nothing", b"##").is_empty() && between(b"", b"##").is_empty());
    }
}
