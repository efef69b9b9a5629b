//! The bound of a spark's logs: two files, of which the newer one replaces the older one when it is full.
//!
//! The keeper of logs, which has no libc, is compiled with this file too. The files have an offset in common, counted in bytes
//! since the log began: `start` is that of the newer file's first byte, and the older file ends there.

/// Most bytes of each of the two files: less than 32 MiB together.
pub const MOST: u64 = 15 << 20;

/// Most bytes that are read and written at once.
pub const CHUNK: usize = 64 << 10;

/// Digits of `start`, as it is in its file.
pub const DIGITS: usize = 20;

/// The files, as whoever has locked them writes them.
pub trait Files {
    /// Returns the length of the newer file.
    fn length(&mut self) -> u64;
    /// Reads from the newer file into the buffer. Returns how many bytes: 0 at the end, and where that fails.
    fn read(&mut self, at: u64) -> usize;
    /// Writes so many bytes of the buffer to the older file. False where that fails.
    fn write_older(&mut self, at: u64, bytes: usize) -> bool;
    /// Empties the older file.
    fn empty_older(&mut self);
    /// Empties the newer file.
    fn empty(&mut self);
    /// Moves `start`.
    fn advance(&mut self, by: u64);
}

/// Makes room for so many bytes in the newer file, if there is none: its content, or the last of it that is within the bound,
/// takes the place of the older file's. Whoever is killed in between leaves bytes twice, and the next one begins anew.
pub fn make_room(files: &mut impl Files, bytes: u64) {
    let length = files.length();
    if length.saturating_add(bytes) <= MOST {
        return;
    }
    files.empty_older();
    let first = length.saturating_sub(MOST);
    let mut at = first;
    while at < length {
        let n = files.read(at);
        if n == 0 || !files.write_older(at - first, n) {
            // No room on the disk: the bound counts, and bytes at a wrong offset are worse than none.
            files.empty_older();
            break;
        }
        at += n as u64;
    }
    files.empty();
    files.advance(length);
}

/// Reads `start`. Whatever is no number is 0.
pub fn parse(digits: &[u8; DIGITS]) -> u64 {
    let mut sum = 0u64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return 0;
        }
        sum = sum.wrapping_mul(10).wrapping_add(digit as u64);
    }
    sum
}

/// Writes `start`: always as many digits, so that no write is shorter than the one before.
pub fn format(mut number: u64) -> [u8; DIGITS] {
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    digits
}
