//! A process that reads an archive and was taken over by it tries what it likes, and the import fails.

use crate::common::Machine;

/// What the process tries, as `sys::attack` knows it.
const ATTACKS: [&str; 10] =
    ["open", "execute", "socket", "socketpair", "trace", "kill", "user", "fork", "namespace", "code"];

#[test]
fn a_reader_that_was_taken_over_is_killed_whatever_it_tries() {
    let machine = Machine::new();
    std::fs::write(machine.work().join("file"), "content").unwrap();
    for (archive, flag) in [("plain.tar", "-c"), ("zipped.tar.gz", "-cz")] {
        let made = std::process::Command::new("tar")
            .args([flag, "-f", archive, "file"])
            .current_dir(machine.work())
            .status();
        assert!(made.unwrap().success());
        for attack in ATTACKS {
            let mut command = machine.command(&["--json", "base", "import", archive, "b"]);
            command.env("SPARK_FAULT", format!("isolated.{attack}=attack"));
            let text = crate::common::Output::of(attack, &mut command).fails_with("image");
            assert!(text.contains("did what no archive needs, and was killed for it"), "{attack}: {text}");
            assert!(machine.staged().is_empty(), "{attack}");
        }
    }
    // Without an attack nothing of that is so.
    let mut command = machine.command(&["base", "import", "zipped.tar.gz", "b"]);
    crate::common::Output::of("import", command.env("SPARK_FAULT", "isolated.nothing=attack")).ok();
}
