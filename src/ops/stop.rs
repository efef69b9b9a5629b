//! `stop`: SIGTERM to everything, SIGKILL to what stays. What the spark's image runs comes first, with its own signal.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::Sparks;
use crate::domain::name::SparkRef;
use crate::domain::spark::{Id, SparkRecord};
use crate::error::{Error, Result};
use crate::fault;
use crate::runtime::closing::Closing;
use crate::runtime::live::{self, Live, Service};
use crate::runtime::youki::Handle;
use crate::sys;
use crate::sys::deadline::Deadline;
use crate::sys::flock::Mode;

/// How long processes have to end by themselves, unless told otherwise.
pub const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether something runs still, where PID 1 has not ended.
const LOOK: Duration = Duration::from_millis(100);
/// How long the kill of PID 1 alone may take.
const ALONE: Duration = Duration::from_secs(1);

impl Sparks {
    /// Stops a spark. Its files stay. A stopped one is left as it is.
    pub fn stop(&self, spark: &SparkRef, grace: Duration) -> Result<()> {
        let spark = self.resolve(spark)?;
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        self.end(&opened.record, grace)
    }

    /// Ends what runs of a spark. The caller holds its exclusive lock.
    pub(crate) fn end(&self, record: &SparkRecord, grace: Duration) -> Result<()> {
        self.end_container(&record.id, grace)
    }

    /// The same for a spark of which nothing but its id is known.
    pub(crate) fn end_container(&self, id: &Id, grace: Duration) -> Result<()> {
        let bundle = self.pool.place.bundle(id);
        let handle = self.handle_of(id);
        let live = live::read(&bundle);
        if let Some(live) = &live {
            live::mark_stopping(&bundle)?;
            fault::point("stop.marked")?;
            let ending = Ending { container: id, handle: &handle, live };
            ending.run(live::service(&bundle), grace)?;
        }
        fault::point("stop.ended")?;
        self.complete_log(id);
        handle.remove()?;
        fault::point("stop.removed")?;
        self.nets().leave(id)?;
        self.clear_bundle(
            &bundle,
            live.map(|l| l.first_id).or_else(|| crate::runtime::ids::claimed_by(&bundle)),
        );
        Ok(())
    }
}

/// What ends.
struct Ending<'a> {
    container: &'a Id,
    handle: &'a Handle,
    live: &'a Live,
}

impl Ending<'_> {
    fn run(&self, service: Option<Service>, grace: Duration) -> Result<()> {
        // Between looking and opening it may end by itself, which is as well.
        let Ok(pidfd) = self.live.pidfd() else { return Ok(()) };
        let cgroup = &self.handle.cgroup;
        if live::is_frozen(cgroup) {
            self.handle.thaw()?;
        }
        let mut closing = Closing::of(self.live.init.pid);
        let left = match service.filter(|service| service.stop_signal != libc::SIGTERM) {
            Some(service) if !grace.is_zero() => end_service(&service, grace)?,
            _ => grace,
        };
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        if millis > 0 {
            let _ = sys::process::signal_with_value(&pidfd, libc::SIGTERM, millis);
            hang_up(cgroup);
            if self.has_ended(&pidfd, Deadline::after(left + Duration::from_millis(500)))? {
                return Ok(());
            }
        }
        closing.deadline = Deadline::killed();
        loop {
            let _ = sys::process::signal(&pidfd, rustix::process::Signal::KILL);
            // PID 1 alone takes all others with it, unless one of them traces it, and stops it on its way out.
            if self.has_ended(&pidfd, Deadline::after(ALONE.min(closing.deadline.left())))? {
                return Ok(());
            }
            for (_, process) in live::members(cgroup) {
                let _ = sys::process::signal(&process, rustix::process::Signal::KILL);
            }
            if closing.is_over() {
                break;
            }
        }
        let what = format!("spark {}", self.container);
        Err(Error::Busy { what, why: "a process in it does not end".into() })
    }

    /// Waits until all processes have ended. False if the time is over first.
    ///
    /// PID 1 stays until every process of its namespace has been reaped, and the commands of `exec` are children of the host's:
    /// if `spark exec` has been stopped, nobody reaps its command. So what counts is that nothing runs any more.
    fn has_ended(&self, pidfd: &OwnedFd, deadline: Deadline) -> Result<bool> {
        let failed = || Error::sys("wait for PID 1");
        loop {
            if sys::deadline::ended(pidfd, LOOK.min(deadline.left())).map_err(failed())? {
                return Ok(true);
            }
            let others =
                live::processes(&self.handle.cgroup).into_iter().any(|pid| pid != self.live.init.pid);
            match others {
                false if sys::process::is_ending(&self.live.init) => return Ok(true),
                // It waits for what is dead.
                false => drop(sys::process::signal(pidfd, rustix::process::Signal::KILL)),
                true => {}
            }
            if deadline.has_passed() {
                return Ok(false);
            }
        }
    }
}

/// Sends what the image runs the signal that it wants, and waits until that has ended or the time is over. Others get
/// SIGTERM only after that: what the service has started is its own to end, and SIGTERM may mean haste to it.
/// Returns what is left of the time.
fn end_service(service: &Service, grace: Duration) -> Result<Duration> {
    let begun = Instant::now();
    let Ok(pidfd) = service.process.open() else { return Ok(grace) };
    let _ = sys::process::signal_number(&pidfd, service.stop_signal);
    // A stopped process would take notice of it only after the grace.
    let _ = sys::process::signal(&pidfd, rustix::process::Signal::CONT);
    sys::deadline::ended(&pidfd, grace).map_err(Error::sys("wait for what the image runs"))?;
    fault::point("service-stop.ended")?;
    Ok(grace.saturating_sub(begun.elapsed()))
}

/// Interactive shells ignore SIGTERM and end on SIGHUP, as when their terminal goes away: those with one get it.
fn hang_up(cgroup: &std::path::Path) {
    for (pid, fd) in live::members(cgroup) {
        if sys::process::has_terminal(pid) {
            let _ = sys::process::signal(&fd, rustix::process::Signal::HUP);
        }
    }
}
