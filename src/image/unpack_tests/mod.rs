//! What archives are built with here; the tests are by what they are about.

mod format;
mod hostile;
mod layer;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tar::{EntryType, Header};

use super::*;

/// A root to unpack into, with something beside it that must never change.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/canary"), "alive").unwrap();
        fs::create_dir(dir.path().join("outside/dir")).unwrap();
        fs::write(dir.path().join("outside/dir/canary"), "alive").unwrap();
        Place { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn outside(&self) -> String {
        self.dir.path().join("outside").to_str().unwrap().to_owned()
    }

    fn unpack(&self, archive: &[u8]) -> Result<Summary> {
        self.unpack_limited(archive, Limits::default())
    }

    fn unpack_limited(&self, archive: &[u8], limits: Limits) -> Result<Summary> {
        let options =
            Options { what: "test.tar", limits, program: Path::new(""), progress: &|_| {}, stop: None };
        let result = unpack(io::Cursor::new(archive.to_vec()), &self.root(), &options);
        self.nothing_outside_changed();
        result
    }

    fn refuses(&self, archive: &[u8], why: &str) {
        let e = self.unpack(archive).unwrap_err();
        assert!(matches!(e, Error::Image { .. }), "{e:?}");
        assert!(e.to_string().contains(why), "`{e}` does not say `{why}`");
    }

    fn nothing_outside_changed(&self) {
        for (dir, count) in [("outside", 2), ("outside/dir", 1)] {
            let dir = self.dir.path().join(dir);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), count);
            let canary = dir.join("canary");
            assert_eq!(fs::read_to_string(&canary).unwrap(), "alive");
            assert_eq!(fs::metadata(&canary).unwrap().nlink(), 1);
        }
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }
}

/// Builds archives that no honest tool would.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
        let mut h = Header::new_gnu();
        h.as_old_mut().name[..name.len()].copy_from_slice(name);
        h.set_entry_type(kind);
        h.set_mode(0o644);
        h.set_uid(rustix::process::geteuid().as_raw().into());
        h.set_gid(rustix::process::getegid().as_raw().into());
        h.set_mtime(1_000_000_000);
        h.set_size(size);
        h
    }

    fn add(mut self, mut header: Header, data: &[u8]) -> Tar {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Tar {
        self.add(Tar::header(name.as_bytes(), EntryType::Regular, content.len() as u64), content.as_bytes())
    }

    fn dir(self, name: &str, mode: u32) -> Tar {
        let mut h = Tar::header(name.as_bytes(), EntryType::Directory, 0);
        h.set_mode(mode);
        self.add(h, b"")
    }

    fn link(self, name: &str, kind: EntryType, target: &str) -> Tar {
        let mut h = Tar::header(name.as_bytes(), kind, 0);
        h.set_link_name_literal(target).unwrap();
        self.add(h, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Tar {
        self.link(name, EntryType::Symlink, target)
    }

    fn hard(self, name: &str, target: &str) -> Tar {
        self.link(name, EntryType::Link, target)
    }

    fn pax(self, records: &[(&[u8], &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length =
                (1..).map(|digits| body + digits).find(|l| l.to_string().len() + body == *l).unwrap();
            data.extend_from_slice(length.to_string().as_bytes());
            data.push(b' ');
            data.extend_from_slice(key);
            data.push(b'=');
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.add(Tar::header(b"pax", EntryType::XHeader, data.len() as u64), &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn tar() -> Tar {
    Tar::default()
}
