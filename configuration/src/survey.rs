//! Goes through the tree once: which keys are known, which hold the right kind of value, which are honoured.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::keys::{self, AGENT, FACTORY, HYPERVISOR, Key, Kind, QEMU_FACTORY, RUNTIME, SECTIONS, Section};
use crate::tree::{Content, Node, Tree};

/// What there is to say about a configuration.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) problems: Vec<Finding>,
    pub(crate) warnings: Vec<Finding>,
}

impl Report {
    /// Whether there is a problem with this key already, so that its value means nothing.
    pub(crate) fn doubts(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| problem.concerns(key))
    }
}

/// The honoured keys of the tables, each with its value or its default; keys in doubt have their default.
#[derive(Debug)]
pub(crate) struct Values {
    /// `None` when there is no table for QEMU, which is a problem.
    pub(crate) hypervisor: Option<toml::Table>,
    pub(crate) agent: toml::Table,
    pub(crate) runtime: toml::Table,
    pub(crate) factory: toml::Table,
    pub(crate) qemu_factory: toml::Table,
}

/// What is said about a key that changes nothing.
pub(crate) const NOT_HONOURED: &str = "recognised, not honoured by this version";

type Nodes = BTreeMap<String, Node>;

/// Judges names and types of everything in the tree.
pub(crate) fn names_and_types(tree: &Tree, report: &mut Report) {
    let mut survey = Survey { tree, report };
    for (name, node) in tree.root() {
        match name.as_str() {
            "hypervisor" => survey.family(name, node, Survey::other_hypervisor),
            "agent" => survey.family(name, node, Survey::other_agent),
            _ => survey.top_level(name, node),
        }
    }
}

/// Whether there is a table for QEMU; when not, there is a problem.
pub(crate) fn has_qemu(tree: &Tree, report: &mut Report) -> bool {
    tree.table(HYPERVISOR).is_some() || {
        Survey { tree, report }.misses_qemu();
        false
    }
}

pub(crate) fn values(tree: &Tree, has_qemu: bool) -> Values {
    Values {
        hypervisor: has_qemu.then(|| honoured(HYPERVISOR, tree)),
        agent: honoured(AGENT, tree),
        runtime: honoured(RUNTIME, tree),
        factory: honoured(FACTORY, tree),
        qemu_factory: honoured(QEMU_FACTORY, tree),
    }
}

struct Survey<'a> {
    tree: &'a Tree,
    report: &'a mut Report,
}

impl Survey<'_> {
    /// `[hypervisor.*]` or `[agent.*]`: tables by name, one of which is ours.
    fn family(&mut self, family: &str, node: &Node, other: fn(&mut Self, &str, &str, &Node)) {
        let Content::Table(members) = &node.content else {
            return self.problem(family, node, "expected a table".to_owned());
        };
        for (name, member) in members {
            let path = format!("{family}.{}", bare(name));
            match section(&path) {
                Some(section) => self.section(section, member),
                None => other(self, &path, name, member),
            }
        }
    }

    fn top_level(&mut self, name: &str, node: &Node) {
        if let Some(section) = section(name) {
            return self.section(section, node);
        }
        let tables = ["hypervisor", "agent", "runtime", "factory"];
        let path = bare(name);
        // Files of Kata 3 have a table `image`, whose name a key of another table has too.
        let is_key = matches!(node.content, Content::Value(_));
        if let Some(section) = SECTIONS.iter().find(|section| is_key && section.key(name).is_some()) {
            self.problem(&path, node, format!("outside of any table; it belongs in [{}]", section.table));
        } else if let Some(near) = keys::nearest(name, tables.into_iter()) {
            self.problem(&path, node, format!("unknown table; did you mean {near}?"));
        } else {
            self.warning(&path, node, "unknown, ignored");
        }
    }

    fn section(&mut self, section: &'static Section, node: &Node) {
        let Content::Table(entries) = &node.content else {
            return self.problem(section.table, node, "expected a table".to_owned());
        };
        for (name, entry) in entries {
            let path = format!("{}.{}", section.table, bare(name));
            match (section.key(name), self::section(&path)) {
                (Some(key), _) => self.entry(key, &path, entry),
                (None, Some(inner)) => self.section(inner, entry),
                (None, None) => {
                    let hint =
                        keys::suggestion(section, name).map_or(String::new(), |hint| format!("; {hint}"));
                    self.problem(&path, entry, format!("unknown key{hint}"));
                }
            }
        }
    }

    fn entry(&mut self, key: &'static Key, path: &str, node: &Node) {
        match (&node.content, key.kind) {
            (Content::Value(value), kind) => match kind.check(value) {
                Err(what) => self.problem(path, node, what),
                Ok(()) if key.honoured || key.is_stock(value) => {}
                Ok(()) => self.not_honoured(path, node),
            },
            (Content::Table(entries), Kind::Tables) if entries.is_empty() => {}
            (Content::Table(_), Kind::Tables) if !key.honoured => self.not_honoured(path, node),
            (Content::Table(_), kind) => {
                self.problem(path, node, format!("expected {}, found a table", kind.expected()));
            }
        }
    }

    fn other_hypervisor(&mut self, path: &str, name: &str, node: &Node) {
        match keys::nearest(name, std::iter::once("qemu")) {
            Some(_) => self.problem(path, node, format!("unknown table; did you mean {HYPERVISOR}?")),
            None => {
                self.warning(path, node, "ignored: this runtime runs QEMU, configured in [hypervisor.qemu]")
            }
        }
    }

    fn other_agent(&mut self, path: &str, _: &str, node: &Node) {
        self.problem(path, node, "unknown agent; the agent is configured in [agent.kata]".to_owned());
    }

    fn misses_qemu(&mut self) {
        if self.report.doubts("hypervisor") || self.report.doubts(HYPERVISOR) {
            return;
        }
        let family = self.tree.table("hypervisor");
        let others: Vec<_> =
            family.into_iter().flatten().map(|(name, _)| format!("[hypervisor.{}]", bare(name))).collect();
        let found =
            if others.is_empty() { String::new() } else { format!(", but there is {}", others.join(", ")) };
        let what = format!("no such table{found}; this runtime runs QEMU and needs [hypervisor.qemu]");
        self.report.problems.push(Finding::key(self.tree.origin("hypervisor"), HYPERVISOR, what));
    }

    fn not_honoured(&mut self, path: &str, node: &Node) {
        self.warning(path, node, NOT_HONOURED);
    }

    fn problem(&mut self, path: &str, node: &Node, what: String) {
        self.report.problems.push(Finding::key(self.tree.origin_of(node), path, what));
    }

    fn warning(&mut self, path: &str, node: &Node, what: &str) {
        self.report.warnings.push(Finding::key(self.tree.origin_of(node), path, what.to_owned()));
    }
}

pub(crate) fn section(table: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.table == table)
}

/// A name as TOML writes it.
fn bare(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(plain) { name.to_owned() } else { format!("{name:?}") }
}

/// The keys of a table that a machine is made from, defaults filled in.
fn honoured(table: &str, tree: &Tree) -> toml::Table {
    let keys = section(table).into_iter().flat_map(|section| section.keys);
    let keys = keys.filter(|key| key.honoured && !key.is_about_annotations());
    keys.filter_map(|key| Some((key.name.to_owned(), value(tree, table, key)?))).collect()
}

/// What a key of a table holds, or its default.
pub(crate) fn value(tree: &Tree, table: &str, key: &Key) -> Option<toml::Value> {
    let fitting = |entries: &Nodes| match &entries.get(key.name)?.content {
        Content::Value(value) if key.kind.check(value).is_ok() => Some(value.clone()),
        _ => None,
    };
    tree.table(table).and_then(fitting).or_else(|| key.default.value())
}
