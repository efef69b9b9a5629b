//! What every process of ours does to itself before it runs anything of a spark's: PID 1 and exec alike.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::{Capabilities, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process, Spec};
use rustix::process::{Resource, Rlimit};

use super::labels;
use crate::error::{Error, Result};
use crate::sys;

/// The limits of a spark's processes: capabilities, system call filter, no-new-privileges.
///
/// libcontainer would install these itself for PID 1, but not for exec, and its filter is wrong (see
/// `bundle::seccomp`). So it is given a spec without them, and both ways go through here.
#[derive(Debug, Clone)]
pub struct Confinement {
    capabilities: LinuxCapabilities,
    no_new_privs: bool,
    /// None where the bundle asks for no filter.
    filter: Option<Filter>,
    /// Who gets the descriptor on which system calls are heard that the filter leaves to another process.
    listener: Option<Rc<OwnedFd>>,
    /// What each process may have of the host at most.
    limits: Rc<[(Resource, Rlimit)]>,
    /// Whether a user other than root keeps what the lists say, to make it ambient. A spark's never does.
    as_listed: bool,
    /// The AppArmor profile that the bundle names.
    profile: Option<String>,
}

/// A system call filter that is ready to be loaded.
#[derive(Debug, Clone)]
pub struct Filter {
    code: Rc<[u8]>,
    /// Those of seccomp(2).
    flags: u64,
}

impl Filter {
    pub fn new(code: Vec<u8>, flags: u64) -> Filter {
        Filter { code: code.into(), flags }
    }

    /// Whether another process is to decide on some system calls.
    pub fn notifies(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }
}

impl Confinement {
    /// Whether no program inside ever gains privileges by being executed.
    pub fn no_new_privileges(&self) -> bool {
        self.no_new_privs
    }

    /// Reads the limits from the process of a spark's bundle. `files` is how many a process may have open if the bundle does
    /// not say: it stands in no bundle, since a runtime without CAP_SYS_RESOURCE could not set it.
    pub fn of(process: &Process, filter: Vec<u8>, files: u64) -> Result<Confinement> {
        let mut capabilities =
            process.capabilities().clone().ok_or_else(|| missing("process.capabilities"))?;
        // Where oci-spec finds no list it fills in a default of its own; none is what no list means to us.
        capabilities.set_inheritable(Some(Capabilities::new()));
        capabilities.set_ambient(Some(Capabilities::new()));
        Ok(Confinement {
            capabilities,
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            filter: Some(Filter::new(filter, 0)),
            listener: None,
            limits: limits_of(process, files),
            as_listed: false,
            profile: labels::profile_of(process)?,
        })
    }

    /// The limits exactly as a process of a strict bundle states them: a list that is not there is empty, and so are
    /// all of them where there are no lists.
    ///
    /// # Errors
    /// `not_supported` if the process names a label that this host cannot apply.
    pub fn strict(process: &Process, filter: Option<Filter>) -> Result<Confinement> {
        let given = process.capabilities().clone();
        let mut capabilities = LinuxCapabilities::default();
        let list = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            Some(given.as_ref().and_then(|g| get(g).clone()).unwrap_or_default())
        };
        capabilities
            .set_bounding(list(LinuxCapabilities::bounding))
            .set_effective(list(LinuxCapabilities::effective))
            .set_permitted(list(LinuxCapabilities::permitted))
            .set_inheritable(list(LinuxCapabilities::inheritable))
            .set_ambient(list(LinuxCapabilities::ambient));
        Ok(Confinement {
            capabilities,
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            filter,
            listener: None,
            // The specification has them set, and not only lowered.
            limits: Rc::default(),
            as_listed: true,
            profile: labels::profile_of(process)?,
        })
    }

    /// The same, passing on the descriptor of a filter that another process is to listen to.
    pub fn heard_by(&self, listener: OwnedFd) -> Confinement {
        Confinement { listener: Some(listener.into()), ..self.clone() }
    }

    /// Whether its filter leaves system calls to another process.
    pub fn notifies(&self) -> bool {
        self.filter.as_ref().is_some_and(Filter::notifies)
    }

    fn load_filter(&self) -> std::io::Result<()> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let heard = sys::exec::load_filter(&filter.code, filter.flags)?;
        match (heard, &self.listener) {
            (Some(fd), Some(listener)) => sys::net::send_descriptor(listener, b"seccomp", fd),
            _ => Ok(()),
        }
    }

    /// Has a process that joins get the AppArmor profile that the first process has from libcontainer. Call it before
    /// joining the namespaces: it writes to the host's `/proc`.
    pub fn enter_profile(&self) -> std::io::Result<()> {
        self.profile.as_deref().map_or(Ok(()), labels::enter_profile)
    }

    /// Installs the filter where that needs a privilege which `drop` gives up. Call it right after entering the
    /// user namespace.
    pub fn before_drop(&self) -> std::io::Result<()> {
        if self.no_new_privs { Ok(()) } else { self.load_filter() }
    }

    /// Lowers this process's resource limits to those of the spark. What the caller has less of stays.
    pub fn lower_limits(&self) -> std::io::Result<()> {
        for (which, most) in self.limits.iter() {
            let own = rustix::process::getrlimit(*which);
            let lower = |own: Option<u64>, most: Option<u64>| {
                own.map_or(most, |own| Some(most.map_or(own, |most| own.min(most))))
            };
            let maximum = lower(own.maximum, most.maximum);
            let current = lower(lower(own.current, most.current), maximum);
            rustix::process::setrlimit(*which, Rlimit { current, maximum })?;
        }
        Ok(())
    }

    /// Gives up every capability that the spec does not list, and for another user than root all of them.
    pub fn drop_capabilities(&self, uid: u32) -> std::io::Result<()> {
        if self.no_new_privs {
            sys::exec::set_no_new_privs()?;
        }
        let mut wanted = self.capabilities.clone();
        if uid != 0 && !self.as_listed {
            wanted.set_effective(Some(Capabilities::new()));
            wanted.set_permitted(Some(Capabilities::new()));
        }
        let syscall = create_syscall();
        libcontainer::capabilities::reset_effective(syscall.as_ref()).map_err(std::io::Error::other)?;
        libcontainer::capabilities::drop_privileges(&wanted, syscall.as_ref()).map_err(std::io::Error::other)
    }

    /// Installs the filter where that needs no privilege: as late as possible.
    pub fn after_drop(&self) -> std::io::Result<()> {
        if self.no_new_privs { self.load_filter() } else { Ok(()) }
    }
}

/// The limits of a bundle, and a default for open files where it has none.
fn limits_of(process: &Process, files: u64) -> Rc<[(Resource, Rlimit)]> {
    let own = process.rlimits().iter().flatten().map(resource_limit);
    let default = Rlimit { current: Some(files), maximum: Some(files) };
    let mut limits: Vec<_> = own.collect();
    if limits.iter().all(|(which, _)| *which != Resource::Nofile) {
        limits.push((Resource::Nofile, default));
    }
    limits.into()
}

/// A limit of a specification, as the kernel has it.
pub(super) fn resource_limit(limit: &PosixRlimit) -> (Resource, Rlimit) {
    use PosixRlimitType as T;
    let which = match limit.typ() {
        T::RlimitCpu => Resource::Cpu,
        T::RlimitFsize => Resource::Fsize,
        T::RlimitData => Resource::Data,
        T::RlimitStack => Resource::Stack,
        T::RlimitCore => Resource::Core,
        T::RlimitRss => Resource::Rss,
        T::RlimitNproc => Resource::Nproc,
        T::RlimitNofile => Resource::Nofile,
        T::RlimitMemlock => Resource::Memlock,
        T::RlimitAs => Resource::As,
        T::RlimitLocks => Resource::Locks,
        T::RlimitSigpending => Resource::Sigpending,
        T::RlimitMsgqueue => Resource::Msgqueue,
        T::RlimitNice => Resource::Nice,
        T::RlimitRtprio => Resource::Rtprio,
        T::RlimitRttime => Resource::Rttime,
    };
    let value = |n: u64| (n != u64::MAX).then_some(n);
    (which, Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) })
}

/// What libcontainer is told about the home directory, so that it does not look for one: it would ask the C library,
/// and that would read the spark's `nsswitch.conf` and load the spark's own modules as the host's root.
pub const HOME: &str = "HOME=/";

/// The spec for libcontainer: without what our executors do themselves.
pub fn without(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    if let Some(process) = spec.process_mut() {
        process.set_capabilities(None);
        process.set_no_new_privileges(None);
        process.set_rlimits(None);
        // PID 1 is executed without an environment.
        process.set_env(Some(vec![HOME.into()]));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(None);
    }
    spec
}

fn missing(what: &str) -> Error {
    Error::NotSupported { what: format!("the bundle has no `{what}`"), hint: None }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::PosixRlimitBuilder;

    use super::*;

    #[test]
    fn a_process_has_the_limits_of_its_bundle_and_a_default_of_open_files() {
        let files = |limits: &[(Resource, Rlimit)]| {
            let files = limits.iter().filter(|(which, _)| *which == Resource::Nofile);
            files.map(|(_, limit)| (limit.current, limit.maximum)).collect::<Vec<_>>()
        };
        let mut process = Process::default();
        process.set_rlimits(None);
        assert_eq!(files(&limits_of(&process, 7)), [(Some(7), Some(7))]);
        let limit =
            |typ, soft: u64| PosixRlimitBuilder::default().typ(typ).soft(soft).hard(9u64).build().unwrap();
        process.set_rlimits(Some(vec![limit(PosixRlimitType::RlimitCore, 1)]));
        assert_eq!(files(&limits_of(&process, 7)), [(Some(7), Some(7))]);
        process.set_rlimits(Some(vec![limit(PosixRlimitType::RlimitNofile, 5)]));
        assert_eq!(files(&limits_of(&process, 7)), [(Some(5), Some(9))]);
    }
}
