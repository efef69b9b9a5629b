//! Devices in a container where cgroups are of version 2, in a mount namespace in which nothing else is to be seen.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::bundle::{Host, cgroups};
use crate::common::Output;

/// Runs `spark-oci` where there are cgroups of version 2 alone, whatever else the host has.
fn in_version_2(host: &Host, args: &[&str]) -> Output {
    let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let unified = unified.into_iter().find(|dir| Path::new(dir).join("cgroup.controllers").exists());
    let unified = unified.expect("these tests need cgroups of version 2, be it beside version 1");
    let script = format!("mount --rbind {unified} /sys/fs/cgroup && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    command
        .arg(env!("CARGO_BIN_EXE_spark-oci"))
        .arg("--root")
        .arg(host.root())
        .args(args)
        .env("SPARK_RUN", host.run());
    command.current_dir(host.bundle()).stdin(Stdio::null());
    Output::of(&args.join(" "), &mut command)
}

#[test]
fn in_version_2_too_a_container_opens_the_devices_that_its_bundle_allows_and_no_others() {
    let host = Host::new();
    // It may make any node, as with runc. 10:237 is loop-control, which root may open without any capability.
    let script = "mknod /tmp/null c 1 3; mknod /tmp/loop c 10 237; mknod /tmp/disk b 7 0
        echo x >/tmp/null && echo null; true </tmp/loop && echo loop; true </tmp/disk; true";
    let configure = |devices: serde_json::Value| {
        host.configure(&["sh", "-c", script], |c| {
            c["linux"]["resources"] = json!({"devices": devices});
            for list in ["bounding", "effective", "permitted"] {
                c["process"]["capabilities"][list].as_array_mut().unwrap().push(json!("CAP_MKNOD"));
            }
            // It is the host's, and differs.
            c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "cgroup");
            c["mounts"]
                .as_array_mut()
                .unwrap()
                .push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
        });
    };
    let deny = json!({"allow": false, "access": "rwm"});
    configure(json!([deny]));
    let out = in_version_2(&host, &["run", "closed"]);
    assert_eq!((out.status(), out.stdout().as_str()), (0, "null\n"), "{}", out.stderr());
    for node in ["loop", "disk"] {
        assert!(
            out.stderr().contains(&format!("can't open /tmp/{node}: Operation not permitted")),
            "{}",
            out.stderr()
        );
    }
    configure(json!([deny, {"allow": true, "type": "c", "major": 10, "minor": 237, "access": "r"}]));
    assert_eq!(in_version_2(&host, &["run", "opened"]).stdout(), "null\nloop\n");
    configure(json!([]));
    assert_eq!(in_version_2(&host, &["run", "free"]).stdout(), "null\nloop\n");
    configure(json!([{"allow": true, "access": "rwx"}]));
    let out = in_version_2(&host, &["run", "wrong"]);
    assert!(out.status() != 0 && out.stderr().contains("`rwx` is no access to a device"), "{}", out.stderr());
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
    assert!(["closed", "opened", "free", "wrong"].iter().all(|id| cgroups(id).is_empty()));
}
