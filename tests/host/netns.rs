//! A host of its own for a test: a network namespace with a way to another one, which is the internet.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::{Child, Command};

use crate::common::{Machine, Output, wait_for};

/// A host and, beyond it, the internet. What they have is their kernel's own: links, routes, packet filter, settings.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    name: String,
    /// Has the host's mounts.
    mounts: Child,
    /// What serves in its namespaces, each with a process group of its own.
    servers: RefCell<Vec<Child>>,
}

pub(crate) const HOST4: &str = "198.51.100.1";
pub(crate) const BEYOND4: &str = "198.51.100.2";
pub(crate) const HOST6: &str = "2001:db8:1::1";
pub(crate) const BEYOND6: &str = "2001:db8:1::2";

impl Host {
    pub(crate) fn new() -> Host {
        let machine = Machine::new().with_base();
        let run = machine.place().run;
        let name = run.file_name().unwrap().to_str().unwrap().trim_start_matches("sparks-test-").to_owned();
        // `/run/spark-nets` is a host's, and this is another one. Not private: a copy of another test's mount would keep that
        // alive.
        let nets = machine.work().join("nets");
        std::fs::create_dir_all("/run/spark-nets").unwrap();
        std::fs::create_dir(&nets).unwrap();
        let mut mounts = Command::new("unshare");
        mounts.args(["-m", "--propagation", "slave", "sh", "-c"]);
        mounts.arg("mount --bind \"$0\" /run/spark-nets && exec sleep infinity").arg(&nets);
        let mounts = mounts.stdin(std::process::Stdio::null()).spawn().unwrap();
        let table = format!("/proc/{}/mountinfo", mounts.id());
        assert!(wait_for(|| std::fs::read_to_string(&table).is_ok_and(|t| t.contains(" /run/spark-nets "))));
        let host = Host { machine, name, mounts, servers: RefCell::default() };
        for which in ["h", "i"] {
            host.ok("ip", &["netns", "add", &host.netns(which)]);
            host.ok("ip", &["-n", &host.netns(which), "link", "set", "lo", "up"]);
        }
        let (h, i) = (host.netns("h"), host.netns("i"));
        host.ok("ip", &["-n", &h, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", &i]);
        for (ns, four, six) in [(&h, HOST4, HOST6), (&i, BEYOND4, BEYOND6)] {
            host.ok("ip", &["-n", ns, "addr", "add", &format!("{four}/24"), "dev", "up0"]);
            host.ok("ip", &["-n", ns, "addr", "add", &format!("{six}/64"), "dev", "up0", "nodad"]);
            host.ok("ip", &["-n", ns, "link", "set", "up0", "up"]);
        }
        // A host that forwards nothing by itself.
        host.on_host(&["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]);
        host.ok("ip", &["-n", &h, "route", "add", "default", "via", BEYOND4]);
        host.ok("ip", &["-n", &h, "-6", "route", "add", "default", "via", BEYOND6]);
        // What clouds tell secrets at, beyond this host.
        host.ok("ip", &["-n", &i, "addr", "add", "169.254.169.254/32", "dev", "lo"]);
        for (ns, port, says) in [(&i, "80", "beyond"), (&i, "81", "other"), (&h, "7000", "host")] {
            let mut listen = inside(ns);
            listen.args(["busybox", "nc", "-ll", "-p", port, "-e", "echo", says]);
            host.background(listen);
        }
        for (ns, port) in [(&i, "80"), (&i, "81"), (&h, "7000")] {
            assert!(wait_for(|| !inside(ns)
                .args(["ss", "-Hltn", &format!("sport = :{port}")])
                .output()
                .unwrap()
                .stdout
                .is_empty()));
        }
        // The kernel adds what is local to a link a moment after that is up.
        for ns in [&h, &i] {
            assert!(wait_for(|| host.ok("ip", &["-n", ns, "-6", "route"]).contains("fe80::/64 dev up0")));
        }
        host
    }

    pub(crate) fn netns(&self, which: &str) -> String {
        format!("spt-{}-{which}", self.name)
    }

    /// Ends with the namespace. Returns the number of the process.
    pub(crate) fn background(&self, mut command: Command) -> u32 {
        use std::os::unix::process::CommandExt;
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).process_group(0);
        let server = command.spawn().unwrap();
        let pid = server.id();
        self.servers.borrow_mut().push(server);
        pid
    }

    #[track_caller]
    pub(crate) fn ok(&self, program: &str, args: &[&str]) -> String {
        Output::of(program, Command::new(program).args(args)).ok()
    }

    /// Runs something on the host, and returns what it prints.
    #[track_caller]
    pub(crate) fn on_host(&self, args: &[&str]) -> String {
        Output::of(&args.join(" "), inside(&self.netns("h")).args(args)).ok()
    }

    /// The same in the namespace of the router.
    #[track_caller]
    pub(crate) fn on_router(&self, args: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.router().display())).args(args);
        Output::of(&args.join(" "), &mut command).ok()
    }

    /// Who has its mounts.
    pub(crate) fn mounts(&self) -> u32 {
        self.mounts.id()
    }

    /// What keeps the router's namespace.
    pub(crate) fn router(&self) -> PathBuf {
        let run = self.machine.place().run;
        let below = run.strip_prefix("/").unwrap().join("net/router");
        PathBuf::from(format!("/proc/{}/root", self.mounts.id())).join(below)
    }

    pub(crate) fn spark(&self, args: &[&str]) -> Output {
        Output::of(&args.join(" "), &mut self.command(args))
    }

    /// The host's `/etc/resolv.conf` from now on.
    pub(crate) fn use_resolv_conf(&self, text: &str) {
        let file = self.machine.work().join("resolv.conf");
        std::fs::write(&file, text).unwrap();
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.mounts.id());
        self.ok("nsenter", &[&mounts, "mount", "--bind", file.to_str().unwrap(), "/etc/resolv.conf"]);
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let inner = self.machine.command(args);
        let mut command = inside(&self.netns("h"));
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.mounts.id()))
            .args(["sh", "-c", "cd \"$0\" && exec \"$@\""])
            .arg(self.machine.work())
            .arg(inner.get_program())
            .args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command
    }

    /// Makes a spark that says its name on port 80.
    pub(crate) fn talker(&self, spark: &str, options: &[&str]) {
        self.spark(&[&["create", spark], options].concat()).ok();
        self.talk(spark);
    }

    pub(crate) fn talk(&self, spark: &str) {
        self.spark(&["exec", "-d", spark, "--", "busybox", "nc", "-ll", "-p", "80", "-e", "echo", spark])
            .ok();
        let listens =
            || self.spark(&["exec", spark, "--", "sh", "-c", "netstat -ltn | grep -q :80"]).status() == 0;
        assert!(wait_for(listens));
    }

    /// What a spark hears at each of several addresses, `-` where it is nothing.
    pub(crate) fn hears(&self, spark: &str, addresses: &[String]) -> Vec<String> {
        let each = "for at; do nc -w 10 $at </dev/null 2>/dev/null | grep . || echo -; done";
        let script = [
            &["exec", spark, "--", "sh", "-c", each, "sh"][..],
            &addresses.iter().map(String::as_str).collect::<Vec<_>>(),
        ]
        .concat();
        self.spark(&script).stdout().lines().map(str::to_owned).collect()
    }

    /// The same without a command of ours, which would mend what is lacking: from within the spark's network.
    pub(crate) fn hears_unseen(&self, spark: &str, addresses: &[String]) -> Vec<String> {
        let pid = self.spark(&["--json", "info", spark]).json()["pid"].to_string();
        let each = "for at; do busybox nc -w 10 $at </dev/null 2>/dev/null | grep . || echo -; done";
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n", "sh", "-c", each, "sh"]).args(addresses);
        Output::of("nc", &mut command).stdout().lines().map(str::to_owned).collect()
    }

    /// The same for one address.
    pub(crate) fn hears_at(&self, spark: &str, address: &str) -> String {
        self.hears(spark, &[address.to_owned()]).concat()
    }

    /// What the host, or the internet, hears.
    pub(crate) fn heard_by(&self, which: &str, address: &str) -> String {
        let mut command = inside(&self.netns(which));
        command.args(["sh", "-c", &format!("busybox nc -w 10 {address} </dev/null 2>/dev/null")]);
        Output::of(address, &mut command).stdout().trim().to_owned()
    }

    pub(crate) fn addresses(&self, spark: &str) -> (String, String) {
        let network = self.spark(&["--json", "info", spark]).json()["network"].clone();
        let text =
            |key: &str| network[key].as_str().unwrap_or_else(|| panic!("{spark}: {network}")).to_owned();
        (text("ipv4"), text("ipv6"))
    }

    /// Its state is what it was, once the kernel has done what it does a moment later, such as with local addresses.
    #[track_caller]
    pub(crate) fn is_again(&self, before: &str) {
        if !wait_for(|| self.state() == before) {
            assert_eq!(self.state(), before);
        }
    }

    /// All that a network changes.
    pub(crate) fn state(&self) -> String {
        let settings = "cat /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv6/conf/*/*forwarding /proc/sys/net/ipv6/conf/*/accept_ra";
        self.on_host(&[
            "sh",
            "-c",
            &format!("ip -o link | cut -d' ' -f2; ip route; ip -6 route; ip rule; ip -6 rule; ip route show table 5353; nft list ruleset; {settings}"),
        ])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.mounts.kill();
        let _ = self.mounts.wait();
        for server in self.servers.get_mut() {
            let _ = Command::new("kill").args(["--", &format!("-{}", server.id())]).status();
            let _ = server.wait();
        }
        for which in ["h", "i", "c"] {
            let _ = Command::new("ip").args(["netns", "delete", &self.netns(which)]).output();
        }
    }
}

pub(crate) fn inside(netns: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}"));
    command
}
