//! `up-on-connect`: a spark that begins when somebody connects to a port of it.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Sparks;
use super::exec::{Command, Running};
use super::spark::SparkId;
use crate::domain::name::SparkRef;
use crate::error::{Error, Result};
use crate::sys;

pub mod units;

/// How long a server has from its start until it listens.
const TO_LISTEN: Duration = Duration::from_secs(60);
/// The same where nothing is started here: something else inside may be about to.
const TO_APPEAR: Duration = Duration::from_secs(2);
/// One attempt. Nothing is far away on a loopback device, but what listens may be overrun.
const TO_ACCEPT: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// The socket that a service manager has passed to this process, if one has.
pub fn passed_listener() -> Result<Option<TcpListener>> {
    sys::net::passed_listener().map_err(Error::sys("take the socket that was passed"))
}

/// A port of a spark, and what listens at it.
#[derive(Debug)]
pub struct Service<'a> {
    sparks: &'a Sparks,
    spark: SparkId,
    port: u16,
    command: Option<Command>,
    /// The command, if it was started here.
    server: Option<Running>,
}

impl Sparks {
    /// A port of a spark. `command` is run in it where nothing listens there.
    pub fn service(&self, spark: &SparkRef, port: u16, command: Option<Command>) -> Result<Service<'_>> {
        let spark = self.resolve(spark)?;
        Ok(Service { sparks: self, spark, port, command, server: None })
    }
}

impl Service<'_> {
    /// Connects to the port from inside, whatever network the spark has. Resumes it and runs the command if need be.
    /// The stream does not block.
    ///
    /// # Errors
    /// `busy` if nothing listens in time; [`Error::Program`] if the command ends before it does.
    pub fn connect(&mut self) -> Result<TcpStream> {
        let patience = if self.command.is_some() { TO_LISTEN } else { TO_APPEAR };
        // It counts from when the spark runs, and the command.
        let mut deadline = None;
        let mut begun = false;
        loop {
            let refused = match self.attempt()? {
                Ok(stream) => return Ok(stream),
                Err(e) => e,
            };
            let ended = match &self.server {
                Some(server) => server.try_reap().map_err(Error::sys("look at the server"))?,
                None => None,
            };
            if let Some(ended) = ended {
                self.server = None;
                if begun {
                    let detail = format!(
                        "it ended with status {} before it listened at port {}",
                        ended.status(),
                        self.port
                    );
                    return Err(Error::Program { program: self.program(), detail });
                }
            }
            if let (None, false, Some(command)) = (&self.server, begun, &self.command) {
                self.server = Some(self.sparks.exec_logged(&self.spark, command)?);
                begun = true;
            }
            if Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + patience) {
                return Err(Error::Busy {
                    what: format!("port {} of spark `{}`", self.port, self.spark),
                    why: format!("nothing listens there: {refused}"),
                });
            }
            // Nobody tells when a server listens.
            sys::deadline::pause(Duration::from_millis(10)).map_err(Error::sys("wait for the server"))?;
        }
    }

    /// Tries once. Why nobody answered is the inner error.
    fn attempt(&self) -> Result<std::io::Result<TcpStream>> {
        let record = self.sparks.record(&self.spark)?;
        if !self.sparks.runs_on(&record) {
            self.sparks.ensure_running(&self.spark)?;
        }
        // It may have ended at this moment: then at the next attempt.
        let Some(live) = self.sparks.live(&record) else {
            return Ok(Err(std::io::ErrorKind::NotConnected.into()));
        };
        Ok(live.pidfd().and_then(|init| sys::net::connect_loopback_of(init, self.port, TO_ACCEPT)))
    }

    fn program(&self) -> String {
        let name = self.command.as_ref().and_then(|c| c.argv.first());
        name.map(|n| n.to_string_lossy().escape_default().to_string()).unwrap_or_default()
    }

    /// Ends the command, if it was started here: so that the spark has nothing to keep it.
    pub fn end(&mut self) -> Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            let _ = server.signal(signal);
            if sys::deadline::ended(&server.pidfd, GRACE).map_err(Error::sys("wait for the server"))? {
                break;
            }
        }
        server.try_reap().map(drop).map_err(Error::sys("wait for the server"))
    }
}
