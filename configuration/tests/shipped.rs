//! The shipped `configuration.toml` is the table of keys, written out.
//!
//! After a change of the table, `UPDATE_SHIPPED=1 cargo test -p configuration --test shipped` writes it anew.

use std::{env, fs};

use configuration::keys::{Key, Kind, SECTIONS};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/configuration.toml");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

const HEAD: &str = "\
# Configuration of containerd-shim-kata-v2, in the format of Kata Containers' QEMU flavour.
#
# Each honoured key is here, most with the value that holds when it is absent. Files in config.d/
# beside this file are laid over it in the order of their names. docs/configuration.md says how files are found, and
# which keys of Kata's are recognised but not honoured.
";

/// Values that fit the guest this project builds, where the default is Kata's.
const OURS: [(&str, &str); 3] = [
    ("initrd", "\"/usr/share/kata-containers/kata-containers-initrd.img\""),
    // Linux's own choice since 5.15; QEMU warns of less.
    ("msize_9p", "131072"),
    // Our agent applies the profiles.
    ("disable_guest_seccomp", "false"),
];

fn written_out() -> String {
    let mut text = HEAD.to_owned();
    for section in SECTIONS {
        let mut honoured = section.keys.iter().filter(|key| key.honoured).peekable();
        if honoured.peek().is_some() {
            text.push_str(&format!("\n[{}]\n", section.table));
        }
        honoured.for_each(|key| text.push_str(&entry(key)));
    }
    text
}

fn entry(key: &Key) -> String {
    let words = match key.kind {
        Kind::Choice(words) => format!(" ({})", words.join(", ")),
        _ => String::new(),
    };
    let ours = OURS.iter().find(|(name, _)| *name == key.name).map(|(_, value)| (*value).to_owned());
    let line = match ours.or_else(|| key.default.value().map(|value| value.to_string())) {
        Some(value) => format!("{} = {value}", key.name),
        None => format!("# {} =", key.name),
    };
    format!("\n# {}{words}\n{line}\n", key.about)
}

#[test]
fn the_shipped_file_is_the_table_of_keys_written_out() {
    if env::var_os("UPDATE_SHIPPED").is_some() {
        fs::write(SHIPPED, written_out()).unwrap();
    }
    assert_eq!(
        fs::read_to_string(SHIPPED).unwrap(),
        written_out(),
        "run with UPDATE_SHIPPED=1 to write it anew"
    );
}

#[test]
fn the_page_about_the_configuration_lists_exactly_the_keys_that_are_not_honoured() {
    let page = fs::read_to_string(PAGE).unwrap();
    for section in SECTIONS {
        let title = format!("`[{}]`: ", section.table);
        let listed =
            page.lines().find_map(|line| line.strip_prefix(&format!("- {title}"))).unwrap_or_default();
        let later = section.keys.iter().filter(|key| !key.honoured);
        let expected: Vec<_> = later.map(|key| format!("`{}`", key.name)).collect();
        assert_eq!(listed, expected.join(", "), "{title}");
    }
}

#[test]
fn the_shipped_file_asks_for_nothing_that_is_not_honoured() {
    let file: toml::Table = fs::read_to_string(SHIPPED).unwrap().parse().unwrap();
    for section in SECTIONS {
        let table = section.table.split('.').try_fold(&file, |table, name| table.get(name)?.as_table());
        for name in table.into_iter().flat_map(toml::Table::keys) {
            assert!(section.key(name).is_some_and(|key| key.honoured), "{}.{name}", section.table);
        }
    }
}
