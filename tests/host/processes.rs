//! What `/proc` says of processes.

/// A field of `/proc/PID/status`, with single spaces between its words.
#[track_caller]
pub(crate) fn field(pid: i32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    let line = line.unwrap_or_else(|| panic!("no {name}: {status}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Makes sure that a process has an id of its own, no capabilities, a filter, and one thread. Returns the id.
#[track_caller]
pub(crate) fn has_no_rights(pid: i32) -> u32 {
    let field = |name: &str| field(pid, name);
    let id: u32 = field("Uid").split(' ').next().unwrap().parse().unwrap();
    assert!((0x7fff_0000..=0x7fff_ffff).contains(&id), "{id}");
    let all = [id; 4].map(|id| id.to_string()).join(" ");
    assert_eq!((field("Uid"), field("Gid"), field("Groups")), (all.clone(), all, String::new()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    let confined = (field("NoNewPrivs"), field("Seccomp"), field("Threads"));
    assert_eq!(confined, ("1".into(), "2".into(), "1".into()));
    id
}
