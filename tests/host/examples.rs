//! The examples, as a reader would run them.

use std::path::Path;

use crate::common::{Machine, Output};
use crate::consistency::with_databases;

/// Runs an example on this machine, with the `spark` of this build in its path.
fn example(machine: &Machine, name: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let spark = Path::new(env!("CARGO_BIN_EXE_spark")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut command = std::process::Command::new(script);
    command
        .env("PATH", format!("{}:{path}", spark.display()))
        .env("SPARK_ROOT", machine.place().root)
        .env("SPARK_RUN", machine.place().run)
        .env("TMPDIR", machine.work())
        .env_remove("SPARK_BASE")
        .env_remove("SPARK_PROJECT")
        .current_dir(machine.work());
    Output::of(name, &mut command)
}

#[test]
fn eight_forks_race_and_the_winner_takes_the_place_of_its_origin() {
    let machine = Machine::new().with_base();
    let said = example(&machine, "race.sh").ok();
    let winner = said.lines().find_map(|l| l.strip_prefix("the winner is ")).unwrap();
    assert!(["race-try-1", "race-try-4", "race-try-7"].contains(&winner), "{said}");
    assert!(said.contains("the origin has the sum 500500"), "{said}");
    assert!(said.contains("without it once the pick is undone"), "{said}");
    assert_eq!(machine.spark(&["list", "-q"]).ok(), "");
}

#[test]
fn each_of_three_forks_of_a_busy_postgres_has_what_was_committed() {
    let machine = with_databases();
    let said = example(&machine, "postgres-fork.sh").ok();
    // Its own checks are of the numbers.
    assert_eq!(said.matches(" were committed before the fork").count(), 3, "{said}");
    assert_eq!(machine.spark(&["list", "-a", "-q"]).ok(), "");
}

/// The base has git already, under the name that the example looks for.
#[test]
fn an_agent_makes_a_test_pass_and_its_branch_comes_back() {
    let machine = with_databases();
    machine.spark(&["create", "tpl", "--base", "databases", "--no-start"]).ok();
    machine.spark(&["base", "save", "tpl", "bookworm"]).ok();
    machine.spark(&["delete", "--now", "tpl"]).ok();
    let said = example(&machine, "agent-loop.sh").ok();
    let end = said.split("Looked at, it is merged").nth(1).unwrap();
    assert!(end.contains("Make the test pass"), "{said}");
    assert_eq!(machine.spark(&["list", "-a", "-q"]).ok(), "");
}
