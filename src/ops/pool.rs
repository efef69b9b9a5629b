//! `pool`: where the files live.

use std::path::PathBuf;

use super::{Context, Observer, room};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::pool::{Pool, image};
use crate::sys;

pub use crate::pool::image::Kind;
pub use crate::pool::layout::InitOptions;

/// The pool, measured.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Info {
    pub path: PathBuf,
    #[serde(flatten)]
    pub usage: image::Usage,
    /// Whether it counts what is whose.
    pub quota: bool,
    pub default_base: Option<Name>,
}

/// Makes the pool. The flag says whether it is new.
pub fn init(context: &Context, options: &InitOptions, observer: &dyn Observer) -> Result<(Info, bool)> {
    tell_if_made(context, observer);
    let (pool, new) = Pool::init(&context.place, options)?;
    Ok((measure(&pool)?, new))
}

/// Says that another command makes the pool at this moment, which is going to be waited for.
pub(super) fn tell_if_made(context: &Context, observer: &dyn Observer) {
    if matches!(sys::flock::try_lock_dir(&context.place.root), Ok(None)) {
        observer.notice("another command makes the pool: waiting for it");
    }
}

/// Measures the pool. `None` if there is none.
pub fn info(context: &Context) -> Result<Option<Info>> {
    Pool::open(&context.place)?.map(|pool| measure(&pool)).transpose()
}

/// Looks after the room of a pool that grows by itself, as long as a spark runs or a command writes.
pub fn watch(context: &Context) -> Result<()> {
    room::watch(&context.place)
}

/// Grows the pool.
pub fn grow(context: &Context, size: Option<u64>, overcommit: bool) -> Result<Info> {
    let Some(pool) = Pool::open(&context.place)? else {
        return Err(Error::NotFound {
            kind: "pool",
            name: context.place.pool().display().to_string(),
            in_project: None,
            near: Vec::new(),
        });
    };
    image::grow(&context.place, size, overcommit)?;
    measure(&pool)
}

fn measure(pool: &Pool) -> Result<Info> {
    Ok(Info {
        path: pool.paths.top.clone(),
        usage: image::usage(&pool.place)?,
        quota: pool.has_quota().unwrap_or(false),
        default_base: pool.layout()?.default_base,
    })
}
