//! Bases.

use crate::common::Machine;
use crate::transcript::Transcript;

#[test]
fn bases_are_made_listed_chosen_and_deleted() {
    let mut t = Transcript::on(Machine::new());
    t.run("base list");
    t.run("base list --json");
    t.run("base default");
    t.run("base bootstrap minimal");
    t.run("base bootstrap minimal");
    t.run("base bootstrap minimal two --json");
    t.run("base bootstrap ../etc");
    t.run("base default");
    t.run("base default two");
    t.run("base default --json");
    t.run("base default twi");
    t.run("base list");
    t.run("base ls --json");
    t.run("base info minimal");
    t.run("base info minimal --json");
    t.run("base info minimla");
    t.run("create web --no-start");
    t.run("base delete two");
    t.run("base rm two");
    t.run("base");
    t.matches("base");
}

#[test]
fn bases_are_imported_from_directories_archives_and_standard_input() {
    let mut t = Transcript::on(Machine::new());
    let rootfs = t.machine.work().join("rootfs");
    std::fs::create_dir_all(rootfs.join("bin")).unwrap();
    std::fs::write(rootfs.join("bin/sh"), "#!/bin/true\n").unwrap();
    std::fs::set_permissions(rootfs.join("bin/sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let archive = t.machine.work().join("rootfs.tar");
    let tar =
        std::process::Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&rootfs).arg(".").status();
    assert!(tar.unwrap().success());
    std::fs::write(t.machine.work().join("junk"), vec![b'x'; 4096]).unwrap();
    t.run("base import rootfs one");
    t.run("base import rootfs.tar two --json");
    t.run_with("base import - three", |c| {
        c.stdin(std::fs::File::open(&archive).unwrap());
    });
    t.run("base import rootfs one");
    std::fs::remove_file(rootfs.join("bin/sh")).unwrap();
    t.run("base import rootfs shell-less");
    t.run("base import junk bad");
    t.run("base import nowhere bad");
    t.run("base import - bad");
    t.run("base import rootfs Bad");
    t.run("base list");
    t.matches("base_import");
}
