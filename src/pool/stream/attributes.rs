//! The attributes of one command: type, length, value.

use super::{Refused, Time, Uuid};

/// `PATH_MAX` and `NAME_MAX` of Linux, which also bound what an extended attribute is called.
const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;

/// The attributes of version 1 that commands are made of, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    Uuid = 1,
    Ctransid = 2,
    Size = 4,
    Mode = 5,
    Uid = 6,
    Gid = 7,
    Rdev = 8,
    Ctime = 9,
    Mtime = 10,
    Atime = 11,
    XattrName = 13,
    XattrData = 14,
    Path = 15,
    PathTo = 16,
    PathLink = 17,
    FileOffset = 18,
    Data = 19,
    CloneUuid = 20,
    CloneCtransid = 21,
    ClonePath = 22,
    CloneOffset = 23,
    CloneLen = 24,
}

/// The values of a command by their numbers. The kernel adds some that nobody needs, such as inode numbers.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    values: [Option<&'a [u8]>; Attribute::CloneLen as usize + 1],
}

impl<'a> Attributes<'a> {
    /// Takes a command apart.
    pub(super) fn parse(mut rest: &'a [u8]) -> Result<Attributes<'a>, Refused> {
        let mut found = Attributes { values: Default::default() };
        while let Some((&[k0, k1, l0, l1], tail)) = rest.split_first_chunk() {
            let (kind, length) = (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([l0, l1]).into());
            let (value, tail) =
                tail.split_at_checked(length).ok_or("an attribute is longer than its command")?;
            match found.values.get_mut(usize::from(kind)) {
                Some(slot @ None) if kind != 0 => *slot = Some(value),
                Some(Some(_)) => return Err(format!("attribute {kind} stands twice").into()),
                _ => return Err(format!("attribute {kind} is not known").into()),
            }
            rest = tail;
        }
        if rest.is_empty() { Ok(found) } else { Err("a command ends within an attribute".into()) }
    }

    pub(super) fn bytes(&self, kind: Attribute) -> Result<&'a [u8], Refused> {
        self.values[kind as usize].ok_or_else(|| format!("{kind:?} is missing").into())
    }

    fn fixed<const N: usize>(&self, kind: Attribute) -> Result<[u8; N], Refused> {
        self.bytes(kind)?.try_into().map_err(|_| format!("{kind:?} has a wrong length").into())
    }

    pub(super) fn u64(&self, kind: Attribute) -> Result<u64, Refused> {
        self.fixed(kind).map(u64::from_le_bytes)
    }

    /// A number that is 32 bits wide everywhere but in the stream.
    pub(super) fn u32(&self, kind: Attribute) -> Result<u32, Refused> {
        self.u64(kind)?.try_into().map_err(|_| format!("{kind:?} is too large").into())
    }

    /// Where `length` bytes begin, in a file that can be that long.
    pub(super) fn range(&self, kind: Attribute, length: u64) -> Result<u64, Refused> {
        let begin = self.u64(kind)?;
        match begin.checked_add(length) {
            Some(end) if end <= i64::MAX as u64 => Ok(begin),
            _ => Err(format!("{kind:?} is too large").into()),
        }
    }

    pub(super) fn uuid(&self, kind: Attribute) -> Result<Uuid, Refused> {
        self.fixed(kind)
    }

    pub(super) fn time(&self, kind: Attribute) -> Result<Time, Refused> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, nanos @ ..] = self.fixed::<12>(kind)?;
        let nanos = u32::from_le_bytes(nanos);
        if nanos >= 1_000_000_000 {
            return Err(format!("{kind:?} has too many nanoseconds").into());
        }
        Ok((i64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), nanos))
    }

    /// A path below the top.
    pub(super) fn path(&self, kind: Attribute) -> Result<Vec<u8>, Refused> {
        let path = self.path_or_top(kind)?;
        if path.is_empty() { Err(format!("{kind:?} is empty").into()) } else { Ok(path) }
    }

    /// A path below the top, or the top itself: an empty one.
    pub(super) fn path_or_top(&self, kind: Attribute) -> Result<Vec<u8>, Refused> {
        let path = self.bytes(kind)?;
        if !is_path(path) {
            return Err(format!("{kind:?} `{}` leads elsewhere", excerpt(path)).into());
        }
        Ok(path.to_owned())
    }

    /// What a symbolic link points to.
    pub(super) fn target(&self, kind: Attribute) -> Result<Vec<u8>, Refused> {
        let target = self.bytes(kind)?;
        if is_link_target(target) {
            Ok(target.to_owned())
        } else {
            Err("a symbolic link points to no path".into())
        }
    }

    pub(super) fn xattr_name(&self, kind: Attribute) -> Result<Vec<u8>, Refused> {
        let name = self.bytes(kind)?;
        if is_attribute_name(name) {
            Ok(name.to_owned())
        } else {
            Err("an extended attribute has no proper name".into())
        }
    }
}

/// Whether a path leads down from the top, or is the top itself: an empty one.
pub(super) fn is_path(path: &[u8]) -> bool {
    let good =
        |part: &[u8]| !matches!(part, b"" | b"." | b"..") && part.len() <= NAME_MAX && !part.contains(&0);
    path.is_empty() || (path.len() < PATH_MAX && path.split(|b| *b == b'/').all(good))
}

/// Whether a symbolic link can point to a text.
pub(super) fn is_link_target(target: &[u8]) -> bool {
    (1..PATH_MAX).contains(&target.len()) && !target.contains(&0)
}

/// Whether an extended attribute can have a name.
pub(super) fn is_attribute_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.contains(&0)
}

/// The beginning of a text from a stranger, fit for a message.
fn excerpt(text: &[u8]) -> String {
    text[..text.len().min(80)].escape_ascii().to_string()
}
