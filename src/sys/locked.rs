//! Memory for what must not be written anywhere: not swapped, in no core dump, zeroed before it is given back.

use std::io::{self, Read};
use std::ptr::NonNull;

use zeroize::Zeroize;

/// A value that nothing prints, and that is gone from memory when it is dropped.
pub type Secret = secrecy::SecretBox<Locked>;

/// What mappings are multiples of, on any machine that this runs on.
const PAGE: usize = 64 << 10;

/// Bytes in pages of their own. Its size is fixed when it is made, so that growing leaves no copies behind.
pub struct Locked {
    at: NonNull<u8>,
    mapped: usize,
    length: usize,
}

impl Locked {
    /// Room for so many bytes, none of them used.
    ///
    /// Pages are locked where that is allowed: a root without `CAP_IPC_LOCK` may lock only some, and gets the value all
    /// the same.
    pub fn with_room(room: usize) -> io::Result<Locked> {
        let mapped = room.max(1).next_multiple_of(PAGE);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), mapped, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let locked = Locked { at, mapped, length: 0 };
        // SAFETY: both calls are about the mapping made above, which `locked` owns.
        unsafe {
            let _ = libc::mlock(at.as_ptr().cast(), mapped);
            if libc::madvise(at.as_ptr().cast(), mapped, libc::MADV_DONTDUMP) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(locked)
    }

    /// A copy of bytes. Where they came from is the caller's to zero.
    pub fn of(parts: &[&[u8]]) -> io::Result<Locked> {
        let mut locked = Locked::with_room(parts.iter().map(|part| part.len()).sum())?;
        for part in parts {
            locked.append(part)?;
        }
        Ok(locked)
    }

    /// All that a reader has, if that is no more than `most` bytes.
    ///
    /// # Errors
    /// `FileTooLarge` if it has more.
    pub fn read(mut from: impl Read, most: usize) -> io::Result<Locked> {
        let mut locked = Locked::with_room(most + 1)?;
        loop {
            match from.read(locked.rest()) {
                Ok(0) if locked.length <= most => return Ok(locked),
                Ok(0) => return Err(io::ErrorKind::FileTooLarge.into()),
                Ok(n) => locked.grow(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// `FileTooLarge` where there is no room for them.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let rest = self.rest();
        if bytes.len() > rest.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        rest[..bytes.len()].copy_from_slice(bytes);
        self.grow(bytes.len());
        Ok(())
    }

    /// The room that is not used yet.
    pub fn rest(&mut self) -> &mut [u8] {
        let length = self.length;
        &mut self.all()[length..]
    }

    /// Says that so many bytes of [`rest`](Self::rest) are used now.
    pub fn grow(&mut self, by: usize) {
        self.length = (self.length + by).min(self.mapped);
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, lives as long as `self`, and `length` never passes its end.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.length) }
    }

    fn all(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is writable, lives as long as `self`, and is borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.mapped) }
    }

    /// As a secret that only `expose_secret` shows.
    pub fn into_secret(self) -> Secret {
        Secret::new(Box::new(self))
    }
}

impl Zeroize for Locked {
    fn zeroize(&mut self) {
        self.all().zeroize();
        self.length = 0;
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.zeroize();
        // SAFETY: the mapping is owned by `self`, and nothing borrows it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.mapped) };
    }
}

impl std::fmt::Debug for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    /// The flags of the mapping that an address is in.
    fn flags(at: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let range = |line: &str| {
            let (from, to) = line.split(' ').next()?.split_once('-')?;
            let hex = |text| usize::from_str_radix(text, 16).ok();
            Some(hex(from)?..hex(to)?)
        };
        let mut inside = false;
        for line in maps.lines() {
            match range(line) {
                Some(range) => inside = range.contains(&at),
                None if inside && line.starts_with("VmFlags:") => return line.to_owned(),
                None => {}
            }
        }
        panic!("no mapping at {at:x}");
    }

    #[test]
    fn a_value_is_locked_in_no_dump_and_printed_by_nothing() {
        let locked = Locked::of(&[b"hunter", b"2"]).unwrap();
        let flags = flags(locked.bytes().as_ptr() as usize);
        assert!(flags.contains(" dd"), "{flags}");
        assert!(flags.contains(" lo"), "{flags}");
        let secret = locked.into_secret();
        assert!(!format!("{secret:?}").contains("hunter"));
        assert_eq!(secret.expose_secret().bytes(), b"hunter2");
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        assert_eq!(Locked::read(&[7; 100][..], 100).unwrap().bytes().len(), 100);
        let e = Locked::read(&[7; 101][..], 100).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::FileTooLarge);
        assert!(Locked::with_room(1).unwrap().append(&[0; 100_000]).is_err());
    }

    #[test]
    fn zeroing_leaves_nothing() {
        let mut locked = Locked::of(&[b"hunter2"]).unwrap();
        locked.zeroize();
        assert!(locked.bytes().is_empty() && locked.all().iter().all(|b| *b == 0));
    }
}
