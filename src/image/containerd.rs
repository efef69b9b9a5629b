//! What containerd says of a container's files: two calls of its API, which is gRPC on a socket.
//!
//! Of the messages only what is asked for is read, by containerd's protocol files: `containers.proto`,
//! `snapshots.proto` and `mount.proto` of its API version 1.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::UnixStream;

use crate::error::{Error, Result};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most bytes of an answer. The largest part of one is a container's configuration.
const MOST: usize = 4 << 20;
/// gRPC's status for what is not there.
const NOT_FOUND: u32 = 5;

/// Where the root of a container is.
#[derive(Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// A subvolume by its id, in the filesystem of a device.
    Btrfs { device: PathBuf, subvolume: u64 },
    /// With another snapshotter, of this name.
    Other(String),
}

/// Why a call failed.
#[derive(Debug)]
enum Failure {
    Way(io::Error),
    /// What containerd says, and its status.
    Said(u32, String),
}

impl From<h2::Error> for Failure {
    fn from(e: h2::Error) -> Failure {
        Failure::Way(io::Error::other(e))
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::Way(e)
    }
}

/// Asks containerd where the root of a container is, whether that runs or not. Nothing if it knows no such container,
/// or there is no containerd.
///
/// # Errors
/// `host` if it does not answer as it should.
pub fn snapshot_of(socket: &Path, namespace: &str, id: &str) -> Result<Option<Snapshot>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::sys("start a client of containerd"))?;
    let asked = runtime.block_on(async {
        let late = |_| Err(Failure::Way(io::ErrorKind::TimedOut.into()));
        tokio::time::timeout(PATIENCE, ask(socket, namespace, id)).await.unwrap_or_else(late)
    });
    match asked {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(Failure::Said(NOT_FOUND, _)) => Ok(None),
        Err(Failure::Way(e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(Failure::Way(source)) => Err(Error::Host {
            what: format!("containerd does not answer at {}", socket.display()),
            hint: "name its socket with CONTAINERD_ADDRESS, or start it".into(),
            source: Some(source),
        }),
        Err(Failure::Said(_, why)) => Err(Error::Host {
            what: format!("containerd does not say where the files of `{id}` are: {}", why.escape_default()),
            hint: format!("look with `ctr --namespace {namespace} container info {id}`"),
            source: None,
        }),
    }
}

async fn ask(socket: &Path, namespace: &str, id: &str) -> std::result::Result<Snapshot, Failure> {
    let stream = UnixStream::connect(socket).await?;
    let (client, connection) = h2::client::handshake(stream).await?;
    let mut client = client.ready().await?;
    let calls = async {
        let request = message(&[(1, id)]);
        let answer = call(&mut client, namespace, "containers.v1.Containers/Get", request).await?;
        let container = field(&answer, 1).ok_or_else(damaged)?;
        let text = |number| field(container, number).and_then(|b| std::str::from_utf8(b).ok());
        let snapshotter = text(6).unwrap_or_default().escape_default().to_string();
        let key = text(7).filter(|key| !key.is_empty());
        let Some(key) = key.filter(|_| snapshotter == "btrfs") else {
            return Ok(Snapshot::Other(snapshotter));
        };
        let request = message(&[(1, &snapshotter), (2, key)]);
        let answer = call(&mut client, namespace, "snapshots.v1.Snapshots/Mounts", request).await?;
        let mount = field(&answer, 1).ok_or_else(damaged)?;
        subvolume(mount).ok_or_else(damaged)
    };
    alongside(connection, calls).await
}

/// Drives a connection for as long as something is asked over it.
async fn alongside<T>(
    connection: impl Future<Output = std::result::Result<(), h2::Error>>,
    calls: impl Future<Output = std::result::Result<T, Failure>>,
) -> std::result::Result<T, Failure> {
    tokio::select! {
        answered = calls => answered,
        ended = connection => Err(ended.map_or_else(Failure::from, |()| io::Error::from(io::ErrorKind::UnexpectedEof).into())),
    }
}

async fn call(
    client: &mut SendRequest<Bytes>,
    namespace: &str,
    method: &str,
    message: Vec<u8>,
) -> std::result::Result<Vec<u8>, Failure> {
    let request = http::Request::post(format!("http://localhost/containerd.services.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("containerd-namespace", namespace)
        .body(())
        .map_err(io::Error::other)?;
    let (response, mut stream) = client.send_request(request, false)?;
    // Not compressed, and its length.
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).map_err(io::Error::other)?.to_be_bytes());
    framed.extend(message);
    stream.send_data(framed.into(), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        bytes.extend_from_slice(&piece);
        if bytes.len() > MOST {
            return Err(damaged());
        }
        body.flow_control().release_capacity(piece.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").and_then(|status| status.parse().ok()) {
        Some(0) if bytes.len() >= 5 && bytes[0] == 0 => Ok(bytes.split_off(5)),
        Some(0) => Err(damaged()),
        Some(status) => Err(Failure::Said(status, text("grpc-message").unwrap_or_default().to_owned())),
        None => Err(damaged()),
    }
}

fn damaged() -> Failure {
    io::Error::new(io::ErrorKind::InvalidData, "its answer is damaged").into()
}

/// The subvolume that a mount of the btrfs snapshotter is.
fn subvolume(mount: &[u8]) -> Option<Snapshot> {
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    if field(mount, 1)? != b"btrfs" {
        return None;
    }
    let device = PathBuf::from(text(field(mount, 2)?)?);
    let options = fields(mount).filter(|(number, _)| *number == 4);
    let subvolume = options.filter_map(|(_, o)| text(o)?.strip_prefix("subvolid=")?.parse().ok()).next()?;
    Some(Snapshot::Btrfs { device, subvolume })
}

/// A message of strings, by the numbers of their fields.
fn message(fields: &[(u8, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, text) in fields {
        out.push(number << 3 | 2);
        let mut length = text.len();
        while length >= 0x80 {
            out.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// The first field of a message with a number, if that is a string, bytes or a message.
fn field(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message).find(|(n, _)| *n == number).map(|(_, bytes)| bytes)
}

/// All fields of a message that are strings, bytes or messages. What is damaged ends it.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let tag = varint(&mut rest)?;
            match tag & 7 {
                0 => drop(varint(&mut rest)?),
                1 => drop(rest.split_off(..8)?),
                5 => drop(rest.split_off(..4)?),
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    return Some((tag >> 3, rest.split_off(..length)?));
                }
                _ => return None,
            }
        }
    })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *rest.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_as_it_was_written_and_a_damaged_one_ends() {
        let long = "x".repeat(300);
        let mut bytes = message(&[(1, "btrfs"), (2, "/dev/loop1"), (4, &long), (4, "subvolid=260")]);
        let expected = Snapshot::Btrfs { device: "/dev/loop1".into(), subvolume: 260 };
        assert_eq!(subvolume(&bytes), Some(expected));
        // Fields of other kinds are passed over: a number, eight bytes and four.
        let mut other = vec![0x48, 0xac, 0x02, 0x51, 1, 2, 3, 4, 5, 6, 7, 8, 0x5d, 1, 2, 3, 4];
        other.append(&mut bytes);
        assert!(subvolume(&other).is_some());
        for end in 0..other.len() {
            assert!(fields(&other[..end]).count() < 4);
        }
        assert_eq!(fields(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).count(), 0);
        assert_eq!(fields(&[0xff; 30]).count(), 0);
    }
}
