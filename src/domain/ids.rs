//! The users and groups that a spark can have.

/// Ids that a spark has of its own, from 0.
pub const IDS: u32 = 65_536;
/// Whom files of larger ids are given to: those could not exist inside.
const NOBODY: u32 = 65534;

/// An id as a spark can have it.
pub fn inside(id: u64) -> u32 {
    if id < u64::from(IDS) { id as u32 } else { NOBODY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_beyond_a_spark_become_nobody() {
        assert_eq!((inside(0), inside(65535), inside(65536), inside(u64::MAX)), (0, 65535, NOBODY, NOBODY));
    }
}
