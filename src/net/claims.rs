//! Claims on ports of the host: a file for each spark that publishes some. All installations of the host read them.
//!
//! A file has the ports, one a line, then an empty line and the path of the member. A claim whose member is gone counts for
//! nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::host;
use crate::domain::port::Published;
use crate::error::{Error, Result};
use crate::sys;

/// The claims of one spark.
#[derive(Debug)]
struct Claim {
    path: PathBuf,
    member: PathBuf,
    ports: Vec<Published>,
}

/// All claims, as they were when they were read.
#[derive(Debug)]
pub(super) struct Claims(Vec<Claim>);

impl Claims {
    pub(super) fn read() -> Claims {
        let entries = std::fs::read_dir(host::ports()).into_iter().flatten().flatten();
        Claims(entries.filter_map(|entry| read(entry.path())).collect())
    }

    /// Ports that sparks have, with the files of these as members.
    pub(super) fn held(&self) -> impl Iterator<Item = (&Published, &Path)> {
        let there = self.0.iter().filter(|claim| claim.member.exists());
        there.flat_map(|claim| claim.ports.iter().map(|port| (port, &*claim.member)))
    }

    /// Claims these ports for a member, and nothing else, and gives up the claims of sparks that are gone. The caller holds the
    /// host's lock since before they were read.
    pub(super) fn replace(&self, ports: &[Published], member: &Path) -> Result<()> {
        let dir = host::ports();
        let own = dir.join(member.file_name().unwrap_or_default());
        if !ports.is_empty() {
            std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
            // At once whole: whoever reads it takes a claim that names no member for one that is left over.
            sys::file::replace_volatile(&own, &written(ports, member)).map_err(Error::io("claim", &own))?;
        }
        let is_over = |claim: &&Claim| {
            if claim.member == member {
                ports.is_empty() || claim.path != own
            } else {
                !claim.member.exists()
            }
        };
        for claim in self.0.iter().filter(is_over) {
            let _ = std::fs::remove_file(&claim.path);
        }
        Ok(())
    }

    /// Gives up claims of sparks that are gone. The caller holds the host's lock since before they were read.
    pub(super) fn sweep(&self) {
        for claim in self.0.iter().filter(|claim| !claim.member.exists()) {
            let _ = std::fs::remove_file(&claim.path);
        }
    }
}

fn written(ports: &[Published], member: &Path) -> Vec<u8> {
    let lines: String = ports.iter().map(|port| format!("{port}\n")).collect();
    [lines.as_bytes(), b"\n", member.as_os_str().as_encoded_bytes()].concat()
}

fn read(path: PathBuf) -> Option<Claim> {
    let text = std::fs::read(&path).ok()?;
    // Earlier versions had a file for each port, with that as its name.
    let old = path.file_name()?.to_str().map(|name| name.replace(',', "/"));
    if let Some(port) = old.and_then(|name| Published::try_from(name).ok()).filter(|port| !port.is_open()) {
        return Some(Claim { path, member: OsString::from_vec(text).into(), ports: vec![port] });
    }
    let (ports, member) = parsed(&text)?;
    Some(Claim { path, member, ports })
}

fn parsed(text: &[u8]) -> Option<(Vec<Published>, PathBuf)> {
    let end = text.windows(2).position(|two| two == b"\n\n")?;
    let lines = str::from_utf8(&text[..end]).ok()?;
    let ports = lines.lines().map(|line| Published::try_from(line.to_owned()).ok()).collect::<Option<_>>()?;
    Some((ports, OsString::from_vec(text[end + 2..].to_vec()).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_reads_as_it_is_written() {
        let ports: Vec<Published> =
            ["8080:80", "[fd00::1]:53:53/udp"].map(|p| p.to_owned().try_into().unwrap()).into();
        let member = PathBuf::from("/run/a\n\nb/net/members/ID");
        assert_eq!(parsed(&written(&ports, &member)), Some((ports, member)));
        assert_eq!(parsed(b"8080:80\n"), None);
    }
}
