//! Named places where a test makes an operation fail or die.
//!
//! `SPARK_FAULT=NAME=fail` makes the place return an error, `NAME=panic` panics there, `NAME=die` kills the process as a crash
//! would, and `NAME=die-all` its whole process group, so that a helper does not outlive its command or the other way
//! round. `NAME=skip` leaves out the one step that a place guards, to show what it is for. `NAME=stop` stops the process there until somebody has it go on, for a look at it. Without the feature `faults`
//! a point is nothing at all.

use crate::error::Result;

/// Passes, unless a test asked for this place to fail or to die.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_name: &'static str) -> Result<()> {
    Ok(())
}

/// Whether a test asked for the step that this place guards to be left out.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn skips(_name: &'static str) -> bool {
    false
}

/// Whether a test asked for the step that this place guards to be left out.
#[cfg(feature = "faults")]
pub fn skips(name: &'static str) -> bool {
    std::env::var("SPARK_FAULT").is_ok_and(|wanted| wanted.strip_suffix("=skip") == Some(name))
}

/// Passes, unless a test asked for this place to fail or to die.
#[cfg(feature = "faults")]
pub fn point(name: &'static str) -> Result<()> {
    let Ok(wanted) = std::env::var("SPARK_FAULT") else { return Ok(()) };
    let Some((place, what)) = wanted.split_once('=') else { return Ok(()) };
    if place != name {
        return Ok(());
    }
    match what {
        "die" => {
            // As abrupt as a crash: no destructor runs, no buffer is flushed.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            Ok(())
        }
        "die-all" => {
            let _ = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
            Ok(())
        }
        "stop" => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
            Ok(())
        }
        "panic" => panic!("fault point {name}"),
        _ => Err(crate::error::Error::Fault { name }),
    }
}
