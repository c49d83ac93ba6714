//! What the operator lets annotations do: which names, which paths.

use std::fs;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use regex::Regex;

use crate::finding::Finding;
use crate::keys::{ENABLED, HYPERVISOR};
use crate::survey::{self, Report};
use crate::tree::Tree;

/// The lists of `[hypervisor.qemu]` that are about annotations, understood.
pub(super) struct Policy {
    /// `None` when the list cannot be understood, which is a problem already: what it leaves out is no news.
    names: Option<Vec<Regex>>,
    paths: Vec<(&'static str, Vec<Pattern>)>,
}

impl Policy {
    /// Reads the lists; what cannot be understood goes to the report.
    pub(super) fn of(tree: &Tree, report: &mut Report) -> Self {
        let keys = survey::section(HYPERVISOR).into_iter().flat_map(|section| section.keys);
        let lists = keys.filter(|key| key.is_about_annotations() && key.name != ENABLED);
        let paths = lists.map(|list| (list.name, understood(tree, list.name, report, pattern)));
        let paths = paths.collect();
        let names = understood(tree, ENABLED, report, whole);
        Self { names: (!report.doubts(&path_of(ENABLED))).then_some(names), paths }
    }

    /// Whether annotations may have this name, as `enable_annotations` calls it.
    pub(super) fn enables(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.iter().any(|regex| regex.is_match(name)))
    }

    /// The file that `value` leads to, if the list has it.
    ///
    /// # Errors
    /// That it may not be set; not why, which would tell a pod what files the host has.
    pub(super) fn path(&self, list: &'static str, value: &str) -> Result<PathBuf, String> {
        if !Path::new(value).is_absolute() {
            return Err(format!("{value:?} is not an absolute path; start it with /"));
        }
        let mut patterns = self.paths.iter().filter(|(name, _)| *name == list).flat_map(|(_, all)| all);
        let real = fs::canonicalize(value).ok();
        let allowed = real.filter(|real| patterns.any(|it| it.matches_path_with(real, WITHIN_A_DIRECTORY)));
        allowed.ok_or_else(|| {
            format!(
                "{value}, its symbolic links followed, is no existing file that {list} of [{HYPERVISOR}] has; \
                 name one, or add it there"
            )
        })
    }
}

/// `*`, `?` and `[...]` stand for parts of one name, and for those of hidden files too.
const WITHIN_A_DIRECTORY: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

fn path_of(key: &str) -> String {
    format!("{HYPERVISOR}.{key}")
}

/// Each entry of a list by `read`, which says what is wrong with one. Kata's own lists have empty ones.
fn understood<T>(
    tree: &Tree,
    list: &'static str,
    report: &mut Report,
    read: fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let path = path_of(list);
    let key = survey::section(HYPERVISOR).and_then(|section| section.key(list));
    let value = key.and_then(|key| survey::value(tree, HYPERVISOR, key));
    let entries = value.as_ref().and_then(toml::Value::as_array).into_iter().flatten();
    let entries = entries.filter_map(toml::Value::as_str).filter(|entry| !entry.is_empty());
    let read = |entry: &str| {
        let problem = |what| Finding::key(tree.origin(&path), &path, format!("{entry:?} {what}"));
        read(entry).map_err(|what| report.problems.push(problem(what))).ok()
    };
    entries.filter_map(read).collect()
}

/// A regular expression for a whole name: `path` does not stand for `jailer_path`.
fn whole(expression: &str) -> Result<Regex, String> {
    // By itself first, so that none is right only for what is put around it.
    let compiled = Regex::new(expression).and_then(|_| Regex::new(&format!(r"\A(?:{expression})\z")));
    compiled.map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
        format!("is not a regular expression: {reason}")
    })
}

/// A pattern for absolute paths, whose directories are the real ones as far as it names them, as those of the paths will be.
fn pattern(text: &str) -> Result<Pattern, String> {
    if !text.starts_with('/') {
        return Err("is no pattern for absolute paths; start it with /".to_owned());
    }
    if text.contains("**") {
        return Err("has **, which would cross directories; write a * for each of them".to_owned());
    }
    let wildcard = text.find(['*', '?', '[']).unwrap_or(text.len());
    let named = if wildcard == text.len() { wildcard } else { text[..wildcard].rfind('/').unwrap_or(0) };
    let (directory, rest) = text.split_at(named);
    let real = fs::canonicalize(directory).ok().and_then(|real| Some(Pattern::escape(real.to_str()?)));
    let resolved = real.map_or(text.to_owned(), |real| format!("{}{rest}", real.trim_end_matches('/')));
    Pattern::new(&resolved).map_err(|error| format!("is not a pattern: {}", error.msg))
}
