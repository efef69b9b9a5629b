//! Ways out, tried from inside: each fails as it should.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use crate::inside::{USER, machine, output_in_time, probe, program, root, sh, spark};

/// What each system call of `probe calls` ends with, where it is not EPERM.
const OTHER: [(&str, &str); 12] = [
    ("clone3-user", "ENOSYS"),
    // Contexts for asynchronous I/O are counted for the whole host.
    ("io_setup", "ENOSYS"),
    // As if the host had no huge pages left, or none at all.
    ("mmap-huge", "ENOMEM"),
    ("memfd-huge", "ENOSYS"),
    ("fcntl-usual", "0"),
    ("socket-usual", "0"),
    ("socket-other", "EAFNOSUPPORT"),
    ("socket-vsock", "EAFNOSUPPORT"),
    ("socket-alg", "EAFNOSUPPORT"),
    ("x32", "signal31"),
    ("i386", "signal31"),
    // The profile names it, but an older libseccomp does not know it.
    ("open_tree_attr", "ENOSYS|EPERM"),
];

/// What root inside may do besides: PID 1 is its own process, as everywhere. It holds nothing of the host.
const ROOT: [(&str, &str); 2] = [("ptrace-init", "0"), ("process_vm_readv-init", "EFAULT")];

#[test]
fn dangerous_system_calls_are_refused_with_the_expected_errors() {
    let machine = machine();
    spark(&machine, "plain", &[]);
    spark(&machine, "hard", &["--hardened"]);
    for name in ["plain", "hard"] {
        for user in ["0", USER] {
            for terminal in ["-T", "-t"] {
                let run = ["exec", terminal, "-u", user, name, "--", "probe", "calls"];
                let text = machine.spark(&run).ok().replace('\r', "");
                assert!(text.lines().count() > 60, "{text}");
                for line in text.lines() {
                    let (call, errno) = line.split_once(' ').unwrap();
                    let root = ROOT.iter().filter(|_| user == "0");
                    let other = OTHER.iter().chain(root).find(|o| o.0 == call);
                    let wanted = other.map_or("EPERM", |o| o.1);
                    let right = wanted.split('|').any(|w| w == errno);
                    assert!(right, "{call} in {name} as {user} with {terminal}: {errno}, not {wanted}");
                }
            }
        }
    }
}

#[test]
fn files_of_the_kernel_and_of_the_host_are_out_of_reach() {
    let machine = machine();
    let disk = machine.pool();
    let disk = std::os::linux::fs::MetadataExt::st_dev(&std::fs::metadata(disk).unwrap());
    let disk = format!("{}:{}", libc::major(disk), libc::minor(disk));
    for (name, options) in [("plain", &[][..]), ("none", &["--network", "none"][..])] {
        spark(&machine, name, options);
        let writes = |path: &str, user: &str| sh(&machine, name, user, &format!("echo 1 > {path}"));
        for (path, error) in [
            ("/proc/1/exe", "Permission denied|Operation not permitted"),
            ("/proc/1/mem", "Input/output error"),
            ("/proc/sysrq-trigger", "Read-only file system|nonexistent directory"),
            ("/proc/sys/kernel/core_pattern", "Read-only file system"),
            ("/proc/sys/vm/panic_on_oom", "Read-only file system"),
            ("/proc/pressure/cpu", "Read-only file system|nonexistent directory"),
            ("/proc/irq/default_smp_affinity", "Read-only file system|nonexistent directory"),
            ("/sys/kernel/uevent_helper", "Read-only file system|nonexistent directory|Permission denied"),
            ("/sys/kernel/mm/ksm/run", "Read-only file system|nonexistent directory"),
            ("/sys/power/state", "Read-only file system|nonexistent directory"),
            ("/etc/resolv.conf", "Read-only file system"),
            ("/etc/machine-id", "Read-only file system"),
        ] {
            for user in ["0", USER] {
                let result = writes(path, user);
                assert_ne!(result.status(), 0, "{name} {user} {path}");
                let said = result.stderr();
                let denied = user != "0" && said.contains("Permission denied");
                assert!(denied || error.split('|').any(|e| said.contains(e)), "{name} {user} {path}: {said}");
            }
        }
        // No hierarchy of cgroups can be written: not its limits, not a program to run on the host.
        let found = sh(
            &machine,
            name,
            "0",
            "find /sys/fs/cgroup -maxdepth 3 \\( -name release_agent -o -name notify_on_release -o -name 'cgroup.*' \
             -o -name 'pids.max' -o -name tasks \\) | while read f; do (echo 1 > $f) 2>/dev/null && echo $f; done; \
             mkdir /sys/fs/cgroup/x 2>/dev/null && echo made; for d in /sys/fs/cgroup/*; do mkdir $d/x 2>/dev/null && \
             echo $d/x; done; true",
        );
        assert_eq!(found.ok(), "", "{name}: cgroup files that can be written");
        // Masked paths are empty.
        let masked = sh(
            &machine,
            name,
            "0",
            "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; \
             ls /sys/firmware /proc/scsi /proc/acpi 2>/dev/null | grep -v :$ | tr -d '\\n'",
        );
        assert_eq!(masked.ok().trim(), "0", "{name}");
        // Nothing under /sys can be written.
        let sys = sh(&machine, name, "0", "awk '$5 ~ /^\\/sys/ && $6 !~ /^ro/' /proc/self/mountinfo");
        assert_eq!(sys.ok(), "", "{name}: mounts of /sys that are writable");
        for user in ["0", USER] {
            let node = sh(&machine, name, user, &format!("probe mknod /tmp/disk {disk}")).ok();
            assert_eq!(node, "mknod EPERM\nmknod-char EPERM\n", "{name} {user}");
            // /proc/*/root and /proc/*/fd lead nowhere but here.
            let roots = "for p in /proc/[0-9]*; do for l in root cwd fd/0 fd/1 fd/2 fd/3 fd/4 fd/5; do \
                 [ -d $p/$l ] || continue; there=$(stat -Lc %d:%i $p/$l); \
                 here=$(stat -Lc %d:%i $(readlink $p/$l)); [ -z \"$there\" -o \"$there\" = \"$here\" ] || \
                 echo $p/$l $(readlink $p/$l); done; done 2>/dev/null; true";
            assert_eq!(sh(&machine, name, user, roots).ok(), "", "{name} {user}");
        }
        let processes = sh(&machine, name, "0", "ls -d /proc/[0-9]* | wc -l").ok();
        assert!(processes.trim().parse::<u32>().unwrap() < 8, "{name}: processes of others: {processes}");
    }
}

/// CVE-2024-21626: a directory of the host that is open in whoever starts the command, found again as its working
/// directory, its program, or its interpreter.
#[test]
fn a_leaked_descriptor_of_a_directory_leads_nowhere() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let inside = root(&machine, "web");
    let host = machine.work();
    std::fs::write(host.join("host-only"), "").unwrap();
    for path in [machine.work(), host.parent().unwrap().to_owned()] {
        // Without this, permissions alone would help.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::copy(probe(), host.join("program")).unwrap();
    let leaked = std::fs::File::open(&host).unwrap();
    let fd = leaked.as_raw_fd();
    let run = |args: &[&str]| {
        let mut command = machine.command(args);
        // SAFETY: dup2(2) is safe between fork and exec.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                libc::dup2(fd, 9);
                libc::dup2(fd, 33);
                Ok(())
            });
        }
        output_in_time(command, b"")
    };
    let text = |output: &std::process::Output| {
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
    };
    // Every number: which of its own the runtime has open is its business.
    for number in 3..48 {
        let dir = format!("/proc/self/fd/{number}");
        let passwd = format!("root:x:0:0::{dir}:/bin/sh\nann:x:1000:1000::{dir}/..:/bin/sh\n");
        std::fs::write(inside.join("etc/passwd"), passwd).unwrap();
        let home = run(&["exec", "-T", "web", "--", "/bin/sh", "-c", "pwd -P; ls -a; ls -a .."]);
        let seen = text(&home);
        assert!(home.status.success() && !seen.contains("host-only") && !seen.contains("(unreach"), "{seen}");
        if matches!(number, 9 | 33) || number < 16 {
            let asked = run(&["exec", "-T", "-w", &dir, "web", "--", "/bin/ls", "-a"]);
            assert_eq!(asked.status.code(), Some(125), "{number}: {}", text(&asked));
            let ran = run(&["exec", "-T", "web", "--", &format!("{dir}/program"), "uid"]);
            assert_eq!(ran.status.code(), Some(127), "{number}: {}", text(&ran));
        }
    }
    let script = inside.join("bin/script");
    for line in ["#!/proc/self/fd/9/program uid\n", "#!/proc/self/fd/33/program uid\n"] {
        program(&script, line);
        let ran = run(&["exec", "-T", "web", "--", "script"]);
        assert_eq!(ran.status.code(), Some(127), "{line}: {}", text(&ran));
    }
    // Created with it open and with such a home.
    std::fs::write(inside.join("etc/passwd"), "root:x:0:0::/proc/self/fd/9:/bin/sh\n").unwrap();
    machine.spark(&["stop", "-t", "0", "web"]).ok();
    assert!(run(&["resume", "web"]).status.success());
    let seen = sh(&machine, "web", "0", "ls /proc/1/cwd/ /proc/1/fd/9/ 2>&1; true").ok();
    assert!(!seen.contains("host-only"), "{seen}");
    drop(leaked);
}

#[test]
fn a_directory_is_no_standard_stream() {
    let machine = machine();
    spark(&machine, "web", &[]);
    for n in 0..3 {
        let mut command = machine.command(&["exec", "-T", "web", "--", "ls", "/proc/self/fd/0/"]);
        let dir = || Stdio::from(std::fs::File::open("/").unwrap());
        match n {
            0 => command.stdin(dir()),
            1 => command.stdout(dir()),
            _ => command.stderr(dir()),
        };
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{n}: {}", String::from_utf8_lossy(&output.stdout));
        if n < 2 {
            let said = String::from_utf8_lossy(&output.stderr);
            let name = ["standard input", "standard output"][n];
            assert!(said.contains(&format!("{name} is a directory")), "{said}");
            assert!(said.contains(&format!("redirect {name} to a file")), "{said}");
        }
    }
}

#[test]
fn a_named_fifo_of_the_host_stays_its_owners() {
    use std::os::unix::fs::MetadataExt;
    let machine = machine();
    spark(&machine, "web", &[]);
    let path = machine.work().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let fifo = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut command = machine.command(&["exec", "-T", "web", "--", "true"]);
    assert!(command.stdin(fifo).status().unwrap().success());
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), 0);
}

/// CVE-2019-5736: a program inside whose interpreter is the process itself, which is the host's `spark` then.
#[test]
fn the_hosts_program_can_be_run_inside_but_never_written() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let host = Path::new(env!("CARGO_BIN_EXE_spark"));
    let before = std::fs::metadata(host).unwrap();
    let inside = root(&machine, "web");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/probe.c");
    let mut gcc = std::process::Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-DPRELOAD", "-o"]).arg(inside.join("evil.so")).arg(source);
    assert!(gcc.status().unwrap().success());
    program(&inside.join("bin/evil"), "#!/proc/self/exe\n");
    // Appends to the program of every process that is the host's, as long as it lasts.
    let watch = "echo ready; while :; do for exe in /proc/[0-9]*/exe; do \
                 case $(readlink $exe) in */spark) (: >>$exe) && echo x >>/written; echo x >/seen;; esac; done; done";
    let _watcher = crate::exec::Background::ready(&machine, &["exec", "web", "sh", "-c", watch]);
    let seen = || inside.join("seen").exists();
    let mut runs = 0;
    while runs < 20 || (!seen() && runs < 400) {
        let user = ["0", USER][runs % 2];
        let output =
            machine.spark(&["exec", "-T", "-e", "LD_PRELOAD=/evil.so", "-u", user, "web", "--", "evil"]);
        // It is the host's `spark`, which knows no such verb, and loads nothing that is inside.
        assert_eq!(output.status(), 2, "{}", output.stderr());
        assert!(
            output.stderr().contains("error:") && !output.stdout().contains("exe "),
            "{}",
            output.stdout()
        );
        runs += 1;
    }
    assert!(seen(), "the watcher never met the host's program");
    assert!(!inside.join("written").exists());
    let after = std::fs::metadata(host).unwrap();
    let of = |m: &std::fs::Metadata| (m.len(), m.modified().unwrap(), m.permissions());
    assert_eq!(of(&before), of(&after));
}

/// Between the fork of an exec and its program, the process is the host's root for a moment.
#[test]
fn nobody_inside_gets_hold_of_a_process_that_enters() {
    let machine = machine();
    spark(&machine, "web", &[]);
    let mut watchers = Vec::new();
    for user in ["0", USER] {
        let run = ["exec", "-T", "-u", user, "web", "--", "probe", "watch", "20"];
        watchers.push(machine.command(&run).stdout(Stdio::piped()).spawn().unwrap());
    }
    let begun = std::time::Instant::now();
    let mut done = 0;
    // Root, another user, on a terminal: each in turn while they look.
    while begun.elapsed().as_secs() < 11 || done < 40 {
        let user = ["0", USER][done % 2];
        let terminal = ["-T", "-T", "-t"][done % 3];
        let mut command = machine.command(&["exec", terminal, "-u", user, "web", "--", "true"]);
        let output = command.env("HOST_CANARY", "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        done += 1;
    }
    let mut seen = 0;
    for watcher in watchers {
        let output = watcher.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("reached"), "{text}");
        let last = text.lines().last().unwrap();
        seen += last.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    }
    assert!(done >= 40 && seen >= done, "{done} execs, {seen} seen: the test does not see what it looks for");
}
