//! A container of `spark-oci` whose making fails or dies anywhere: nothing is left of it, or what `delete --force` removes.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use crate::bundle::{Host, cgroups};
use crate::points::points;

/// What the fault points of `spark-oci` begin with.
pub(crate) const POINTS: &str = "oci.";

#[test]
fn a_container_whose_making_fails_anywhere_is_not_there_or_can_be_deleted() {
    let host = Host::new();
    host.configure(&["sleep", "1000"], |_| {});
    let points: Vec<String> = points().into_iter().filter(|p| p.starts_with(POINTS)).collect();
    assert!(!points.is_empty());
    for point in points {
        for mode in ["fail", "die", "die-all"] {
            let fault = format!("{point}={mode}");
            // Not a pipe: what is left of it would keep that open.
            let said = host.dir().join("said");
            let mut create = host.command(&["create", "failing"]);
            create.stdout(Stdio::null()).stderr(File::create(&said).unwrap());
            let status = create.env("SPARK_FAULT", &fault).process_group(0).status().unwrap();
            assert!(!status.success(), "create passed {fault}");
            if mode == "fail" {
                let said = std::fs::read_to_string(&said).unwrap();
                assert!(said.contains("fault point"), "{said}");
                assert_eq!(host.oci(&["list", "-q"]).ok(), "");
                assert!(cgroups("failing").is_empty());
            }
            // The name is taken, or it is not: never does a half-made one run.
            assert_ne!(host.oci(&["start", "failing"]).status(), 0, "{fault}");
            host.oci(&["delete", "--force", "failing"]).ok();
            assert_eq!(host.oci(&["list", "-q"]).ok(), "", "{fault}");
            assert!(cgroups("failing").is_empty(), "{fault}");

            host.start("failing");
            assert_eq!(host.state("failing")["status"], "running");
            host.oci(&["delete", "--force", "failing"]).ok();
        }
    }
    assert_eq!(host.oci(&["list", "-q"]).ok(), "");
}
