//! Loop devices: the file behind one, its size, and whether it gives space back.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::ioctl::{NoArg, Opcode, Updater};

/// `struct loop_info64` of linux/loop.h.
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
        let mut info = Info {
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

    /// Makes the kernel refuse discards on the device, until it is detached.
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
    }
}
