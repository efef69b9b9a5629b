//! `create --run`: what an image runs, as a detached command at each start of a spark.

use super::Sparks;
use super::exec::Command;
use super::spark::{Opened, SparkId};
use crate::domain::options::SparkOptions;
use crate::error::{Error, Result};

/// Fails for a spark that is to run what its image runs, and whose image says nothing, or that has none.
pub(super) fn check(options: &SparkOptions) -> Result<()> {
    if !options.run {
        return Ok(());
    }
    let why = match &options.image {
        None => "it is not from an image",
        Some(image) if image.config.command().is_empty() => "its image does not say what to run",
        Some(_) => return Ok(()),
    };
    Err(Error::Usage {
        message: format!("`--run` has no meaning for this spark: {why}"),
        hint: Some("run a command in it: `spark exec -d NAME -- CMD`".into()),
    })
}

impl Sparks {
    /// Starts what a spark's image runs, if it is to. It writes to the spark's log.
    ///
    /// # Errors
    /// [`Error::Exec`] if it could not be executed.
    pub(super) fn run_service(&self, spark: &SparkId, options: &SparkOptions) -> Result<()> {
        let Some(image) = options.image.as_ref().filter(|_| options.run) else { return Ok(()) };
        let argv: Vec<_> = image.config.command().into_iter().map(Into::into).collect();
        // A shell would be what runs nothing.
        if argv.is_empty() {
            return Ok(());
        }
        // Where an image says nothing, its programs run at the top, and not at home.
        let workdir = Some(options.workdir.clone().unwrap_or_else(|| "/".into()));
        let stop_signal = Some(image.config.stop_signal());
        self.exec_detached(spark, &Command { argv, workdir, stop_signal, ..Command::default() }).map(drop)
    }

    /// The same at a resume: one that cannot run is told in the log, so that one can still get in and mend it.
    pub(super) fn run_service_again(&self, spark: &SparkId) -> Result<()> {
        let options = self.record(spark)?.options;
        let Err(failed) = self.run_service(spark, &options) else { return Ok(()) };
        tracing::warn!(%spark, "{failed}");
        self.note_in_log(spark, &failed.to_string())
    }

    /// Does something to a spark under its exclusive lock. If that starts the spark again, what its image runs is started too,
    /// once the lock is free: it enters the spark as any command does.
    pub(super) fn with_service<T>(
        &self,
        opened: Opened,
        work: impl FnOnce(&Opened) -> Result<T>,
    ) -> Result<T> {
        let init = || self.live(&opened.record).map(|live| live.init);
        let before = init();
        let done = work(&opened);
        let after = init();
        let spark = opened.id.clone();
        drop(opened);
        let service = match after {
            Some(_) if after != before => self.run_service_again(&spark),
            _ => Ok(()),
        };
        done.and_then(|done| service.map(|()| done))
    }
}
