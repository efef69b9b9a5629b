//! The users and groups that a spark can have.

/// Ids that a spark has of its own, from 0.
pub const IDS: u32 = 65_536;
/// Whom files of larger ids are given to: those could not exist inside.
const NOBODY: u32 = 65534;

/// An id as a spark can have it.
pub fn inside(id: u64) -> u32 {
    if id < u64::from(IDS) { id as u32 } else { NOBODY }
}

/// Whether a `security.capability` is of version 3 and belongs to a user namespace whose root is not user 0. Such a
/// capability has no effect in a spark, and nobody there can read or remove it.
pub fn is_foreign_capability(value: &[u8]) -> bool {
    // struct vfs_ns_cap_data: the revision is the highest byte of the first number, the root's id is the last number.
    value.len() == 24 && value[3] == 3 && value[20..] != [0; 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_beyond_a_spark_become_nobody() {
        assert_eq!((inside(0), inside(65535), inside(65536), inside(u64::MAX)), (0, 65535, NOBODY, NOBODY));
    }

    #[test]
    fn a_capability_of_another_hosts_namespace_is_told_by_its_root() {
        let of = |version: u8, root: u32, length: usize| {
            let mut value = [&[1, 0, 0, version][..], &[0; 16], &root.to_le_bytes()].concat();
            value.truncate(length);
            is_foreign_capability(&value)
        };
        assert!(of(3, 5, 24) && of(3, 1_000_000, 24));
        assert!(!of(3, 0, 24) && !of(2, 0, 20) && !of(2, 5, 24) && !of(3, 5, 23));
    }
}
