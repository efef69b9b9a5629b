//! systemd units: a socket, and the service that is started when somebody connects to it (systemd.socket(5)).

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::domain::forward::Forward;
use crate::domain::name::SparkRef;
use crate::domain::options::Network;
use crate::domain::place::{ROOT, RUN};
use crate::error::{Error, Result};
use crate::ops::Sparks;
use crate::{fault, sys};

/// Where systemd looks for units of the host's administrator.
pub const SYSTEM: &str = "/etc/systemd/system";

/// What the units are for.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub spark: &'a SparkRef,
    pub forward: Forward,
    /// How long without a connection until the server is ended, as it was written.
    pub idle: &'a str,
    /// The server; empty if something else sees to that.
    pub command: &'a [OsString],
}

/// One unit.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Unit {
    pub name: String,
    pub content: String,
}

impl Sparks {
    /// The two units: the socket, and its service.
    ///
    /// # Errors
    /// `usage` where the spark would want the very port that the socket takes.
    pub fn units(&self, wanted: &Wanted<'_>) -> Result<[Unit; 2]> {
        let spark = self.resolve(wanted.spark)?;
        let Forward { listen, inside } = wanted.forward;
        if self.record(&spark)?.options.network == Network::Host && listen.port() == inside {
            return Err(Error::Usage {
                message: format!(
                    "spark `{spark}` is on the host's network, where port {inside} is systemd's then"
                ),
                hint: Some(format!(
                    "listen at another port: `{}:{inside}`",
                    inside.checked_add(8000).unwrap_or(8080)
                )),
            });
        }
        let name = format!("spark-{}.{}.{}", spark.project, spark.name, listen.port());
        let title = format!("port {inside} of spark {} in project {}", spark.name, spark.project);
        let socket = format!(
            "[Unit]\nDescription=Socket for {title}\n\n[Socket]\nListenStream={listen}\n\n\
             [Install]\nWantedBy=sockets.target\n"
        );
        let program = std::env::current_exe().map_err(Error::sys("find this program"))?;
        let port = wanted.forward.to_string();
        let mut argv: Vec<OsString> = vec![program.into(), "-P".into(), spark.project.as_str().into()];
        argv.extend(
            ["up-on-connect", spark.name.as_str(), &port, "--serve", "--idle", wanted.idle].map(Into::into),
        );
        if !wanted.command.is_empty() {
            argv.push("--".into());
            argv.extend(wanted.command.iter().cloned());
        }
        let argv = argv.iter().map(quoted).collect::<Result<Vec<_>>>()?.join(" ");
        let mut service = format!("[Unit]\nDescription=Relay for {title}\n\n[Service]\nExecStart={argv}\n");
        let place = &self.pool.place;
        for (variable, dir, default) in [("SPARK_ROOT", &place.root, ROOT), ("SPARK_RUN", &place.run, RUN)] {
            if dir != Path::new(default) {
                let mut setting = OsString::from(format!("{variable}="));
                setting.push(dir);
                service += &format!("Environment={}\n", quoted(&setting)?.replace("$$", "$"));
            }
        }
        // The relay ends what it has started itself, and the spark is not systemd's.
        service += "KillMode=process\n";
        Ok([
            Unit { name: format!("{name}.socket"), content: socket },
            Unit { name: format!("{name}.service"), content: service },
        ])
    }
}

/// Writes units where systemd finds them: all, or else those that were there stay as they were. Returns their paths.
pub fn install(dir: &Path, units: &[Unit]) -> Result<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = units.iter().map(|unit| dir.join(&unit.name)).collect();
    let had = paths.iter().map(|path| content(path)).collect::<Result<Vec<_>>>()?;
    // The service first: a socket without one would be refused, and a service alone does nothing.
    for (n, unit) in units.iter().enumerate().rev() {
        let written = write(&paths[n], unit.content.as_bytes())
            .and_then(|()| fault::point("up-on-connect.unit-written"));
        if let Err(first) = written {
            let undone = (n..units.len()).try_for_each(|n| match &had[n] {
                Some(content) => write(&paths[n], content),
                None => sys::file::remove(&paths[n]).map_err(Error::io("remove", &paths[n])),
            });
            return Err(match undone {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            });
        }
    }
    Ok(paths)
}

fn content(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    sys::file::replace(path, content).map_err(Error::io("write", path))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644))
        .map_err(Error::io("change the mode of", path))
}

/// A word of a unit's command line, taken by systemd as it is (systemd.service(5), "Command lines").
fn quoted(word: &OsString) -> Result<String> {
    let text = word.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(|| Error::Usage {
        message: "a unit's command line takes only printable UTF-8".into(),
        hint: Some("put the command into a script inside the spark".into()),
    })?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through_systemd_as_they_are() {
        let quoted = |text: &str| quoted(&text.into()).unwrap();
        assert_eq!(quoted("/usr/bin/httpd"), "/usr/bin/httpd");
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("echo $HOME 100% \"x\" \\n"), "\"echo $$HOME 100%% \\\"x\\\" \\\\n\"");
        assert!(super::quoted(&"a\nb".into()).is_err());
    }
}
