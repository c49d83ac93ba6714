//! What a pod asks for: `io.katacontainers.config.*` of the sandbox, laid over the files before values are checked.
//!
//! ```text
//! annotation --names--> key --policy--> allowed? --value, kernel_params, assets--> a value in the tree
//! ```
//!
//! Whoever makes a pod is not trusted: the operator's `enable_annotations` has to have a name, whichever table it is
//! about, and paths have to be on a list.

mod assets;
pub(crate) mod kernel_params;
mod names;
mod policy;
mod value;

use std::collections::{BTreeMap, HashMap};

use crate::finding::{Finding, Origin, Place};
use crate::keys::{ENABLED, HYPERVISOR, Key};
use crate::survey::{self, NOT_HONOURED, Report};
use crate::tree::Tree;
#[cfg(fuzzing)]
pub(crate) use names::PREFIX;
pub(crate) use names::{GROUPS, Group, Known, Target};
use policy::Policy;

/// What Kata's Go runtime calls `asset_hash_type`: outside of its own prefix, so nobody has to allow it.
const HASH_TYPE: &str = "io.katacontainers.asset_hash_type";
/// How a pod once chose its configuration file.
const CONFIG_PATH: &str = "io.katacontainers.config_path";

/// The annotations of a sandbox that are about its configuration, by their full names.
#[derive(Debug, Default)]
pub(crate) struct Annotations(BTreeMap<String, String>);

impl Annotations {
    pub(crate) fn of(all: &HashMap<String, String>) -> Self {
        let ours = |name: &str| name.starts_with(names::PREFIX) || [HASH_TYPE, CONFIG_PATH].contains(&name);
        Self(
            all.iter()
                .filter(|(name, _)| ours(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        )
    }

    /// Lays what is allowed and makes sense over the files; the rest goes to the report.
    pub(crate) fn lay_over(&self, tree: &mut Tree, report: &mut Report) {
        let policy = Policy::of(tree, report);
        let mut layer = Layer { policy, tree, report };
        // A hash is that of the file which is used in the end.
        let (hashes, others): (Vec<_>, Vec<_>) = self.0.iter().partition(|(name, _)| name.ends_with("_hash"));
        for (name, value) in others.into_iter().chain(hashes) {
            if let Err(what) = layer.lay(name, value) {
                let origin = Origin::Annotation(name.clone());
                layer.report.problems.push(Finding { origin, place: Place::Whole, what });
            }
        }
    }
}

/// The annotations that set a key, by their full names.
#[must_use]
pub fn that_set(table: &str, key: &Key) -> Vec<String> {
    let sets = |known: &Known| match known.target {
        Target::Key(name, _) | Target::Instead(name, _) | Target::Path(name, _) => name == key.name,
        Target::KernelParams => key.name == KERNEL_PARAMS,
        Target::Hash(_) | Target::HashType | Target::Nothing | Target::Refused(_) => false,
    };
    let groups = GROUPS.iter().filter(|group| group.table == table);
    groups
        .flat_map(|group| group.known.iter().filter(|known| sets(known)).map(|known| group.full_name(known)))
        .collect()
}

const KERNEL_PARAMS: &str = "kernel_params";
/// What an error may have to repeat. Linux takes half as much for a whole command line or path.
const LONGEST: usize = 8192;

/// The tree while annotations are laid over it.
struct Layer<'a> {
    policy: Policy,
    tree: &'a mut Tree,
    report: &'a mut Report,
}

impl Layer<'_> {
    fn lay(&mut self, name: &str, text: &str) -> Result<(), String> {
        match name {
            HASH_TYPE => return assets::hash_type(text),
            CONFIG_PATH => {
                self.warning(name, "ignored: a pod does not choose its configuration file");
                return Ok(());
            }
            _ => {}
        }
        let (group, known) = names::find(name)?;
        if let Target::Refused(why) = known.target {
            return Err(why.to_owned());
        }
        let listed = group.listed_name(known);
        if !self.policy.enables(&listed) {
            return Err(format!("not enabled; to allow it, add {listed:?} to {ENABLED} of [{HYPERVISOR}]"));
        }
        if text.len() > LONGEST {
            return Err(format!("{} bytes long; no value has more than {LONGEST}", text.len()));
        }
        self.carry_out(name, group, known.target, text)
    }

    fn carry_out(&mut self, name: &str, group: &Group, target: Target, text: &str) -> Result<(), String> {
        match target {
            Target::Key(key, only) => {
                let key = known_key(group.table, key)?;
                let value = value::parse(key.name, key.kind, text)?;
                if let Some(only) = only {
                    only.check(&value)?;
                }
                self.set(name, group.table, key, value);
            }
            Target::Instead(key, other) => {
                let (key, other) = (known_key(group.table, key)?, known_key(group.table, other)?);
                self.set(name, group.table, key, value::parse(key.name, key.kind, text)?);
                if !self.is_annotated(group.table, other) {
                    self.set(name, group.table, other, "".into());
                }
            }
            Target::Path(key, list) => {
                let real = self.policy.path(list, text)?;
                let real = real.to_str().ok_or("leads to a file whose name is not UTF-8; name another")?;
                self.set(name, group.table, known_key(group.table, key)?, real.into());
            }
            Target::KernelParams => {
                kernel_params::check(text)?;
                let key = known_key(group.table, KERNEL_PARAMS)?;
                let all = format!("{} {text}", self.text(group.table, key));
                self.set(name, group.table, key, all.into());
            }
            Target::Hash(key) => {
                let path = self.text(group.table, known_key(group.table, key)?);
                assets::hash(key, &path, text)?;
            }
            Target::HashType => assets::hash_type(text)?,
            Target::Nothing | Target::Refused(_) => self.warning(name, NOT_HONOURED),
        }
        Ok(())
    }

    fn set(&mut self, name: &str, table: &str, key: &Key, value: toml::Value) {
        if !key.honoured && !key.is_stock(&value) {
            self.warning(name, NOT_HONOURED);
        }
        self.tree.set(Origin::Annotation(name.to_owned()), &format!("{table}.{}", key.name), value);
    }

    fn is_annotated(&self, table: &str, key: &Key) -> bool {
        matches!(self.tree.origin(&format!("{table}.{}", key.name)), Origin::Annotation(_))
    }

    /// What a key of text holds so far.
    fn text(&self, table: &str, key: &Key) -> String {
        let value = survey::value(self.tree, table, key);
        value.as_ref().and_then(toml::Value::as_str).unwrap_or_default().to_owned()
    }

    fn warning(&mut self, name: &str, what: &str) {
        let origin = Origin::Annotation(name.to_owned());
        self.report.warnings.push(Finding { origin, place: Place::Whole, what: what.to_owned() });
    }
}

/// The key an annotation sets, which a test finds for each.
fn known_key(table: &str, name: &str) -> Result<&'static Key, String> {
    let key = survey::section(table).and_then(|section| section.key(name));
    key.ok_or_else(|| format!("there is no key {table}.{name}"))
}
