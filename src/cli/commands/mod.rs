//! One file per verb: its arguments, and what it prints.

use super::Ctx;
use super::args::Verb;
use super::report::Status;
use crate::error::Result;

pub(crate) mod base;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod console;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod data;
pub(crate) mod delete;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod du;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod gc;
pub(crate) mod info;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod pause;
pub(crate) mod pick;
pub(crate) mod pool;
pub(crate) mod port;
pub(crate) mod project;
pub(crate) mod pull;
pub(crate) mod receive;
pub(crate) mod rename;
pub(crate) mod resume;
pub(crate) mod secrets;
pub(crate) mod send;
pub(crate) mod set;
pub(crate) mod snapshot;
pub(crate) mod stop;
pub(crate) mod top;
pub(crate) mod tree;
pub(crate) mod undelete;
pub(crate) mod up_on_connect;
pub(crate) mod version;

/// Whether a verb changes nothing: where it cannot be told which project is meant, it may show `default`.
pub(crate) fn only_reads(verb: &Verb) -> bool {
    match verb {
        Verb::List(_)
        | Verb::Info(_)
        | Verb::Diff(_)
        | Verb::Top(_)
        | Verb::Du(_)
        | Verb::Tree(_)
        | Verb::Logs(_)
        | Verb::Config(_)
        | Verb::Doctor(_) => true,
        Verb::Port(args) => args.only_reads(),
        Verb::Snapshot(args) => args.only_reads(),
        Verb::Data(args) => args.only_reads(),
        Verb::Secrets(args) => args.only_reads(),
        Verb::Project(args) => args.only_reads(),
        _ => false,
    }
}

/// Runs a verb.
pub(crate) fn dispatch(ctx: &Ctx, verb: Verb) -> Result<Status> {
    match verb {
        Verb::Create(args) => create::create(ctx, *args),
        Verb::List(args) => list::list(ctx, args),
        Verb::Info(args) => info::info(ctx, args),
        Verb::Exec(args) => exec::exec(ctx, *args),
        Verb::Console(args) => console::console(ctx, *args),
        Verb::Config(args) => config::config(ctx, args),
        Verb::Stop(args) => stop::stop(ctx, args),
        Verb::Resume(args) => resume::resume(ctx, args),
        Verb::Pause(args) => pause::pause(ctx, args),
        Verb::Delete(args) => delete::delete(ctx, args),
        Verb::Undelete(args) => undelete::undelete(ctx, args),
        Verb::Diff(args) => diff::diff(ctx, args),
        Verb::Rename(args) => rename::rename(ctx, args),
        Verb::Fork(args) => fork::fork(ctx, *args),
        Verb::Set(args) => set::set(ctx, args),
        Verb::Snapshot(args) => snapshot::snapshot(ctx, args),
        Verb::Undo(args) => snapshot::undo(ctx, args),
        Verb::Pick(args) => pick::pick(ctx, args),
        Verb::Top(args) => top::top(ctx, args),
        Verb::Du(args) => du::du(ctx, args),
        Verb::Tree(args) => tree::tree(ctx, args),
        Verb::Send(args) => send::send(ctx, args),
        Verb::Receive(args) => receive::receive(ctx, args),
        Verb::Logs(args) => logs::logs(ctx, args),
        Verb::Cp(args) => cp::cp(ctx, args),
        Verb::Gc(args) => gc::gc(ctx, args),
        Verb::Doctor(args) => doctor::doctor(ctx, args),
        Verb::Base(args) => base::base(ctx, args),
        Verb::Pull(args) => pull::pull(ctx, args),
        Verb::Data(args) => data::data(ctx, args),
        Verb::Secrets(args) => secrets::secrets(ctx, args),
        Verb::Port(args) => port::port(ctx, args),
        Verb::Project(args) => project::project(ctx, args),
        Verb::Pool(args) => pool::pool(ctx, args),
        Verb::Completion(args) => completion::completion(args),
        Verb::Man(args) => man::man(args),
        Verb::UpOnConnect(args) => up_on_connect::up_on_connect(ctx, args),
        Verb::Version(args) => version::version(ctx.json, args),
    }
}
