//! Files of several names in a tree that is walked: which of their names came first.

use std::collections::HashMap;

/// Bytes of names that are remembered. Who owns the tree decides how many files in it have several names, and how long the
/// names are; they are remembered in a process of the host's.
const MOST: usize = 64 << 20;

/// A file, by device and inode.
type File = (u64, u64);

/// The first names of files that have several. A file is forgotten when all its names have come.
#[derive(Debug)]
pub struct Links<T> {
    first: HashMap<File, First<T>>,
    /// Bytes that may be remembered still.
    left: usize,
    /// Names of files that could not be remembered, so that each becomes a file of its own.
    pub links_split: u64,
}

#[derive(Debug)]
struct First<T> {
    path: Vec<u8>,
    about: T,
    /// How many more names the file has, this one included.
    more: u64,
}

impl<T> Default for Links<T> {
    fn default() -> Links<T> {
        Links::with_room(MOST)
    }
}

impl<T> Links<T> {
    fn with_room(left: usize) -> Links<T> {
        Links { first: HashMap::new(), left, links_split: 0 }
    }

    /// Forgets all files, and keeps the count of names that could not be remembered.
    pub fn clear(&mut self) {
        self.left += self.first.drain().map(|(_, first)| cost::<T>(&first.path)).sum::<usize>();
    }
}

impl<T: Copy> Links<T> {
    /// The first name of a file, if that is remembered, and what was noted with it. Counts one more name of the file.
    pub fn next_name(&mut self, file: File) -> Option<(Vec<u8>, T)> {
        let first = self.first.get_mut(&file)?;
        first.more = first.more.saturating_sub(1);
        if first.more > 1 {
            return Some((first.path.clone(), first.about));
        }
        let first = self.first.remove(&file)?;
        self.left += cost::<T>(&first.path);
        Some((first.path, first.about))
    }

    /// Remembers the first of so many names of a file, if there is room for it.
    pub fn note(&mut self, file: File, path: Vec<u8>, about: T, names: u64) {
        match self.left.checked_sub(cost::<T>(&path)) {
            None => self.links_split += 1,
            Some(left) => {
                self.left = left;
                if let Some(before) = self.first.insert(file, First { path, about, more: names }) {
                    self.left += cost::<T>(&before.path);
                }
            }
        }
    }
}

/// Bytes that a file takes in a table, which is up to half empty, with what an allocator needs for the path.
fn cost<T>(path: &[u8]) -> usize {
    const ALLOCATOR: usize = 16;
    2 * size_of::<(File, First<T>)>() + path.len() + ALLOCATOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_until_its_last_name_has_come() {
        let mut links = Links::default();
        links.note((1, 1), b"a".to_vec(), 7, 3);
        assert_eq!(links.next_name((1, 2)), None);
        assert_eq!(links.next_name((1, 1)), Some((b"a".to_vec(), 7)));
        assert_eq!(links.next_name((1, 1)), Some((b"a".to_vec(), 7)));
        assert_eq!(links.next_name((1, 1)), None);
        assert_eq!((links.left, links.links_split), (MOST, 0));
    }

    #[test]
    fn however_many_files_have_several_names_no_more_are_remembered_than_there_is_room_for() {
        let each = cost::<()>(&[b'x'; 100]);
        let mut links = Links::with_room(10 * each);
        for inode in 0..1000 {
            links.note((1, inode), vec![b'x'; 100], (), 2);
        }
        assert_eq!((links.first.len(), links.left, links.links_split), (10, 0, 990));
        // A file that is noted again takes no more room.
        links.next_name((1, 0)).unwrap();
        links.note((1, 1), vec![b'x'; 100], (), 2);
        links.note((1, 2000), vec![b'x'; 100], (), 2);
        assert_eq!((links.first.len(), links.left, links.links_split), (10, 0, 990));
        links.clear();
        assert_eq!((links.first.len(), links.left), (0, 10 * each));
    }
}
