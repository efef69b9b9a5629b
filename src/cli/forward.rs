//! Passes connections of a listening socket on to a spark, until there have been none for a while.
//!
//! One thread: what resumes the spark needs a process that has no other.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use rustix::event::PollFlags;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::report::{self, Status};
use crate::error::{Error, Result};
use crate::foreground::is_ready;
use crate::ops::connect::Service;

/// Relays until nobody has been connected for `idle`, or it is told to end. What it began inside ends with it.
pub(crate) fn serve(mut service: Service<'_>, listener: TcpListener, idle: Duration) -> Result<Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::sys("start to relay"))?;
    let relayed = runtime.block_on(relay(&mut service, listener, idle)).map_err(Error::sys("relay"));
    service.end()?;
    relayed
}

async fn relay(service: &mut Service<'_>, listener: TcpListener, idle: Duration) -> io::Result<Status> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut connections = JoinSet::new();
    let mut status = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted?;
                // Blocks until the spark listens: whoever else is waiting, waits for the same.
                match service.connect() {
                    Ok(server) => {
                        let server = TcpStream::from_std(server)?;
                        connections.spawn(pass_on(client, server));
                        status = 0;
                    }
                    // The client is hung up on. The next one may fare better.
                    Err(e) => {
                        report::error(&e, false);
                        status = report::status(&e);
                    }
                }
            }
            Some(_) = connections.join_next() => {}
            () = tokio::time::sleep(idle), if connections.is_empty() => {
                // After a standstill of the machine both may have come, the end of the time and somebody.
                if !is_ready(&listener, PollFlags::IN) {
                    return Ok(status);
                }
                tokio::task::yield_now().await;
            }
            _ = terminate.recv() => return Ok(0),
            _ = interrupt.recv() => return Ok(0),
        }
    }
}

/// Both ways, until both have ended. How is a matter between the two sides.
async fn pass_on(mut client: TcpStream, mut server: TcpStream) {
    if let Err(e) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
        tracing::debug!("a connection broke: {e}");
    }
}
