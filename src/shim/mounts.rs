//! The root filesystem of a container: what containerd's snapshotter wants to have mounted.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim::api::CreateTaskRequest;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{Error, Result};

/// Where a bundle has it.
pub(super) fn root_of(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// Mounts what a request asks for, or nothing if its bundle has a root already.
///
/// # Errors
/// If a mount fails. Those before it are undone.
pub(super) async fn mount(request: &CreateTaskRequest) -> Result<()> {
    if request.rootfs.is_empty() {
        return Ok(());
    }
    let root = root_of(Path::new(&request.bundle));
    match std::fs::create_dir(&root) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("make", &root)(e)),
        _ => {}
    }
    let (wanted, target) = (request.rootfs.clone(), root.clone());
    let (tell, hear) = tokio::sync::oneshot::channel();
    // A thread of its own: mounting many layers changes the working directory of the thread that does it.
    let mounts = move || {
        let mount = |m: &containerd_shim::protos::types::mount::Mount| {
            let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let (kind, source) = (filled(&m.type_), filled(&m.source));
            containerd_shim::mount::mount_rootfs(kind.as_deref(), source.as_deref(), &m.options, &target)
        };
        let _ = tell.send(wanted.iter().try_for_each(mount));
    };
    std::thread::Builder::new().spawn(mounts).map_err(Error::sys("start a thread"))?;
    let mounted = match hear.await {
        Ok(mounted) => mounted.map_err(|e| io::Error::other(e.to_string())),
        Err(_) => Err(io::Error::other("the thread that mounts has ended")),
    };
    mounted.map_err(|e| {
        let _ = unmount(&root);
        Error::io("mount", &root)(e)
    })
}

/// Unmounts all that is mounted on a root.
///
/// # Errors
/// If it cannot be unmounted.
pub(super) fn unmount(root: &Path) -> Result<()> {
    loop {
        // Detached: a process of somebody else may look into it just now.
        match rustix::mount::unmount(root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Error::io("unmount", root)(e.into())),
        }
    }
}
