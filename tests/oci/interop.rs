//! Who else drives or reads containers: each test is a row of docs/interop.md.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::bundle::Host;
use crate::common::Machine;

/// Runs a script that may mount what it likes. `HOST`, `ROOTFS` and `OCI` are a place, the root filesystem and the
/// program.
fn script(host: &Host, text: &str) -> Output {
    // Those who know cgroup v1 or v2 alone must not see a mixture.
    let text = format!("umount /sys/fs/cgroup/unified 2>/dev/null; set -e\n{text}");
    Command::new("unshare")
        .args(["-m", "--propagation", "slave", "timeout", "-k", "5", "1000", "bash", "-c", &text])
        .env("SPARK_RUN", host.run())
        .env("HOST", host.dir())
        .env("ROOTFS", host.rootfs())
        .env("OCI", env!("CARGO_BIN_EXE_spark-oci"))
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn text(out: &Output) -> String {
    format!("{}\n--\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn podman_runs_its_containers_with_it() {
    let host = Host::new();
    let out = script(
        &host,
        r#"
        # The containers of this test are apart from the host's.
        printf '#!/bin/sh\nexec %s --root %s/containers "$@"\n' "$OCI" "$SPARK_RUN" >$HOST/spark-oci
        chmod +x $HOST/spark-oci
        P="podman --cgroup-manager cgroupfs --storage-driver vfs --events-backend file
           --root $HOST/podman --runroot $HOST/podman-run --runtime $HOST/spark-oci"
        # Where the host caps these, podman's own defaults are refused.
        R="--network none --ulimit nofile=1024:1024 --ulimit nproc=1000:1000"
        trap '$P rm -f -t 0 -a >/dev/null 2>&1' EXIT
        tar -C "$ROOTFS" -c . | $P import - busybox >/dev/null 2>&1
        $P run $R --rm busybox echo hello
        status=0; $P run $R --rm busybox sh -c 'exit 7' || status=$?; echo run $status
        status=0; $P run $R --rm busybox nosuch 2>/dev/null || status=$?; echo missing $status
        $P run $R -d --name web --health-cmd true --health-interval disable busybox sleep 1000 >/dev/null
        $P exec -u 1000:1000 -e A=b web sh -c 'echo $A $(id -u); echo err >/dev/stderr' 2>&1
        $P exec web sh -c 'for p in self 1; do grep -E "Seccomp:|CapEff|NoNew" /proc/$p/status; done | sort | uniq -c | wc -l'
        status=0; $P exec web sh -c 'exit 5' || status=$?; echo exec $status
        $P healthcheck run web && echo healthy
        $P pause web >/dev/null; $P inspect -f '{{.State.Status}}' web; $P unpause web >/dev/null
        $P top web | tail -1 | awk '{print $1, $NF}'
        $P stop -t 0 web >/dev/null; $P inspect -f '{{.State.Status}}' web
        $P start web >/dev/null; $P inspect -f '{{.State.Status}}' web
        $P rm -f -t 0 web >/dev/null
        $P run $R --rm --uidmap 0:1500000000:65536 --gidmap 0:1500000000:65536 busybox \
            sh -c 'tr -s " " </proc/self/uid_map; echo err >/dev/stderr' 2>&1
        "#,
    );
    let expected = "hello\nrun 7\nmissing 127\nb 1000\nerr\n3\nexec 5\nhealthy\npaused\nroot 1000\nexited\nrunning\n \
                    0 1500000000 65536\nerr\n";
    assert_eq!(String::from_utf8_lossy(&out.stdout), expected, "{}", text(&out));
}

#[test]
fn podmans_memory_filesystems_systemd_and_users_are_as_with_runc() {
    let host = Host::new();
    let out = script(
        &host,
        r#"
        printf '#!/bin/sh\nexec %s --root %s/containers "$@"\n' "$OCI" "$SPARK_RUN" >$HOST/spark-oci
        chmod +x $HOST/spark-oci
        P="podman --cgroup-manager cgroupfs --storage-driver vfs --events-backend file
           --root $HOST/podman --runroot $HOST/podman-run"
        R="--network none --hostname same --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --rm"
        trap '$P rm -f -t 0 -a >/dev/null 2>&1' EXIT
        mkdir -p "$ROOTFS/data/sub" "$ROOTFS/run" "$ROOTFS/var/tmp" "$ROOTFS/var/log/journal"
        echo text >"$ROOTFS/data/file"; ln -s /etc/passwd "$ROOTFS/data/sub/link"; chmod 750 "$ROOTFS/data"
        tar -C "$ROOTFS" -c . | $P import - busybox >/dev/null 2>&1
        seen='grep -E " /(data|run|run/lock|tmp|var/tmp|var/log/journal|sys/fs/cgroup.*|) " /proc/mounts | cut -d" " -f2-4 |
            sed -E "s/,(mode|uid|gid)=[0-9]*//g" | awk "{last[\$1] = \$0} END {for (at in last) print last[at]}" | sort
            stat -c "%n %a %u:%g" / /data /run /tmp /var/tmp; cat /data/file; find /data | sort; ls -A /run'
        for runtime in runc $HOST/spark-oci; do
            for options in "--tmpfs /data" "--tmpfs /data:size=64k,noexec" "--tmpfs /fresh" "--read-only" \
                "--read-only --read-only-tmpfs=false" "--systemd=always" \
                "--uidmap 0:1500000000:65536 --gidmap 0:1500000000:65536 --tmpfs /data" \
                "--uidmap 0:1500000000:65536 --gidmap 0:1500000000:65536 --read-only"; do
                status=0
                echo "$options"
                # podman names its own directories after the container.
                $P --runtime $runtime run $R $options busybox sh -c "$seen; touch /tmp/x /run/x /var/tmp/x /x" 2>&1 || status=$?
                echo $status
            done >$HOST/seen-by-${runtime##*/}
        done
        diff $HOST/seen-by-runc $HOST/seen-by-spark-oci
        grep -c -x text $HOST/seen-by-spark-oci; grep -c . $HOST/seen-by-spark-oci >&2
        "#,
    );
    assert_eq!(String::from_utf8_lossy(&out.stdout), "8\n", "{}", text(&out));
}

#[test]
fn containerd_runs_its_tasks_with_it() {
    let host = Host::new();
    let out = script(
        &host,
        r#"
        mkdir $HOST/ctd
        cat >$HOST/ctd/config.toml <<END
version = 2
root = "$HOST/ctd/root"
state = "$HOST/ctd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$HOST/ctd/sock"
[timeouts]
  "io.containerd.timeout.shim.cleanup" = "300s"
  "io.containerd.timeout.shim.load" = "300s"
  "io.containerd.timeout.shim.shutdown" = "300s"
  "io.containerd.timeout.task.state" = "300s"
END
        containerd -c $HOST/ctd/config.toml >$HOST/ctd/log 2>&1 &
        daemon=$!
        trap 'kill $daemon; wait $daemon' EXIT
        C="timeout 600 ctr -a $HOST/ctd/sock"
        until $C version >/dev/null 2>&1; do kill -0 $daemon; done
        umoci init --layout $HOST/image; umoci new --image $HOST/image:busybox
        umoci insert --image $HOST/image:busybox "$ROOTFS" /
        umoci config --image $HOST/image:busybox --config.env PATH=/bin
        tar -C $HOST/image -cf $HOST/image.tar .
        $C images import --snapshotter native --base-name busybox $HOST/image.tar >/dev/null
        image=$($C images ls -q | head -1)
        R="--snapshotter native --runtime io.containerd.runc.v2 --runc-binary $OCI"
        $C run $R --rm $image one echo hello
        status=0; $C run $R --rm $image two sh -c 'exit 6' || status=$?; echo run $status
        $C run $R --rm $image three nosuch 2>&1 | grep -o 'executable file not found in $PATH'
        $C run $R -d $image web sleep 1000
        status=0; $C tasks exec --exec-id a web sh -c 'id -u; exit 4' || status=$?; echo exec $status
        $C tasks exec --exec-id b web nosuch 2>&1 | grep -o 'No such file or directory'
        $C tasks pause web; $C tasks ls | awk 'NR > 1 {print $3}'; $C tasks resume web
        $C tasks metrics web | grep -c memory.usage
        $C tasks kill -s KILL web; $C tasks wait web >/dev/null 2>&1 || true
        $C tasks rm web >/dev/null 2>&1 || true
        $C containers rm web; $C containers ls -q | wc -l
        "#,
    );
    let expected = "hello\nrun 6\nexecutable file not found in $PATH\n0\nexec 4\nNo such file or directory\nPAUSED\n1\n0\n";
    assert_eq!(String::from_utf8_lossy(&out.stdout), expected, "{}", text(&out));
}

#[test]
fn a_bundle_that_umoci_unpacked_runs() {
    let host = Host::new();
    let out = script(
        &host,
        r#"
        umoci init --layout $HOST/image; umoci new --image $HOST/image:busybox
        umoci insert --image $HOST/image:busybox "$ROOTFS" /
        umoci config --image $HOST/image:busybox --config.env PATH=/bin --config.cmd echo --config.cmd hello
        umoci unpack --image $HOST/image:busybox $HOST/unpacked
        sed -i 's/"terminal": *true/"terminal":false/' $HOST/unpacked/config.json
        $OCI --root $SPARK_RUN/containers run --bundle $HOST/unpacked umoci
        "#,
    );
    assert_eq!(String::from_utf8_lossy(&out.stdout), "hello\n", "{}", text(&out));
}

/// youki's `list` and `state` do what is done here: they are libcontainer's.
#[test]
fn what_reads_libcontainers_state_sees_sparks_and_containers() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let info = machine.spark(&["--json", "info", "web"]).json();
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    host.start("plain");
    let id = info["oci"]["id"].as_str().unwrap();
    let sparks = machine.place().run.join("oci").join(id);
    for (dir, id, pid) in [
        (sparks, id, &info["pid"]),
        (host.run().join("containers/plain"), "plain", &json!(host.pid("plain"))),
    ] {
        let container = libcontainer::container::Container::load(dir).unwrap();
        assert_eq!((container.id(), json!(container.pid().unwrap().as_raw())), (id, pid.clone()));
        assert_eq!(container.status(), libcontainer::container::ContainerStatus::Running);
    }
}

#[test]
fn spark_lists_its_own_containers_and_those_of_bundles_in_any_root() {
    let machine = Machine::new().with_base();
    machine.spark(&["create", "web"]).ok();
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    let run = machine.place().run;
    let elsewhere = host.dir().join("elsewhere");
    let oci = |args: &[&str]| {
        let mut command = host.command(args);
        let null = std::process::Stdio::null;
        assert!(command.env("SPARK_RUN", &run).stdout(null()).stderr(null()).status().unwrap().success());
    };
    let here = run.join("containers");
    let here = here.to_str().unwrap();
    oci(&["--root", here, "run", "-d", "here"]);
    oci(&["--root", elsewhere.to_str().unwrap(), "run", "-d", "there"]);
    let rows = machine.spark(&["--json", "list", "--oci"]).json();
    let find = |key: &str, value: &Value| {
        rows.as_array().unwrap().iter().find(|r| r[key] == *value).cloned().unwrap()
    };
    let web = find("spark", &json!("default/web"));
    assert_eq!(
        (&web["state"], &web["pid"]),
        (&json!("running"), &machine.spark(&["--json", "info", "web"]).json()["pid"])
    );
    assert_eq!(find("id", &json!("here"))["spark"], Value::Null);
    assert_eq!(find("id", &json!("there"))["root"], elsewhere.to_str().unwrap());
    let table = machine.spark(&["list", "--oci"]).ok();
    assert!(table.starts_with("ID ") && table.lines().count() >= 4, "{table}");
    // The host's default root is listed too, and others may use it.
    let listed = || machine.spark(&["list", "--oci", "-q"]).ok();
    assert_eq!(listed().lines().filter(|id| ["here", "there"].contains(id)).count(), 2);
    oci(&["--root", here, "delete", "-f", "here"]);
    oci(&["--root", elsewhere.to_str().unwrap(), "delete", "-f", "there"]);
    assert_eq!(listed().lines().filter(|id| ["here", "there"].contains(id)).count(), 0);
}
