//! A root filesystem made of one static busybox, in well under a second and without a network.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::files::{self, Made, Meta, Problem, Root, io};
use crate::error::{Error, Result};

const HINT: &str = "install it: `apt-get install busybox-static`";
/// Larger than any busybox.
const LARGEST: u64 = 64 << 20;

const DIRECTORIES: &[(&str, u32)] = &[
    ("", 0o755),
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwheel:x:10:\nusers:x:100:\nnogroup:x:65534:\n"),
    ("etc/shells", "/bin/sh\n/bin/ash\n"),
    (
        "etc/profile",
        "export PATH=\"${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}\"\n\
         [ \"$(id -u)\" = 0 ] && PS1='\\h:\\w# ' || PS1='\\h:\\w$ '\nexport PS1\n",
    ),
    ("etc/os-release", "ID=minimal\nNAME=\"Sparks minimal\"\nPRETTY_NAME=\"Sparks minimal (busybox)\"\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
];

/// Makes a root filesystem in an empty directory, of the host's static busybox and a link for each of its
/// applets. `sh` is a login shell, `/usr/bin/env` is there.
///
/// # Errors
/// `host` without a static busybox, with what to install.
pub fn make(target: &Path) -> Result<()> {
    let busybox = find()?;
    let applets = applets(&busybox)?;
    let content = read(&busybox)?;
    let mut root = Root::open(target).map_err(Error::io("open", target))?;
    fill(&mut root, &content, &applets)
        .map_err(|(name, problem)| problem.of("the minimal base", target, name.as_bytes()))
}

fn fill(root: &mut Root, busybox: &[u8], applets: &[String]) -> std::result::Result<(), (String, Problem)> {
    let at = |name: &str| {
        let name = name.to_owned();
        move |p: Problem| (name, p)
    };
    for (path, mode) in DIRECTORIES {
        root.directory(path.as_bytes(), &Meta { mode: *mode, ..Meta::default() }).map_err(at(path))?;
    }
    for (path, text) in FILES {
        file(root, path, text.as_bytes(), 0o644).map_err(at(path))?;
    }
    file(root, "etc/shadow", b"root:*:::::::\n", 0o600).map_err(at("etc/shadow"))?;
    file(root, "bin/busybox", busybox, 0o755).map_err(at("bin/busybox"))?;
    for applet in applets {
        root.symlink(applet.as_bytes(), b"/bin/busybox", &Meta::default()).map_err(at(applet))?;
    }
    Ok(())
}

fn file(root: &mut Root, path: &str, content: &[u8], mode: u32) -> Made<()> {
    let mut file = root.file(path.as_bytes())?;
    file.write_all(content).map_err(io("write"))?;
    root.finish(&file, &Meta { mode, ..Meta::default() })
}

/// The host's busybox, if it is static.
fn find() -> Result<std::path::PathBuf> {
    let missing = |what: &str| Error::Host { what: what.into(), hint: HINT.into(), source: None };
    let mut why = missing("the host has no busybox");
    for path in ["/bin/busybox", "/usr/bin/busybox"] {
        match std::fs::File::open(path) {
            Ok(file) if is_static(&file).unwrap_or(false) => return Ok(path.into()),
            Ok(_) => why = missing("the host's busybox is not a static one"),
            Err(_) => {}
        }
    }
    Err(why)
}

/// Whether an ELF program runs without a loader: it has no segment of type `PT_INTERP`. 64-bit only.
fn is_static(mut file: impl Read) -> std::io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut start = Vec::new();
    file.by_ref().take(64 << 10).read_to_end(&mut start)?;
    if start.len() < 64 || &start[..6] != b"\x7fELF\x02\x01" {
        return Ok(false);
    }
    let word = |at: usize| u16::from_le_bytes([start[at], start[at + 1]]) as usize;
    let table = u64::from_le_bytes(start[32..40].try_into().unwrap_or_default()) as usize;
    let (size, count) = (word(54), word(56));
    Ok((0..count).all(|i| {
        let at = table.saturating_add(i * size);
        matches!(start.get(at..at.saturating_add(4)), Some(kind) if kind != PT_INTERP.to_le_bytes())
    }))
}

fn read(busybox: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(busybox).map_err(Error::io("open", busybox))?;
    crate::sys::file::read_bounded(file, LARGEST).map_err(Error::io("read", busybox))
}

/// The paths that busybox wants its applets at.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list-full")
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("execute", busybox))?;
    let mut applets: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::trim)
        .filter(|a| {
            *a != "bin/busybox"
                && files::relative(a.as_bytes()).is_ok_and(|p| p == a.as_bytes() && !p.is_empty())
        })
        .map(str::to_owned)
        .collect();
    if !applets.iter().any(|a| a == "bin/sh") {
        let what = "the host's busybox has no shell".into();
        return Err(Error::Host { what, hint: HINT.into(), source: None });
    }
    for wanted in ["usr/bin/env"] {
        if !applets.iter().any(|a| a == wanted) {
            applets.push(wanted.into());
        }
    }
    Ok(applets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segment: u32) -> Vec<u8> {
        let mut elf = vec![0; 128];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        (elf[54], elf[56]) = (56, 1);
        elf[64..68].copy_from_slice(&segment.to_le_bytes());
        elf
    }

    #[test]
    fn a_program_that_needs_a_loader_is_not_static() {
        assert!(is_static(&elf(1)[..]).unwrap());
        assert!(!is_static(&elf(3)[..]).unwrap());
        assert!(!is_static(&elf(1)[..100][..60]).unwrap());
        assert!(!is_static(&b"#!/bin/sh"[..]).unwrap());
    }
}
