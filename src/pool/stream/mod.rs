//! Send streams, read strictly: `btrfs send` version 1, as the kernel's fs/btrfs/send.h has it.
//!
//! A stream may come from a stranger. Nothing in it is believed: every command has its checksum, its length is
//! bounded, and no path leads anywhere but down.

use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};

mod attributes;
pub mod record;
#[cfg(test)]
mod tests;

use attributes::{Attribute, Attributes};

const MAGIC: &[u8; 13] = b"btrfs-stream\0";
const VERSION: u32 = 1;
/// The kernel makes every command of version 1 in a buffer of this size.
const MAX_COMMAND: usize = 64 << 10;
/// Length, command, checksum.
const HEADER: usize = 10;

/// A subvolume's UUID.
pub type Uuid = [u8; 16];

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// One step on the way from the parent's files, or from none, to those of the subvolume.
///
/// Paths are relative to the subvolume's top, and never have an empty part, `.` or `..`. Only where modes, owners,
/// times and attributes are set may one be empty: that is the top itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Always the first, if it was sent whole: the name and identity of what was sent.
    Subvol {
        path: Vec<u8>,
        uuid: Uuid,
        ctransid: u64,
    },
    /// Always the first, if only what differs from another one was sent.
    Snapshot {
        path: Vec<u8>,
        uuid: Uuid,
        ctransid: u64,
        clone_uuid: Uuid,
        clone_ctransid: u64,
    },
    /// An empty file.
    MkFile {
        path: Vec<u8>,
    },
    MkDir {
        path: Vec<u8>,
    },
    /// A device. `mode` has its type, and `rdev` its number as the kernel's `new_encode_dev` writes it.
    MkNod {
        path: Vec<u8>,
        mode: u32,
        rdev: u64,
    },
    MkFifo {
        path: Vec<u8>,
    },
    MkSock {
        path: Vec<u8>,
    },
    /// `link` is any text: what a link points to is nobody's promise.
    Symlink {
        path: Vec<u8>,
        link: Vec<u8>,
    },
    Rename {
        path: Vec<u8>,
        to: Vec<u8>,
    },
    /// A further name, `path`, of what `link` names.
    Link {
        path: Vec<u8>,
        link: Vec<u8>,
    },
    Unlink {
        path: Vec<u8>,
    },
    RmDir {
        path: Vec<u8>,
    },
    SetXattr {
        path: Vec<u8>,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    RemoveXattr {
        path: Vec<u8>,
        name: Vec<u8>,
    },
    Write {
        path: Vec<u8>,
        offset: u64,
        data: Vec<u8>,
    },
    /// Shares a range of a file of another subvolume, or of this one.
    Clone {
        path: Vec<u8>,
        offset: u64,
        len: u64,
        clone_uuid: Uuid,
        clone_ctransid: u64,
        clone_path: Vec<u8>,
        clone_offset: u64,
    },
    Truncate {
        path: Vec<u8>,
        size: u64,
    },
    /// The permission bits, set-id and sticky ones included.
    Chmod {
        path: Vec<u8>,
        mode: u32,
    },
    Chown {
        path: Vec<u8>,
        uid: u32,
        gid: u32,
    },
    Utimes {
        path: Vec<u8>,
        atime: Time,
        mtime: Time,
        ctime: Time,
    },
    /// Takes the place of `Write` in a stream without data.
    UpdateExtent {
        path: Vec<u8>,
        offset: u64,
        size: u64,
    },
    /// Always the last.
    End,
}

/// Reads the commands of one stream. What follows the stream is left unread.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes read so far.
    at: u64,
    buffer: Vec<u8>,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Begun,
    Inside,
    Ended,
}

impl<R: Read> Reader<R> {
    /// Begins a stream, by reading its header.
    ///
    /// # Errors
    /// `corrupt` if it is no send stream, `not_supported` if it is one of another version.
    pub fn new(input: R) -> Result<Reader<R>> {
        let mut reader = Reader { input, at: 0, buffer: Vec::new(), state: State::Begun };
        let mut magic = [0; MAGIC.len()];
        reader.fill(&mut magic)?;
        if magic != *MAGIC {
            return Err(corrupt(0, "it is not a send stream of btrfs"));
        }
        let mut version = [0; 4];
        reader.fill(&mut version)?;
        match u32::from_le_bytes(version) {
            VERSION => Ok(reader),
            other => Err(Error::NotSupported {
                what: format!("the send stream has version {other}, and this spark knows {VERSION}"),
                hint: Some("make it with `btrfs send --proto 1`".into()),
            }),
        }
    }

    /// The next command; `None` after [`Command::End`].
    ///
    /// # Errors
    /// `corrupt`, with the place in the stream, for whatever is not as it should be, its early end included.
    // No iterator: after an error there is nothing to go on with.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Command>> {
        if self.state == State::Ended {
            return Ok(None);
        }
        let at = self.at;
        let number = self.load()?;
        let attributes = Attributes::parse(&self.buffer).map_err(|why| corrupt(at, why))?;
        let command = command(number, &attributes).map_err(|why| corrupt(at, why))?;
        let begins = matches!(command, Command::Subvol { .. } | Command::Snapshot { .. });
        if begins != (self.state == State::Begun) {
            return Err(corrupt(at, "a subvolume has to be named once, and first"));
        }
        self.state = if command == Command::End { State::Ended } else { State::Inside };
        Ok(Some(command))
    }

    /// Reads one command into the buffer, and returns its number.
    fn load(&mut self) -> Result<u16> {
        let at = self.at;
        let mut header = [0; HEADER];
        self.fill(&mut header)?;
        let [l0, l1, l2, l3, c0, c1, sum @ ..] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_COMMAND {
            return Err(corrupt(at, format!("a command of {length} bytes is too long")));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(length, 0);
        let filled = self.fill(&mut buffer);
        self.buffer = buffer;
        filled?;
        header[6..].fill(0);
        if checksum(&[&header, &self.buffer]) != u32::from_le_bytes(sum) {
            return Err(corrupt(at, "the checksum of a command is wrong"));
        }
        Ok(u16::from_le_bytes([c0, c1]))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        match self.input.read_exact(buffer) {
            Ok(()) => {
                self.at += buffer.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(corrupt(self.at, "it ends too early")),
            Err(e) => Err(Error::sys("read a send stream")(e)),
        }
    }
}

fn corrupt(at: u64, why: impl std::fmt::Display) -> Error {
    Error::corrupt(Path::new("the send stream"), format!("{why} (byte {at})"))
}

/// CRC-32C as the kernel's `crc32c(0, …)` computes it: nothing inverted before or after.
fn checksum(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(!0, |sum, part| crc32c::crc32c_append(sum, part))
}

/// Why a command is refused.
type Refused = std::borrow::Cow<'static, str>;

/// A command of its number and attributes.
fn command(number: u16, a: &Attributes<'_>) -> Result<Command, Refused> {
    use Attribute as A;
    Ok(match number {
        1 => {
            Command::Subvol { path: a.path(A::Path)?, uuid: a.uuid(A::Uuid)?, ctransid: a.u64(A::Ctransid)? }
        }
        2 => Command::Snapshot {
            path: a.path(A::Path)?,
            uuid: a.uuid(A::Uuid)?,
            ctransid: a.u64(A::Ctransid)?,
            clone_uuid: a.uuid(A::CloneUuid)?,
            clone_ctransid: a.u64(A::CloneCtransid)?,
        },
        3 => Command::MkFile { path: a.path(A::Path)? },
        4 => Command::MkDir { path: a.path(A::Path)? },
        5 => Command::MkNod { path: a.path(A::Path)?, mode: a.u32(A::Mode)?, rdev: a.u64(A::Rdev)? },
        6 => Command::MkFifo { path: a.path(A::Path)? },
        7 => Command::MkSock { path: a.path(A::Path)? },
        8 => Command::Symlink { path: a.path(A::Path)?, link: a.target(A::PathLink)? },
        9 => Command::Rename { path: a.path(A::Path)?, to: a.path(A::PathTo)? },
        10 => Command::Link { path: a.path(A::Path)?, link: a.path(A::PathLink)? },
        11 => Command::Unlink { path: a.path(A::Path)? },
        12 => Command::RmDir { path: a.path(A::Path)? },
        13 => Command::SetXattr {
            path: a.path_or_top(A::Path)?,
            name: a.xattr_name(A::XattrName)?,
            value: a.bytes(A::XattrData)?.to_owned(),
        },
        14 => Command::RemoveXattr { path: a.path_or_top(A::Path)?, name: a.xattr_name(A::XattrName)? },
        15 => {
            let data = a.bytes(A::Data)?.to_owned();
            let offset = a.range(A::FileOffset, data.len() as u64)?;
            Command::Write { path: a.path(A::Path)?, offset, data }
        }
        16 => {
            let len = a.u64(A::CloneLen)?;
            Command::Clone {
                path: a.path(A::Path)?,
                offset: a.range(A::FileOffset, len)?,
                len,
                clone_uuid: a.uuid(A::CloneUuid)?,
                clone_ctransid: a.u64(A::CloneCtransid)?,
                clone_path: a.path(A::ClonePath)?,
                clone_offset: a.range(A::CloneOffset, len)?,
            }
        }
        17 => Command::Truncate { path: a.path(A::Path)?, size: a.range(A::Size, 0)? },
        18 => Command::Chmod { path: a.path_or_top(A::Path)?, mode: a.u32(A::Mode)? & 0o7777 },
        19 => Command::Chown { path: a.path_or_top(A::Path)?, uid: a.u32(A::Uid)?, gid: a.u32(A::Gid)? },
        20 => Command::Utimes {
            path: a.path_or_top(A::Path)?,
            atime: a.time(A::Atime)?,
            mtime: a.time(A::Mtime)?,
            ctime: a.time(A::Ctime)?,
        },
        21 => Command::End,
        22 => {
            let size = a.u64(A::Size)?;
            Command::UpdateExtent { path: a.path(A::Path)?, offset: a.range(A::FileOffset, size)?, size }
        }
        other => return Err(format!("command {other} is not known").into()),
    })
}
