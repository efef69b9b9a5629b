//! `tree`: which spark, snapshot and base came from which.

use std::collections::BTreeMap;

use super::Sparks;
use super::spark::SparkId;
use crate::domain::name::Name;
use crate::domain::spark::{Id, Origin, State};
use crate::error::Result;
use crate::pool::names_in;

/// A base, a spark or a snapshot, and what was made from it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Node {
    pub kind: NodeKind,
    /// As it is named on the command line: `web`, `web@before`, and `shop/web` in another project.
    pub name: String,
    /// What a spark is doing.
    pub state: Option<State>,
    pub children: Vec<Node>,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    Base,
    Snapshot,
    Spark,
    /// Something was made from it, and it is no more.
    Gone,
}

/// What identifies a node: the id of a base or spark, and the snapshot's name.
type Key = (Id, Option<Name>);

/// All nodes, and which of them came from which.
#[derive(Default)]
struct Forest {
    nodes: BTreeMap<Key, Node>,
    below: BTreeMap<Key, Vec<Key>>,
    tops: Vec<Key>,
}

impl Sparks {
    /// What came from what, as far as the sparks of this project, or of all, tell. Bases come first.
    pub fn tree(&self, all_projects: bool) -> Result<Vec<Node>> {
        let mut forest = Forest::default();
        for base in self.base_list()? {
            if let Some(id) = base.id {
                forest.plant((id, None), NodeKind::Base, base.name.to_string());
            }
        }
        let mut projects = vec![self.project()?];
        if all_projects {
            projects = names_in(&self.pool.paths.projects())?;
        }
        let mut origins = Vec::new();
        for project in &projects {
            for spark in self.sparks_of(project)? {
                // What is broken tells nothing; `list` shows it.
                let Ok(record) = self.record(&spark) else { continue };
                let shown = self.shown(&spark, all_projects);
                let key = (record.id.clone(), None);
                forest.plant(key.clone(), NodeKind::Spark, shown.clone()).state = Some(self.state(&record));
                for snapshot in self.snapshot_list(&spark.reference())? {
                    let below = (record.id.clone(), Some(snapshot.name.clone()));
                    forest.plant(below.clone(), NodeKind::Snapshot, format!("{shown}@{}", snapshot.name));
                    forest.hang(below, key.clone());
                }
                origins.push((key, record.origin));
            }
        }
        for (key, origin) in origins {
            let from = match &origin {
                Origin::Base { id, .. } => (id.clone(), None),
                Origin::Spark { id, snapshot, .. } => (id.clone(), snapshot.clone()),
                // Something elsewhere.
                Origin::Received { id, snapshot, .. } => (id.clone(), Some(snapshot.clone())),
            };
            if !forest.nodes.contains_key(&from) {
                forest.plant(from.clone(), NodeKind::Gone, origin.to_string());
                forest.tops.push(from.clone());
            }
            forest.hang(key, from);
        }
        Ok(forest.grow())
    }

    fn shown(&self, spark: &SparkId, all_projects: bool) -> String {
        if all_projects { format!("{}/{}", spark.project, spark.name) } else { spark.name.to_string() }
    }
}

impl Forest {
    fn plant(&mut self, key: Key, kind: NodeKind, name: String) -> &mut Node {
        if kind == NodeKind::Base {
            self.tops.push(key.clone());
        }
        self.nodes.entry(key).or_insert(Node { kind, name, state: None, children: Vec::new() })
    }

    fn hang(&mut self, key: Key, below: Key) {
        self.below.entry(below).or_default().push(key);
    }

    fn grow(mut self) -> Vec<Node> {
        let tops = std::mem::take(&mut self.tops);
        tops.iter().filter_map(|key| self.take(key)).collect()
    }

    /// A node with all below it. Each is taken once, so that records which name each other make no circle.
    fn take(&mut self, key: &Key) -> Option<Node> {
        let mut node = self.nodes.remove(key)?;
        let below = self.below.remove(key).unwrap_or_default();
        node.children = below.iter().filter_map(|key| self.take(key)).collect();
        node.children.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        Some(node)
    }
}
