//! Starting a spark: mounts in a namespace of the helper's own, libcontainer, PID 1, `init.json`.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxNamespaceType, Spec};

use super::attach;
use super::cgroup::{self, Cgroup};
use super::confine::Confinement;
use super::devices;
use super::init;
use super::live::{self, Live};
use super::place::{self, Maps, Place, no_idmap, no_mount_namespace};
use super::report::{self, Sender};
use super::secrets::{self, Filling};
use super::youki::{Handle, INNER};
use crate::error::{Code, Error, Result};
use crate::sys;
use crate::sys::deadline::{Deadline, INSIDE, KILLED};
use crate::sys::idmap::IdMap;
use crate::sys::inherited::InitLimits;
use crate::sys::lifeline::{self, Grip, Line};
use crate::sys::mount::Planned;
use crate::sys::process::ProcessId;

/// Gives a spark its network, in the helper that starts it.
pub trait Wiring: std::fmt::Debug {
    /// At once, before anything of the spark is there.
    fn begin(&self);
    /// When it has a network namespace: what is done outside of it. `pid` is in it.
    fn outside(&self, pid: i32) -> Result<()>;
    /// The same, by a thread that has joined it.
    fn inside(&self) -> Result<()>;
}

/// Longest report of a failed start, in bytes: what one write to a pipe puts there whole.
const REPORT_MAX: usize = 4096;
/// Longest reason and longest path in it: as JSON, control characters take six times as much.
const TEXT_MAX: usize = 300;

/// What is needed to start a spark whose bundle is written.
#[derive(Debug)]
pub struct Launch {
    /// The spark's name, for errors.
    pub spark: String,
    pub container: Handle,
    /// The bundle: `init.json` goes there, and what libcontainer gets is in `libcontainer/` below.
    pub bundle: PathBuf,
    /// The root subvolume.
    pub root: PathBuf,
    pub mounts: Vec<Planned>,
    /// Mounted as if they were attached to a spark that runs.
    pub volumes: Vec<Planned>,
    /// The files of its secrets, if it has any.
    pub secrets: Option<Filling>,
    pub confinement: Confinement,
    pub first_id: u32,
    /// Seconds without a process after which PID 1 leaves. 0 is never.
    pub idle_stop: u32,
    /// Whether its memory has a limit.
    pub limited: bool,
    /// The bytes from which on it is slowed down.
    pub soft_memory: Option<u64>,
    /// The devices that it may use, by number.
    pub devices: Vec<LinuxDeviceCgroup>,
    /// Descriptors of locks. The helper has them, so that nobody else begins before it has ended; what waits inside for the
    /// start has not, or they would be held while a container is there that nobody starts.
    pub locks: Vec<RawFd>,
    /// None if it has the host's network, or none.
    pub wiring: Option<Box<dyn Wiring>>,
}

/// A link to the user namespace that libcontainer is to join, in the directory of what it is given.
const USER_NAMESPACE: &str = "user";

/// Has libcontainer join a user namespace that the starter makes: one that libcontainer made would belong to the host's root
/// (docs/adr/0023).
pub fn join_user_namespace(inner: &mut Spec, bundle: &Path) {
    let path = bundle.join(INNER).join(USER_NAMESPACE);
    let namespaces = inner.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten().filter(|ns| ns.typ() == LinuxNamespaceType::User) {
        namespace.set_path(Some(path.clone()));
    }
}

/// Longer than any start takes, on any host: nothing of the spark's runs before PID 1, so that what takes long is the host.
/// A start in which a process has been stopped is given up as soon as all else that runs inside.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for such a process.
const LOOK: Duration = Duration::from_secs(1);

/// A helper at work.
#[derive(Debug)]
pub struct Starting {
    helper: i32,
    report: OwnedFd,
    spark: String,
    /// If this process is killed, so is the helper, with all that libcontainer has made for it.
    _grip: Grip,
    bundle: PathBuf,
    cgroup: PathBuf,
}

/// Why the helper did not start the spark.
#[derive(serde::Serialize, serde::Deserialize)]
struct Report {
    why: String,
    hint: Option<String>,
    failed: Option<Box<(PathBuf, i32)>>,
    /// The reason is in the spark's own root filesystem.
    in_root: bool,
}

impl Report {
    fn of(e: &Error) -> Report {
        let (mut why, in_root) = match e {
            Error::Spark { why, .. } => (why.clone(), true),
            e => (super::youki::chain(e), false),
        };
        let shorten = |text: &mut String| text.truncate(text.floor_char_boundary(TEXT_MAX));
        shorten(&mut why);
        let failed = match e {
            Error::Io { path, source, .. } => source.raw_os_error().map(|errno| {
                let mut path = path.to_string_lossy().into_owned();
                shorten(&mut path);
                Box::new((path.into(), errno))
            }),
            _ => None,
        };
        Report { why, hint: e.hint(), failed, in_root }
    }

    fn unknown(why: String) -> Report {
        Report { why, hint: None, failed: None, in_root: false }
    }

    fn of_spark(self, spark: String) -> Error {
        let errno = self.failed.as_ref().map(|failed| failed.1);
        let code = match (self.in_root, errno) {
            (true, _) => Code::NotSupported,
            (false, Some(errno)) => Code::of(&std::io::Error::from_raw_os_error(errno)),
            (false, None) => Code::Internal,
        };
        Error::Spark { action: "start", spark, why: self.why, code, hint: self.hint, failed: self.failed }
    }
}

impl Starting {
    /// Waits until PID 1 runs.
    ///
    /// # Errors
    /// [`Error::Spark`] with libcontainer's words, or what in the spark's root is in the way. What is left of the container then is the caller's to remove.
    pub fn wait(self) -> Result<Live> {
        // Not until the pipe ends: what waits inside for its start has it too, and nobody starts that if the helper
        // was killed. A report fits into the pipe.
        let begun = Instant::now();
        let helper = sys::process::pidfd_open(self.helper).map_err(Error::sys("watch the helper"))?;
        let given_up = self.reason_to_give_up(&helper);
        let given_up = given_up.unwrap_or_else(|e| Some(e.to_string()));
        let given_up = given_up
            .map(|why| format!("the start was given up after {} seconds: {why}", begun.elapsed().as_secs()));
        if given_up.is_some() {
            // It would hold the spark's lock for good.
            sys::process::kill_child(self.helper).map_err(Error::sys("end the helper"))?;
        }
        let ended = sys::deadline::reap(self.helper, Deadline::after(KILLED));
        let ended = ended.map_err(Error::sys("wait for the helper"))?;
        let mut report = vec![0; REPORT_MAX];
        let length = rustix::io::read(&self.report, &mut report).unwrap_or(0);
        let report: Option<Report> = serde_json::from_slice(&report[..length]).ok();
        let status = ended.map(|e| e.status());
        let why = match (&given_up, status) {
            (Some(why), _) => why.clone(),
            (_, Some(0)) => match live::read(&self.bundle) {
                Some(live) => return Ok(live),
                None => "it ended at once".into(),
            },
            _ => format!("the helper ended with {status:?}"),
        };
        let report = report.filter(|_| given_up.is_none()).unwrap_or_else(|| Report::unknown(why));
        Err(report.of_spark(self.spark))
    }

    /// Waits until the helper has ended. If that takes too long, returns why.
    fn reason_to_give_up(&self, helper: &OwnedFd) -> std::io::Result<Option<String>> {
        let deadline = Deadline::after(PATIENCE);
        let mut time = INSIDE;
        while !sys::deadline::ended(helper, time)? {
            if self.is_stopped() {
                return Ok(Some("a process of it was stopped by a signal".into()));
            }
            if deadline.has_passed() {
                return Ok(Some("it takes too long".into()));
            }
            time = LOOK;
        }
        Ok(None)
    }

    /// Whether somebody has stopped the helper, or what it makes.
    fn is_stopped(&self) -> bool {
        let all = sys::process::group(self.helper).into_iter().chain(live::processes(&self.cgroup));
        { all }.any(sys::process::is_stopped)
    }
}

impl Launch {
    /// Starts it, in a forked helper, so that the caller can do other work until [`Starting::wait`].
    pub fn spawn(self) -> Result<Starting> {
        let (report, to) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK)
                .map_err(|e| Error::sys("make a pipe")(e.into()))?;
        let (spark, bundle, cgroup) =
            (self.spark.clone(), self.bundle.clone(), self.container.cgroup.clone());
        let (grip, line) = lifeline::pair().map_err(Error::sys("make a pipe"))?;
        let helper = sys::process::fork(move || {
            let started = leave_caller(line).and_then(|_line| {
                if let Some(wiring) = &self.wiring {
                    wiring.begin();
                }
                self.start()
            });
            let Err(e) = started else { return 0 };
            let text = serde_json::to_vec(&Report::of(&e)).unwrap_or_default();
            let _ = rustix::io::write(&to, &text);
            1
        })
        .map_err(Error::sys("start a helper"))?;
        Ok(Starting { helper, report, _grip: grip, spark, bundle, cgroup })
    }

    /// In the helper: everything that changes this process for good.
    fn start(mut self) -> Result<()> {
        sys::mount::unshare().map_err(no_mount_namespace)?;
        // Values are in their files, and no longer in this process, before there is one of the container's.
        let secrets =
            self.secrets.take().map(|filling| secrets::mount(filling, self.first_id)).transpose()?;
        // Open until libcontainer has joined.
        let mut maps = Maps::default();
        self.mount(&mut maps)?;
        self.link_user_namespace(&mut maps)?;
        // libcontainer binds sockets relative to directories and comes back here.
        std::env::set_current_dir("/").map_err(Error::sys("change to /"))?;
        let image = init::sealed().map_err(Error::sys("prepare PID 1"))?;
        let helper =
            sys::process::pidfd_open(std::process::id() as i32).map_err(Error::sys("watch the helper"))?;
        let (executed, executing) = report::channel().map_err(Error::sys("make a channel"))?;
        let executor = Init {
            image: Rc::new(image),
            helper: Rc::new(helper),
            executing: Rc::new(executing),
            confinement: self.confinement.clone(),
            idle_stop: std::ffi::CString::new(self.idle_stop.to_string()).unwrap_or_default(),
            locks: self.locks.clone(),
        };
        let failed = |e| self.container.failed("create", e);
        // For good: this process ends when the spark has started.
        let _joined = Cgroup::new(&self.container.cgroup).join_unmanaged()?;
        let mut container = ContainerBuilder::new(self.container.id.clone(), SyscallType::default())
            .with_root_path(&self.container.oci)
            .map_err(failed)?
            .with_executor(executor)
            .with_stdin(null()?)
            .with_stdout(null()?)
            .with_stderr(null()?)
            .validate_id()
            .map_err(failed)?
            .as_init(self.bundle.join(INNER))
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(|e| self.unprepared().unwrap_or_else(|| failed(e)))?;
        crate::fault::point("start.created")?;
        if self.limited {
            cgroup::complete_memory(&Cgroup::new(&self.container.cgroup), self.soft_memory)
                .map_err(|e| e.about(&self.container.id))?;
        }
        if let Some(group) = Cgroup::new(&self.container.cgroup).unified() {
            devices::keep(&group, &self.devices)?;
        }
        // A network namespace of its own begins with even that device down.
        let pid = container.pid().map(|p| p.as_raw()).unwrap_or_default();
        if let Some(wiring) = &self.wiring {
            wiring.outside(pid)?;
        }
        let is_own = sys::net::raise_loopback_of(pid).map_err(Error::sys("set up the loopback device"))?;
        if is_own {
            sys::netns::open_to_users();
        }
        if let Some(wiring) = &self.wiring {
            wiring.inside()?;
        }
        let init = ProcessId::of(pid).map_err(Error::sys("identify PID 1"))?;
        let live = Live { init, first_id: self.first_id };
        for volume in &self.volumes {
            attach::attach(&live, &self.root, volume)?;
        }
        if let Some(secrets) = secrets {
            secrets.attach(&live, &self.root, &self.bundle)?;
        }
        container.start().map_err(|e| self.container.failed("start", e))?;
        // It depends on this process until it is executed.
        let mut heard = report::Report::default();
        executed.receive(&mut heard, Deadline::inside()).map_err(Error::sys("hear of PID 1"))?;
        if let Some((_, e)) = heard.failed {
            return Err(self.container.failed("start", e));
        }
        crate::fault::point("start.started")?;
        live::write(&self.bundle, &live)
    }

    fn ids(&self) -> IdMap {
        IdMap::range(self.first_id, crate::domain::ids::IDS)
    }

    /// Links the namespace that the root is mapped through to where libcontainer looks for the spark's: they are one.
    fn link_user_namespace(&self, maps: &mut Maps) -> Result<()> {
        let path = self.bundle.join(INNER).join(USER_NAMESPACE);
        let open = format!("/proc/self/fd/{}", maps.namespace(self.ids())?.as_raw_fd());
        std::os::unix::fs::symlink(open, &path).map_err(Error::io("link", path))
    }

    /// What in the root keeps libcontainer from mounting something, if that can be seen: it says only that it could not.
    fn unprepared(&self) -> Option<Error> {
        let spec = Spec::load(self.bundle.join("libcontainer/config.json")).ok()?;
        let root = sys::file::open_dir(&self.root).ok()?;
        let places = spec.mounts().iter().flatten().map(|mount| mount.destination());
        places.into_iter().find_map(|at| self.in_the_way(place::obstacle(root.as_fd(), at, true, true)))
    }

    fn in_the_way(&self, obstacle: Option<(PathBuf, &'static str)>) -> Option<Error> {
        let (path, what) = obstacle?;
        Some(Error::in_root(&self.spark, &path, what, &self.root))
    }

    /// Mounts the root at the bundle's mount point, and everything else upon it. Nothing of the spark runs yet, and
    /// whatever its last run left at these places, nothing is opened and nothing leads out.
    fn mount(&self, maps: &mut Maps) -> Result<()> {
        let tree = sys::mount::clone_tree(&self.root).map_err(Error::io("mount", &self.root))?;
        // Where privileges are never gained, a set-uid program changes nothing.
        let no_set_uid = self.confinement.no_new_privileges();
        let limits = sys::mount::Limits { no_devices: true, no_set_uid, read_only: false };
        sys::mount::set_attributes(&tree, Some(maps.namespace(self.ids())?), limits)
            .map_err(|e| no_idmap(&self.root, e))?;
        let top = self.bundle.join("root");
        sys::mount::attach(&tree, &top).map_err(Error::io("mount", &top))?;

        // Places are made in the subvolume itself: through the mapped mount, the host's root is nobody.
        let bare = sys::file::open_dir(&self.root).map_err(Error::io("open", &self.root))?;
        let mapped = sys::file::open_dir(&top).map_err(Error::io("open", &top))?;
        for mount in &self.mounts {
            let failed = |e| {
                let obstacle = place::obstacle(bare.as_fd(), &mount.at, mount.is_dir, false);
                self.in_the_way(obstacle).unwrap_or_else(|| Error::io("mount something at", &mount.at)(e))
            };
            let tree = place::detached(mount, maps)?;
            let place = Place { bare: bare.as_fd(), mapped: mapped.as_fd(), first_id: self.first_id };
            let place = place.open(&mount.at, mount.is_dir, sys::beneath::open_place).map_err(failed)?;
            sys::mount::attach_upon(&tree, &place).map_err(failed)?;
        }
        Ok(())
    }
}

/// In the helper: lives no longer than the command that started it, and lets go of what it has from the caller. What
/// libcontainer makes inherits the rest.
fn leave_caller(line: Line) -> Result<OwnedFd> {
    let line = line.depend().map_err(Error::sys("depend on the command"))?;
    sys::inherited::leave_schedule(&InitLimits::read());
    // Only who asked for a log reads what is told of errors.
    let is_quiet = tracing::level_filters::LevelFilter::current() == tracing::level_filters::LevelFilter::OFF;
    sys::exec::leave_streams(is_quiet).map_err(Error::sys("let go of the standard streams"))?;
    Ok(line)
}

fn null() -> Result<OwnedFd> {
    let file =
        File::options().read(true).write(true).open("/dev/null").map_err(Error::io("open", "/dev/null"))?;
    Ok(file.into())
}

/// Where cgroup v1 is mounted, libcontainer forgets `ro` in a user namespace.
fn close_cgroups(spec: &Spec) -> std::io::Result<()> {
    let read_only = |m: &&oci_spec::runtime::Mount| m.options().iter().flatten().any(|o| o == "ro");
    for mount in
        spec.mounts().iter().flatten().filter(|m| m.typ().as_deref() == Some("cgroup")).filter(read_only)
    {
        sys::mount::set_read_only(mount.destination())?;
    }
    Ok(())
}

/// Becomes PID 1.
#[derive(Clone)]
struct Init {
    image: Rc<OwnedFd>,
    /// A pidfd of the process that makes the container.
    helper: Rc<OwnedFd>,
    /// Ends when PID 1 is executed.
    executing: Rc<Sender>,
    confinement: Confinement,
    idle_stop: std::ffi::CString,
    locks: Vec<RawFd>,
}

impl Executor for Init {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let confined = sys::lifeline::end_alone()
            // Whatever the caller ignores.
            .and_then(|()| sys::exec::reset_signals())
            .and_then(|()| close_cgroups(spec))
            .and_then(|()| self.confinement.lower_limits())
            .and_then(|()| self.confinement.before_drop())
            // libcontainer leaves it in the groups of who called `spark`.
            .and_then(|()| sys::exec::become_user(0, 0, &[]))
            .and_then(|()| self.confinement.drop_capabilities(0))
            .and_then(|()| self.confinement.after_drop());
        let e = match confined {
            Ok(()) => init::exec(self.image.as_fd(), &[c"spark-init", &self.idle_stop]),
            Err(e) => e,
        };
        self.executing.failed(1, &e);
        Err(ExecutorError::Other(e.to_string()))
    }

    /// Called in the container's process, before that waits for its start.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        sys::exec::let_go(&self.locks);
        // It leads a session of its own by now, and waits for a start that a killed helper does not give.
        sys::lifeline::end_with(&self.helper)
            .map_err(|e| ExecutorValidationError::ArgValidationError(format!("the helper is gone: {e}")))
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // PID 1 is given an empty environment when it is executed.
        Ok(())
    }
}
