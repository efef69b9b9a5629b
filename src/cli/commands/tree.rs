//! `spark tree`

use std::fmt::Write as _;

use clap::Args;

use crate::cli::report::Status;
use crate::cli::{Ctx, output};
use crate::error::Result;
use crate::ops::tree::{Node, NodeKind};

/// Show which spark, snapshot and base came from which
#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// Those of all projects
    #[arg(short, long)]
    all_projects: bool,
}

pub(crate) fn tree(ctx: &Ctx, args: TreeArgs) -> Result<Status> {
    let tops = ctx.open()?.map(|sparks| sparks.tree(args.all_projects)).transpose()?.unwrap_or_default();
    if ctx.json {
        output::print_json(&tops)?;
        return Ok(0);
    }
    let mut text = String::new();
    for top in &tops {
        let _ = writeln!(text, "{}", line(top));
        branches(&mut text, &top.children, "");
    }
    output::print(text)?;
    Ok(0)
}

fn branches(text: &mut String, nodes: &[Node], before: &str) {
    for (place, node) in nodes.iter().enumerate() {
        let last = place + 1 == nodes.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let _ = writeln!(text, "{before}{branch}{}", line(node));
        branches(text, &node.children, &format!("{before}{below}"));
    }
}

fn line(node: &Node) -> String {
    match (node.kind, node.state) {
        (_, Some(state)) => format!("{} ({state})", node.name),
        (NodeKind::Base, None) => format!("{} (base)", node.name),
        (NodeKind::Gone, None) => format!("{} (gone)", node.name),
        (NodeKind::Snapshot | NodeKind::Spark, None) => node.name.clone(),
    }
}
