//! Room in the pool, for commands that were called to make some.

use super::{Observer, Sparks};
use crate::error::Result;

impl Sparks {
    /// If little is free in the pool, returns when that which was deleted is free. It is at once if there is room.
    pub fn await_room(&self, observer: &dyn Observer) -> Result<()> {
        if !self.pool.is_short()? {
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

    /// The same, and gives back chunks that are nearly empty if there is still little free.
    pub fn make_room(&self, observer: &dyn Observer) -> Result<()> {
        self.await_room(observer)?;
        let balanced = self.pool.balance(&|usage| {
            observer.step(&format!("moving what is in chunks that are at most {usage} % full"), None);
        });
        self.pool.fill_reserve();
        balanced
    }
}
