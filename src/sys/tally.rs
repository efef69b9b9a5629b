//! Who holds which extents, counted in bounded memory.
//!
//! A spark decides how many extents its files have, and each takes a place in a table of the host's. So the disk is gone
//! through in parts: first all addresses; if they are too many for the table, those of the lower half, and so on. Each part
//! reads all metadata again, but only what one table holds is kept.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Most extents in the table: some 80 MiB with the table that it grows out of.
const MOST: usize = 1_800_000;

/// Nobody alone.
const SEVERAL: u32 = u32::MAX;

/// Bytes of a holder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// That only this holder refers to.
    pub own: u64,
    /// That others refer to too.
    pub shared: u64,
}

struct Extent {
    length: u64,
    /// The only holder so far, or [`SEVERAL`].
    alone: u32,
    /// The holder that referred to it last. Each is asked for all its extents before the next.
    last: u32,
}

/// One part of the disk.
struct Part {
    extents: HashMap<u64, Extent>,
    /// Of each holder, what it refers to.
    referred: Vec<u64>,
}

/// How an extent is told: its address, and its length.
pub type Found<'a> = dyn FnMut(u64, u64) + 'a;

/// Counts the bytes of so many holders. `each` calls its second argument with each extent that a holder refers to, as often as
/// it does.
///
/// # Errors
/// Those of `each`.
pub fn count<E>(
    holders: u32,
    each: &mut dyn FnMut(u32, &mut Found<'_>) -> Result<(), E>,
) -> Result<Vec<Bytes>, E> {
    count_with(MOST, holders, each)
}

fn count_with<E>(
    most: usize,
    holders: u32,
    each: &mut dyn FnMut(u32, &mut Found<'_>) -> Result<(), E>,
) -> Result<Vec<Bytes>, E> {
    let mut bytes = vec![Bytes::default(); holders as usize];
    let (mut from, mut to) = (0, None);
    loop {
        match part((from, to), most, holders, each)? {
            Ok(part) => {
                part.add_to(&mut bytes);
                let Some(end) = to else { return Ok(bytes) };
                // Twice as wide, since the disk may be empty from here on. The last part has no end.
                let width = 2 * (end - from);
                from = end;
                to = end.checked_add(width);
            }
            Err(median) => to = Some(median.max(from + 1)),
        }
    }
}

/// Looks at a part of the disk. If its extents are too many, returns an address that half of those found are below.
fn part<E>(
    (from, to): (u64, Option<u64>),
    most: usize,
    holders: u32,
    each: &mut dyn FnMut(u32, &mut Found<'_>) -> Result<(), E>,
) -> Result<Result<Part, u64>, E> {
    let mut part = Part { extents: HashMap::new(), referred: vec![0; holders as usize] };
    let mut is_full = false;
    for holder in 0..holders {
        each(holder, &mut |at, length| {
            if at >= from && to.is_none_or(|to| at < to) && !is_full {
                part.note(holder, at, length);
                is_full = part.extents.len() > most;
            }
        })?;
        if is_full {
            let mut addresses: Vec<u64> = part.extents.into_keys().collect();
            let half = addresses.len() / 2;
            return Ok(Err(*addresses.select_nth_unstable(half).1));
        }
    }
    Ok(Ok(part))
}

impl Part {
    fn note(&mut self, holder: u32, at: u64, length: u64) {
        match self.extents.entry(at) {
            Entry::Occupied(there) if there.get().last == holder => return,
            Entry::Occupied(mut there) => (there.get_mut().alone, there.get_mut().last) = (SEVERAL, holder),
            Entry::Vacant(free) => _ = free.insert(Extent { length, alone: holder, last: holder }),
        }
        self.referred[holder as usize] += length;
    }

    fn add_to(self, bytes: &mut [Bytes]) {
        let mut own = vec![0; bytes.len()];
        for extent in self.extents.into_values().filter(|extent| extent.alone != SEVERAL) {
            own[extent.alone as usize] += extent.length;
        }
        for ((bytes, own), referred) in bytes.iter_mut().zip(own).zip(self.referred) {
            bytes.own += own;
            bytes.shared += referred - own;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;

    use super::*;

    const LENGTH: u64 = 4096;

    /// Everything at once, without a bound.
    fn plainly(holders: &[Vec<u64>]) -> Vec<Bytes> {
        let sets: Vec<HashSet<u64>> = holders.iter().map(|all| all.iter().copied().collect()).collect();
        let count = |holder: &HashSet<u64>, is_own: bool| {
            let alone = |at: &u64| sets.iter().filter(|set| set.contains(at)).count() == 1;
            holder.iter().filter(|at| alone(at) == is_own).count() as u64 * LENGTH
        };
        sets.iter().map(|set| Bytes { own: count(set, true), shared: count(set, false) }).collect()
    }

    /// Extents of some holders, of which many share some, in clusters as on a disk.
    fn some() -> Vec<Vec<u64>> {
        let mut random = 7u64;
        let mut next = |most: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % most
        };
        let cluster = [0, 1 << 20, 1 << 40, u64::MAX - (1 << 20)];
        let mut address = || cluster[next(4) as usize] + 1 + next(200) * LENGTH;
        (0..7).map(|_| (0..300).map(|_| address()).collect()).collect()
    }

    #[test]
    fn the_bytes_of_each_holder_are_the_same_however_little_is_held_at_a_time() {
        let holders = some();
        let expected = plainly(&holders);
        assert!(expected.iter().all(|bytes| bytes.own > 0 && bytes.shared > 0), "{expected:?}");
        for most in [1, 10, 100, 799, 100_000] {
            let mut passes = 0;
            let mut each = |holder: u32, found: &mut Found<'_>| {
                passes += u32::from(holder == 0);
                holders[holder as usize].iter().for_each(|at| found(*at, LENGTH));
                Ok::<(), Infallible>(())
            };
            let Ok(counted) = count_with(most, holders.len() as u32, &mut each);
            assert_eq!(counted, expected, "{most}");
            let all = holders.iter().flatten().collect::<HashSet<_>>().len();
            assert!(passes as usize >= all.div_ceil(most), "{passes} passes of {most} for {all} extents");
        }
    }

    #[test]
    fn no_more_extents_are_held_than_may_be() {
        let Ok(found) = part((0, None), 10, 1, &mut |_, found| {
            (1..1000).for_each(|at| found(at, 1));
            Ok::<(), Infallible>(())
        });
        // Half of the first eleven.
        assert_eq!(found.map(|part| part.extents.len()).unwrap_err(), 6);
        let Ok(found) = part((0, Some(6)), 10, 1, &mut |_, found| {
            (1..1000).for_each(|at| found(at, 1));
            Ok::<(), Infallible>(())
        });
        assert_eq!(found.map(|part| part.extents.len()), Ok(5));
    }
}
