//! The users and groups that a spark can have.

/// Ids that a spark has of its own, from 0.
pub const IDS: u32 = 65_536;
/// The host's ids that Sparks uses begin here. systemd leaves 1879048192 to 2147483647 unused (its UIDS-GIDS document), and
/// adduser's subordinate ids end at 600100000.
pub const FIRST: u32 = 0x7000_0000;
/// The number of ranges of [`IDS`] that running sparks can have.
pub const RANGES: u32 = 4095;
/// The range after those: processes that read what is not trusted have ids of it.
const READERS: u32 = FIRST + RANGES * IDS;

/// The host's id of a process that reads what is not trusted, started as the `count`-th by process `pid`: another one for each
/// of those that run at once.
pub fn reader(pid: u32, count: u32) -> u32 {
    READERS + pid.wrapping_mul(16).wrapping_add(count % 16) % (IDS - 16)
}

/// The host's id of the processes that answer questions for names, which live longer than those that read.
pub fn resolver() -> u32 {
    READERS + IDS - 16
}

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
    fn readers_have_ids_that_no_spark_has_and_two_at_once_have_two() {
        let last_of_sparks = FIRST + (RANGES - 1) * IDS + (IDS - 1);
        for (pid, count) in [(1, 0), (65_535, 3), (4_194_304, 15), (u32::MAX, u32::MAX)] {
            let id = reader(pid, count);
            assert!(id > last_of_sparks && id < resolver(), "{id}");
        }
        assert!(resolver() <= i32::MAX as u32);
        assert_ne!(reader(100, 0), reader(100, 1));
        assert_ne!(reader(100, 0), reader(101, 0));
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
