//! A stream as the process that parses it tells it: records, which are checked here.

use std::io::{self, BufReader, Read};

use super::format::{Progress, corrupt, damage, misread};
use super::parse::{IS_END, IS_HEADER, IS_LATER, IS_SECTION};
use super::{Header, Section};
use crate::error::{Error, Result};
use crate::pool::stream::Command;
use crate::pool::stream::record::{self, Record};

/// What is read at once.
const BUFFER: usize = 256 << 10;
/// Most bytes of JSON, all headers and sections together. It is parsed here.
const JSON: usize = 4 << 20;
/// Largest record that is no command, as in the stream.
const LARGEST: usize = super::format::MAX_RECORD as usize;

/// A stream whose header was read.
pub(super) struct Incoming<R> {
    from: BufReader<R>,
    /// Bytes of JSON that may come.
    json: usize,
    /// Bytes of commands that may come, and that have.
    limit: u64,
    passed: u64,
}

impl<R: Read> Incoming<R> {
    /// Reads the header. Of content, `limit` bytes may follow.
    ///
    /// # Errors
    /// `corrupt` if it is no stream of ours, `not_supported` if it is one of a later version.
    pub(super) fn open(from: R, limit: u64) -> Result<(Header, Incoming<R>)> {
        let from = BufReader::with_capacity(BUFFER, from);
        let mut incoming = Incoming { from, json: JSON, limit, passed: 0 };
        let record = incoming.record(LARGEST)?;
        match record.kind {
            IS_HEADER => Ok((incoming.parse(&record)?, incoming)),
            _ => Err(out_of_order()),
        }
    }

    /// The next section; `None` after the last. The one before has to have been read to its end.
    pub(super) fn section(&mut self) -> Result<Option<Section>> {
        let record = self.record(LARGEST)?;
        match record.kind {
            IS_END => Ok(None),
            IS_SECTION => self.parse(&record).map(Some),
            _ => Err(out_of_order()),
        }
    }

    /// The commands of the section that was read last, one by one, until there is none.
    pub(super) fn commands<'a>(
        &'a mut self,
        progress: Progress<'a>,
    ) -> impl FnMut() -> Result<Option<Command>> + 'a {
        let (mut has_begun, mut has_ended) = (false, false);
        move || {
            if has_ended {
                return Ok(None);
            }
            let record = self.record(record::MOST)?;
            self.passed += record.length();
            if self.passed > self.limit {
                // More than the pool has room for: said as the full disk that it would become.
                return Err(Error::sys("read the stream")(io::Error::from_raw_os_error(libc::ENOSPC)));
            }
            progress(self.passed);
            let command = record::decode(record).map_err(corrupt)?;
            let begins = matches!(command, Command::Subvol { .. } | Command::Snapshot { .. });
            if begins == has_begun {
                return Err(out_of_order());
            }
            (has_begun, has_ended) = (true, command == Command::End);
            Ok(Some(command))
        }
    }

    /// Makes sure that nothing follows, and that the process has ended as it should.
    pub(super) fn finish(mut self) -> Result<()> {
        match self.from.read(&mut [0]).map_err(damage)? {
            0 => Ok(()),
            _ => Err(out_of_order()),
        }
    }

    fn record(&mut self, most: usize) -> Result<Record> {
        match Record::read(&mut self.from, most).map_err(damage)? {
            Some(record) if record.kind == IS_LATER => Err(not_supported(&record)),
            Some(record) => Ok(record),
            None => Err(out_of_order()),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(&mut self, record: &Record) -> Result<T> {
        let [json, ..] = &record.texts;
        let left = self.json.checked_sub(json.len());
        self.json = left.ok_or_else(|| corrupt("its headers are too long"))?;
        serde_json::from_slice(json).map_err(misread)
    }
}

/// What no process writes that was not taken over.
fn out_of_order() -> Error {
    corrupt("the process that reads it was taken over: its records are out of order")
}

fn not_supported(record: &Record) -> Error {
    let [what, hint, _] = &record.texts;
    // A process that was taken over may have written anything.
    let plain = |text: &[u8]| -> String {
        let text = String::from_utf8_lossy(&text[..text.len().min(1024)]);
        text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    };
    let hint = Some(plain(hint)).filter(|hint| !hint.is_empty());
    Error::NotSupported { what: plain(what), hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn record(kind: u8, text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Record { kind, texts: [text, &[], &[]], ..Record::default() }.write(&mut bytes).unwrap();
        bytes
    }

    fn command(command: &Command) -> Vec<u8> {
        let mut bytes = Vec::new();
        record::encode(command).write(&mut bytes).unwrap();
        bytes
    }

    fn header() -> Vec<u8> {
        let spark = r#"{"name":"web","id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","options":{}}"#;
        let snapshot = r#"{"name":"s","id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","uuid":"u"}"#;
        record(IS_HEADER, format!(r#"{{"spark":{spark},"snapshot":{snapshot}}}"#).as_bytes())
    }

    fn section() -> Vec<u8> {
        record(IS_SECTION, br#"{"kind":"root"}"#)
    }

    /// Reads everything, as a receive does. Returns how many commands there were.
    fn read(records: &[Vec<u8>], limit: u64) -> Result<usize> {
        let (_, mut incoming) = Incoming::open(io::Cursor::new(records.concat()), limit)?;
        let mut count = 0;
        while incoming.section()?.is_some() {
            let mut next = incoming.commands(&|_| {});
            while next()?.is_some() {
                count += 1;
            }
        }
        incoming.finish()?;
        Ok(count)
    }

    #[test]
    fn records_of_a_process_that_was_taken_over_are_refused() {
        let begin = command(&Command::Subvol { path: b"r".into(), uuid: [0; 16], ctransid: 0 });
        let file = command(&Command::MkFile { path: b"f".into() });
        let (end, last) = (command(&Command::End), record(IS_END, b""));
        let of = |parts: &[&Vec<u8>]| parts.iter().map(|part| part.to_vec()).collect::<Vec<_>>();
        let (head, section) = (header(), section());
        let whole = of(&[&head, &section, &begin, &file, &end, &last]);
        assert_eq!(read(&whole, 1 << 20).unwrap(), 3);
        for bad in [
            of(&[]),
            of(&[&section]),
            of(&[&head]),
            of(&[&head, &head]),
            of(&[&head, &file]),
            of(&[&head, &section, &last]),
            of(&[&head, &section, &file, &end, &last]),
            of(&[&head, &section, &begin, &begin, &end, &last]),
            of(&[&head, &section, &begin, &section]),
            of(&[&head, &section, &begin, &end]),
            of(&[&head, &section, &begin, &end, &file, &last]),
            of(&[&head, &section, &begin, &end, &last, &last]),
            of(&[&record(IS_HEADER, b"{}")]),
            of(&[&record(IS_HEADER, &vec![b' '; LARGEST + 1])]),
            of(&[&head, &section, &begin, &record(15, &vec![b'a'; record::MOST + 1])]),
        ] {
            assert_eq!(read(&bad, 1 << 20).unwrap_err().code(), Code::Corrupt, "{bad:?}");
        }
        let cut = [&whole.concat()[..], &[1, 2]].concat();
        assert_eq!(read(&[cut], 1 << 20).unwrap_err().code(), Code::Corrupt);
    }

    #[test]
    fn what_is_parsed_here_and_what_is_written_is_bounded() {
        // Each section has a length that it may have, and together they are more than is parsed here.
        let json = format!(r#"{{"kind":"root","x":"{}"}}"#, "x".repeat(1 << 20 >> 1));
        let begin = command(&Command::Subvol { path: b"r".into(), uuid: [0; 16], ctransid: 0 });
        let one = [record(IS_SECTION, json.as_bytes()), begin.clone(), command(&Command::End)].concat();
        let many = std::iter::once(header()).chain(std::iter::repeat_n(one, 9)).collect::<Vec<_>>();
        assert!(read(&many, 1 << 20).unwrap_err().to_string().contains("headers are too long"));
        let data = command(&Command::Write { path: b"f".into(), offset: 0, data: vec![0; 1000] });
        let records = [header(), section(), begin.clone(), data];
        assert_eq!(read(&records, 999).unwrap_err().code(), Code::NoSpace);
        // Commands without any text are bounded too: a stream may have them without end.
        let mode = command(&Command::Chmod { path: Vec::new(), mode: 0o755 });
        let records: Vec<_> =
            [header(), section(), begin].into_iter().chain(std::iter::repeat_n(mode, 1 << 10)).collect();
        assert_eq!(read(&records, 32 << 10).unwrap_err().code(), Code::NoSpace);
    }

    #[test]
    fn what_a_later_version_wrote_is_told_without_control_characters() {
        let mut later = Vec::new();
        let texts = [&b"version 2\x1b[2J"[..], b"upgrade", b""];
        Record { kind: IS_LATER, texts, ..Record::default() }.write(&mut later).unwrap();
        let e = read(&[header(), later], 1 << 20).unwrap_err();
        assert_eq!(e.code(), Code::NotSupported);
        assert!(e.to_string().contains("version 2?[2J"), "{e}");
    }
}
