//! `pause`: every process is frozen where it stands.

use super::Sparks;
use crate::domain::name::SparkRef;
use crate::domain::spark::State;
use crate::error::{Error, Result};
use crate::sys::flock::Mode;

impl Sparks {
    /// Freezes a running spark. A paused one is left as it is.
    pub fn pause(&self, spark: &SparkRef) -> Result<()> {
        let spark = self.resolve(spark)?;
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        match self.state(&opened.record) {
            State::Running => {
                self.mend(&opened.record)?;
                self.handle(&opened.record).pause().map_err(|e| e.of_spark(&spark))
            }
            State::Paused => Ok(()),
            state => Err(Error::WrongState {
                action: "pause",
                kind: "spark",
                name: spark.name.to_string(),
                state: state.to_string(),
                hint: format!("start it with `spark resume {}`", spark.name),
            }),
        }
    }
}
