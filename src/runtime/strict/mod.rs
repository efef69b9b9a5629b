//! Containers of other people's bundles: what `config.json` says is what is done.
//!
//! libcontainer makes, starts and removes them. What it does otherwise than the specification says is put right on the
//! way in (`spec`), a process enters by the same steps as a spark's (`enter`), and who is alive is known from
//! `/proc`, never from a number in a file.

mod cgroup;
mod copyup;
mod create;
mod end;
mod enter;
pub mod features;
mod hooks;
mod listener;
mod making;
mod paths;
mod priority;
mod scope;
mod spec;
mod staging;
mod state;
mod watch;

pub use create::{Creation, Group};
pub use enter::{Below, Entry};
pub use hooks::{VERB as HOOK, become_hook};
pub use priority::process_of;
pub use scope::Unit;
pub use state::{Container, State, Status};
pub use watch::{Heard, Watch};
