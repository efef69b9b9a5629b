//! Messages as programs send them, and as nobody should.

use super::message::*;

/// A query: flags, counts, and what follows the header.
fn message(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let numbers = [0x1234, flags].into_iter().chain(counts);
    numbers.flat_map(u16::to_be_bytes).chain(rest.iter().copied()).collect()
}

fn question(labels: &[&str], kind: u16) -> Vec<u8> {
    let mut out: Vec<u8> =
        labels.iter().flat_map(|l| std::iter::once(l.len() as u8).chain(l.bytes())).collect();
    out.push(0);
    out.extend([kind, IN].into_iter().flat_map(u16::to_be_bytes));
    out
}

fn query(labels: &[&str], kind: u16) -> Query {
    Query::parse(&message(0x0100, [1, 0, 0, 0], &question(labels, kind))).unwrap()
}

const OPT_RECORD: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 0];

#[test]
fn a_query_is_read_and_its_labels_are_in_lower_case() {
    let mut rest = question(&["WeB", "Shop", "spark"], A);
    rest.extend(OPT_RECORD);
    let query = Query::parse(&message(0x0120, [1, 0, 0, 1], &rest)).unwrap();
    assert_eq!((query.kind(), query.class()), (A, IN));
    assert_eq!(query.labels().unwrap(), ["web", "shop", "spark"]);
    // What is passed on has the question as it came, the flags that matter, the size and the wish for signatures.
    let passed = query.passed_on(7);
    assert_eq!(passed[..12], [0, 7, 0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!(passed[12..], rest);
    let answer = query.answer(Code::NoError, &[Record::Address([10, 1, 2, 3].into())]);
    assert_eq!(answer[..12], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 1]);
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 1, 2, 3];
    let end = 12 + question(&["WeB", "Shop", "spark"], A).len();
    assert_eq!(answer[end..end + record.len()], record);
}

#[test]
fn options_of_a_query_are_not_passed_on() {
    let mut rest = question(&["x"], A);
    // An OPT record with an option of 4 bytes, and another record.
    rest.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 8, 0, 10, 0, 4, 1, 2, 3, 4]);
    rest.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0, 0, 2, 1, b'x']);
    let query = Query::parse(&message(0, [1, 0, 0, 2], &rest)).unwrap();
    assert_eq!(query.passed_on(1).len(), 12 + question(&["x"], A).len() + 11);
}

#[test]
fn what_is_no_query_is_ignored_and_what_is_a_bad_one_is_answered_with_a_reason() {
    let good = question(&["web"], A);
    for ignored in [
        Vec::new(),
        vec![0; 11],
        // An answer: two resolvers would talk for ever.
        message(0x8000, [1, 0, 0, 0], &good),
    ] {
        assert_eq!(Query::parse(&ignored), Err(Unusable::Ignored), "{ignored:?}");
    }
    let pointer = [0xc0, 12, 0, 1, 0, 1];
    let long = [vec![63; 64 * 4], vec![0, 0, 1, 0, 1]].concat();
    let mut twice = good.clone();
    twice.extend(OPT_RECORD);
    twice.extend(OPT_RECORD);
    let mut version = [good.clone(), OPT_RECORD.to_vec()].concat();
    version[good.len() + 6] = 1;
    for (why, code, bytes) in [
        ("an update", 4, message(0x2800, [1, 0, 0, 0], &good)),
        ("no question", 1, message(0, [0, 0, 0, 0], &[])),
        ("two questions", 1, message(0, [2, 0, 0, 0], &[good.clone(), good.clone()].concat())),
        ("an answer in it", 1, message(0, [1, 1, 0, 0], &good)),
        ("a pointer", 1, message(0, [1, 0, 0, 0], &pointer)),
        ("a long label", 1, message(0, [1, 0, 0, 0], &[64, 1, 2])),
        ("a long name", 1, message(0, [1, 0, 0, 0], &long)),
        ("a name without an end", 1, message(0, [1, 0, 0, 0], &[3, b'w', b'e', b'b'])),
        ("no class", 1, message(0, [1, 0, 0, 0], &good[..good.len() - 1])),
        ("records that are not there", 1, message(0, [1, 0, 0, 0xffff], &good)),
        ("two OPT records", 1, message(0, [1, 0, 0, 2], &twice)),
        ("a version of EDNS that is none", 1, message(0, [1, 0, 0, 1], &version)),
    ] {
        let Err(Unusable::Answered(answer)) = Query::parse(&bytes) else { panic!("{why}") };
        assert_eq!(
            (answer.len(), &answer[..2], answer[2] & 0x80, answer[3] & 0xf),
            (12, &[0x12, 0x34][..], 0x80, code),
            "{why}"
        );
    }
}

#[test]
fn labels_that_no_host_has_are_no_names_here() {
    assert_eq!(query(&["web.one"], A).labels(), None);
    assert_eq!(query(&["..", "x"], A).labels(), None);
    assert_eq!(query(&["a/b"], A).labels(), None);
    assert_eq!(query(&["_dmarc", "x"], A).labels().unwrap(), ["_dmarc", "x"]);
    assert!(query(&[], A).labels().unwrap().is_empty());
}

#[test]
fn an_answer_is_taken_only_for_the_question_that_was_asked() {
    let asked = query(&["Example", "com"], A);
    let answer = |id: u16, flags: u16, labels: &[&str], kind: u16| {
        let mut bytes = message(flags, [1, 0, 0, 0], &question(labels, kind));
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    };
    let good = answer(7, 0x8180, &["example", "COM"], A);
    assert_eq!(asked.judge(&good, 7), Answer::Good);
    assert_eq!(asked.judge(&answer(7, 0x8183, &["example", "com"], A), 7), Answer::Good);
    assert_eq!(asked.judge(&answer(7, 0x8182, &["example", "com"], A), 7), Answer::Failed);
    assert_eq!(asked.judge(&message(0x8181, [0; 4], &[]), 0x1234), Answer::Failed);
    for (why, foreign) in [
        ("another id", answer(8, 0x8180, &["example", "com"], A)),
        ("a query", answer(7, 0x0180, &["example", "com"], A)),
        ("another name", answer(7, 0x8180, &["example", "org"], A)),
        ("another type", answer(7, 0x8180, &["example", "com"], AAAA)),
        ("a part of it", good[..20].to_vec()),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(asked.judge(&foreign, 7), Answer::Foreign, "{why}");
    }
}

#[test]
fn a_long_answer_is_cut_for_who_takes_no_more_by_udp() {
    let asked = query(&["example", "com"], A);
    let mut long = message(0x8180, [1, 40, 0, 0], &question(&["example", "com"], A));
    long.resize(600, 0);
    let cut = asked.handed_on(long.clone(), true);
    assert_eq!((cut.len(), cut[2] & 2, &cut[4..8]), (12 + 17, 2, &[0, 1, 0, 0][..]));
    assert_eq!(asked.handed_on(long, false).len(), 600);
}

#[test]
fn a_name_of_the_reverse_tree_is_an_address() {
    let of = |text: &str| address_of(&text.split('.').map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(of("4.3.128.10.in-addr.arpa"), Some([10, 128, 3, 4].into()));
    let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(of(six), Some("fd00::1".parse().unwrap()));
    for bad in
        ["3.128.10.in-addr.arpa", "1.4.3.128.10.in-addr.arpa", "256.1.1.1.in-addr.arpa", "x.ip6.arpa", "arpa"]
    {
        assert_eq!(of(bad), None, "{bad}");
    }
    assert_eq!(of(&six.replacen("1.", "10.", 1)), None);
}

/// Messages that are wrong in one place or many: nothing panics, and an answer is never longer than what it is about.
#[test]
fn no_bytes_at_all_make_the_reader_fail() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        // xorshift64: the same numbers in every run.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut rest = question(&["web", "shop", "spark"], A);
    rest.extend(OPT_RECORD);
    let good = message(0x0100, [1, 0, 0, 1], &rest);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..200_000 {
        let mut bytes = good.clone();
        for _ in 0..=random(4) {
            match random(4) {
                0 => bytes.truncate(random(bytes.len() + 1)),
                1 => bytes.insert(random(bytes.len() + 1), random(256) as u8),
                _ if bytes.is_empty() => {}
                _ => {
                    let at = random(bytes.len());
                    bytes[at] = random(256) as u8;
                }
            }
        }
        match Query::parse(&bytes) {
            Ok(query) => {
                read += 1;
                let _ = query.labels().and_then(|labels| address_of(&labels));
                let passed = query.passed_on(1);
                assert!(passed.len() <= bytes.len(), "{bytes:?}");
                assert_eq!(query.judge(&passed, 1), Answer::Foreign);
                let _ = query.judge(&bytes, 1);
                assert!(Query::parse(&passed).is_ok());
                let _ = query.handed_on(bytes, true);
            }
            Err(Unusable::Answered(answer)) => {
                refused += 1;
                assert!(answer.len() <= bytes.len());
            }
            Err(Unusable::Ignored) => {}
        }
    }
    assert!(read > 10_000 && refused > 10_000, "{read} {refused}");
}
