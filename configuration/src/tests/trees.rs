//! Any TOML tree at all.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;
use toml::{Table, Value};

use crate::annotations::Annotations;
use crate::host::Host;
use crate::keys::{Kind, SECTIONS};
use crate::survey::Report;
use crate::tree::{self, Tree};
use crate::{Configuration, Finding, LoadError, Origin, Place};

fn problems(files: Vec<Table>) -> Vec<Finding> {
    let mut tree = Tree::new(Path::new("/main"));
    for (number, table) in files.into_iter().enumerate() {
        tree.merge(drop_in(number), table);
    }
    match Configuration::from_tree(
        tree,
        &Annotations::default(),
        &Host::rich("/nonexistent".into()),
        Report::default(),
    ) {
        Err(LoadError::Invalid { problems }) => problems,
        Err(other) => panic!("{other}"),
        Ok(_) => Vec::new(),
    }
}

fn drop_in(number: usize) -> Origin {
    Origin::File(format!("/drop-in-{number}").into())
}

/// Names that mean something, and names that do not.
fn name() -> impl Strategy<Value = String> {
    let tables = ["hypervisor", "qemu", "factory", "agent", "kata", "runtime", "clh"].map(str::to_owned);
    let keys: Vec<_> =
        SECTIONS.iter().flat_map(|section| section.keys).map(|key| key.name.to_owned()).collect();
    prop_oneof![select(tables.to_vec()), select(keys), any::<String>()]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        select(vec!["/dev/null", "/proc/self/exe", "auto", "virtio-fs", ""]).prop_map(Value::from),
        Just("1979-05-27T07:32:00Z".parse::<toml::value::Datetime>().unwrap()).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name(), inner, 0..6)
                .prop_map(|table| Value::from(table.into_iter().collect::<Table>())),
        ]
    })
}

fn tree() -> impl Strategy<Value = Table> {
    prop::collection::btree_map(name(), value(), 0..6).prop_map(|table| table.into_iter().collect())
}

/// A value that the kind cannot hold.
fn misfit(kind: Kind) -> Value {
    match kind {
        Kind::Flag => Value::from("true"),
        Kind::Integer { min, .. } => Value::from(min - 1),
        Kind::Number => Value::from(f64::NAN),
        Kind::Text => Value::from(1),
        Kind::Choice(_) => Value::from("none of them"),
        Kind::Texts | Kind::Tables => Value::Array(vec![Value::from(true)]),
    }
}

/// A key somewhere in a file that is wrong: by its name or by its value.
fn offence() -> impl Strategy<Value = (&'static str, String, Value)> {
    let keys = SECTIONS.iter().flat_map(|section| section.keys.iter().map(|key| (section.table, key)));
    let misfits = select(keys.collect::<Vec<_>>())
        .prop_map(|(table, key)| (table, key.name.to_owned(), misfit(key.kind)));
    let tables = SECTIONS.iter().map(|section| section.table).collect::<Vec<_>>();
    let unknown = (select(tables), "unheard_[a-z]{1,9}", value());
    prop_oneof![misfits, unknown]
}

fn place(root: &mut Table, table: &str, name: String, value: Value) {
    let parent = table.split('.').fold(root, |parent, name| {
        let inner = parent.entry(name.to_owned()).or_insert_with(|| Value::Table(Table::new()));
        inner.as_table_mut().unwrap()
    });
    parent.insert(name, value);
}

proptest! {
    #[test]
    fn any_text_is_toml_or_refused_with_a_place_inside_it(text in "([a-z\\[\\]=\"'.# \n\r\tüß𝄞0-9]|\\PC){0,60}") {
        if let Err((place, what)) = tree::parse(&text) {
            let Place::Line { line, column } = place else { panic!("{place:?}") };
            let row = text.split('\n').nth(line - 1);
            prop_assert!(row.is_some_and(|row| column <= row.chars().count() + 1), "{line}:{column} {what}");
        }
    }

    #[test]
    fn any_trees_are_accepted_or_refused_with_a_key_or_a_table_named(files in prop::collection::vec(tree(), 1..4)) {
        for problem in problems(files) {
            prop_assert!(matches!(problem.place, Place::Key(ref key) if !key.is_empty()), "{}", problem);
        }
    }

    #[test]
    fn a_refused_tree_names_every_offending_key_and_the_file_it_came_from(
        offences in prop::collection::vec((0..3_usize, offence()), 1..12)
    ) {
        let mut files = vec![Table::new(), Table::new(), Table::new()];
        let mut expected = std::collections::BTreeMap::new();
        for (file, (table, name, value)) in offences {
            let key = format!("{table}.{name}");
            // Of several files the last one counts.
            let last = expected.get(&key).map_or(file, |last: &usize| file.max(*last));
            if last == file {
                expected.insert(key, file);
            }
            place(&mut files[file], table, name, value);
        }
        let found = problems(files);
        for (key, file) in expected {
            let by = found.iter().find(|problem| problem.concerns(&key));
            // A table that several files add to belongs to the first of them.
            let matches = by.is_some_and(|by| by.origin == drop_in(file) || by.what.starts_with("unknown key"));
            prop_assert!(matches, "{key} of {file} in {found:?}");
        }
    }
}
