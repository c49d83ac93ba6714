//! One TOML tree out of the main file, its drop-ins and annotations; every node remembers who set it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::find::{MainFile, Text};
use crate::finding::{Finding, Origin, Place};
use crate::survey::Report;

/// The merged files and annotations.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The main file is the first.
    origins: Vec<Origin>,
    root: BTreeMap<String, Node>,
}

/// A table or a value.
#[derive(Debug)]
pub(crate) struct Node {
    /// Who made the table or set the value.
    origin: usize,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    Table(BTreeMap<String, Node>),
    Value(toml::Value),
}

impl Tree {
    /// The main file and its drop-ins; what could not be read or is not TOML goes to the report.
    pub(crate) fn read(main: &MainFile, report: &mut Report) -> Self {
        let mut tree = Self::new(&main.path);
        tree.add(&main.path, main.text.clone(), report);
        match main.drop_ins() {
            Ok(drop_ins) => drop_ins.into_iter().for_each(|(path, text)| tree.add(&path, text, report)),
            Err(finding) => report.problems.push(finding),
        }
        tree
    }

    fn add(&mut self, path: &Path, text: Text, report: &mut Report) {
        let origin = Origin::File(path.to_owned());
        match text.map_err(|what| (Place::Whole, what)).and_then(|text| parse(&text)) {
            Ok(table) => self.merge(origin, table),
            Err((place, what)) => report.problems.push(Finding { origin, place, what }),
        }
    }

    /// An empty tree whose absent keys are blamed on `main`.
    pub(crate) fn new(main: &Path) -> Self {
        Self { origins: vec![Origin::File(main.to_owned())], root: BTreeMap::new() }
    }

    /// Lays the keys of another origin over those so far: tables key by key, everything else as a whole.
    pub(crate) fn merge(&mut self, origin: Origin, table: toml::Table) {
        let index = self.origins.iter().position(|known| *known == origin).unwrap_or(self.origins.len());
        if index == self.origins.len() {
            self.origins.push(origin);
        }
        lay_over(&mut self.root, table, index);
    }

    /// Lays one key such as `hypervisor.qemu.kernel` over those so far.
    pub(crate) fn set(&mut self, origin: Origin, key: &str, value: toml::Value) {
        let nested = |value, name: &str| toml::Table::from_iter([(name.to_owned(), value)]).into();
        if let toml::Value::Table(table) = key.rsplit('.').fold(value, nested) {
            self.merge(origin, table);
        }
    }

    pub(crate) fn root(&self) -> &BTreeMap<String, Node> {
        &self.root
    }

    /// The entries of a table such as `hypervisor.qemu`.
    pub(crate) fn table(&self, table: &str) -> Option<&BTreeMap<String, Node>> {
        table.split('.').try_fold(&self.root, |entries, name| entries.get(name)?.content.table())
    }

    pub(crate) fn origin_of(&self, node: &Node) -> &Origin {
        &self.origins[node.origin]
    }

    /// Who set a key; the main file if nobody did.
    pub(crate) fn origin(&self, key: &str) -> &Origin {
        let mut table = &self.root;
        let mut origin = 0;
        for name in key.split('.') {
            let Some(node) = table.get(name) else { return &self.origins[0] };
            origin = node.origin;
            if let Content::Table(inner) = &node.content {
                table = inner;
            }
        }
        &self.origins[origin]
    }
}

impl Content {
    pub(crate) fn table(&self) -> Option<&BTreeMap<String, Node>> {
        match self {
            Self::Table(table) => Some(table),
            Self::Value(_) => None,
        }
    }
}

fn lay_over(below: &mut BTreeMap<String, Node>, above: toml::Table, origin: usize) {
    for (name, value) in above {
        let toml::Value::Table(above) = value else {
            below.insert(name, Node { origin, content: Content::Value(value) });
            continue;
        };
        match below.get_mut(&name) {
            Some(Node { content: Content::Table(below), .. }) => lay_over(below, above, origin),
            _ => {
                let mut table = BTreeMap::new();
                lay_over(&mut table, above, origin);
                below.insert(name, Node { origin, content: Content::Table(table) });
            }
        }
    }
}

pub(crate) fn parse(text: &str) -> Result<toml::Table, (Place, String)> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = &text[..error.span().map_or(0, |span| floor(text, span.start))];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (Place::Line { line, column }, format!("not TOML: {}", error.message().replace('\n', ", ")))
    })
}

/// The nearest character boundary at or before `index`.
fn floor(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
