//! Disks in memory, each a file of a small FUSE filesystem: one that notes every write and every flush, and such as a
//! power cut leaves them.
//!
//! A loop device on such a file passes each write on before it reports it as done: the kernel caches no writes for a
//! FUSE file unless it is asked to. A flush, which is also how a block device without FUA is told to make a single
//! write durable, comes as an fsync. So what this filesystem sees, in that order, is what a disk would see.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};

/// What a disk writes as a whole or not at all.
pub(crate) const BLOCK: usize = 4096;

type Block = Arc<[u8; BLOCK]>;

/// What a disk holds. Copies share their blocks.
#[derive(Clone)]
pub(crate) struct Content(Vec<Option<Block>>);

impl Content {
    pub(crate) fn of_size(bytes: usize) -> Content {
        Content(vec![None; bytes / BLOCK])
    }

    fn bytes(&self) -> u64 {
        (self.0.len() * BLOCK) as u64
    }

    fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let end = self.bytes().min(offset + size as u64);
        let mut read = Vec::with_capacity(size);
        let mut at = offset;
        while at < end {
            let (block, within) = ((at / BLOCK as u64) as usize, (at % BLOCK as u64) as usize);
            let length = (BLOCK - within).min((end - at) as usize);
            match &self.0[block] {
                Some(data) => read.extend_from_slice(&data[within..within + length]),
                None => read.resize(read.len() + length, 0),
            }
            at += length as u64;
        }
        read
    }

    /// The blocks that a write makes.
    fn blocks(&self, offset: u64, data: &[u8]) -> Vec<(usize, Block)> {
        let first = offset as usize / BLOCK;
        let last = (offset as usize + data.len()).div_ceil(BLOCK);
        let mut bytes = self.read((first * BLOCK) as u64, (last - first) * BLOCK);
        let within = offset as usize % BLOCK;
        bytes[within..within + data.len()].copy_from_slice(data);
        let block = |bytes: &[u8]| Arc::new(<[u8; BLOCK]>::try_from(bytes).unwrap());
        bytes.chunks(BLOCK).enumerate().map(|(n, bytes)| (first + n, block(bytes))).collect()
    }

    fn put(&mut self, blocks: &[(usize, Block)]) {
        for (number, block) in blocks {
            self.0[*number] = Some(block.clone());
        }
    }

    /// Writes it into a file, with holes where nothing was ever written.
    pub(crate) fn save(&self, path: &Path) {
        let file = std::fs::File::create(path).unwrap();
        file.set_len(self.bytes()).unwrap();
        for (number, block) in self.0.iter().enumerate() {
            if let Some(block) = block {
                file.write_all_at(&block[..], (number * BLOCK) as u64).unwrap();
            }
        }
    }
}

/// What happened to a disk.
pub(crate) enum Event {
    Write(Vec<(usize, Block)>),
    /// What was written before is durable from here on.
    Flush,
}

impl Event {
    /// Whether this writes the superblock, with which btrfs ends a commit or an fsync.
    pub(crate) fn is_superblock(&self) -> bool {
        matches!(self, Event::Write(blocks) if blocks.iter().any(|(number, _)| *number == 16))
    }
}

/// A disk on the way to its power cuts: what is durable, and what was written since the last flush.
pub(crate) struct Replay {
    durable: Content,
    unflushed: Vec<(usize, Block)>,
}

impl Replay {
    pub(crate) fn from(start: Content) -> Replay {
        Replay { durable: start, unflushed: Vec::new() }
    }

    pub(crate) fn pass(&mut self, event: &Event) {
        match event {
            Event::Write(blocks) => self.unflushed.extend_from_slice(blocks),
            Event::Flush => {
                self.durable.put(&self.unflushed);
                self.unflushed.clear();
            }
        }
    }

    /// What a power cut leaves here, if of the blocks that were not flushed those are kept that `keeps` says.
    pub(crate) fn cut(&self, mut keeps: impl FnMut() -> bool) -> Content {
        let mut left = self.durable.clone();
        for block in &self.unflushed {
            if keeps() {
                left.put(std::slice::from_ref(block));
            }
        }
        left
    }
}

struct Disk {
    content: Content,
    events: Option<Vec<Event>>,
}

type State = Arc<Mutex<BTreeMap<u64, Disk>>>;

/// The filesystem of disks.
pub(crate) struct Disks {
    state: State,
    // Unmounted before its directory is removed.
    _session: BackgroundSession,
    dir: tempfile::TempDir,
}

impl Disks {
    pub(crate) fn new() -> Disks {
        let dir = tempfile::Builder::new().prefix("sparks-test-").tempdir().unwrap();
        let state = State::default();
        let session = fuser::spawn_mount(Files(state.clone()), dir.path(), &Config::default()).unwrap();
        Disks { state, _session: session, dir }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Disk>> {
        self.state.lock().unwrap()
    }

    /// Plugs a disk in. `records`: what happens to it is noted.
    pub(crate) fn plug(&self, content: Content, records: bool) -> (u64, PathBuf) {
        let mut disks = self.lock();
        // Never the number of an earlier disk, whose content the kernel may still have in its cache.
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(2);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        disks.insert(number, Disk { content, events: records.then(Vec::new) });
        (number, self.dir.path().join(number.to_string()))
    }

    /// Takes a disk out: what it holds, and what happened to it.
    pub(crate) fn unplug(&self, number: u64) -> (Content, Vec<Event>) {
        let disk = self.lock().remove(&number).unwrap();
        (disk.content, disk.events.unwrap_or_default())
    }

    /// How much has happened to a disk.
    pub(crate) fn position(&self, number: u64) -> usize {
        self.lock()[&number].events.as_ref().map_or(0, Vec::len)
    }

    pub(crate) fn content(&self, number: u64) -> Content {
        self.lock()[&number].content.clone()
    }
}

/// Mounts a disk as `spark` mounts a pool. The error is what mount(8) says.
pub(crate) fn mount(disk: &Path, at: &Path) -> Result<(), String> {
    let mut mount = Command::new("mount");
    // Discards would be refused: they are not what is tried here.
    mount.args(["-t", "btrfs", "-o", "loop,noatime,nodiscard"]).args([disk, at]);
    let output = mount.output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Unmounts it for good: the loop device is gone too.
pub(crate) fn unmount(at: &Path) {
    let unmounted = || rustix::mount::unmount(at, rustix::mount::UnmountFlags::NOFOLLOW).is_ok();
    assert!(crate::common::wait_for(unmounted), "{} is busy", at.display());
}

/// What FUSE asks of a directory with files in it that all are there from the beginning.
struct Files(State);

const FOR_LONG: Duration = Duration::from_secs(3600);

fn attributes(inode: u64, size: Option<u64>) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode),
        size: size.unwrap_or(0),
        blocks: size.unwrap_or(0) / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if size.is_some() { FileType::RegularFile } else { FileType::Directory },
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK as u32,
        flags: 0,
    }
}

impl Files {
    fn attributes(&self, inode: u64) -> Option<FileAttr> {
        match inode {
            1 => Some(attributes(1, None)),
            _ => self.0.lock().unwrap().get(&inode).map(|disk| attributes(inode, Some(disk.content.bytes()))),
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str().and_then(|name| name.parse().ok()).and_then(|inode| self.attributes(inode)) {
            Some(found) => reply.entry(&FOR_LONG, &found, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode.0) {
            Some(found) => reply.attr(&FOR_LONG, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.lock().unwrap().get(&inode.0) {
            Some(disk) => reply.data(&disk.content.read(offset, size as usize)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        assert!(!flags.contains(WriteFlags::FUSE_WRITE_CACHE), "the kernel caches writes");
        let mut disks = self.0.lock().unwrap();
        let Some(disk) = disks.get_mut(&inode.0) else { return reply.error(Errno::ENOENT) };
        let blocks = disk.content.blocks(offset, data);
        disk.content.put(&blocks);
        if let Some(events) = &mut disk.events {
            events.push(Event::Write(blocks));
        }
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut disks = self.0.lock().unwrap();
        if let Some(events) = disks.get_mut(&inode.0).and_then(|disk| disk.events.as_mut()) {
            events.push(Event::Flush);
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
