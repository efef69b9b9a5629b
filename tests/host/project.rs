//! Projects on a real pool: names that follow repositories, made once, deleted only when empty.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::mpsc;
use std::time::Duration;

use sparks::domain::name::Name;
use sparks::error::Code;
use sparks::ops::Sparks;
use sparks::sys::flock::{self, Mode};

use crate::common::{Machine, PATIENCE};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn repository(dir: &Path) -> PathBuf {
    let done = Command::new("git")
        .arg("init")
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(done.success());
    dir.canonicalize().unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn made(sparks: &Sparks) -> Name {
    let name = sparks.project().unwrap();
    sparks.ensure_project(&name).unwrap();
    name
}

fn staging(sparks: &Sparks, name: &Name) -> usize {
    let path = sparks.project_info(name).unwrap().path;
    fs::read_dir(path.parent().unwrap().parent().unwrap().join("staging")).unwrap().count()
}

#[test]
fn outside_of_a_repository_it_is_default_and_a_named_one_wins_everywhere() {
    let (machine, dir) = (Machine::new(), folder());
    let repo = repository(&dir.path().join("shop"));
    assert_eq!(machine.sparks_in(dir.path(), None).project().unwrap(), name("default"));
    assert_eq!(machine.sparks_in(&repo, None).project().unwrap(), name("shop"));
    assert_eq!(machine.sparks_in(&repo, Some("mine")).project().unwrap(), name("mine"));
    assert!(machine.sparks_in(&repo, None).project_list().unwrap().is_empty(), "asking makes nothing");
}

#[test]
fn a_repository_keeps_its_name_and_one_of_the_same_folder_name_gets_another_and_keeps_that() {
    let (machine, dir) = (Machine::new(), folder());
    let (a, b) = (repository(&dir.path().join("a/shop")), repository(&dir.path().join("b/shop")));
    let (in_a, in_b) = (machine.sparks_in(&a, None), machine.sparks_in(&b, None));
    assert_eq!(made(&in_a), name("shop"));
    let second = made(&in_b);
    assert!(second.as_str().starts_with("shop-"), "{second}");
    fs::create_dir(b.join("sub")).unwrap();
    assert_eq!(machine.sparks_in(&b.join("sub"), None).project().unwrap(), second);

    // The first one's going does not rename the second.
    in_a.project_delete(&name("shop")).unwrap();
    assert_eq!(in_b.project().unwrap(), second);
    assert_eq!(in_a.project().unwrap(), name("shop"));
}

#[test]
fn a_project_made_by_hand_is_no_repositorys() {
    let (machine, dir) = (Machine::new(), folder());
    let repo = repository(&dir.path().join("shop"));
    machine.sparks_in(&repo, Some("shop")).ensure_project(&name("shop")).unwrap();
    let here = machine.sparks_in(&repo, None);
    assert!(here.project().unwrap().as_str().starts_with("shop-"));
    assert_eq!(here.project_info(&name("shop")).unwrap().git, None);
}

#[test]
fn a_repository_in_a_folder_named_default_is_not_the_default_project() {
    let (machine, dir) = (Machine::new(), folder());
    let repo = repository(&dir.path().join("default"));
    assert!(made(&machine.sparks_in(&repo, None)).as_str().starts_with("default-"));
    assert_eq!(machine.sparks_in(dir.path(), None).project().unwrap(), name("default"));
}

#[test]
fn a_new_project_is_private_but_for_what_it_shares_and_says_whose_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let (machine, dir) = (Machine::new(), folder());
    let repo = repository(&dir.path().join("shop"));
    let sparks = machine.sparks_in(&repo, None);
    let info = sparks.project_info(&made(&sparks)).unwrap();
    let mode = |sub: &str| fs::metadata(info.path.join(sub)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(["sparks", "data", "shared"].map(mode), [0o700, 0o700, 0o1777]);
    assert!(sparks::pool::btrfs::is_subvolume(&info.path.join("shared")));
    assert_eq!(info.git.unwrap(), repo.join(".git").display().to_string());
    assert!(info.git_exists && info.current && info.broken.is_none() && info.sparks == 0);

    fs::remove_dir_all(&repo).unwrap();
    let vanished = machine.sparks_in(dir.path(), None).project_info(&name("shop")).unwrap();
    assert!(!vanished.git_exists && !vanished.current);
}

#[test]
fn of_many_that_make_a_project_at_once_one_does_and_nothing_is_left_half_made() {
    let (machine, dir) = (Machine::new(), folder());
    let many = 8;
    let barrier = Barrier::new(many);
    std::thread::scope(|scope| {
        for _ in 0..many {
            let sparks = machine.sparks_in(dir.path(), Some("shop"));
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                sparks.ensure_project(&name("shop")).unwrap();
            });
        }
    });
    let sparks = machine.sparks_in(dir.path(), None);
    assert_eq!(sparks.project_list().unwrap().len(), 1);
    assert_eq!(staging(&sparks, &name("shop")), 0);
}

#[test]
fn of_two_repositories_that_want_a_name_at_once_each_gets_one() {
    let (machine, dir) = (Machine::new(), folder());
    for round in 0..5 {
        let repos = ["a", "b"].map(|side| repository(&dir.path().join(format!("{side}/shop{round}"))));
        let barrier = Barrier::new(2);
        let spark = "web".parse().unwrap();
        let names: Vec<Name> = std::thread::scope(|scope| {
            let threads = repos.each_ref().map(|repo| {
                let (sparks, barrier, spark) = (machine.sparks_in(repo, None), &barrier, &spark);
                scope.spawn(move || {
                    barrier.wait();
                    sparks.ensure_project_of(spark).unwrap()
                })
            });
            threads.map(|t| t.join().unwrap()).into()
        });
        assert_ne!(names[0], names[1]);
        for (name, repo) in names.iter().zip(&repos) {
            let info = machine.sparks_in(repo, None).project_info(name).unwrap();
            assert_eq!(info.git.unwrap(), repo.join(".git").display().to_string());
            assert!(info.current);
        }
    }
}

#[test]
fn a_project_with_sparks_or_data_is_not_deleted_and_loses_nothing() {
    let (machine, dir) = (Machine::new(), folder());
    let sparks = machine.sparks_in(dir.path(), None);
    let shop = name("shop");
    sparks.ensure_project(&shop).unwrap();
    let path = sparks.project_info(&shop).unwrap().path;
    for (sub, said) in
        [("sparks/web", "1 spark"), ("data/db", "1 data volume"), ("sparks/Not a name", "1 spark")]
    {
        fs::create_dir(path.join(sub)).unwrap();
        let e = sparks.project_delete(&shop).unwrap_err();
        assert_eq!(e.code(), Code::WrongState);
        assert!(e.to_string().contains(said), "{e}");
        fs::remove_dir(path.join(sub)).unwrap();
    }
    fs::write(path.join("shared/tool"), "x").unwrap();
    sparks.project_delete(&shop).unwrap();
    assert!(!path.exists());
    assert_eq!(fs::read_dir(path.parent().unwrap().parent().unwrap().join("staging")).unwrap().count(), 0);
}

#[test]
fn deleting_what_is_not_there_suggests_what_is() {
    let (machine, dir) = (Machine::new(), folder());
    let sparks = machine.sparks_in(dir.path(), None);
    sparks.ensure_project(&name("shop")).unwrap();
    let e = sparks.project_delete(&name("shpo")).unwrap_err();
    assert_eq!(e.code(), Code::NotFound);
    assert_eq!(e.hint().unwrap(), "did you mean `shop`?");
    assert_eq!(sparks.project_info(&name("shpo")).unwrap_err().code(), Code::NotFound);
}

#[test]
fn a_delete_waits_for_who_publishes_into_the_project_and_then_refuses() {
    let (machine, dir) = (Machine::new(), folder());
    let sparks = machine.sparks_in(dir.path(), None);
    let shop = name("shop");
    sparks.ensure_project(&shop).unwrap();
    let path = sparks.project_info(&shop).unwrap().path;
    let creator = flock::lock_dir(&path, Mode::Shared).unwrap();
    std::thread::scope(|scope| {
        let (done, deleted) = mpsc::channel();
        let shop = &shop;
        scope.spawn(move || done.send(sparks.project_delete(shop)).unwrap());
        assert!(deleted.recv_timeout(Duration::from_millis(200)).is_err(), "it did not wait");
        fs::create_dir(path.join("sparks/web")).unwrap();
        drop(creator);
        let e = deleted.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert_eq!(e.code(), Code::WrongState);
    });
    assert!(path.join("sparks/web").exists());
}

#[test]
fn a_damaged_record_is_listed_as_such_and_hides_nothing() {
    let (machine, dir) = (Machine::new(), folder());
    let repo = repository(&dir.path().join("shop"));
    let sparks = machine.sparks_in(&repo, None);
    made(&sparks);
    sparks.ensure_project(&name("other")).unwrap();
    let record = sparks.project_info(&name("shop")).unwrap().path.join("project.json");
    let spoil: [&dyn Fn(); 2] = [&|| fs::write(&record, "{").unwrap(), &|| fs::remove_file(&record).unwrap()];
    for spoil in spoil {
        spoil();
        // It may be this repository's: another project is not begun in its stead.
        let e = sparks.project().unwrap_err();
        assert_eq!(e.code(), Code::Corrupt);
        assert!(e.hint().unwrap().contains("-P shop"));
        let list = sparks.project_list().unwrap();
        let broken: Vec<_> = list.iter().map(|p| (p.name.as_str(), p.broken.is_some())).collect();
        assert_eq!(broken, [("other", false), ("shop", true)]);
    }
    let by_hand = machine.sparks_in(&repo, Some("shop"));
    assert_eq!(by_hand.project().unwrap(), name("shop"));
    by_hand.ensure_project(&name("shop")).unwrap();
}
