//! What every program of ours does first, whoever called it.

pub use crate::sys::argv::keep_only as keep_only_arguments;
pub use crate::sys::inherited::{Program, with_callers_umask};

use std::process::ExitCode;

use super::transfer;
use crate::error::{Error, Result};
use crate::image::reading;
use crate::net::names;
use crate::runtime::cgroup;
use crate::sys::inherited::{self, Limit};
use crate::sys::isolated;

/// The files that any command has open at once, twice as many. Libraries that find fewer do not say so, but panic.
const FILES: u64 = 64;
/// The stack of the main thread, in bytes: the deepest known use of it is half as large.
const STACK: u64 = 1 << 20;

/// If this process was started to read what is not trusted, or to answer questions for names, it does that, and nothing else. To
/// be called first of all.
#[must_use]
pub fn reader() -> Option<ExitCode> {
    let role = isolated::role()?;
    // A role of another version is none here. Whoever started this process says that it ended without a reason.
    let done = reading::run(&role, &[&transfer::PARSER]).or_else(|| names::run(&role, cgroup::leave_callers));
    Some(done.unwrap_or(ExitCode::FAILURE))
}

/// Resets what must not depend on the caller, and makes sure that there is room to work.
///
/// # Errors
/// `host` where the caller's limits are too narrow.
pub fn begin(program: Program) -> Result<()> {
    inherited::reset(program).map_err(Error::sys("reset what the caller passes on"))?;
    let narrow = |what: String, option: char, enough: u64| Error::Host {
        what,
        hint: format!("raise the limit in your shell: `ulimit -{option} {enough}`"),
        source: None,
    };
    let files = inherited::limit(Limit::Files);
    if files < FILES {
        let what = format!("this process may have {files} files open at once, and needs {FILES}");
        return Err(narrow(what, 'n', 1024));
    }
    let stack = inherited::limit(Limit::Stack);
    if stack < STACK {
        let what = format!("this process may have a stack of {} KiB, and needs {}", stack >> 10, STACK >> 10);
        return Err(narrow(what, 's', 8192));
    }
    Ok(())
}
