//! What a new spark gets of its image besides options: the directories that it declares, and ports of the host for those
//! that it exposes.

use std::net::Ipv4Addr;
use std::path::Path;

use super::Sparks;
use super::origin::Found;
use crate::domain::options::{Changes, Network, SparkOptions};
use crate::domain::port::Published;
use crate::error::{Error, Result};
use crate::runtime::users;
use crate::sys;

/// Makes the directories in a staged root that the image wants to be there: where it runs, and its volumes. One that is
/// there stays as it is; a new one is the user's that the image runs as.
pub(super) fn make_dirs(options: &SparkOptions, root: &Path) -> Result<()> {
    let Some(image) = &options.image else { return Ok(()) };
    let config = &image.config;
    let dirs: Vec<&Path> =
        config.workdir.iter().map(AsRef::as_ref).chain(config.volumes.iter().map(Path::new)).collect();
    if dirs.is_empty() {
        return Ok(());
    }
    // Whoever that is not found: commands say so when they are to run as that.
    let user = users::find(root, config.user.as_deref().unwrap_or("0"));
    let (uid, gid) = user.map_or((0, 0), |user| (user.uid, user.gid));
    let top = sys::file::open_dir(root).map_err(Error::io("open", root))?;
    for dir in dirs {
        // In the way of a directory may be what the image has there: that is no reason to have no spark.
        if let Err(e) = sys::beneath::make_dir(&top, dir, (uid, gid)) {
            tracing::warn!("cannot make the image's directory {}: {e}", dir.display());
        }
    }
    Ok(())
}

impl Sparks {
    /// Adds a port of the host's loopback device, which is to be chosen, for each that the image exposes, if that is wanted.
    pub(super) fn publish_exposed(&self, changes: &mut Changes, found: &Found) -> Result<()> {
        if !changes.publish_exposed {
            return Ok(());
        }
        let refused = |why: &str| Error::usage(format!("`--publish-exposed` has no meaning here: {why}"));
        if changes.network.unwrap_or(found.options.network) != Network::Project {
            return Err(refused("the spark has no network of its own"));
        }
        let image = found.options.image.as_ref().ok_or_else(|| refused("it is not from an image"))?;
        let exposed = image.config.exposed().map_err(|why| refused(&why))?;
        if exposed.is_empty() {
            return Err(refused("its image exposes no port"));
        }
        for (protocol, spark) in exposed {
            if changes.ports.iter().all(|had| (had.protocol, had.spark) != (protocol, spark)) {
                let ip = Some(Ipv4Addr::LOCALHOST.into());
                changes.ports.push(Published { protocol, host: 0, spark, ip });
            }
        }
        Ok(())
    }
}
