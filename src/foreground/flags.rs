//! The flags of our standard streams. All who have an open file description share its flags: if a command sets `O_NONBLOCK` or
//! `O_ASYNC` on a pipe that it was given, the caller of `spark` has that flag too, and so has what the caller runs next.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// The flags of standard input, output and error, as they were at some time.
#[derive(Debug)]
pub(super) struct Flags([Option<OFlags>; 3]);

impl Flags {
    /// Reads them.
    pub(super) fn read() -> Flags {
        Flags([flags(io::stdin()), flags(io::stdout()), flags(io::stderr())])
    }

    /// Sets the flags again that have changed, but for streams that the command did not have: what changed there was not its
    /// doing.
    pub(super) fn restore(&self, replaced: [bool; 3]) {
        let [input, output, error] = self.0;
        restore(io::stdin(), input.filter(|_| !replaced[0]));
        restore(io::stdout(), output.filter(|_| !replaced[1]));
        restore(io::stderr(), error.filter(|_| !replaced[2]));
    }
}

fn flags(stream: impl AsFd) -> Option<OFlags> {
    fcntl_getfl(stream).ok()
}

fn restore(stream: impl AsFd, before: Option<OFlags>) {
    if let Some(before) = before
        && flags(&stream) != Some(before)
        && let Err(e) = fcntl_setfl(&stream, before)
    {
        tracing::debug!("cannot restore the flags of a standard stream: {e}");
    }
}
