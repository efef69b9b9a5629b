//! Fault points on the ways of a spark: from its making to its end.

use crate::points::{PORTS, Scenario, exists, marked, still_marked};

pub(crate) const ALL: &[&Scenario] = &[
    &CREATE,
    &EPHEMERAL,
    &RESUME,
    &STOP,
    &STOP_ONE,
    &PORT,
    &DELETE,
    &DELETE_NOW,
    &GC,
    &RENAME,
    &SET,
    &UP_ON_CONNECT,
    &UNDELETE,
];

const CREATE: Scenario = Scenario {
    points: &["create.", "start.", "net-join."],
    args: &["create", "web", "-p", "127.0.0.1:PORT0:80"],
    before: |_| {},
    after: |m| {
        if exists(m, "web") {
            // It was not acknowledged, but it is all there.
            m.spark(&["exec", "web", "--", "sh", "-c", "test -x /bin/sh && echo x > /marker"]).ok();
            m.spark(&["--json", "create", "web"]).fails_with("exists");
            m.spark(&["delete", "-f", "--now", "web"]).ok();
        }
        m.spark(&["create", "web"]).ok();
        m.spark(&["exec", "web", "--", "true"]).ok();
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const EPHEMERAL: Scenario = Scenario {
    points: &["create.", "start."],
    args: &["exec", "-", "--", "true"],
    before: |_| {},
    after: |m| {
        assert_eq!(m.spark(&["--json", "list"]).json(), serde_json::json!([]));
        assert_eq!(m.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
        m.spark(&["exec", "-", "--", "true"]).ok();
    },
};

const RESUME: Scenario = Scenario {
    points: &["start."],
    args: &["resume", "web"],
    before: |m| {
        marked(m);
        m.spark(&["stop", "web"]).ok();
    },
    after: |m| {
        m.spark(&["resume", "web"]).ok();
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const STOP: Scenario = Scenario {
    points: &["stop.", "net-leave.left", "net-leave.unfiltered", "net-leave.router"],
    args: &["stop", "web"],
    before: marked,
    after: |m| {
        m.spark(&["stop", "web"]).ok();
        assert_eq!(m.spark(&["--json", "info", "web"]).json()["state"], "stopped");
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

/// While another one runs, so that the router stays.
const STOP_ONE: Scenario = Scenario {
    points: &["net-leave.unplugged", "net-leave.project"],
    args: &["stop", "web"],
    before: |m| {
        marked(m);
        m.spark(&["create", "-P", "third", "beside"]).ok();
    },
    after: |m| {
        m.spark(&["stop", "web"]).ok();
        still_marked(m, "web");
        let talks = ["exec", "third/beside", "--", "sh", "-c", "ip route | grep default"];
        assert!(m.spark(&talks).ok().contains("eth0"));
        m.spark(&["delete", "-f", "--now", "web", "third/beside"]).ok();
    },
};

const PORT: Scenario = Scenario {
    points: &["port."],
    args: &["port", "open", "web", "127.0.0.1:PORT1:80"],
    before: marked,
    after: |m| {
        let at = format!("127.0.0.1:{}", PORTS[1]);
        m.spark(&["port", "open", "web", &format!("{at}:80")]).ok();
        assert_eq!(m.spark(&["--json", "port", "web"]).json()[0]["host"], at);
        m.spark(&["stop", "web"]).ok();
        m.spark(&["resume", "web"]).ok();
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const DELETE: Scenario = Scenario {
    points: &["delete.", "stop."],
    args: &["delete", "-f", "web"],
    before: marked,
    after: |m| {
        if exists(m, "web") {
            m.spark(&["delete", "-f", "web"]).ok();
        } else {
            m.spark(&["--json", "delete", "-f", "web"]).fails_with("not_found");
        }
        m.spark(&["undelete", "web"]).ok();
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const DELETE_NOW: Scenario = Scenario {
    points: &["delete-now.", "destroy.", "stop.", "delete.ended", "delete.discarded"],
    args: &["delete", "-f", "--now", "web"],
    before: marked,
    after: |m| {
        if exists(m, "web") {
            still_marked(m, "web");
            m.spark(&["delete", "-f", "--now", "web"]).ok();
        }
        m.spark(&["--json", "delete", "-f", "--now", "web"]).fails_with("not_found");
        assert_eq!(m.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
    },
};

const GC: Scenario = Scenario {
    points: &["gc."],
    args: &["gc"],
    before: |m| {
        m.spark(&["create", "web", "--no-start"]).ok();
        m.spark(&["delete", "--keep", "1ms", "web"]).ok();
    },
    after: |m| assert_eq!(m.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([])),
};

const RENAME: Scenario = Scenario {
    points: &["rename."],
    args: &["rename", "web", "app"],
    before: marked,
    after: |m| {
        if exists(m, "web") {
            assert!(!exists(m, "app"));
            m.spark(&["rename", "web", "app"]).ok();
        }
        assert!(exists(m, "app") && !exists(m, "web"));
        assert_eq!(m.spark(&["--json", "info", "app"]).json()["state"], "running");
        still_marked(m, "app");
        m.spark(&["delete", "-f", "--now", "app"]).ok();
    },
};

const SET: Scenario = Scenario {
    points: &["set."],
    args: &["set", "web", "--pids", "60", "--memory", "80M", "--idle-stop", "never"],
    before: |m| {
        marked(m);
        m.spark(&["set", "web", "--pids", "50", "--memory", "64M"]).ok();
    },
    after: |m| {
        // Of the limits that are recorded and those that are in force, each is the old or the new, whole.
        let info = m.spark(&["--json", "info", "web"]).json();
        for limits in [&info["limits"], &info["options"]["limits"]] {
            let known = [(50, 64 << 20), (60, 80 << 20)];
            assert!(known.iter().any(|(p, m)| limits["pids"] == *p && limits["memory"] == *m), "{limits}");
        }
        let recorded = info["options"]["limits"].clone();
        m.spark(&["stop", "web"]).ok();
        m.spark(&["resume", "web"]).ok();
        assert_eq!(m.spark(&["--json", "info", "web"]).json()["limits"], recorded);
        m.spark(&["set", "web", "--pids", "60", "--memory", "80M"]).ok();
        still_marked(m, "web");
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

const UP_ON_CONNECT: Scenario = Scenario {
    points: &["up-on-connect."],
    args: &["up-on-connect", "web", "8080:80", "--install", "units", "--", "new"],
    before: |m| {
        m.spark(&["create", "web", "--no-start"]).ok();
        std::fs::create_dir(m.work().join("units")).unwrap();
    },
    after: |m| {
        let units = || {
            let read = |kind| std::fs::read_to_string(m.work().join("units").join(kind)).ok();
            ["spark-default.web.8080.socket", "spark-default.web.8080.service"].map(read)
        };
        // No socket without its service, which does nothing alone.
        assert!(units()[0].is_none(), "{:?}", units());
        let args = ["up-on-connect", "web", "8080:80", "--install", "units", "--"];
        m.spark(&[&args[..], &["new"]].concat()).ok();
        let [socket, service] = units();
        assert!(socket.is_some() && service.unwrap().contains("-- new\n"));
        m.spark(&["delete", "--now", "web"]).ok();
        std::fs::remove_dir_all(m.work().join("units")).unwrap();
    },
};

const UNDELETE: Scenario = Scenario {
    points: &["undelete."],
    args: &["undelete", "web"],
    before: |m| {
        marked(m);
        m.spark(&["delete", "-f", "web"]).ok();
    },
    after: |m| {
        if !exists(m, "web") {
            m.spark(&["undelete", "web"]).ok();
        }
        assert_eq!(m.spark(&["--json", "list", "--deleted"]).json(), serde_json::json!([]));
        still_marked(m, "web");
        // What brought it back a crash may have left half-done: it can go and come once more all the same.
        m.spark(&["delete", "-f", "web"]).ok();
        m.spark(&["undelete", "web"]).ok();
        m.spark(&["delete", "-f", "--now", "web"]).ok();
    },
};

#[test]
fn a_create_that_fails_anywhere_makes_all_of_it_or_nothing() {
    CREATE.run();
}

#[test]
fn an_ephemeral_spark_is_gone_wherever_its_making_failed() {
    EPHEMERAL.run();
}

#[test]
fn a_resume_that_fails_anywhere_leaves_a_spark_that_can_be_resumed() {
    RESUME.run();
}

#[test]
fn a_stop_that_fails_anywhere_can_be_repeated() {
    STOP.run();
}

#[test]
fn a_stop_that_fails_anywhere_leaves_the_others_connected() {
    STOP_ONE.run();
}

#[test]
fn a_port_that_fails_to_be_opened_can_be_opened() {
    PORT.run();
}

#[test]
fn a_delete_that_fails_anywhere_loses_nothing() {
    DELETE.run();
}

#[test]
fn a_delete_now_that_fails_anywhere_leaves_all_or_nothing() {
    DELETE_NOW.run();
}

#[test]
fn a_gc_that_fails_anywhere_can_be_repeated() {
    GC.run();
}

#[test]
fn a_rename_that_fails_anywhere_leaves_one_name_and_a_running_spark() {
    RENAME.run();
}

#[test]
fn a_set_that_fails_anywhere_leaves_limits_whole_and_starts_with_the_recorded_ones() {
    SET.run();
}

#[test]
fn units_that_cannot_be_installed_leave_no_socket() {
    UP_ON_CONNECT.run();
}

#[test]
fn an_undelete_that_fails_anywhere_leaves_it_in_the_trash_or_back() {
    UNDELETE.run();
}
