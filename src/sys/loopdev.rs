//! Loop devices: the file behind one, its size, and whether it gives space back.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, NoArg, Opcode, Setter, Updater};

/// `struct loop_info64` of linux/loop.h.
#[derive(Clone)]
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Info {
    const EMPTY: Info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// `LO_FLAGS_AUTOCLEAR` of linux/loop.h.
const AUTOCLEAR: u32 = 4;
/// `LOOP_CONFIGURE` of linux/loop.h.
const CONFIGURE: Opcode = 0x4C0A;
/// `LOOP_CTL_ADD` and `LOOP_CTL_REMOVE` of linux/loop.h.
const ADD: Opcode = 0x4C80;
const REMOVE: Opcode = 0x4C81;
/// The first number of devices of our own, and how many there are.
const FIRST: usize = 10_000;
const MOST: usize = 1_000;
/// `LOOP_GET_STATUS64` of linux/loop.h.
const GET_STATUS: Opcode = 0x4C05;
/// `LOOP_SET_CAPACITY` of linux/loop.h.
const SET_CAPACITY: Opcode = 0x4C07;

/// An attached loop device.
#[derive(Debug)]
pub struct LoopDevice {
    name: String,
}

impl LoopDevice {
    /// Attaches a file to a new device. It is detached when nobody has the device mounted or open any more, so the caller
    /// keeps the descriptor until it is mounted.
    ///
    /// The device is none of those that other programs get. What is set on a device stays there for its next file.
    ///
    /// # Errors
    /// `NotFound` without loop devices or a /dev that the kernel fills.
    pub fn attach(path: &Path) -> io::Result<(LoopDevice, File)> {
        let backing = File::options().read(true).write(true).open(path)?;
        let control = File::open("/dev/loop-control")?;
        // Else another one may remove the device before it is attached.
        rustix::fs::flock(&control, FlockOperation::LockExclusive)?;
        for number in FIRST..FIRST + MOST {
            // SAFETY: the opcode is that of LOOP_CTL_REMOVE, which takes a number.
            match unsafe { rustix::ioctl::ioctl(&control, IntegerSetter::<REMOVE>::new_usize(number)) } {
                Ok(()) | Err(Errno::NODEV) => {}
                Err(Errno::BUSY) => continue,
                Err(e) => return Err(e.into()),
            }
            // SAFETY: the opcode is that of LOOP_CTL_ADD, which takes a number.
            match unsafe { rustix::ioctl::ioctl(&control, IntegerSetter::<ADD>::new_usize(number)) } {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(e.into()),
            }
            let device = LoopDevice { name: format!("loop{number}") };
            let open = File::options().read(true).write(true).open(device.path())?;
            let info = Info { flags: AUTOCLEAR, ..Info::EMPTY };
            let config = Config { file: backing.as_raw_fd() as u32, block_size: 0, info, reserved: [0; 8] };
            // SAFETY: the opcode is that of LOOP_CONFIGURE, which reads a `struct loop_config`; `config` has its layout.
            unsafe { rustix::ioctl::ioctl(&open, Setter::<CONFIGURE, Config>::new(config)) }?;
            return Ok((device, open));
        }
        Err(Errno::BUSY.into())
    }

    /// Returns the loop device that a mounted btrfs is on. `None` if the btrfs is on something else.
    pub fn under(mount: &Path) -> io::Result<Option<LoopDevice>> {
        let devices = super::block::sysfs(super::file::open_dir(mount)?)?.join("devices");
        for entry in std::fs::read_dir(devices)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("loop") {
                return Ok(Some(LoopDevice { name }));
            }
        }
        Ok(None)
    }

    /// Returns the path of the device node.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Returns whether the device's data is in this file.
    pub fn is_backed_by(&self, device: u64, inode: u64) -> io::Result<bool> {
        let mut info = Info::EMPTY;
        // SAFETY: the opcode is that of LOOP_GET_STATUS64, which writes a `struct loop_info64`; `info` has its layout, is
        // made of integers only, and lives until the call returns.
        unsafe { rustix::ioctl::ioctl(self.open()?, Updater::<GET_STATUS, Info>::new(&mut info)) }?;
        Ok((info.device, info.inode) == (device, inode))
    }

    /// Gives the device the size that its file has now.
    pub fn take_size_of_file(&self) -> io::Result<()> {
        // SAFETY: the opcode is that of LOOP_SET_CAPACITY, which takes no argument.
        Ok(unsafe { rustix::ioctl::ioctl(self.open()?, NoArg::<SET_CAPACITY>::new()) }?)
    }

    /// Returns whether a discard on the device would free space of the file.
    pub fn discards(&self) -> io::Result<bool> {
        Ok(std::fs::read_to_string(self.discard_limit())?.trim() != "0")
    }

    /// Makes the kernel refuse discards on the device. Some kernels never allow them again, also for the next file of the
    /// device: see [`LoopDevice::attach`].
    pub fn refuse_discards(&self) -> io::Result<()> {
        std::fs::write(self.discard_limit(), "0")
    }

    fn discard_limit(&self) -> PathBuf {
        Path::new("/sys/block").join(&self.name).join("queue/discard_max_bytes")
    }

    /// Opens the device for questions. Not for writing: while it is mounted, a kernel may refuse that.
    fn open(&self) -> io::Result<File> {
        File::open(self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_the_kernel_has_the_size_that_it_writes() {
        assert_eq!(size_of::<Info>(), 232);
        assert_eq!(size_of::<Config>(), 304);
    }
}
