//! Makes a spark from a program, runs a command in it and deletes it.
//!
//! ```sh
//! sudo cargo run --example library
//! ```
//!
//! The program must have one thread when it calls `create`, `resume` or `exec`: libcontainer forks.

use std::path::PathBuf;

use sparks::domain::place::Place;
use sparks::ops::create::{Request, Source};
use sparks::ops::exec::Command;
use sparks::ops::{Context, Silent, Sparks, delete};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = Place {
        root: std::env::var_os("SPARK_ROOT").map_or_else(|| Place::default().root, PathBuf::from),
        run: std::env::var_os("SPARK_RUN").map_or_else(|| Place::default().run, PathBuf::from),
    };
    let context = Context {
        place,
        project: Some("example".parse()?),
        cwd: Some(std::env::current_dir()?),
        lost: Default::default(),
        base: None,
        templates: "/etc/spark/bundles".into(),
        secrets: Default::default(),
        program: None,
        warn: |_| {},
    };
    let sparks = Sparks::open_or_init(context, &Silent)?;

    let name = Some("library-example".parse()?);
    let spark = sparks.create(
        Request { name, source: Source::Base(None), changes: Default::default(), start: true },
        &Silent,
    )?;
    let command = Command { argv: vec!["echo".into(), "hello from inside".into()], ..Default::default() };
    let running = sparks.exec(&spark, &command)?;
    let ended = running.wait()?;
    sparks.delete(
        &"library-example".parse()?,
        delete::Options { force: true, now: true, ..Default::default() },
    )?;
    std::process::exit(ended.status());
}
