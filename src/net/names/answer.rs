//! What is answered to whom.
//!
//! | a question for | is answered with |
//! |---|---|
//! | `NAME`, if the asker's project has a running spark of this name | its addresses |
//! | `NAME.PROJECT.spark`, of the asker's own project | the same, or a name error |
//! | `host.spark`, if the asker may reach the host | the host's address |
//! | everything else below `spark` | a name error |
//! | `localhost` and what is below it | the loopback address |
//! | the name of an address of a spark of the asker's project | `NAME.PROJECT.spark` |
//! | everything else | what a resolver of the host says, or a name error if the asker may not reach it |
//!
//! Who may not ask the host's resolvers gets a name error and no refusal: musl takes a refusal for an answer that was lost, and
//! waits for another one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{self, A, AAAA, ANY, Code, PTR, Query, Record as Answered, address_of};
use super::records::{Record, Records};
use crate::domain::name::Name;

/// The top of names that Sparks gives.
pub(super) const TOP: &str = "spark";

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Answer(Vec<u8>),
    PassOn,
}

/// Answers a question, or says that the host's resolvers have to.
pub(super) fn answer(records: &Records, asker: Ipv4Addr, query: &Query) -> Reply {
    let Some(asker) = records.of_address(asker.into()) else {
        return Reply::Answer(query.answer(Code::Refused, &[]));
    };
    if query.class() != message::IN {
        return Reply::Answer(query.answer(Code::NotImplemented, &[]));
    }
    match query.labels().and_then(|labels| own(records, &asker, &labels, query.kind())) {
        Some(Found::Addresses(addresses)) => {
            let wanted = |ip: &IpAddr| match query.kind() {
                A => ip.is_ipv4(),
                AAAA => ip.is_ipv6(),
                kind => kind == ANY,
            };
            let found: Vec<_> = addresses.into_iter().filter(wanted).map(Answered::Address).collect();
            Reply::Answer(query.answer(Code::NoError, &found))
        }
        Some(Found::Name(name)) => Reply::Answer(query.answer(Code::NoError, &[Answered::Name(name)])),
        Some(Found::Nothing) => Reply::Answer(query.answer(Code::NameError, &[])),
        None if asker.asks_beyond => Reply::PassOn,
        None => Reply::Answer(query.answer(Code::NameError, &[])),
    }
}

enum Found {
    /// The name is there, and has these addresses, or only others below it.
    Addresses(Vec<IpAddr>),
    Name(String),
    /// There is no such name.
    Nothing,
}

/// What is known here of a name. None if nobody here can say.
fn own(records: &Records, asker: &Record, labels: &[String], kind: u16) -> Option<Found> {
    let spark =
        |name: &str| -> Option<Record> { records.of_name(&asker.project, &name.parse::<Name>().ok()?) };
    let words: Vec<&str> = labels.iter().map(String::as_str).collect();
    match words.as_slice() {
        [.., "localhost"] => {
            Some(Found::Addresses(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]))
        }
        // These have no addresses, but names below them do.
        [TOP] => Some(Found::Addresses(spark(TOP).map_or(Vec::new(), |spark| spark.addresses().collect()))),
        [project, TOP] if *project == asker.project_name.as_str() && *project != "host" => {
            Some(Found::Addresses(Vec::new()))
        }
        ["host", TOP] if !asker.host.is_empty() => Some(Found::Addresses(asker.host.clone())),
        [name, project, TOP] if *project == asker.project_name.as_str() => {
            Some(spark(name).map_or(Found::Nothing, |spark| Found::Addresses(spark.addresses().collect())))
        }
        [.., TOP] => Some(Found::Nothing),
        [name] => spark(name).map(|spark| Found::Addresses(spark.addresses().collect())),
        [.., "arpa"] if kind == PTR || kind == ANY => {
            let named = records.of_address(address_of(labels)?)?;
            // Of an address that a spark of another project has, the asker learns what it would of an address of nobody.
            (named.project == asker.project)
                .then(|| Found::Name(format!("{}.{}.{TOP}", named.name, named.project_name)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Query;
    use super::super::records::tests::spark;
    use super::*;

    /// A question in the form that programs send.
    fn query(name: &str, kind: u16) -> Query {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend(label.bytes());
        }
        bytes.extend([&[0][..], &kind.to_be_bytes(), &1_u16.to_be_bytes()].concat());
        Query::parse(&bytes).unwrap()
    }

    /// The code, and how many records come with it; `beyond` where the host's resolvers are asked.
    fn told(records: &Records, asker: &Record, name: &str, kind: u16) -> String {
        match answer(records, asker.v4, &query(name, kind)) {
            Reply::PassOn => "beyond".into(),
            Reply::Answer(bytes) => format!("{} {}", bytes[3] & 0xf, bytes[7]),
        }
    }

    #[test]
    fn each_spark_is_told_of_its_own_project_and_of_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::in_dir(dir.path());
        let (one, two) = ("10.128.0.0".to_owned(), "10.128.16.0".to_owned());
        let web = spark(&one, "shop", "web", 2);
        let mut db = spark(&one, "shop", "db", 3);
        db.host = vec!["10.9.9.9".parse().unwrap()];
        // Another project of the same name, as another user may have.
        let mut other = spark(&two, "shop", "cache", 4);
        other.asks_beyond = false;
        for record in [&web, &db, &other] {
            records.write(record).unwrap();
        }
        for (name, kind, to_web, to_other) in [
            ("db", A, "0 1", "3 0"),
            ("DB", AAAA, "0 1", "3 0"),
            ("db", ANY, "0 2", "3 0"),
            ("db", 15, "0 0", "3 0"),
            ("db.shop.spark", A, "0 1", "3 0"),
            ("cache", A, "beyond", "0 1"),
            ("cache.shop.spark", A, "3 0", "0 1"),
            ("db.other.spark", A, "3 0", "3 0"),
            ("x.db.shop.spark", A, "3 0", "3 0"),
            ("shop.spark", A, "0 0", "0 0"),
            ("spark", A, "0 0", "0 0"),
            ("other.spark", A, "3 0", "3 0"),
            ("host.spark", A, "3 0", "3 0"),
            ("localhost", A, "0 1", "0 1"),
            ("a.localhost", AAAA, "0 1", "0 1"),
            ("3.0.128.10.in-addr.arpa", PTR, "0 1", "3 0"),
            ("4.0.128.10.in-addr.arpa", PTR, "beyond", "0 1"),
            ("9.0.128.10.in-addr.arpa", PTR, "beyond", "3 0"),
            ("example.com", A, "beyond", "3 0"),
            ("..", 2, "beyond", "3 0"),
        ] {
            assert_eq!(told(&records, &web, name, kind), to_web, "web asks for {name}");
            assert_eq!(told(&records, &other, name, kind), to_other, "cache asks for {name}");
        }
        assert_eq!(told(&records, &db, "host.spark", A), "0 1");
        assert_eq!(told(&records, &db, "host.spark", AAAA), "0 0");
        let stranger = spark(&one, "shop", "gone", 9);
        assert_eq!(told(&records, &stranger, "db", A), "5 0");
    }

    #[test]
    fn names_of_another_class_are_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::in_dir(dir.path());
        let web = spark("10.128.0.0", "shop", "web", 2);
        records.write(&web).unwrap();
        let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3];
        bytes.extend(b"web\0\0\x01\0\x03");
        let Reply::Answer(answer) = answer(&records, web.v4, &Query::parse(&bytes).unwrap()) else {
            panic!()
        };
        assert_eq!(answer[3] & 0xf, 4);
    }
}
