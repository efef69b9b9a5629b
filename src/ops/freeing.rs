//! Room in the pool, for commands that were called to make some.

use super::{Observer, Sparks};
use crate::error::Result;

/// Whether little was free in the pool before a command freed something. Afterwards enough may seem to be free while the
/// kernel is still at work, and a writer would wait for it.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Shortage(bool);

impl Sparks {
    /// Measures the pool before something is freed.
    pub fn shortage(&self) -> Result<Shortage> {
        self.pool.is_short().map(Shortage)
    }

    /// If little was free in the pool, or is now, returns when that which was deleted is free. Else it returns at once.
    pub fn await_room(&self, before: Shortage, observer: &dyn Observer) -> Result<()> {
        if !before.0 && !self.pool.is_short()? {
            return Ok(());
        }
        let begun = std::cell::Cell::new(false);
        self.pool.wait_until_freed(&|done, all| {
            if !begun.replace(true) {
                observer.step("waiting until deleted files are free", Some(all as u64));
            }
            observer.advance(done as u64);
        })?;
        self.pool.fill_reserve();
        Ok(())
    }

    /// Waits as [`Sparks::await_room`] does, and gives back chunks that are nearly empty if there is still little free.
    pub fn make_room(&self, before: Shortage, observer: &dyn Observer) -> Result<()> {
        self.await_room(before, observer)?;
        let balanced = self.pool.balance(&|usage| {
            observer.step(&format!("moving what is in chunks that are at most {usage} % full"), None);
        });
        self.pool.fill_reserve();
        balanced
    }
}
