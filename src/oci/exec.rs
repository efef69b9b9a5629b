//! `exec` and `run`.

use super::args::{ExecArgs, Ids, RunArgs};
use crate::error::{Error, Result};
use crate::foreground::Supervisor;
use crate::ops::oci::{Below, Exec, Process, Runtime, read_process};

pub(super) fn exec(runtime: &Runtime, args: ExecArgs) -> Result<u8> {
    let mut process = match &args.process {
        Some(path) => read_process(path)?,
        None => of_words(runtime, &args)?,
    };
    if args.tty {
        process.set_terminal(Some(true));
    }
    let terminal = process.terminal().unwrap_or(false);
    if args.console_socket.is_some() && !terminal {
        return Err(Error::usage("a console socket is for a process with a terminal"));
    }
    if terminal && args.detach && args.console_socket.is_none() {
        return Err(Error::usage("a detached process with a terminal needs a console socket"));
    }
    let exec = Exec {
        process,
        pid_file: args.pid_file,
        pidfd_socket: args.pidfd_socket,
        console_socket: args.console_socket,
        preserve_fds: args.preserve_fds,
        ignore_paused: args.ignore_paused,
        cgroup: Below::parse(&args.cgroup)?,
    };
    if args.detach {
        return runtime.exec(&args.id, &exec).map(|_| 0);
    }
    // Before the command is there, so that no signal falls between.
    let supervisor = Supervisor::prepare()?;
    let mut running = match (runtime.exec(&args.id, &exec), supervisor.interrupted()) {
        (Err(_), Some(status)) => return Ok(status),
        (running, _) => running?,
    };
    if exec.console_socket.is_some() {
        // Whoever got it relays it.
        running.master = None;
    }
    supervisor.attach(&running, None)
}

/// The process that the container was made with, changed as the options say.
fn of_words(runtime: &Runtime, args: &ExecArgs) -> Result<Process> {
    let mut process = runtime.process(&args.id)?;
    if args.command.is_empty() {
        return Err(Error::usage("say what to run: `spark-oci exec ID COMMAND…`, or `--process FILE`"));
    }
    process.set_args(Some(args.command.clone())).set_terminal(Some(false));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    for entry in &args.env {
        let key = entry.split('=').next().unwrap_or(entry);
        env.retain(|e| e.split_once('=').is_none_or(|(known, _)| known != key));
        env.push(entry.clone());
    }
    process.set_env(Some(env));
    if let Some(Ids { uid, gid }) = args.user {
        let user = process.user_mut();
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    if !args.additional_gids.is_empty() {
        let user = process.user_mut();
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        user.set_additional_gids(Some(gids));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if args.apparmor.is_some() {
        process.set_apparmor_profile(args.apparmor.clone());
    }
    if args.process_label.is_some() {
        process.set_selinux_label(args.process_label.clone());
    }
    crate::ops::oci::add_capabilities(&mut process, &args.cap);
    Ok(process)
}

pub(super) fn run(runtime: &Runtime, args: RunArgs, systemd: bool) -> Result<u8> {
    let create = args.of.creation(systemd);
    if args.detach {
        let pid = runtime.create(&args.id, &create)?;
        return runtime.start(&args.id).map(|()| 0).inspect_err(|e| {
            tracing::debug!(pid, "removing what could not be started: {e}");
            let _ = runtime.delete(&args.id, true);
        });
    }
    if !args.no_subreaper {
        runtime.adopt()?;
    }
    let supervisor = Supervisor::prepare()?;
    let running = match (runtime.run(&args.id, &create), supervisor.interrupted()) {
        (Err(_), Some(status)) => return Ok(status),
        (running, _) => running?,
    };
    let ended = supervisor.attach(&running, None);
    if !args.keep {
        runtime.delete(&args.id, true)?;
    }
    ended
}
