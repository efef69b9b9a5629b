//! Messages of the domain name system: RFC 1035, section 4, and the OPT record of RFC 6891.
//!
//! A query of a spark is read as far as its question, and for the OPT record behind that. Nothing else in it is used: what
//! goes to a resolver of the host is written anew. Of a resolver's answer, the header and the question are read. The
//! records in it are the asker's to read.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most bytes of a query: a question and an OPT record take 300.
pub(super) const MAX_QUERY: usize = 4096;
/// Most bytes of an answer: what a length in front of a message on TCP can say.
pub(super) const MAX_ANSWER: usize = 65_535;
/// What every asker takes by UDP (RFC 1035, section 2.3.4).
const PLAIN: usize = 512;
/// Most bytes of an answer by UDP that an asker may have asked for.
const LARGEST: usize = 4096;
/// Bytes of a header.
const HEADER: usize = 12;
/// Most bytes of a name, with the lengths of its labels (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;

const RESPONSE: u16 = 1 << 15;
const OPCODE: u16 = 0xf << 11;
const AUTHORITATIVE: u16 = 1 << 10;
const TRUNCATED: u16 = 1 << 9;
const RECURSION_DESIRED: u16 = 1 << 8;
const RECURSION_AVAILABLE: u16 = 1 << 7;
const AUTHENTIC: u16 = 1 << 5;
const CHECKING_DISABLED: u16 = 1 << 4;
/// The bit of an OPT record by which an asker wants signatures.
const SIGNATURES: u32 = 1 << 15;

/// Types of records (RFC 1035, section 3.2.2; RFC 3596).
pub(super) const A: u16 = 1;
pub(super) const PTR: u16 = 12;
pub(super) const AAAA: u16 = 28;
pub(super) const ANY: u16 = 255;
const OPT: u16 = 41;
/// The class of the internet.
pub(super) const IN: u16 = 1;

/// How a query ended: RFC 1035, section 4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NameError = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// A query that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    id: u16,
    flags: u16,
    /// The question as it came: name, type and class.
    question: Vec<u8>,
    edns: Option<Edns>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edns {
    /// Most bytes of an answer by UDP.
    size: u16,
    wants_signatures: bool,
}

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It is no query, and an answer to it might go round in a circle.
    Ignored,
    /// The header of an answer that says why.
    Answered(Vec<u8>),
}

/// What a resolver's message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// No answer to the question that was asked.
    Foreign,
    /// The resolver could not answer. Another one may.
    Failed,
    Good,
}

/// A record of an answer. Its name is that of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Address(IpAddr),
    /// A name with dots, of labels that are names of sparks or projects.
    Name(String),
}

/// Reads numbers and names from the start of a message on.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn long(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// Passes a name without pointers: the first name of a message has nothing to point at.
    fn plain_name(&mut self) -> Option<()> {
        let start = self.at;
        loop {
            let length = usize::from(self.take(1)?[0]);
            // The two highest bits are no part of a length.
            if length > 63 {
                return None;
            }
            self.take(length)?;
            if self.at - start > MAX_NAME {
                return None;
            }
            if length == 0 {
                return Some(());
            }
        }
    }

    /// Passes a name that may end with a pointer, and follows none. Returns whether it is the root.
    fn any_name(&mut self) -> Option<bool> {
        let start = self.at;
        loop {
            let length = usize::from(self.take(1)?[0]);
            match length >> 6 {
                0 if length == 0 => return Some(self.at - start == 1),
                0 => self.take(length).map(drop)?,
                3 => return self.take(1).map(|_| false),
                _ => return None,
            }
            if self.at - start > MAX_NAME {
                return None;
            }
        }
    }
}

impl Query {
    /// Reads a message of an asker.
    pub(super) fn parse(bytes: &[u8]) -> Result<Query, Unusable> {
        let mut reader = Reader { bytes, at: 0 };
        let (Some(id), Some(flags)) = (reader.number(), reader.number()) else {
            return Err(Unusable::Ignored);
        };
        if bytes.len() < HEADER || flags & RESPONSE != 0 {
            return Err(Unusable::Ignored);
        }
        let refuse = |code: Code| {
            let flags = RESPONSE | flags & (OPCODE | RECURSION_DESIRED) | RECURSION_AVAILABLE | code as u16;
            Unusable::Answered(header(id, flags, [0; 4]))
        };
        if flags & OPCODE != 0 {
            return Err(refuse(Code::NotImplemented));
        }
        Query::read(id, flags, reader).ok_or_else(|| refuse(Code::FormatError))
    }

    fn read(id: u16, flags: u16, mut reader: Reader<'_>) -> Option<Query> {
        let counts = [reader.number()?, reader.number()?, reader.number()?, reader.number()?];
        let [1, 0, 0, additional] = counts else { return None };
        let start = reader.at;
        reader.plain_name()?;
        reader.take(4)?;
        let question = reader.bytes.get(start..reader.at)?.to_vec();
        let mut edns = None;
        // Each record has bytes of its own, so their number ends with those of the message.
        for _ in 0..additional {
            let is_root = reader.any_name()?;
            let (kind, class, ttl, length) =
                (reader.number()?, reader.number()?, reader.long()?, reader.number()?);
            reader.take(length.into())?;
            if kind == OPT {
                // The second byte of the four is the version.
                if !is_root || edns.is_some() || ttl.to_be_bytes()[1] != 0 {
                    return None;
                }
                edns = Some(Edns { size: class, wants_signatures: ttl & SIGNATURES != 0 });
            }
        }
        Some(Query { id, flags, question, edns })
    }

    fn field(&self, from_end: usize) -> u16 {
        let at = self.question.len() - from_end;
        u16::from_be_bytes([self.question[at], self.question[at + 1]])
    }

    /// The type of records that are wanted.
    pub(super) fn kind(&self) -> u16 {
        self.field(4)
    }

    pub(super) fn class(&self) -> u16 {
        self.field(2)
    }

    /// The labels of the name, in lower case. None if one of them is none of a host's: nothing here has such a name.
    pub(super) fn labels(&self) -> Option<Vec<String>> {
        let mut labels = Vec::new();
        let mut rest = &self.question[..self.question.len() - 4];
        while let Some((length, more)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let (label, after) = more.split_at_checked(usize::from(*length))?;
            if !label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_') {
                return None;
            }
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
            rest = after;
        }
        Some(labels)
    }

    /// An answer without records of others.
    pub(super) fn answer(&self, code: Code, records: &[Record]) -> Vec<u8> {
        let asked = self.flags & (RECURSION_DESIRED | CHECKING_DISABLED);
        let flags = RESPONSE | AUTHORITATIVE | asked | RECURSION_AVAILABLE | code as u16;
        let counts = [1, records.len() as u16, 0, u16::from(self.edns.is_some())];
        let mut out = header(self.id, flags, counts);
        out.extend(&self.question);
        for record in records {
            record.write(&mut out);
        }
        if self.edns.is_some() {
            write_opt(&mut out, LARGEST as u16, false);
        }
        out
    }

    /// What is asked of a resolver in this query's place.
    pub(super) fn passed_on(&self, id: u16) -> Vec<u8> {
        let flags = self.flags & (RECURSION_DESIRED | AUTHENTIC | CHECKING_DISABLED);
        let mut out = header(id, flags, [1, 0, 0, u16::from(self.edns.is_some())]);
        out.extend(&self.question);
        if let Some(edns) = self.edns {
            write_opt(&mut out, self.most_by_udp() as u16, edns.wants_signatures);
        }
        out
    }

    /// Looks at what a resolver sent, having been asked with this id.
    pub(super) fn judge(&self, answer: &[u8], id: u16) -> Answer {
        let mut reader = Reader { bytes: answer, at: 0 };
        let (Some(its_id), Some(flags)) = (reader.number(), reader.number()) else { return Answer::Foreign };
        if its_id != id || flags & RESPONSE == 0 || flags & OPCODE != 0 {
            return Answer::Foreign;
        }
        // What a name error says, another resolver would say too.
        let failed = ![Code::NoError as u16, Code::NameError as u16].contains(&(flags & 0xf));
        let question = reader.number();
        match (question, answer.get(HEADER..HEADER + self.question.len())) {
            (Some(1), Some(question)) if question.eq_ignore_ascii_case(&self.question) => {
                if failed {
                    Answer::Failed
                } else {
                    Answer::Good
                }
            }
            // Some resolvers leave out the question of a query that they do not understand.
            (Some(0), _) if failed => Answer::Failed,
            _ => Answer::Foreign,
        }
    }

    /// Makes an answer of a resolver's: with the id that the asker gave, and cut to what the asker takes. `judge` has found
    /// it good, or failed.
    pub(super) fn handed_on(&self, mut answer: Vec<u8>, by_udp: bool) -> Vec<u8> {
        if answer.len() < HEADER + self.question.len() {
            return self.answer(Code::ServerFailure, &[]);
        }
        answer[..2].copy_from_slice(&self.id.to_be_bytes());
        if by_udp && answer.len() > self.most_by_udp() {
            let flags = u16::from_be_bytes([answer[2], answer[3]]) | TRUNCATED;
            answer = header(self.id, flags, [1, 0, 0, 0]);
            answer.extend(&self.question);
        }
        answer
    }

    fn most_by_udp(&self) -> usize {
        self.edns.map_or(PLAIN, |edns| usize::from(edns.size).clamp(PLAIN, LARGEST))
    }
}

impl Record {
    fn write(&self, out: &mut Vec<u8>) {
        let (kind, data) = match self {
            Record::Address(IpAddr::V4(ip)) => (A, ip.octets().to_vec()),
            Record::Address(IpAddr::V6(ip)) => (AAAA, ip.octets().to_vec()),
            Record::Name(name) => {
                let labels = name.split('.').filter(|label| !label.is_empty());
                let mut data: Vec<u8> = labels
                    .flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()))
                    .collect();
                data.push(0);
                (PTR, data)
            }
        };
        // The name that the question has.
        out.extend([0xc0, HEADER as u8]);
        for number in [kind, IN] {
            out.extend(number.to_be_bytes());
        }
        // Nobody keeps it: a name leads elsewhere as soon as its spark ends.
        out.extend(0_u32.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
}

fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PLAIN);
    for number in [id, flags].into_iter().chain(counts) {
        out.extend(number.to_be_bytes());
    }
    out
}

fn write_opt(out: &mut Vec<u8>, size: u16, wants_signatures: bool) {
    out.push(0);
    out.extend(OPT.to_be_bytes());
    out.extend(size.to_be_bytes());
    out.extend((if wants_signatures { SIGNATURES } else { 0 }).to_be_bytes());
    out.extend(0_u16.to_be_bytes());
}

/// The address that the name of a PTR question is about (RFC 1035, section 3.5; RFC 3596, section 2.5).
pub(super) fn address_of(labels: &[String]) -> Option<IpAddr> {
    let words: Vec<&str> = labels.iter().map(String::as_str).collect();
    match words.as_slice() {
        [numbers @ .., "in-addr", "arpa"] if numbers.len() == 4 => {
            let mut text = String::new();
            for number in numbers.iter().rev() {
                let _ = write!(text, "{}{number}", if text.is_empty() { "" } else { "." });
            }
            text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        }
        [digits @ .., "ip6", "arpa"] if digits.len() == 32 => {
            let mut number = 0_u128;
            for digit in digits.iter().rev() {
                let value = u8::from_str_radix(digit, 16).ok().filter(|_| digit.len() == 1)?;
                number = number << 4 | u128::from(value);
            }
            Some(IpAddr::V6(Ipv6Addr::from(number)))
        }
        _ => None,
    }
}
