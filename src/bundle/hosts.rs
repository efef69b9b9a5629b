//! `/etc/hosts` of a spark: a section that Sparks writes, and lines of the spark's own, which stay as they are.

use std::net::IpAddr;

/// The first line of the section, up to where it may change in a later version.
const BEGIN: &[u8] = b"# begin of what Sparks writes";
/// The last line.
const END: &[u8] = b"# end of what Sparks writes";

/// What the section says.
#[derive(Debug, Default)]
pub struct Section {
    /// The spark's own addresses, and its names. The first of the names is its host name.
    pub own: Vec<IpAddr>,
    pub names: Vec<String>,
    /// Other names.
    pub others: Vec<(String, IpAddr)>,
}

impl Section {
    fn text(&self) -> Vec<u8> {
        let mut lines = vec![
            format!("{} at each start", String::from_utf8_lossy(BEGIN)),
            "127.0.0.1\tlocalhost".into(),
            "::1\tlocalhost ip6-localhost ip6-loopback".into(),
            "ff02::1\tip6-allnodes".into(),
            "ff02::2\tip6-allrouters".into(),
        ];
        lines.extend(self.own.iter().map(|ip| format!("{ip}\t{}", self.names.join(" "))));
        lines.extend(self.others.iter().map(|(name, ip)| format!("{ip}\t{name}")));
        let text: String = lines.into_iter().map(|line| line + "\n").collect();
        [text.as_bytes(), END, b"\n"].concat()
    }

    /// A file with this section in the place of the one that it has. It comes first: programs take the first line that has a name.
    #[must_use]
    pub fn in_place_of(&self, file: &[u8]) -> Vec<u8> {
        [self.text(), without(file)].concat()
    }
}

/// A file without the section. If a part of the section was removed, what is left of it stays.
#[must_use]
pub fn without(file: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
    let begin = lines.iter().position(|line| line.starts_with(BEGIN));
    let end = begin
        .and_then(|begin| lines[begin..].iter().position(|line| line.starts_with(END)).map(|n| begin + n));
    match (begin, end) {
        (Some(begin), Some(end)) => [&lines[..begin], &lines[end + 1..]].concat().concat(),
        _ => file.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        Section {
            own: vec!["10.128.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            names: vec!["web".into(), "web.shop.spark".into()],
            others: vec![("db.lan".into(), "192.0.2.7".parse().unwrap())],
        }
    }

    #[test]
    fn the_section_comes_first_and_other_lines_stay() {
        let begun = section().in_place_of(b"1.2.3.4 mine\n\xff\n");
        let text = String::from_utf8_lossy(&begun).into_owned();
        for line in [
            "127.0.0.1\tlocalhost",
            "10.128.0.2\tweb web.shop.spark",
            "fd00::2\tweb web.shop.spark",
            "192.0.2.7\tdb.lan",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
        assert!(begun.ends_with(b"# end of what Sparks writes\n1.2.3.4 mine\n\xff\n"));
        assert_eq!(without(&begun), b"1.2.3.4 mine\n\xff\n");
        // A line before it and one after it, and no end of the last line.
        let moved = [b"0.0.0.0 ads\n", &begun[..], b"5.6.7.8 more"].concat();
        let again = Section::default().in_place_of(&moved);
        assert!(again.ends_with(b"writes\n0.0.0.0 ads\n1.2.3.4 mine\n\xff\n5.6.7.8 more"));
        assert!(!String::from_utf8_lossy(&again).contains("db.lan"));
        assert_eq!(section().in_place_of(&section().in_place_of(&begun)), begun);
    }

    #[test]
    fn half_a_section_is_left_alone() {
        let half = b"# begin of what Sparks writes\n1.2.3.4 x\n";
        assert_eq!(without(half), half);
        assert_eq!(without(b""), b"");
    }
}
