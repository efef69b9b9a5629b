//! Benchmarks change nothing on the host.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

fn benches() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches")
}

#[test]
fn a_null_device_of_ones_own_can_be_given_away_and_written_to() {
    let of_host = || {
        let meta = std::fs::metadata("/dev/null").unwrap();
        (meta.ino(), meta.uid(), meta.gid(), meta.mode())
    };
    let before = of_host();
    // As crun does with the streams of a container. It stops before where the device is the host's.
    let script = r#"
        host=$(stat -c %d:%i /dev/null)
        . "$0"
        own_null
        test "$(stat -c %d:%i /dev/null)" != "$host"
        echo x >/dev/null
        python3 -c 'import os; [os.fchown(fd, 4242, 4242) for fd in (0, 1, 2)]'
        chmod 600 /dev/null
        test "$(stat -c %u /dev/null)" = 4242
    "#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "bash", "-ec", script])
        .arg(benches().join("lib.sh"));
    let null = || std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    // The streams are the host's device at first.
    let status = command.stdin(null()).stderr(null()).stdout(std::process::Stdio::piped()).status().unwrap();
    assert_eq!(of_host(), before);
    assert!(status.success());
}

#[test]
fn benchmarks_with_other_runtimes_take_a_null_device_of_their_own() {
    let mut seen = 0;
    for entry in std::fs::read_dir(benches()).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let code: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        if path.ends_with("lib.sh") || !["crun", "runc", "podman"].iter().any(|peer| code.contains(peer)) {
            continue;
        }
        seen += 1;
        assert!(code.contains("own_null"), "{}", path.display());
    }
    assert!(seen > 0);
}
