//! The command line of this process, which every user of the host can read in `/proc/PID/cmdline`.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

unsafe extern "C" {
    /// Of glibc since 2.32: not 0 as long as the process has had one thread only.
    static __libc_single_threaded: c_char;
}

/// How many arguments main(3) has.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// The arguments of main(3).
static VECTOR: AtomicPtr<*mut c_char> = AtomicPtr::new(ptr::null_mut());

/// The C library passes the arguments of main(3) to what stands in this section, as it does to the standard library of Rust.
#[used]
#[unsafe(link_section = ".init_array")]
static REMEMBER: extern "C" fn(c_int, *mut *mut c_char) = remember;

extern "C" fn remember(count: c_int, vector: *mut *mut c_char) {
    COUNT.store(usize::try_from(count).unwrap_or(0), Ordering::Relaxed);
    VECTOR.store(vector, Ordering::Relaxed);
}

/// Erases the arguments of this process, once they are parsed: values of `-e`, commands, names of files. What stays is the
/// name of the program and `words`, as far as there is room for them; the standard library finds the same from then on.
///
/// Processes that are forked later have what this one has. It makes no system call. It does nothing in a process that has
/// had a second thread, which could be reading the arguments.
pub fn keep_only(words: &[impl AsRef<OsStr>]) {
    let (count, vector) = (COUNT.load(Ordering::Relaxed), VECTOR.load(Ordering::Relaxed));
    // SAFETY: only the C library writes to it, and not while there is one thread.
    if unsafe { __libc_single_threaded } == 0 || count == 0 || vector.is_null() {
        return;
    }
    // SAFETY: the C standard lets a program change the arguments of main(3) and the strings that they point to. The vector
    // ends with a null pointer. There is no other thread, and the standard library gives out copies only.
    unsafe { shorten(std::slice::from_raw_parts_mut(vector, count + 1), words) };
}

/// Shortens the arguments that a vector lists. The kernel has laid them out one after the other.
///
/// # Safety
/// All but the last are strings that end with a NUL, which nobody else uses; the last one is null.
unsafe fn shorten(vector: &mut [*mut c_char], words: &[impl AsRef<OsStr>]) {
    // SAFETY: what the caller promises.
    let room_of = |string: *mut c_char| unsafe { CStr::from_ptr(string) }.to_bytes_with_nul().len();
    let Some((&first, others)) = vector.split_first() else { return };
    if first.is_null() {
        return;
    }
    let name = room_of(first);
    let start = first.wrapping_add(name);
    let mut end = start;
    for &string in others.iter().take_while(|string| !string.is_null()) {
        let room = room_of(string);
        if string == end {
            end = end.wrapping_add(room);
        } else {
            // Somebody has moved it: it is erased where it is.
            // SAFETY: so long is the string.
            unsafe { ptr::write_bytes(string, 0, room) };
        }
    }
    let room = end as usize - start as usize;
    // SAFETY: from `start` to `end` there are strings of the vector and nothing else.
    unsafe { ptr::write_bytes(start, 0, room) };
    let (mut at, mut kept) = (0, 1);
    for word in words.iter().map(|word| word.as_ref().as_bytes()) {
        if at + word.len() + 1 > room || kept >= vector.len() - 1 {
            break;
        }
        // SAFETY: there is room for the word and its NUL, as was just asked.
        unsafe { ptr::copy_nonoverlapping(word.as_ptr().cast(), start.wrapping_add(at), word.len()) };
        vector[kept] = start.wrapping_add(at);
        (at, kept) = (at + word.len() + 1, kept + 1);
    }
    vector[kept..].fill(ptr::null_mut());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a block of arguments, and of the vector that points into it.
    fn shortened(arguments: &str, words: &[&str]) -> (String, Vec<String>) {
        let mut block: Vec<u8> = arguments.split(' ').flat_map(|a| [a.as_bytes(), b"\0"].concat()).collect();
        let base = block.as_mut_ptr();
        let mut vector = vec![base.cast::<c_char>()];
        let starts = block.iter().enumerate().filter(|(at, byte)| **byte == 0 && at + 1 < block.len());
        vector.extend(starts.map(|(at, _)| base.wrapping_add(at + 1).cast()));
        vector.push(ptr::null_mut());
        // SAFETY: the block was made as the kernel makes it, and is this test's alone.
        unsafe { shorten(&mut vector, words) };
        let left = vector.iter().take_while(|string| !string.is_null());
        // SAFETY: they point into the block, which ends with a NUL.
        let left = left.map(|string| unsafe { CStr::from_ptr(*string) }.to_string_lossy().into_owned());
        let left = left.collect();
        (String::from_utf8_lossy(&block).replace('\0', " "), left)
    }

    #[test]
    fn the_program_and_the_words_are_left_and_nothing_else() {
        let (block, vector) = shortened("spark -P shop exec web -e KEY=secret -- env", &["exec"]);
        assert_eq!(block, format!("spark exec {}", " ".repeat(33)));
        assert_eq!(vector, ["spark", "exec"]);
        assert_eq!(shortened("spark pool grow --x", &["pool", "grow"]).1, ["spark", "pool", "grow"]);
    }

    #[test]
    fn a_word_that_has_no_room_is_left_out() {
        assert_eq!(shortened("spark rm a", &["delete"]), ("spark      ".into(), vec!["spark".into()]));
        assert_eq!(shortened("spark", &["list"]), ("spark ".into(), vec!["spark".into()]));
    }

    #[test]
    fn the_arguments_of_this_process_are_remembered() {
        assert_eq!(COUNT.load(Ordering::Relaxed), std::env::args_os().count());
        assert!(!VECTOR.load(Ordering::Relaxed).is_null());
    }
}
