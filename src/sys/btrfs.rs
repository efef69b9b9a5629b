//! What btrfs does through ioctls of its own, and no library offers: a subvolume as a stream of commands, all names of a
//! file, and what is deleted and not freed yet.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::thread::JoinHandle;

use rustix::ioctl::{Setter, Updater, opcode};

/// The magic number of btrfs's ioctls.
const BTRFS: u8 = 0x94;

/// `struct btrfs_ioctl_send_args` of linux/btrfs.h.
#[repr(C)]
struct SendArgs {
    send_fd: i64,
    clone_sources_count: u64,
    clone_sources: *const u64,
    parent_root: u64,
    flags: u64,
    version: u32,
    reserved: [u8; 28],
}

/// `struct file_clone_range` of linux/fs.h.
#[repr(C)]
struct CloneRange {
    from: i64,
    from_offset: u64,
    length: u64,
    to_offset: u64,
}

const CLONE_RANGE: rustix::ioctl::Opcode = opcode::write::<CloneRange>(BTRFS, 13);
const SEND: rustix::ioctl::Opcode = opcode::write::<SendArgs>(BTRFS, 38);
const NO_FILE_DATA: u64 = 1;

/// Shares `length` bytes of one file with another on the same filesystem, each from an offset of its own. A length of
/// nothing would mean all that follows.
///
/// # Errors
/// `EINVAL` for a range that is not there, or not of whole blocks.
pub fn clone_range(from: (&File, u64), to: (&File, u64), length: u64) -> io::Result<()> {
    let args = CloneRange { from: from.0.as_raw_fd().into(), from_offset: from.1, length, to_offset: to.1 };
    // SAFETY: the opcode is that of FICLONERANGE, which reads `CloneRange` and writes nothing but to the file.
    Ok(unsafe { rustix::ioctl::ioctl(to.0, Setter::<CLONE_RANGE, CloneRange>::new(args)) }?)
}

/// What is to be sent besides the subvolume itself.
#[derive(Debug, Clone, Default)]
pub struct SendOptions {
    /// The root id of a subvolume that the reader has: only what differs from it is sent.
    pub parent: Option<u64>,
    /// Root ids of subvolumes whose data may be referred to instead of being sent. They have to be read-only.
    pub clone_sources: Vec<u64>,
    /// Says which ranges of files differ, and not what is in them.
    pub no_file_data: bool,
}

/// A subvolume being sent: reading gives the stream, version 1.
///
/// A read fails with the kernel's error where the stream broke off because of one. Dropping it ends the sending.
#[derive(Debug)]
pub struct Sending {
    pipe: Option<File>,
    kernel: Option<JoinHandle<io::Result<()>>>,
}

/// Sends a read-only subvolume, which `subvolume` is the open top of.
///
/// # Errors
/// When reading: `EPERM` if it, the parent or a clone source is writable, `ENOENT` if one of these is not there.
pub fn send(subvolume: OwnedFd, options: SendOptions) -> io::Result<Sending> {
    let (out, into) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // The kernel writes until it is done, so that somebody else has to read.
    let kernel =
        std::thread::Builder::new().name("send".into()).spawn(move || write(&subvolume, &into, &options))?;
    Ok(Sending { pipe: Some(out.into()), kernel: Some(kernel) })
}

fn write(subvolume: impl AsFd, into: impl AsFd, options: &SendOptions) -> io::Result<()> {
    let sources = &options.clone_sources;
    let args = SendArgs {
        send_fd: into.as_fd().as_raw_fd().into(),
        clone_sources_count: sources.len() as u64,
        clone_sources: if sources.is_empty() { ptr::null() } else { sources.as_ptr() },
        parent_root: options.parent.unwrap_or(0),
        flags: if options.no_file_data { NO_FILE_DATA } else { 0 },
        // Without BTRFS_SEND_FLAG_VERSION the kernel does not look at it, and sends version 1.
        version: 0,
        reserved: [0; 28],
    };
    // SAFETY: the opcode is that of BTRFS_IOC_SEND, which reads `SendArgs` and, from `clone_sources`, as many
    // numbers as it says; both live until the call returns. It writes nothing but to the pipe.
    Ok(unsafe { rustix::ioctl::ioctl(subvolume, Setter::<SEND, SendArgs>::new(args)) }?)
}

/// `struct btrfs_ioctl_vol_args` of linux/btrfs.h.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; 4088],
}

const RESIZE: rustix::ioctl::Opcode = opcode::write::<VolumeArgs>(BTRFS, 3);

/// Extends a btrfs to the whole of its device. If a balance is under way, the kernel does nothing and says so by a number
/// that is not an error: compare the size afterwards.
///
/// # Errors
/// `EROFS` if the btrfs is mounted read-only.
pub fn resize_to_device(mount: impl AsFd) -> io::Result<()> {
    let mut args = VolumeArgs { fd: 0, name: [0; 4088] };
    args.name[..3].copy_from_slice(b"max");
    // SAFETY: the opcode is that of BTRFS_IOC_RESIZE, which reads a `struct btrfs_ioctl_vol_args`; `args` has its layout
    // and ends in zeros, so that the text in it ends.
    Ok(unsafe { rustix::ioctl::ioctl(mount, Setter::<RESIZE, VolumeArgs>::new(args)) }?)
}

/// `struct btrfs_ioctl_ino_path_args` of linux/btrfs.h.
#[repr(C)]
struct InodePathsArgs {
    inode: u64,
    size: u64,
    reserved: [u64; 4],
    into: *mut Paths,
}

/// `struct btrfs_data_container`: places of texts, counted from `content` on, and behind them the texts. As large
/// as the kernel ever fills it.
#[repr(C)]
struct Paths {
    bytes_left: u32,
    bytes_missing: u32,
    count: u32,
    missed: u32,
    content: [u64; (4096 - 16) / 8],
}

const INODE_PATHS: rustix::ioctl::Opcode = opcode::read_write::<InodePathsArgs>(BTRFS, 35);

/// The paths of a file in the subvolume that `subvolume` is in: all its names, unless they are longer than 4 KiB
/// together.
pub fn paths_of(subvolume: impl AsFd, inode: u64) -> io::Result<Vec<Vec<u8>>> {
    let mut paths =
        Paths { bytes_left: 0, bytes_missing: 0, count: 0, missed: 0, content: [0; (4096 - 16) / 8] };
    let mut args =
        InodePathsArgs { inode, size: size_of::<Paths>() as u64, reserved: [0; 4], into: &raw mut paths };
    // SAFETY: the opcode is that of BTRFS_IOC_INO_PATHS, which takes `InodePathsArgs` and writes at most `size` bytes
    // where `into` points to; `paths` has that size, is made of integers only, and lives until the call returns.
    unsafe { rustix::ioctl::ioctl(subvolume, Updater::<INODE_PATHS, InodePathsArgs>::new(&mut args)) }?;
    let bytes: Vec<u8> = paths.content.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = |at: &u64| {
        let rest = bytes.get(usize::try_from(*at).ok()?..)?;
        rest.split(|b| *b == 0).next().map(<[u8]>::to_vec)
    };
    Ok(paths.content.iter().take(paths.count as usize).filter_map(text).collect())
}

/// `struct btrfs_ioctl_search_args` of linux/btrfs.h: a `struct btrfs_ioctl_search_key`, and room for what is found.
#[repr(C)]
struct Search {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    kinds: [u32; 2],
    /// How many items to find, and then how many were found.
    count: u32,
    unused: [u32; 9],
    found: [u64; 499],
}

const SEARCH: rustix::ioctl::Opcode = opcode::read_write::<Search>(BTRFS, 17);
const ROOT_TREE: u64 = 1;
/// The object that what is to be freed is noted under.
const ORPHANS: u64 = -5_i64 as u64;
const ORPHAN: u32 = 48;
/// Words of a `struct btrfs_ioctl_search_header`, the third of which is the item's offset. An orphan has nothing more.
const HEADER: usize = 4;

/// The subvolumes that are deleted and not freed yet, by their numbers, of the filesystem that `dir` is in.
pub fn unfreed_subvolumes(dir: impl AsFd) -> io::Result<Vec<u64>> {
    let (mut from, mut all) = (0, Vec::new());
    loop {
        let mut args = Search {
            tree: ROOT_TREE,
            objects: [ORPHANS; 2],
            offsets: [from, u64::MAX],
            transactions: [0, u64::MAX],
            kinds: [ORPHAN; 2],
            count: u32::MAX,
            unused: [0; 9],
            found: [0; 499],
        };
        // SAFETY: the opcode is that of BTRFS_IOC_TREE_SEARCH, which reads and writes the 4,096 bytes of `Search`. That is
        // made of integers only, and lives until the call returns.
        unsafe { rustix::ioctl::ioctl(&dir, Updater::<SEARCH, Search>::new(&mut args)) }?;
        all.extend(args.found.chunks(HEADER).take(args.count as usize).filter_map(|header| header.get(2)));
        match all.last() {
            Some(last) if args.count > 0 && *last < u64::MAX => from = last + 1,
            _ => return Ok(all),
        }
    }
}

/// `struct fiemap` of linux/fiemap.h, with room for some extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// `struct fiemap_extent`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const EXTENTS: usize = 64;
/// The opcode is made with the size of a `struct fiemap` without extents.
const FIEMAP: rustix::ioctl::Opcode = opcode::read_write::<[u8; 32]>(b'f', 11);
const EXTENT_LAST: u32 = 0x1;
/// In metadata, and told to be a block, whose and however long it is.
const EXTENT_INLINE: u32 = 0x200;
const EXTENT_SHARED: u32 = 0x2000;

/// Bytes of a file's extents that no other file refers to, in whichever subvolume. What is in metadata is none.
pub fn unshared_bytes(file: impl AsFd) -> io::Result<u64> {
    let (mut start, mut own) = (0, 0);
    loop {
        let mut map = Fiemap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            room: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: the opcode is that of FS_IOC_FIEMAP, which reads `Fiemap` and writes at most `room` extents behind
        // it; it is made of integers only, and lives until the call returns.
        unsafe { rustix::ioctl::ioctl(&file, Updater::<FIEMAP, Fiemap>::new(&mut map)) }?;
        let found = &map.extents[..(map.mapped as usize).min(EXTENTS)];
        own += found
            .iter()
            .filter(|e| e.flags & (EXTENT_SHARED | EXTENT_INLINE) == 0)
            .map(|e| e.length)
            .sum::<u64>();
        match found.last() {
            Some(last) if last.flags & EXTENT_LAST == 0 => start = last.logical + last.length,
            _ => return Ok(own),
        }
    }
}

impl Read for Sending {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(pipe) = &mut self.pipe else { return Ok(0) };
        match pipe.read(buffer)? {
            0 if !buffer.is_empty() => self.end().map(|()| 0),
            n => Ok(n),
        }
    }
}

impl Sending {
    fn end(&mut self) -> io::Result<()> {
        // First of all, or the kernel would wait for a reader.
        self.pipe = None;
        match self.kernel.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the sending thread panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::Search;

    #[test]
    fn the_arguments_of_a_search_have_the_layout_of_the_kernel() {
        assert_eq!(size_of::<Search>(), 4096);
        assert_eq!(std::mem::offset_of!(Search, count), 64);
        assert_eq!(std::mem::offset_of!(Search, found), 104);
    }
}
