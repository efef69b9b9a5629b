//! Reading the trees of a btrfs: the extents of a subvolume, and what quotas count.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Updater, opcode};

use super::tally;

/// What to look for: items of one type of key, in a tree.
#[derive(Debug, Clone, Copy)]
struct Search {
    /// 0 is the subvolume that the file is in.
    tree: u64,
    kind: u32,
    /// Only in blocks that were written by this transaction or a later one.
    since: u64,
}

/// The key of an item, without its type.
#[derive(Debug, Clone, Copy)]
struct Key {
    object: u64,
    offset: u64,
}

const ROOM: usize = 64 << 10;

/// `struct btrfs_ioctl_search_args_v2` of linux/btrfs.h, with room for some items.
#[repr(C)]
struct SearchArgs {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transaction: u64,
    max_transaction: u64,
    min_kind: u32,
    max_kind: u32,
    items: u32,
    unused: [u32; 9],
    room: u64,
    found: [u8; ROOM],
}

/// The opcode is made with the size of the arguments without items.
const SEARCH_V2: rustix::ioctl::Opcode = opcode::read_write::<[u8; 112]>(0x94, 17);

/// Bytes of `struct btrfs_ioctl_search_header`.
const HEADER: usize = 32;

const EXTENT_DATA: u32 = 108;

/// Bytes on disk of the extents that a subvolume refers to, of those made after a transaction: each counted whole, and
/// once. What is in the metadata, small files among it, is not counted.
///
/// It takes as long as there is metadata that was written since. `file` is the top of the subvolume.
pub fn bytes_since(file: impl AsFd, transaction: u64) -> io::Result<u64> {
    let counted = tally::count(1, &mut |_, found| extents_since(&file, transaction, found))?;
    Ok(counted.iter().map(|bytes| bytes.own).sum())
}

/// Calls `found` with the place on disk and the length of each of these extents, once for each reference to it.
pub fn extents_since(file: impl AsFd, transaction: u64, mut found: impl FnMut(u64, u64)) -> io::Result<()> {
    let search = Search { tree: 0, kind: EXTENT_DATA, since: transaction + 1 };
    each(file, search, |_, item| {
        // `struct btrfs_file_extent_item`: generation, …, type at 20, address at 21, length at 29.
        let number = |at: usize| Some(u64::from_le_bytes(item.get(at..at + 8)?.try_into().ok()?));
        let inline = item.get(20) == Some(&0);
        if let (Some(made), false, Some(at @ 1..), Some(length)) = (number(0), inline, number(21), number(29))
            && made > transaction
        {
            found(at, length);
        }
    })
}

const QUOTA_TREE: u64 = 8;
const GROUP_INFO: u32 = 242;

/// The groups of quotas, and how many bytes each counts. `file` is anything of the filesystem.
pub fn quota_groups(file: impl AsFd) -> io::Result<Vec<(u64, u64)>> {
    let mut groups = Vec::new();
    let search = Search { tree: QUOTA_TREE, kind: GROUP_INFO, since: 0 };
    each(file, search, |key, item| {
        // `struct btrfs_qgroup_info_item`: generation, referenced, …
        if let Some(Ok(bytes)) = item.get(8..16).map(TryInto::try_into) {
            groups.push((key.offset, u64::from_le_bytes(bytes)));
        }
    })?;
    Ok(groups)
}

const GROUP_RELATION: u32 = 246;

/// What is in a group of quotas.
pub fn quota_members(file: impl AsFd, group: u64) -> io::Result<Vec<u64>> {
    let mut members = Vec::new();
    let search = Search { tree: QUOTA_TREE, kind: GROUP_RELATION, since: 0 };
    // Each relation is there twice, once in each direction.
    each(file, search, |key, _| {
        if key.object == group && key.offset < group {
            members.push(key.offset);
        }
    })?;
    Ok(members)
}

/// Calls `found` with each item.
fn each(file: impl AsFd, search: Search, mut found: impl FnMut(Key, &[u8])) -> io::Result<()> {
    let mut args = Box::new(SearchArgs {
        tree: search.tree,
        min_object: 0,
        max_object: u64::MAX,
        min_offset: 0,
        max_offset: u64::MAX,
        min_transaction: search.since,
        max_transaction: u64::MAX,
        min_kind: search.kind,
        max_kind: search.kind,
        items: 0,
        unused: [0; 9],
        room: ROOM as u64,
        found: [0; ROOM],
    });
    loop {
        args.items = u32::MAX;
        args.room = ROOM as u64;
        // SAFETY: the opcode is that of BTRFS_IOC_TREE_SEARCH_V2, which takes the search key and a size, and writes at most
        // `room` bytes behind them, where `found` has as many; all of it is integers and lives until the call returns.
        unsafe { rustix::ioctl::ioctl(&file, Updater::<SEARCH_V2, SearchArgs>::new(&mut *args)) }?;
        let mut last = None;
        let mut at = 0;
        for _ in 0..args.items {
            let Some(header) = args.found.get(at..at + HEADER) else { break };
            let number = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().unwrap_or_default());
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap_or_default());
            let (key, kind) = (Key { object: number(8), offset: number(16) }, word(24));
            let end = at + HEADER + word(28) as usize;
            let Some(item) = args.found.get(at + HEADER..end) else { break };
            // Between the keys of two items that are looked for, there are others.
            if kind == search.kind {
                found(key, item);
            }
            last = Some((key, kind));
            at = end;
        }
        // A key is object, type and offset, in this order: the next one is behind the last.
        match last {
            None => return Ok(()),
            Some((key, kind)) if key.offset < u64::MAX => {
                (args.min_object, args.min_kind, args.min_offset) = (key.object, kind, key.offset + 1);
            }
            Some((key, _)) if key.object < u64::MAX => {
                (args.min_object, args.min_kind, args.min_offset) = (key.object + 1, search.kind, 0);
            }
            Some(_) => return Ok(()),
        }
    }
}
