//! Which files a process may reach: Landlock, see landlock(7).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};
use rustix::fs::{Mode, OFlags};

/// The newest version that is asked for. A kernel that knows an older one enforces what that one has.
const NEWEST: ABI = ABI::V9;

/// What may be done with a file, or with everything in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Read, and execute.
    Run,
    /// Read, write, make, rename and remove. Not execute.
    Write,
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Access::Read => read,
            Access::Run => read | AccessFs::Execute,
            // No device is made by anybody, and none is asked for anything but bytes.
            Access::Write => {
                let special =
                    AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::IoctlDev;
                (read | AccessFs::from_write(NEWEST)) & !special & !AccessFs::ResolveUnix
            }
        }
    }
}

/// The files that a process may reach, and no others. It can neither connect to nor listen on TCP ports, nor reach
/// abstract sockets and processes of others, where the kernel's version of Landlock can tell.
#[derive(Debug)]
pub struct Files(RulesetCreated);

impl Files {
    /// No file at all.
    ///
    /// # Errors
    /// Those of landlock_create_ruleset(2). It is no error if the kernel has no Landlock.
    pub fn none() -> io::Result<Files> {
        let rules = || -> Result<RulesetCreated, landlock::RulesetError> {
            Ruleset::default()
                .set_compatibility(CompatLevel::BestEffort)
                .handle_access(AccessFs::from_all(NEWEST))?
                .handle_access(AccessNet::from_all(NEWEST))?
                .scope(Scope::from_all(NEWEST))?
                .create()
        };
        rules().map(Files).map_err(io::Error::other)
    }

    /// No file, and of the network only port 53 of TCP to connect to: for the process that answers questions for names. Where
    /// it may send datagrams is not restricted here, since its askers have ports of all numbers.
    ///
    /// # Errors
    /// As those of [`Files::none`].
    pub fn of_resolver() -> io::Result<Files> {
        let rules = || -> Result<RulesetCreated, landlock::RulesetError> {
            Ruleset::default()
                .set_compatibility(CompatLevel::BestEffort)
                .handle_access(AccessFs::from_all(NEWEST))?
                .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
                .scope(Scope::from_all(NEWEST))?
                .create()?
                .add_rule(NetPort::new(53, AccessNet::ConnectTcp))
        };
        rules().map(Files).map_err(io::Error::other)
    }

    /// Adds a file, or a directory with all that is in it. A path that does not exist is no error, since there is nothing
    /// to reach.
    ///
    /// # Errors
    /// Those of open(2) and landlock_add_rule(2).
    pub fn add(self, path: &Path, access: Access) -> io::Result<Files> {
        let fd = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(self),
            Err(e) => return Err(e.into()),
        };
        let rule = PathBeneath::new(fd, access.rights());
        self.0.add_rule(rule).map(Files).map_err(io::Error::other)
    }

    /// Makes it ready for [`super::Confinement`]: `None` if the kernel has no Landlock.
    pub fn ready(self) -> Option<OwnedFd> {
        self.0.into()
    }
}

/// Puts rules into force for this thread, for good.
pub(super) fn restrict(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: landlock_restrict_self(2) takes plain numbers.
    let r = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The version of Landlock that this kernel has; `None` if it has none, or if it was not enabled at boot.
pub fn landlock_version() -> Option<u32> {
    const VERSION: u32 = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: with this flag landlock_create_ruleset(2) takes no structure, and returns a number.
    let r = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    u32::try_from(r).ok().filter(|version| *version > 0)
}
