//! Bases that go out as images, through other programs, and come back: file by file, with attributes.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::built::{Layer, Tar, busybox, layout, run, sh};
use super::registries::Registry;
use crate::common::{Machine, Output, tree};
use sparks::sys::tree as sys_tree;

/// A base that was made from an image, changed in every way in which layers differ, and saved.
fn changed(machine: &Machine, time: &str) {
    let first = busybox()
        .dir("d")
        .dir("m")
        .dir("t")
        .file("d/x", b"x")
        .file("d/y", b"y")
        .file("m/a", b"a")
        .file("m/b", b"b")
        .file("same", b"same");
    let second = Tar::default()
        .hard("one", "same")
        .file("t/f", b"f")
        .file("gone", b"g")
        .file("odd", b"o")
        .symlink("l", "odd");
    layout(
        &machine.work().join("l"),
        "v",
        &[first.layer().gzip(), second.layer().gzip()],
        json!({ "Env": ["PATH=/bin"] }),
    );
    machine.spark(&["base", "pull", "oci:l:v", "app"]).ok();
    machine.spark(&["create", "web", "--base", "app", "--no-start"]).ok();
    let root = machine.pool().join("projects/default/sparks/web/root");
    sh(
        &root,
        &format!(
            "rm gone l; echo new > new; echo changed > odd; chmod 4755 bin/busybox; setfattr -n user.note -v x odd; \
               setcap cap_net_raw+ep bin/busybox; mv m moved; mkdir m; echo c > m/c; ln same two; rm -r t; echo t > t; \
               rm d/x; echo x2 > d/z; ln -s /new link; mkfifo pipe; touch -d {time} new; chown 7:8 new; mkdir -p deep/er; \
               truncate -s 3000000 hole; printf '\\n' > \"$(printf 'a\\nb')\"; echo x > 'ä'; echo y > .wh.not"
        ),
    );
    machine.spark(&["base", "save", "web", "saved"]).ok();
}

fn root_of(machine: &Machine, base: &str) -> std::path::PathBuf {
    machine.pool().join("bases").join(base).join("root")
}

/// Two trees are the same, but for what a layer cannot say: a file that is called like a whiteout. The times of
/// directories that are the same otherwise do not count.
fn same(a: &Path, b: &Path) {
    let lines = |dir: &Path| -> Vec<String> {
        let keep = |line: &&str| !line.starts_with("\".wh.not\"");
        let all = tree(dir);
        all.lines().filter(keep).map(str::to_owned).collect()
    };
    let (a, b) = (lines(a), lines(b));
    let only = |x: &[String], y: &[String]| x.iter().filter(|l| !y.contains(l)).cloned().collect::<Vec<_>>();
    assert_eq!(only(&a, &b), only(&b, &a));
}

fn manifest(machine: &Machine, image: &str) -> Value {
    let text = sh(&machine.work(), &format!("skopeo inspect --tls-verify=false --raw {image}"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_saved_base_goes_out_as_its_images_layers_and_one_more_and_comes_back_the_same() {
    let machine = Machine::new();
    changed(&machine, "@-1.25");
    let work = machine.work();
    let out = machine.spark(&["base", "export", "saved", "--oci-layout", "out:v2"]);
    out.ok();
    assert!(out.stderr().contains("1 files were left out whose names begin with `.wh.`"), "{}", out.stderr());
    let (before, after) = (manifest(&machine, "oci:l:v"), manifest(&machine, "oci:out:v2"));
    let layers = after["layers"].as_array().unwrap();
    assert_eq!(layers[..2], before["layers"].as_array().unwrap()[..]);
    assert_eq!(layers.len(), 3);
    // The image had no history, and has one entry for each layer now: buildah counts them.
    let config = sh(&work, "skopeo inspect --config --raw oci:out:v2 | jq -c '.history | length'");
    assert_eq!(config.trim(), "3");
    // Small, since it is the difference alone: the program's mode changed, and so all of it is there.
    sh(&work, "umoci unpack --image out:v2 umoci");
    same(&work.join("umoci/rootfs"), &root_of(&machine, "saved"));
    machine.spark(&["base", "pull", "oci:out:v2", "back"]).ok();
    same(&root_of(&machine, "back"), &root_of(&machine, "saved"));
    // Twice the same bytes, and into a layout that has another image already.
    machine.spark(&["base", "export", "app", "--oci-layout", "twice"]).ok();
    machine.spark(&["base", "export", "saved", "--oci-layout", "twice:v2"]).ok();
    assert_eq!(manifest(&machine, "oci:twice:v2"), after);
    assert_eq!(manifest(&machine, "oci:twice:latest"), before);
    // Through skopeo, with and without docker's words.
    sh(
        &work,
        "skopeo copy -q oci:out:v2 docker-archive:s.tar:h.x/s:1 && skopeo copy -q --format v2s2 oci:out:v2 dir:s",
    );
    machine.spark(&["base", "pull", "docker-archive:s.tar", "skopeo"]).ok();
    same(&root_of(&machine, "skopeo"), &root_of(&machine, "saved"));
    // A base that was not changed is its image.
    let registry = Registry::open(&machine);
    let name = format!("{}/team/app:v", registry.host);
    machine.spark(&["base", "push", "app", &name]).ok();
    assert_eq!(manifest(&machine, &format!("docker://{name}")), before);
    machine.spark(&["base", "push", "saved", &name]).ok();
    assert_eq!(manifest(&machine, &format!("docker://{name}")), after);
    machine.spark(&["base", "pull", &name, "pulled"]).ok();
    same(&root_of(&machine, "pulled"), &root_of(&machine, "saved"));
}

#[test]
fn a_layer_that_another_image_brought_in_another_compression_goes_out_as_the_blob_that_is_there() {
    let machine = Machine::new();
    let work = machine.work();
    let registry = Registry::open(&machine);
    let layers = || [busybox().layer(), Tar::default().file("own", b"1").layer()];
    let compressed = |with: fn(Layer) -> Layer| layers().map(with);
    layout(&work.join("l"), "plain", &layers(), json!({ "Env": ["A=plain"] }));
    layout(&work.join("l"), "gzip", &compressed(Layer::gzip), json!({ "Env": ["A=gzip"] }));
    layout(&work.join("l"), "zstd", &compressed(Layer::zstd), json!({ "Env": ["A=zstd"] }));
    sh(
        &work,
        "skopeo copy -q --format v2s2 oci:l:gzip dir:docker && skopeo copy -q oci:l:plain docker-archive:plain.tar",
    );
    let to = format!("{}/team/docker:gzip", registry.host);
    sh(&work, &format!("skopeo copy -q --dest-tls-verify=false dir:docker docker://{to}"));
    machine.spark(&["base", "pull", "docker-archive:plain.tar", "first"]).ok();
    for (name, image) in
        [("plain", "oci:l:plain"), ("gzip", "oci:l:gzip"), ("zstd", "oci:l:zstd"), ("docker", to.as_str())]
    {
        machine.spark(&["base", "pull", image, name]).ok();
        let out = machine.spark(&["base", "export", name, "--oci-layout", &format!("out-{name}")]);
        out.ok();
        assert_eq!(
            out.stderr().contains("2 layers are written as another image brought them"),
            name != "plain"
        );
        // Each reads every blob, and compares its digest.
        sh(
            &work,
            &format!(
                "skopeo copy -q oci:out-{name}:latest dir:copy-{name} && umoci unpack --image out-{name}:latest u-{name}"
            ),
        );
        assert_eq!(std::fs::read(work.join(format!("u-{name}/rootfs/own"))).unwrap(), b"1");
        let config =
            sh(&work, &format!("skopeo inspect --config oci:out-{name}:latest | jq -r '.config.Env[0]'"));
        assert_eq!(config.trim(), format!("A={}", if name == "docker" { "gzip" } else { name }));
        let pushed = format!("{}/team/{name}:out", registry.host);
        machine.spark(&["base", "push", name, &pushed]).ok();
        sh(&work, &format!("skopeo copy -q --src-tls-verify=false docker://{pushed} dir:pushed-{name}"));
    }
    assert_eq!(manifest(&machine, "oci:out-plain:latest"), manifest(&machine, "oci:l:plain"));
    // A blob of the right size that is damaged is written anew.
    let blob = layers()[1].digest.hex().to_owned();
    std::fs::write(work.join("out-zstd/blobs/sha256").join(&blob), vec![b'x'; layers()[1].size]).unwrap();
    machine.spark(&["base", "export", "zstd", "--oci-layout", "out-zstd"]).ok();
    sh(&work, "skopeo copy -q oci:out-zstd:latest dir:mended");
}

#[test]
fn an_image_in_dockers_words_keeps_them_in_a_registry_and_loses_them_in_a_layout() {
    let machine = Machine::new();
    changed(&machine, "@-1.25");
    let registry = Registry::open(&machine);
    let name = |what: &str| format!("{}/{what}", registry.host);
    let to = name("team/docker:v");
    sh(
        &machine.work(),
        &format!("skopeo copy -q --format v2s2 --dest-tls-verify=false oci:l:v docker://{to}"),
    );
    machine.spark(&["base", "pull", &to]).ok();
    machine.spark(&["create", "two", "--base", "docker-v", "--no-start"]).ok();
    std::fs::write(machine.pool().join("projects/default/sparks/two/root/new"), "new").unwrap();
    machine.spark(&["base", "save", "two", "more"]).ok();
    machine.spark(&["base", "push", "more", &name("team/docker:w")]).ok();
    let pushed = manifest(&machine, &format!("docker://{}", name("team/docker:w")));
    let kinds = |m: &Value| {
        m["layers"].as_array().unwrap().iter().map(|l| l["mediaType"].clone()).collect::<Vec<_>>()
    };
    let docker = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    assert_eq!(kinds(&pushed), vec![docker; 3]);
    machine.spark(&["base", "export", "more", "--oci-layout", "o"]).ok();
    let kind = json!("application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!(kinds(&manifest(&machine, "oci:o:latest")), vec![kind; 3]);
    sh(&machine.work(), "umoci unpack --image o:latest u");
    same(&machine.work().join("u/rootfs"), &root_of(&machine, "more"));
}

#[test]
fn podman_loads_what_was_exported_and_what_it_saves_is_pulled() {
    let machine = Machine::new();
    // It knows no time before 1970.
    changed(&machine, "@1.25");
    let work = machine.work();
    machine.spark(&["base", "export", "saved", "--docker-archive", "d.tar:h.x/saved:1"]).ok();
    // Cgroups of two kinds are none of podman's, so it gets a view without one of them.
    let podman = |line: &str| {
        let all = format!(
            "umount /sys/fs/cgroup/unified 2>/dev/null || true\npodman() {{ command podman --storage-driver vfs \
            --root {w}/p/root --runroot {w}/p/run \"$@\"; }}\n{line}",
            w = work.display()
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "slave", "sh", "-ec", &all]).current_dir(&work);
        String::from_utf8(run(&mut command).stdout).unwrap()
    };
    podman(
        "podman load -q -i d.tar >&2; cp -a --preserve=all \"$(podman image mount h.x/saved:1)\" seen; podman image unmount -a >&2",
    );
    // The time of the root is podman's own.
    sh(&work, &format!("touch -r {} seen", root_of(&machine, "saved").display()));
    same(&work.join("seen"), &root_of(&machine, "saved"));
    podman("podman save -q -o s.tar h.x/saved:1; podman save -q --format oci-archive -o o.tar h.x/saved:1");
    for (base, source) in [("s", "docker-archive:s.tar"), ("o", "oci-archive:o.tar")] {
        machine.spark(&["base", "pull", source, base]).ok();
        same(&root_of(&machine, base), &root_of(&machine, "saved"));
    }
}

/// Makes directories in directories, and a file in the last one.
fn dig(top: &Path, name: &[u8], levels: usize) {
    let mut dir = sparks::sys::file::open_dir(top).unwrap();
    for _ in 0..levels {
        sys_tree::make_dir(&dir, name).unwrap();
        dir = sys_tree::open_child(&dir, name).unwrap();
    }
    sys_tree::create_file(&dir, b"bottom").unwrap();
}

#[test]
fn a_tree_deeper_than_any_path_goes_out_and_comes_back() {
    let machine = Machine::new();
    layout(&machine.work().join("l"), "v", &[busybox().layer().gzip()], json!({ "Env": ["A=kept"] }));
    for spark in ["many", "long"] {
        machine.spark(&["create", spark, "--image", "oci:l:v", "--no-start"]).ok();
    }
    let root = |spark: &str| machine.pool().join("projects/default/sparks").join(spark).join("root");
    dig(&root("many"), b"d", 6000);
    dig(&root("long"), &[b'n'; 200], 50);
    for spark in ["many", "long"] {
        machine.spark(&["base", "save", spark, spark]).ok();
        let (first, second) = (format!("{spark}.tar"), format!("{spark}-2.tar"));
        machine.spark(&["base", "export", spark, "--tar", &first]).ok();
        machine.spark(&["base", "import", &first, &format!("{spark}-back")]).ok();
        machine.spark(&["base", "export", &format!("{spark}-back"), "--tar", &second]).ok();
        sh(&machine.work(), &format!("cmp {first} {second}"));
    }
    // The kernel compares no such paths.
    let out = machine.spark(&["base", "export", "long", "--oci-layout", "out:v"]);
    out.ok();
    assert!(out.stderr().contains("one layer of all files"), "{}", out.stderr());
    assert_eq!(manifest(&machine, "oci:out:v")["layers"].as_array().unwrap().len(), 1);
    let base = machine.spark(&["--json", "base", "pull", "oci:out:v", "pulled"]).json();
    assert_eq!(base["image"]["config"]["env"]["A"], "kept");
    let bottom = [&[b'n'; 200][..]; 50].join(&b'/');
    let fd = sparks::sys::file::open_dir(&root_of(&machine, "pulled")).unwrap();
    assert_eq!(sys_tree::names(sys_tree::open_dir(fd, &bottom).unwrap()).unwrap(), [b"bottom"]);
}

#[test]
fn a_base_of_no_image_is_one_layer_and_as_an_archive_what_import_takes() {
    let machine = Machine::new().with_base();
    for file in ["a.tar", "b.tar"] {
        machine.spark(&["base", "export", "minimal", "--tar", file]).ok();
    }
    sh(&machine.work(), "cmp a.tar b.tar");
    machine.spark(&["base", "import", "a.tar", "again"]).ok();
    same(&root_of(&machine, "again"), &root_of(&machine, "minimal"));
    let piped = machine.spark(&["base", "export", "minimal", "--tar", "-"]);
    piped.ok();
    assert!(piped.output.stdout == std::fs::read(machine.work().join("a.tar")).unwrap());
    machine.spark(&["base", "export", "minimal", "--oci-layout", "o"]).ok();
    machine.spark(&["base", "pull", "oci:o", "image"]).ok();
    same(&root_of(&machine, "image"), &root_of(&machine, "minimal"));
    machine.spark(&["create", "web", "--image", "oci:o", "--run"]).ok();
    assert_eq!(manifest(&machine, "oci:o")["layers"].as_array().unwrap().len(), 1);
    machine.spark(&["--json", "base", "export", "nobody", "--tar", "x"]).fails_with("not_found");
    machine.spark(&["base", "export", "minimal"]).fails_with_text("--oci-layout");
}

#[test]
fn what_is_exported_is_written_as_the_user_who_called_and_only_where_that_one_may() {
    let machine = Machine::new().with_base();
    let work = machine.work();
    std::fs::create_dir(work.join("mine")).unwrap();
    std::os::unix::fs::chown(work.join("mine"), Some(65534), Some(65534)).unwrap();
    for dir in [work.parent().unwrap(), &work] {
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let export = |form: &str, to: &str| {
        let mut command = machine.command(&["--json", "base", "export", "minimal", form, to]);
        Output::of("base export", command.env("SUDO_UID", "65534").env("SUDO_GID", "65534"))
    };
    for (form, to) in [("--oci-layout", "o"), ("--docker-archive", "d.tar"), ("--tar", "t.tar")] {
        export(form, &format!("mine/{to}")).ok();
        export(form, to).fails_with("denied");
        assert!(!work.join(to).exists());
    }
    let owners = sh(&work, "find mine -printf '%U\\n' | sort -u");
    assert_eq!(owners, "65534\n");
    // A link of the user's leads nobody's file into root's hands.
    std::os::unix::fs::symlink("../kept", work.join("mine/l.tar")).unwrap();
    std::fs::write(work.join("kept"), "kept").unwrap();
    export("--tar", "mine/l.tar").ok();
    assert_eq!(std::fs::read_to_string(work.join("kept")).unwrap(), "kept");
}

/// Writes a base in each form that is one stream to places that are no files, and to files.
#[test]
fn an_export_is_written_into_what_is_no_file_and_a_file_of_it_has_the_callers_umask() {
    let machine = Machine::new().with_base();
    let work = machine.work();
    let run = |script: &str| {
        let mut command = Command::new("bash");
        let spark = machine.command(&[]);
        let variables = spark.get_envs().filter_map(|(key, value)| Some((key, value?)));
        command.envs(variables).env("spark", spark.get_program()).current_dir(&work);
        let script = format!("set -e -o pipefail; {script}");
        let output = Output::of(&script, command.args(["-c", &script]));
        output.ok()
    };
    for (form, file) in [("--tar", "a"), ("--docker-archive", "b")] {
        let export = format!("$spark base export minimal {form}");
        run(&format!("umask 027; {export} {file}"));
        assert_eq!(sh(&work, &format!("stat -c %a {file}")), "640\n");
        run(&format!("chmod 600 {file}; {export} {file}"));
        assert_eq!(sh(&work, &format!("stat -c %a {file}")), "600\n", "it keeps its mode");
        run(&format!("{export} - > piped; cmp piped {file}"));
        run(&format!("{export} >(cat > substituted) ; wait $!; cmp substituted {file}"));
        run(&format!("{export} /dev/stdout | cmp - {file}"));
        run(&format!(
            "mkfifo fifo; cat fifo > through & {export} fifo; wait $!; cmp through {file}; test -p fifo; rm fifo"
        ));
        run(&format!("mknod null c 1 3; {export} null; test -c null; rm null"));
        run(&format!(
            "mknod full c 1 7; ! {export} full 2> error; test -c full; grep -q 'write full' error; rm full"
        ));
        let closed = format!(
            "{export} - 2> error | head -c 1 > /dev/null || test ${{PIPESTATUS[0]}} = 141; ! test -s error"
        );
        run(&closed);
        assert!(!work.join("-").exists());
    }
    assert_eq!(sh(&work, "ls -A"), "a\nb\nerror\npiped\nsubstituted\nthrough\n", "and nothing is left over");
    machine.spark(&["--json", "base", "export", "minimal", "--oci-layout", "-"]).fails_with("usage");
    run("umask 077; $spark base export minimal --oci-layout o; test -z \"$(find o -perm /077)\"");
    run(
        "rm o/index.json; mkfifo o/index.json; ! $spark base export minimal --oci-layout o; test -p o/index.json",
    );
}
