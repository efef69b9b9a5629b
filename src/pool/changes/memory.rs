//! What a comparison may hold in memory. What differs is up to those inside, and it is held in a process of the host's.

use std::cell::Cell;

use crate::error::{Error, Result};

/// Bytes that may be held still.
#[derive(Debug)]
pub(super) struct Memory {
    most: u64,
    left: Cell<u64>,
}

impl Memory {
    pub(super) fn new(most: u64) -> Memory {
        Memory { most, left: Cell::new(most) }
    }

    /// Counts a `T` in a vector or a table, which are up to half empty, and so many bytes that it refers to.
    ///
    /// # Errors
    /// `not_supported` if it is too much.
    pub(super) fn take<T>(&self, bytes: usize) -> Result<()> {
        match self.left.get().checked_sub(size::<T>(bytes)) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(Error::NotSupported {
                what: format!("more differs than {} MiB of memory can hold", self.most >> 20),
                hint: Some(
                    "compare what is nearer to each other, or one file: `spark diff FROM TO /PATH`".into(),
                ),
            }),
        }
    }

    /// Gives back what was taken.
    pub(super) fn give_back<T>(&self, bytes: usize) {
        self.left.set(self.left.get().saturating_add(size::<T>(bytes)));
    }
}

fn size<T>(bytes: usize) -> u64 {
    /// What an allocator needs for each allocation.
    const OWN: usize = 16;
    (2 * size_of::<T>() + bytes + OWN) as u64
}
