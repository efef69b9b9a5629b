//! How input gets to the processes that read it.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// What comes out of a pipe that `feed` fills from a source. It is read only after the pipe is full, or all is in it.
fn fed(source: impl Source + 'static) -> Vec<u8> {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let other = writer.try_clone().unwrap();
    let feeder = std::thread::spawn(move || feed(source, writer.into()));
    let is_full = || {
        let mut fds = [PollFd::new(&other, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 0
    };
    while !feeder.is_finished() && !is_full() {
        std::thread::yield_now();
    }
    drop(other);
    let mut out = Vec::new();
    File::from(reader).read_to_end(&mut out).unwrap();
    feeder.join().unwrap().unwrap();
    out
}

fn bytes() -> Vec<u8> {
    (0..600_001_u32).map(|n| (n % 251) as u8).collect()
}

#[test]
fn all_of_a_source_arrives_whether_the_kernel_moves_it_or_it_is_copied() {
    let bytes = bytes();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    // A file is read from where its reader stands.
    io::Seek::seek(&mut file, io::SeekFrom::Start(7)).unwrap();
    let start = io::Cursor::new(b"start".to_vec());
    let expected = [b"start", &bytes[7..]].concat();
    assert!(fed(Begun { start, rest: file }) == expected);
    assert!(fed(io::Cursor::new(bytes.clone())) == bytes);
    // splice(2) says EINVAL for the memory of a process.
    let copied = Unmovable(io::Cursor::new(bytes.clone()), File::open("/proc/self/mem").unwrap());
    assert!(fed(copied) == bytes);
}

#[test]
fn a_source_that_never_waits_is_read_to_its_end_too() {
    let bytes = bytes();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).unwrap();
    File::from(writer).write_all(&bytes).unwrap();
    assert!(fed(File::from(reader)) == bytes);
}

/// A source of which the kernel can move nothing.
struct Unmovable(io::Cursor<Vec<u8>>, File);

impl Read for Unmovable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Source for Unmovable {
    fn moves_from(&self) -> Option<BorrowedFd<'_>> {
        Some(self.1.as_fd())
    }
}
