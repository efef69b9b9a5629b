//! Containers of other people's bundles: what `config.json` says is what is done.
//!
//! libcontainer makes, starts and removes them. What it does otherwise than the specification says is put right on the
//! way in (`spec`), a process enters by the same steps as a spark's (`enter`), and who is alive is known from
//! `/proc`, never from a number in a file.

mod cgroup;
mod create;
mod end;
mod enter;
pub mod features;
mod making;
mod priority;
mod scope;
mod spec;
mod state;
mod watch;

pub use create::{Creation, Group};
pub use enter::Entry;
pub use priority::process_of;
pub use scope::Unit;
pub use state::{Container, State, Status};
pub use watch::{Heard, Watch};
