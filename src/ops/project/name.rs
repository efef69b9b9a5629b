//! The names that a repository's project may have.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::DEFAULT;
use super::detect::Repository;
use crate::domain::name::{InvalidName, MAX, Name};

/// The name of a repository whose folder's has no letter or digit to take.
const NAMELESS: &str = "repo";

/// The names for a repository's project, best first: that of its folder, and the same with a suffix that hangs
/// on where the repository is, short and, should even that be taken, long.
///
/// A repository in a folder named `default` goes without the first: it would share its project with every
/// command outside of a repository.
pub(super) fn candidates(repository: &Repository) -> Result<Vec<Name>, InvalidName> {
    let plain = repository.folder_name().and_then(|folder| Name::nearest(&folder));
    let plain = plain.map_or_else(|| NAMELESS.parse(), Ok)?;
    let hash = hash(&repository.common);
    // Folded, as FNV's authors advise for fewer bits.
    let short = suffixed(&plain, &format!("{:06x}", (hash ^ (hash >> 24)) & 0xff_ffff))?;
    let long = suffixed(&plain, &format!("{hash:016x}"))?;
    let plain = Some(plain).filter(|name| name.as_str() != DEFAULT);
    Ok(plain.into_iter().chain([short, long]).collect())
}

fn suffixed(name: &Name, suffix: &str) -> Result<Name, InvalidName> {
    // A name is ASCII, so that it can be cut anywhere.
    let room = MAX - 1 - suffix.len();
    let cut = &name.as_str()[..name.as_str().len().min(room)];
    format!("{}-{suffix}", cut.trim_end_matches('-')).parse()
}

/// FNV-1a, 64 bits: the same in every version of this program and of Rust, which a name on disk has to be.
/// It tells paths apart; against somebody who chooses them it protects nothing, and nothing hangs on it: a name
/// is a repository's only if its record says so.
fn hash(path: &Path) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(common: &str) -> Vec<String> {
        let names = candidates(&Repository { common: common.into(), claimed: None }).unwrap();
        names.into_iter().map(String::from).collect()
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(Path::new("")), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(Path::new("a")), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash(Path::new("foobar")), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn names_are_the_folders_then_with_a_suffix_of_its_place() {
        let a = names("/a/Shop_2/.git");
        assert_eq!(a[0], "shop-2");
        assert!(a[1].starts_with("shop-2-") && a[1].len() == "shop-2-".len() + 6, "{a:?}");
        assert_eq!(a[2].len(), "shop-2-".len() + 16);
        let b = names("/b/Shop_2/.git");
        assert_eq!(a[0], b[0]);
        assert_ne!(a[1], b[1]);
        assert_eq!(names("/srv/shop.git")[0], "shop");
    }

    #[test]
    fn long_names_are_cut_so_that_the_suffix_fits() {
        let all = names(&format!("/{}-{}/.git", "a".repeat(55), "b".repeat(30)));
        assert_eq!(all.iter().map(String::len).collect::<Vec<_>>(), [63, 62, 63]);
    }

    #[test]
    fn what_has_no_name_is_repo_and_default_is_nobodys() {
        assert_eq!(names("/src/🦀/.git")[0], "repo");
        assert_eq!(names("/.git")[0], "repo");
        let default = names("/src/default/.git");
        assert!(default.len() == 2 && default[0].starts_with("default-"), "{default:?}");
    }
}
