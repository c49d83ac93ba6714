//! Ways in for the fuzz targets: everything but the reading of files.

use std::collections::HashMap;
use std::path::Path;

use crate::annotations::kernel_params::REFUSED;
use crate::annotations::{Annotations, PREFIX};
use crate::finding::{LoadError, Origin};
use crate::host::Host;
use crate::survey::Report;
use crate::tree::{self, Tree};
use crate::{Configuration, Finding};

/// Files that every machine has, and every annotation allowed that can be.
const PERMISSIVE: &str = "
[hypervisor.qemu]
path = '/proc/self/exe'
kernel = '/etc/passwd'
initrd = '/etc/passwd'
enable_annotations = ['.*']
valid_hypervisor_paths = ['/usr/bin/*']
valid_entropy_sources = ['/dev/*random']
";

/// Loads a configuration of one file with this text.
pub fn toml(text: &str) {
    let mut tree = Tree::new(Path::new("/main"));
    if let Ok(table) = tree::parse(text) {
        tree.merge(Origin::File("/main".into()), table);
        load(tree, &HashMap::new());
    }
}

/// Loads a configuration for a sandbox with these annotations: `name=value`, parted by NUL, without what all names
/// begin with.
///
/// # Panics
/// When a word reaches the guest's kernel that may not come from a pod.
pub fn annotations(asked: &str) {
    let mut tree = Tree::new(Path::new("/main"));
    if let Ok(table) = tree::parse(PERMISSIVE) {
        tree.merge(Origin::File("/main".into()), table);
    }
    let asked = asked.split('\0').filter_map(|one| one.split_once('='));
    let named = asked.map(|(name, value)| (format!("{PREFIX}{name}"), value.to_owned()));
    let words = load(tree, &named.collect()).map(|configuration| configuration.hypervisor.kernel_params);
    for word in words.into_iter().flatten() {
        let word = word.as_str();
        // To the kernel both signs are the same.
        let bad = REFUSED.iter().any(|bad| word.replace('-', "_").starts_with(bad));
        assert!(!bad && word.bytes().all(|byte| byte.is_ascii_graphic()), "{word:?}");
    }
}

fn load(tree: Tree, annotations: &HashMap<String, String>) -> Option<Configuration> {
    match Configuration::from_tree(
        tree,
        &Annotations::of(annotations),
        &Host::rich("/sys/devices/system/node".into()),
        Report::default(),
    ) {
        Ok((configuration, warnings)) => {
            warnings.iter().for_each(seen);
            Some(configuration)
        }
        Err(LoadError::Invalid { problems }) => {
            assert!(!problems.is_empty());
            problems.iter().for_each(seen);
            None
        }
        Err(_) => None,
    }
}

fn seen(finding: &Finding) {
    assert!(!finding.to_string().is_empty());
}
