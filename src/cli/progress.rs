//! Progress of long work: a bar on a terminal, lines with `-v` elsewhere.
//!
//! No thread draws it: operations of this program need a process with a single one.

use std::cell::RefCell;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::ops::Observer;

/// Shows what an operation is doing.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    verbose: bool,
    quiet: bool,
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress {
    /// `verbose`: a line per step where there is no terminal. `quiet`: nothing at all.
    pub(crate) fn new(verbose: bool, quiet: bool) -> Progress {
        let terminal =
            std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Progress { terminal, verbose, quiet, bar: RefCell::new(None) }
    }

    fn clear(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn step(&self, what: &str, total: Option<u64>) {
        self.clear();
        if self.quiet {
            return;
        }
        let what = output::escape(what);
        if self.terminal {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            bar.set_style(style(total));
            bar.set_message(what.into_owned());
            bar.tick();
            self.bar.replace(Some(bar));
        } else if self.verbose {
            output::eprint(what);
        }
    }

    fn advance(&self, done: u64) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.set_position(done);
        }
    }

    fn notice(&self, text: &str) {
        if self.quiet {
            return;
        }
        let text = output::escape(text);
        match &*self.bar.borrow() {
            Some(bar) => bar.suspend(|| output::eprint(text)),
            None => output::eprint(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Without colours, so that `NO_COLOR` has nothing to take away.
fn style(total: Option<u64>) -> ProgressStyle {
    const BYTES: u64 = 1 << 20;
    let template = match total {
        None => "{msg} …",
        Some(100) => "{msg} [{bar:30}] {percent}%",
        Some(n) if n >= BYTES => "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}",
        Some(_) => "{msg} [{bar:30}] {pos}/{len}",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_is_a_valid_template() {
        for template in
            ["{msg} …", "{msg} [{bar:30}] {percent}%", "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}"]
        {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
        for total in [None, Some(100), Some(7), Some(1 << 30)] {
            style(total);
        }
    }
}
