//! What the command line takes and refuses.

use super::new::read_env_file;
use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_command_line_is_consistent_and_its_help_names_every_verb() {
    let mut command = Cli::command();
    command.build();
    command.clone().debug_assert();
    for verb in command.get_subcommands() {
        assert!(HELP.contains(&format!("\n  {} ", verb.get_name())), "{}", verb.get_name());
        assert!(verb.get_about().is_some() || verb.get_name() == "help", "{}", verb.get_name());
        for arg in verb.get_arguments() {
            assert!(arg.get_help().is_some(), "{} {}", verb.get_name(), arg.get_id());
        }
    }
    assert!(command.render_help().to_string().lines().count() <= 60);
}

#[test]
fn every_verb_parses() {
    for line in [
        "spark create web --base b -e A=1 --env-file /x --mount src=/a,dst=/b,ro --network none --memory 2G",
        "spark create web --cpus 1.5 --pids 64 --user u:g --workdir /w --hostname h --label a=b --bundle t",
        "spark create web --hardened --no-start --dry-run -q",
        "spark create web --shared ro",
        "spark create web --clone",
        "spark create web --clone ../shop --dirty",
        "spark pull shop/web",
        "spark create",
        "spark list -a -q",
        "spark ls --deleted",
        "spark info shop/web",
        "spark exec web -e A=1 -w /x -u u -t --timeout 30s -- ls -l",
        "spark exec - --base b --memory 1G ls",
        "spark exec web -d sleep 1",
        "spark console web -- bash -l",
        "spark console -",
        "spark create web --idle-stop 10m",
        "spark set web --idle-stop off",
        "spark config",
        "spark up-on-connect web 80",
        "spark up-on-connect shop/web 0.0.0.0:8080:80 --idle 30s --install -- httpd -f",
        "spark up-on-connect web 8080:80 --install /tmp/units",
        "spark stop a b -t 3",
        "spark resume a b",
        "spark pause a b",
        "spark diff web",
        "spark diff web@before shop/web --stat",
        "spark diff base:minimal web /etc/passwd",
        "spark delete a b -f --now",
        "spark rm a",
        "spark undelete a --as b",
        "spark rename a b",
        "spark du a shop/b -a",
        "spark top -a --once --interval 500ms",
        "spark set a b --memory 1G --cpus none --pids 9 --io 1M --disk none --label a=b --unlabel c",
        "spark fork a@b shop/c -n 8 --memory 1G --no-start",
        "spark create a --from shop/b@c",
        "spark snapshot create a b --label text",
        "spark snapshot create a --keep 5",
        "spark snapshot list a",
        "spark snapshot restore a b --no-resume",
        "spark snapshot delete a b c",
        "spark undo a",
        "spark tree -a",
        "spark fork a b -n 3 -- make test",
        "spark pick b-2 --as a",
        "spark base save a@b c --replace",
        "spark send a@b --since c",
        "spark receive shop/a --no-restore",
        "spark logs a -f",
        "spark logs a --tail 5",
        "spark cp a b shop/web:/tmp",
        "spark cp web@before:/etc/hosts . -q",
        "spark gc --dry-run",
        "spark doctor --fix",
        "spark base bootstrap bookworm b",
        "spark base import - b",
        "spark base list",
        "spark base info b",
        "spark base delete b",
        "spark base default",
        "spark create web -v v:/data -v w:/srv:ro",
        "spark data create v",
        "spark fork a b --data copy",
        "spark snapshot create a b --data share",
        "spark snapshot restore a b --data none",
        "spark data list -q",
        "spark data info v",
        "spark data attach v web /data:ro",
        "spark data detach v web",
        "spark data delete v w@s",
        "spark data snapshot v s",
        "spark data snapshots v",
        "spark data restore v s",
        "spark project list",
        "spark project info p",
        "spark project delete p",
        "spark pool init --size 10G",
        "spark pool info",
        "spark pool grow 20G",
        "spark completion bash",
        "spark man /x",
        "spark version",
        "spark -P shop --json -vv list",
        "spark list -P shop --json --verbose",
    ] {
        if let Err(e) = parse(line) {
            panic!("{line}: {e}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for line in [
        "spark",
        "spark lst",
        "spark create Web",
        "spark create a b",
        "spark create a --bundle x --hardened",
        "spark create a --shared ro --hardened",
        "spark create a --memory 1",
        "spark create a --network bridge",
        "spark create a --workdir rel",
        "spark create a -e NOVALUE",
        "spark exec web",
        "spark exec web --nonsense ls",
        "spark exec web -d --timeout 3s ls",
        "spark stop",
        "spark diff",
        "spark diff base:a/b",
        "spark diff a b /etc/passwd /etc/group",
        "spark cp web:/a",
        "spark list --deleted --nonsense",
        "spark logs a -f --tail x",
        "spark pool init --size 1G --device /dev/x",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn what_follows_the_command_is_the_commands_own() {
    for (line, expected) in [
        ("spark exec web ls -l -t --json", vec!["ls", "-l", "-t", "--json"]),
        ("spark exec web -- ls -- -x", vec!["ls", "--", "-x"]),
        ("spark exec web -T sh -c x", vec!["sh", "-c", "x"]),
    ] {
        let cli = parse(line).unwrap();
        assert!(!cli.global.json);
        let Verb::Exec(args) = cli.verb else { panic!("{line}") };
        assert_eq!(args.command, expected, "{line}");
    }
}

#[test]
fn a_variable_given_later_wins_and_options_over_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "A=file\nB=file\n").unwrap();
    let line = format!("spark create web -e A=1 -e A=2 --env-file {}", file.path().display());
    let Verb::Create(args) = parse(&line).unwrap().verb else { panic!() };
    let options = args.new.changes(&args.process).unwrap().over(Default::default());
    assert_eq!(options.env["A"], "2");
    assert_eq!(options.env["B"], "file");
}

#[test]
fn an_environment_file_is_bounded_and_its_errors_name_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![b'#'; 2 << 20]).unwrap();
    assert!(read_env_file(file.path()).unwrap_err().to_string().contains("larger than 1 MiB"));
    std::fs::write(file.path(), "A=1\nnope\n").unwrap();
    assert!(read_env_file(file.path()).unwrap_err().to_string().contains("line 2:"));
}

#[test]
fn options_of_a_new_spark_are_refused_with_a_name() {
    let Verb::Exec(args) = parse("spark exec web --pids 64 ls").unwrap().verb else { panic!() };
    let e = args.new.refuse_for(&"web".parse().unwrap()).unwrap_err();
    assert!(e.to_string().contains("`--pids`"), "{e}");
    assert!(NewArgs::default().given().is_none());
}

#[test]
fn of_t_and_no_t_the_last_one_counts() {
    let wanted = |line: &str| {
        let Verb::Exec(args) = parse(line).unwrap().verb else { panic!() };
        args.terminal.wanted()
    };
    assert!(wanted("spark exec web -T -t ls"));
    assert!(!wanted("spark exec web -t -T ls"));
}
