//! One TOML tree out of the main file and its drop-ins; every node remembers its file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::find::{MainFile, Text};
use crate::finding::{Finding, Place};
use crate::survey::Report;

/// The merged files.
#[derive(Debug)]
pub(crate) struct Tree {
    files: Vec<PathBuf>,
    root: BTreeMap<String, Node>,
}

/// A table or a value.
#[derive(Debug)]
pub(crate) struct Node {
    /// The file that made the table or set the value.
    file: usize,
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
        match text.map_err(|what| (Place::File, what)).and_then(|text| parse(&text)) {
            Ok(table) => self.merge(path, table),
            Err((place, what)) => report.problems.push(Finding { file: path.to_owned(), place, what }),
        }
    }

    /// An empty tree whose absent keys are blamed on `main`.
    pub(crate) fn new(main: &Path) -> Self {
        Self { files: vec![main.to_owned()], root: BTreeMap::new() }
    }

    /// Lays the keys of another file over those so far: tables key by key, everything else as a whole.
    pub(crate) fn merge(&mut self, path: &Path, table: toml::Table) {
        let file = self.files.iter().position(|known| known == path).unwrap_or(self.files.len());
        if file == self.files.len() {
            self.files.push(path.to_owned());
        }
        lay_over(&mut self.root, table, file);
    }

    pub(crate) fn root(&self) -> &BTreeMap<String, Node> {
        &self.root
    }

    /// The entries of a table such as `hypervisor.qemu`.
    pub(crate) fn table(&self, table: &str) -> Option<&BTreeMap<String, Node>> {
        table.split('.').try_fold(&self.root, |entries, name| entries.get(name)?.content.table())
    }

    pub(crate) fn file_of(&self, node: &Node) -> &Path {
        &self.files[node.file]
    }

    /// The file a key came from; the main file if no file has it.
    pub(crate) fn origin(&self, key: &str) -> &Path {
        let mut table = &self.root;
        let mut file = 0;
        for name in key.split('.') {
            let Some(node) = table.get(name) else { return &self.files[0] };
            file = node.file;
            if let Content::Table(inner) = &node.content {
                table = inner;
            }
        }
        &self.files[file]
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

fn lay_over(below: &mut BTreeMap<String, Node>, above: toml::Table, file: usize) {
    for (name, value) in above {
        let toml::Value::Table(above) = value else {
            below.insert(name, Node { file, content: Content::Value(value) });
            continue;
        };
        match below.get_mut(&name) {
            Some(Node { content: Content::Table(below), .. }) => lay_over(below, above, file),
            _ => {
                let mut table = BTreeMap::new();
                lay_over(&mut table, above, file);
                below.insert(name, Node { file, content: Content::Table(table) });
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
