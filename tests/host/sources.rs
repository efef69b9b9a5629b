//! Where values come from: each source, what it refuses, and what it says. `age`, `pass` and `gpg` are real; of 1Password
//! there are a stand-in for `op` and a server that speaks as Connect does.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::vault::{Connect, PassStore, TOKEN, Vault, id_of};
use crate::common::{Machine, Output, is_running, wait_for, without_terminal};

fn set(machine: &Machine, key: &str, value: &[u8]) -> Output {
    let file = machine.work().join("input");
    std::fs::write(&file, value).unwrap();
    let mut command = machine.command(&["--json", "secrets", "set", key]);
    Output::of("secrets set", command.stdin(std::fs::File::open(&file).unwrap()))
}

/// What `secrets check` says of one reference: nothing, or the message. Each error has a hint.
pub(crate) fn check(machine: &Machine, reference: &str, mut command: Command) -> Option<String> {
    machine.spark(&["secrets", "set", "X:file", reference]).ok();
    let output = Output::of("secrets check", &mut command);
    let rows: Value =
        serde_json::from_str(&output.stdout()).unwrap_or_else(|e| panic!("{e}: {}", output.stderr()));
    let row = &rows[0];
    assert_eq!(row["ok"], json!(output.status() == 0));
    assert_eq!(row["hint"].is_string(), row["error"].is_string(), "{row}");
    row["error"]
        .as_str()
        .map(|text| text.trim_start_matches(&format!("cannot get the secret {reference}")).to_owned())
}

pub(crate) const CHECK: [&str; 3] = ["--json", "secrets", "check"];

#[test]
fn what_is_no_reference_is_refused_and_never_repeated() {
    let machine = Machine::new();
    for bad in ["hunter2", "op://v/i/f\nhunter2", "op://v/hunter2", "hunter2://x", "age://../hunter2"] {
        let refused = machine.spark(&["--json", "secrets", "set", "K", bad]);
        refused.fails_with("usage");
        assert!(bad.contains("://") && !bad.contains('\n') || !refused.stderr().contains("hunter2"));
        machine.spark(&["--json", "create", "web", "--secret", &format!("K={bad}")]).fails_with("usage");
    }
    for bad in [
        &["T=hunter2"][..],
        &["T:hunter2"],
        &["hunter2!"],
        &["T", "env://X", "hunter2"],
        &["T", "--hunter2"],
        &["T", "--value=hunter2"],
    ] {
        let refused = machine.spark(&[&["--json", "secrets", "set"], bad].concat());
        refused.fails_with("usage");
        assert!(!refused.stderr().contains("hunter2"), "{}", refused.stderr());
    }
    let refused = machine.spark(&["--json", "create", "web", "--secret", "hunter2"]);
    refused.fails_with("usage");
    assert!(!refused.stderr().contains("hunter2"));
    assert!(refused.stderr().contains("spark secrets set KEY < FILE"), "{}", refused.stderr());
}

#[test]
fn values_have_a_size_and_a_variable_holds_no_nul() {
    let machine = Machine::new().with_base();
    for (key, value, wanted) in [
        ("K", vec![], "is empty"),
        ("K", vec![b'x'; 1 << 20], "larger than 256 KiB"),
        ("K:file", vec![b'x'; (256 << 10) + 1], "larger than 256 KiB"),
        ("K", vec![b'x'; 200 << 10], "cannot be a variable: it is larger than 128 KiB"),
        ("K", b"a\0b".to_vec(), "cannot be a variable: it holds a NUL"),
    ] {
        let said = set(&machine, key, &value).fails_with("secret");
        assert!(said.contains(wanted), "{said}");
    }
    assert_eq!(machine.spark(&["--json", "secrets", "list"]).json(), json!([]));
    assert!(!machine.place().root.join("secrets/default").exists(), "nothing is left in the store");
    let binary: Vec<u8> = (0..=255).cycle().take(256 << 10).collect();
    set(&machine, "BIN:file", &binary).ok();
    machine.spark(&["create", "web"]).ok();
    let output = machine.spark(&["exec", "web", "--", "cat", "/run/secrets/BIN"]);
    assert!(output.output.stdout == binary, "a file is the value, byte for byte");
    // Not UTF-8 is no obstacle to a variable.
    set(&machine, "BIN:env", b"\xff\xfe").ok();
    machine.spark(&["secrets", "refresh", "web"]).ok();
    let output = machine.spark(&["exec", "web", "--", "sh", "-c", "printf %s \"$BIN\""]);
    assert_eq!(output.output.stdout, b"\xff\xfe");
    // All together have a bound too.
    for n in 0..5 {
        set(&machine, &format!("BIG{n}:file"), &binary).ok();
    }
    let said = machine.spark(&["--json", "secrets", "refresh", "web"]).fails_with("secret");
    assert_eq!(said, "the secrets of the spark have 1280 KiB, and 1024 are the most");
}

#[test]
fn a_file_is_a_regular_one_of_a_size() {
    let machine = Machine::new();
    let path = |name: &str| machine.work().join(name);
    std::fs::write(path("big"), vec![b'x'; 1 << 20]).unwrap();
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("good"), "v").unwrap();
    let fifo = Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    assert!(fifo.success());
    let of =
        |name: &str| check(&machine, &format!("file://{}", path(name).display()), machine.command(&CHECK));
    assert_eq!(of("good"), None);
    assert_eq!(of("big").unwrap(), ": it is larger than 256 KiB");
    assert_eq!(of("empty").unwrap(), ": it is empty");
    for not_regular in ["fifo", "."] {
        assert_eq!(of(not_regular).unwrap(), ": it is not a regular file");
    }
    assert_eq!(of("nope").unwrap(), "");
}

#[test]
fn the_store_gives_back_nothing_that_was_tampered_with() {
    let machine = Machine::new();
    set(&machine, "X:file", b"value").ok();
    let file = machine.place().root.join("secrets/default/X.age");
    let whole = std::fs::read(&file).unwrap();
    assert!(!whole.windows(5).any(|w| w == b"value"));
    let check = || check(&machine, "age://default/X", machine.command(&CHECK));
    assert_eq!(check(), None);
    for length in [0, 10, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        assert!(check().unwrap().starts_with(": it is damaged in the store"), "{length} bytes");
    }
    for at in (0..whole.len()).step_by(whole.len() / 12) {
        let mut altered = whole.clone();
        altered[at] ^= 1;
        std::fs::write(&file, &altered).unwrap();
        let said = check().unwrap();
        assert!(
            said.contains("damaged in the store") || said.contains("another identity"),
            "byte {at}: {said}"
        );
    }
    std::fs::write(&file, &whole).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(check().unwrap().contains("others may use"));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(check().unwrap(), ": it is not in the store");
}

#[test]
fn the_identity_is_the_callers_alone_and_may_have_a_passphrase() {
    let machine = Machine::new();
    set(&machine, "X:file", b"value").ok();
    let identity = machine.work().parent().unwrap().join("home/.config/spark/identity.txt");
    assert_eq!(std::fs::metadata(&identity).unwrap().permissions().mode() & 0o777, 0o600);
    let of = |env: &[(&str, &str)]| {
        let mut command = machine.command(&CHECK);
        command.envs(env.iter().copied());
        without_terminal(&mut command);
        check(&machine, "age://default/X", command)
    };
    std::fs::set_permissions(&identity, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(of(&[]).unwrap().contains("could have been read by others"));
    std::fs::write(&identity, "# nothing\n").unwrap();
    std::fs::set_permissions(&identity, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(of(&[]).unwrap().contains("holds no key"));
    std::fs::remove_file(&identity).unwrap();
    assert!(of(&[]).unwrap().contains("has no identity file"));
    set(&machine, "Y:file", b"other").ok();
    assert!(of(&[]).unwrap().contains("it was set with another identity file"));
    machine.spark(&["secrets", "delete", "Y"]).ok();

    // Made with a passphrase, it is of no use without.
    std::fs::remove_file(&identity).unwrap();
    let file = machine.work().join("value");
    std::fs::write(&file, "value").unwrap();
    let mut command = machine.command(&["secrets", "set", "X:file"]);
    command.env("SPARK_AGE_PASSPHRASE", "correct horse").stdin(std::fs::File::open(&file).unwrap());
    Output::of("secrets set", &mut command).ok();
    assert!(std::fs::read(&identity).unwrap().starts_with(b"age-encryption.org/v1"));
    assert!(of(&[]).unwrap().contains("is encrypted"));
    assert!(of(&[("SPARK_AGE_PASSPHRASE", "wrong")]).unwrap().contains("cannot decrypt the identity file"));
    assert_eq!(of(&[("SPARK_AGE_PASSPHRASE", "correct horse")]), None);
}

#[test]
fn op_is_called_once_and_its_failures_become_errors_with_hints() {
    let machine = Machine::new();
    let vault = Vault::new(
        &machine,
        json!({"My Vault": {"db": {"password": "p", "admin/key": "k"}, "two": "twice"}}),
    );
    let of = |reference: &str| check(&machine, reference, vault.command(&machine, &CHECK));
    assert_eq!(of("op://My Vault/db/password"), None);
    let call = vault.calls().pop().unwrap();
    assert_eq!(call["argv"], json!(["read", "--no-newline", "op://My Vault/db/password"]));
    assert_eq!((&call["stdin"], &call["spark"]), (&json!("/dev/null"), &json!([])), "it has nobody to ask");
    assert_eq!(of("op://My Vault/db/admin/key"), None);
    for (reference, why) in [
        ("op://nope/db/password", ": there is no such vault in this account"),
        ("op://My Vault/nope/password", ": there is no such item in the vault"),
        ("op://My Vault/two/password", ": more than one item matches"),
        ("op://My Vault/db/nope", ": the item has no such field"),
    ] {
        assert_eq!(of(reference).unwrap(), why);
    }
    for (mode, why) in [
        ("signed-out", ": `op` is not signed in"),
        ("prompt", ": `op` is not signed in"),
        ("limited", ": 1Password's rate limit is reached"),
        ("refused", ": 1Password refuses the token"),
        ("dies", ": signal 9 ended `op`"),
        ("huge", ": it is larger than 256 KiB"),
    ] {
        vault.mode(mode);
        vault.calls();
        assert_eq!(of("op://My Vault/db/password").unwrap(), why, "{mode}");
        // Once together, and once to learn which: no more.
        assert!(vault.calls().len() <= 2, "{mode}");
    }
    vault.mode("noisy");
    assert_eq!(of("op://My Vault/db/password"), None);
}

#[test]
fn several_references_are_one_call_whatever_their_values_hold() {
    let machine = Machine::new().with_base();
    let odd = "}}{{ op://v/i/b }}\n--spark--\n$HOME \u{1f980}\n\n";
    let vault = Vault::new(&machine, json!({"v": {"i": {"a": odd, "b": "b\n", "c": "c"}}}));
    let refs = ["A=op://v/i/a", "B=op://v/i/b", "C=op://v/i/c", "AGAIN=op://v/i/a"];
    let args: Vec<&str> = refs.iter().flat_map(|r| ["--secret", r]).collect();
    vault.spark(&machine, &[&["create", "web"], &args[..]].concat()).ok();
    let calls = vault.calls();
    assert_eq!((calls.len(), &calls[0]["argv"]), (1, &json!(["inject"])));
    assert_eq!(calls[0]["stdin"].as_str().unwrap().matches("op://").count(), 3, "none is asked for twice");
    let read =
        |name: &str| machine.spark(&["exec", "web", "--", "cat", &format!("/run/secrets/{name}")]).ok();
    assert_eq!((read("A").as_str(), read("B").as_str(), read("AGAIN").as_str()), (odd, "b\n", odd));
    // One that is missing is named.
    machine.spark(&["secrets", "set", "--spark", "web", "D", "op://v/nope/d"]).ok();
    machine.spark(&["stop", "web"]).ok();
    let said = vault.spark(&machine, &["--json", "resume", "web"]).fails_with("secret");
    assert_eq!(said, "cannot get the secret op://v/nope/d: there is no such item in the vault");
    assert_eq!(vault.calls().len(), 1, "a failure is not tried again");
}

#[test]
fn what_fails_for_nothing_fails_before_1password_is_asked() {
    let machine = Machine::new().with_base();
    let vault = Vault::new(&machine, json!({"v": {"i": {"f": "x"}}}));
    let args = ["--json", "exec", "-", "--secret", "A=op://v/i/f", "--secret", "B=env://NOT_SET", "true"];
    let said = vault.spark(&machine, &args).fails_with("secret");
    assert_eq!(said, "cannot get the secret env://NOT_SET: the variable is not set");
    assert!(vault.calls().is_empty());
}

#[test]
fn an_op_that_hangs_is_ended_with_all_that_it_started() {
    let machine = Machine::new().with_base();
    let vault = Vault::new(&machine, json!({}));
    vault.mode("hang");
    let mut command = vault.command(&machine, &["--json", "exec", "-", "--secret", "A=op://v/i/f", "true"]);
    command.env("SPARK_SECRET_TIMEOUT", "10s");
    // Again, where the machine was so slow that it had started nothing by then.
    let started = wait_for(|| {
        let began = Instant::now();
        let said = Output::of("exec", &mut command).fails_with("secret");
        assert_eq!(said, "cannot get the secret op://v/i/f: `op` gave no answer within 10s");
        assert!(began.elapsed() < Duration::from_secs(500), "it would have slept for longer");
        vault.child().is_some()
    });
    assert!(started);
    let pid = vault.calls().pop().unwrap()["pid"].as_i64().unwrap() as i32;
    for pid in [pid, vault.child().unwrap()] {
        assert!(wait_for(|| !is_running(pid)), "{pid} runs still");
    }
}

#[test]
fn behind_sudo_programs_run_as_the_caller() {
    let machine = Machine::new();
    let vault = Vault::new(&machine, json!({"v": {"i": {"f": "x"}}}));
    let mut command = vault.command(&machine, &CHECK);
    command.env("SUDO_UID", "65534").env("SUDO_GID", "65534");
    assert_eq!(check(&machine, "op://v/i/f", command), None);
    let call = vault.calls().pop().unwrap();
    assert_eq!((&call["uid"], &call["home"]), (&json!(65534), &json!("/nonexistent")));
}

#[test]
fn behind_sudo_the_stores_key_is_the_callers() {
    let machine = Machine::new();
    // A user of the host that only these commands see.
    let home = machine.work().join("tester");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(4242), Some(4343)).unwrap();
    for dir in [machine.work(), machine.work().parent().unwrap().to_owned()] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o711)).unwrap();
    }
    let passwd = machine.work().join("passwd");
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    std::fs::write(&passwd, format!("{users}tester:x:4242:4343::{}:/bin/sh\n", home.display())).unwrap();
    std::fs::write(machine.work().join("value"), "v").unwrap();
    let as_tester = |args: &[&str]| {
        let plain = machine.command(args);
        let mut command = Command::new("unshare");
        let script = format!("mount --bind {} /etc/passwd && exec \"$@\"", passwd.display());
        command.args(["-m", "sh", "-c", &script, "sh"]).arg(plain.get_program()).args(plain.get_args());
        for (key, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.env("SUDO_UID", "4242").env("SUDO_GID", "4343").current_dir(machine.work());
        command.stdin(std::fs::File::open(machine.work().join("value")).unwrap());
        Output::of(&args.join(" "), &mut command)
    };
    as_tester(&["secrets", "set", "-P", "p", "X:file"]).ok();
    let meta = std::fs::metadata(home.join(".config/spark/identity.txt")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (4242, 4343, 0o600));
    as_tester(&["secrets", "check", "-P", "p"]).ok();
    let roots = machine.spark(&["--json", "secrets", "check", "-P", "p"]).stdout();
    let roots: Value = serde_json::from_str(&roots).unwrap();
    assert_eq!(
        roots[0]["error"],
        "cannot get the secret age://p/X: root has no identity file to decrypt it with"
    );
}

#[test]
fn without_op_and_connect_it_says_what_to_install() {
    let machine = Machine::new();
    let mut command = machine.command(&CHECK);
    command.env("PATH", machine.work());
    assert_eq!(check(&machine, "op://v/i/f", command).unwrap(), ": the host has no `op`");
    let mut table = machine.command(&["secrets", "check"]);
    let table = Output::of("secrets check", table.env("PATH", machine.work()));
    assert_eq!(table.stdout(), "KEY  REFERENCE   OK\nX    op://v/i/f  no\n");
    // Nor is there one where the caller may not look.
    let closed = machine.work().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let command = || {
        let mut command = machine.command(&CHECK);
        command.env("PATH", &closed).env("SUDO_UID", "65534").env("SUDO_GID", "65534");
        command
    };
    assert_eq!(check(&machine, "op://v/i/f", command()).unwrap(), ": the host has no `op`");
    std::fs::write(closed.join("op"), "").unwrap();
    let said = check(&machine, "op://v/i/f", command()).unwrap();
    assert!(said.starts_with("cannot run `op`"), "{said}");
}

#[test]
fn connect_is_asked_where_there_is_no_op() {
    let machine = Machine::new();
    let item = json!({
        "sections": [{"id": "s1", "label": "admin"}],
        "fields": [
            {"id": "password", "label": "password", "value": "p"},
            {"id": "k", "label": "key", "value": "k", "section": {"id": "s1"}},
            {"id": "otp", "label": "one-time password", "type": "OTP", "totp": "123456"},
        ],
        "files": [{"id": id_of("cert"), "name": "cert.pem", "content": "-----BEGIN\n"}],
    });
    let server = Connect::serve(vec![
        ("dev", "my db", item.clone()),
        ("dev", "twice", item.clone()),
        ("dev", "twice", item),
    ]);
    let command = |token: &str| {
        let mut command = machine.command(&CHECK);
        command
            .env("PATH", machine.work())
            .env("OP_CONNECT_HOST", &server.address)
            .env("OP_CONNECT_TOKEN", token);
        command
    };
    let of = |reference: &str| check(&machine, reference, command(TOKEN));
    assert_eq!(of("op://dev/my db/password"), None);
    assert_eq!(
        server.asked(),
        [
            "/v1/vaults?filter=name eq \"dev\"".to_owned(),
            format!("/v1/vaults/{}/items?filter=title eq \"my db\"", id_of("dev")),
            format!("/v1/vaults/{}/items/{}", id_of("dev"), id_of("my db")),
        ]
    );
    for good in [
        "op://dev/my db/admin/key",
        "op://dev/my db/one-time password?attribute=otp",
        "op://DEV/My DB/Password",
        "op://dev/my db/ADMIN/Key",
        "op://dev/my db/cert.pem",
    ] {
        assert_eq!(of(good), None, "{good}");
    }
    assert!(server.asked().contains(&format!(
        "/v1/vaults/{}/items/{}/files/{}/content",
        id_of("dev"),
        id_of("my db"),
        id_of("cert")
    )));
    assert_eq!(of(&format!("op://{}/{}/password", id_of("dev"), id_of("my db"))), None, "by ids");
    for (reference, why) in [
        ("op://nope/my db/password", ": there is no such vault that the token may read"),
        ("op://dev/nope/password", ": there is no such item in the vault"),
        ("op://dev/twice/password", ": more than one item matches"),
        ("op://dev/my db/nope", ": the item has no such field or file"),
        ("op://dev/my db/nope/key", ": the item has no such section"),
        ("op://dev/my db/one-time password", ": it is empty"),
    ] {
        assert_eq!(of(reference).unwrap(), why);
    }
    assert_eq!(
        check(&machine, "op://dev/my db/password", command("wrong")).unwrap(),
        ": the Connect server refuses the token"
    );
    let mut closed = command(TOKEN);
    closed.env("OP_CONNECT_HOST", "http://127.0.0.1:1");
    let said = check(&machine, "op://dev/my db/password", closed).unwrap();
    assert!(said.starts_with(": the Connect server cannot be reached"), "{said}");
}

#[test]
fn pass_gives_the_first_line_of_an_entry() {
    let machine = Machine::new();
    let pass = PassStore::new("shop/db", "word\nuser: u\n");
    let command = |args: &[&str]| {
        let mut command = machine.command(args);
        pass.environment(&mut command);
        command
    };
    assert_eq!(check(&machine, "pass://shop/db", command(&CHECK)), None);
    assert_eq!(
        check(&machine, "pass://shop/nope", command(&CHECK)).unwrap(),
        ": it is not in root's password store"
    );
    machine.spark(&["secrets", "delete", "X"]).ok();
    machine.spark(&["base", "bootstrap", "minimal"]).ok();
    let mut exec = command(&["exec", "-", "--secret", "PW=pass://shop/db", "--", "cat", "/run/secrets/PW"]);
    assert_eq!(Output::of("exec", &mut exec).ok(), "word");
}

#[test]
fn a_command_is_run_only_if_the_callers_configuration_has_it() {
    use secrecy::ExposeSecret;
    use sparks::secrets::{Host, Settings, resolve};
    let machine = Machine::new();
    assert!(
        check(&machine, "cmd://token", machine.command(&CHECK))
            .unwrap()
            .starts_with(": there is no secret command")
    );
    let command = |argv: &[&str]| argv.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
    let commands = [
        ("token".to_owned(), command(&["sh", "-c", "printf t; echo leak >&2; cat"])),
        ("fails".to_owned(), command(&["sh", "-c", "echo hunter2; echo hunter2 >&2; exit 3"])),
        ("missing".to_owned(), command(&["/nonexistent/program"])),
    ];
    let settings = Settings { commands: commands.into(), ..Settings::default() };
    let caller = sparks::sys::caller::Caller::find().unwrap();
    let host = Host { caller, store: machine.work(), settings };
    let of = |name: &str| {
        let reference: sparks::domain::secret::Reference = format!("cmd://{name}").parse().unwrap();
        resolve(&host, &[reference.clone()].into())
            .map(|values| values[&reference].expose_secret().bytes().to_vec())
    };
    assert_eq!(of("token").unwrap(), b"t");
    let failed = of("fails").unwrap_err();
    assert_eq!(failed.to_string(), "cannot get the secret cmd://fails: the command ended with status 3");
    assert!(!format!("{failed:?}").contains("hunter2"));
    assert!(of("missing").unwrap_err().to_string().contains("there is no program `/nonexistent/program`"));
}
