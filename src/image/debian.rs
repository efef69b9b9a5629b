//! What makes a fresh Debian root one that many sparks can start from.

use std::io::Write;
use std::path::Path;

use super::files::{Made, Meta, Root, io};
use crate::error::{Error, Result};

/// Takes out what belongs to one machine (its id, its name, its resolver, its host keys) and what only the
/// making needed, and keeps installed services from starting by themselves: there is no init system inside.
pub fn generalize(target: &Path) -> Result<()> {
    let mut root = Root::open(target).map_err(Error::io("open", target))?;
    let name = |name: &'static str| {
        move |p: super::files::Problem| p.of("the root filesystem", target, name.as_bytes())
    };
    for gone in [
        "etc/hostname",
        "etc/resolv.conf",
        "var/lib/dbus/machine-id",
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
    ] {
        root.remove(gone.as_bytes()).map_err(name(gone))?;
    }
    for (dir, prefix) in [("etc/ssh", "ssh_host_"), ("var/cache/apt/archives", "")] {
        root.remove_files(dir.as_bytes(), prefix.as_bytes()).map_err(name(dir))?;
    }
    for (path, content, mode) in [
        // Empty, not absent: the way that machine-id(5) asks for.
        ("etc/machine-id", "", 0o444),
        ("etc/default/locale", "LANG=C.UTF-8\n", 0o644),
        ("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755),
    ] {
        file(&mut root, path, content, mode).map_err(name(path))?;
    }
    Ok(())
}

fn file(root: &mut Root, path: &str, content: &str, mode: u32) -> Made<()> {
    let mut file = root.file(path.as_bytes())?;
    file.write_all(content.as_bytes()).map_err(io("write"))?;
    root.finish(&file, &Meta { mode, ..Meta::default() })
}
