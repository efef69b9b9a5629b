//! The block devices that a btrfs is on.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::ioctl::{Updater, opcode};

/// A block device, by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// `struct btrfs_ioctl_fs_info_args` of linux/btrfs.h, as far as it is of interest.
#[repr(C)]
struct FsInfo {
    max_id: u64,
    devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

const FS_INFO: rustix::ioctl::Opcode = opcode::read::<FsInfo>(0x94, 31);

/// The directory of sysfs about the btrfs that a file is on.
pub fn sysfs(file: impl AsFd) -> io::Result<PathBuf> {
    let mut info = FsInfo { max_id: 0, devices: 0, fsid: [0; 16], rest: [0; 992] };
    // SAFETY: the opcode is that of BTRFS_IOC_FS_INFO, which writes a `struct btrfs_ioctl_fs_info_args` of 1,024 bytes;
    // `info` has that size, is made of integers only, and lives until the call returns.
    unsafe { rustix::ioctl::ioctl(file, Updater::<FS_INFO, FsInfo>::new(&mut info)) }?;
    let hex = info.fsid.map(|byte| format!("{byte:02x}")).concat();
    let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    Ok(Path::new("/sys/fs/btrfs").join(uuid))
}

/// The disks that the btrfs of a directory is on. Of a partition, the whole disk: that is what can be slowed.
pub fn disks(dir: &Path) -> io::Result<Vec<Device>> {
    let mut disks = Vec::new();
    for entry in std::fs::read_dir(sysfs(super::file::open_dir(dir)?)?.join("devices"))? {
        let mut device = std::fs::canonicalize(entry?.path())?;
        if device.join("partition").exists() {
            device.pop();
        }
        let disk = numbers(&std::fs::read_to_string(device.join("dev"))?)?;
        if !disks.contains(&disk) {
            disks.push(disk);
        }
    }
    Ok(disks)
}

fn numbers(text: &str) -> io::Result<Device> {
    let parse = |(major, minor): (&str, &str)| {
        Some(Device { major: major.parse().ok()?, minor: minor.trim().parse().ok()? })
    };
    text.split_once(':').and_then(parse).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_two_numbers() {
        assert_eq!(numbers("7:12\n").unwrap(), Device { major: 7, minor: 12 });
        assert_eq!(numbers("7:12\n").unwrap().to_string(), "7:12");
        assert!(numbers("7").is_err() && numbers(":").is_err());
    }
}
