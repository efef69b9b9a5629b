//! The programs of the host that sparks call.

use std::path::Path;

use super::fix::Fix;
use super::{Check, Probe};

/// Program, Debian package.
const REQUIRED: [(&str, &str); 6] = [
    ("nft", "nftables"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("btrfs", "btrfs-progs"),
    ("mount", "mount"),
    ("losetup", "mount"),
    ("blkid", "util-linux"),
];

pub(super) fn checks(probe: &Probe) -> Vec<Check> {
    let mut checks: Vec<_> = REQUIRED.iter().map(|(name, package)| required(probe, name, package)).collect();
    checks.push(optional(probe, "mmdebstrap", "no base can be bootstrapped from Debian"));
    checks.push(optional(probe, "git", "no repository can be cloned into a spark"));
    checks.push(busybox(probe));
    checks
}

fn required(probe: &Probe, name: &'static str, package: &'static str) -> Check {
    if let Some(path) = probe.program(name) {
        return Check::required(name, true, path.display().to_string());
    }
    Check::required(name, false, "missing").or(install(probe, package)).fixed_by(Fix::Package(package))
}

/// A program whose package has its name. `lack` is what goes without it.
fn optional(probe: &Probe, name: &'static str, lack: &str) -> Check {
    let path = probe.program(name);
    let found = path.as_ref().map_or(format!("missing: {lack}"), |p| p.display().to_string());
    Check::recommended(name, path.is_some(), found).or(install(probe, name)).fixed_by(Fix::Package(name))
}

fn busybox(probe: &Probe) -> Check {
    let path = probe.program("busybox");
    let is_static = path.as_ref().is_some_and(|path| is_static(path));
    let found = match &path {
        None => "missing: the minimal base cannot be made".to_owned(),
        Some(path) if is_static => path.display().to_string(),
        Some(path) => format!("{} needs libraries: the minimal base cannot be made of it", path.display()),
    };
    Check::recommended("busybox", is_static, found)
        .or(install(probe, "busybox-static"))
        .fixed_by(Fix::Package("busybox-static"))
}

/// What to type for a package, by the package manager that is there.
fn install(probe: &Probe, package: &str) -> String {
    let managers = [
        ("apt-get", "apt-get install"),
        ("dnf", "dnf install"),
        ("zypper", "zypper install"),
        ("pacman", "pacman -S"),
        ("apk", "apk add"),
    ];
    match managers.iter().find(|(program, _)| probe.program(program).is_some()) {
        Some((_, command)) => format!("{command} {package}"),
        None => format!("install `{package}` with the host's package manager"),
    }
}

/// Whether an ELF program asks for no interpreter, by its program headers.
fn is_static(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(elf) = std::fs::read(path) else {
        return false;
    };
    let wide = match elf.get(..6) {
        // 64 or 32 bits, little-endian.
        Some([0x7f, b'E', b'L', b'F', class @ (1 | 2), 1]) => *class == 2,
        _ => return false,
    };
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
    };
    let header = if wide { [(32, 8), (54, 2), (56, 2)] } else { [(28, 4), (42, 2), (44, 2)] };
    let [Some(start), Some(size), Some(count)] = header.map(|(at, size)| number(at, size)) else {
        return false;
    };
    (0..count).all(|i| {
        let at = size.checked_mul(i).and_then(|offset| start.checked_add(offset));
        at.and_then(|at| number(at, 4)).is_some_and(|kind| kind != PT_INTERP as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Bare;
    use super::*;

    #[test]
    fn a_missing_program_says_which_package_in_the_hosts_own_words() {
        let bare = Bare::new();
        let missing = required(&bare.probe, "mkfs.btrfs", "btrfs-progs");
        assert!(missing.remedy.unwrap().contains("btrfs-progs"));
        bare.program("bin/dnf");
        assert_eq!(
            required(&bare.probe, "mkfs.btrfs", "btrfs-progs").remedy.unwrap(),
            "dnf install btrfs-progs"
        );
        bare.program("sbin/mkfs.btrfs");
        assert!(required(&bare.probe, "mkfs.btrfs", "btrfs-progs").ok);
    }

    #[test]
    fn a_busybox_with_libraries_is_not_enough() {
        let bare = Bare::new();
        assert!(busybox(&bare.probe).found.contains("missing"));
        bare.program("bin/busybox");
        assert!(!busybox(&bare.probe).ok);
        // One program header, at 64, 56 bytes long.
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, 1);
        std::fs::write(bare.dir.path().join("bin/busybox"), &elf).unwrap();
        assert!(busybox(&bare.probe).ok);
        elf[64] = 3;
        std::fs::write(bare.dir.path().join("bin/busybox"), &elf).unwrap();
        assert!(busybox(&bare.probe).found.contains("needs libraries"));
        elf.truncate(80);
        elf[56] = 9;
        std::fs::write(bare.dir.path().join("bin/busybox"), &elf).unwrap();
        assert!(!busybox(&bare.probe).ok);
    }
}
