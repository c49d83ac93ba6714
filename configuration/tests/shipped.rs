//! The shipped `configuration.toml` and the tables of the page about it are the table of keys, written out.
//!
//! After a change of the table, `UPDATE_SHIPPED=1 cargo test -p configuration --test shipped` writes it anew.

use std::{env, fs, io};

use configuration::annotations;
use configuration::keys::{self, Key, Kind, SECTIONS, Section};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/configuration.toml");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

const HEAD: &str = "\
# Configuration of containerd-shim-kata-v2, in the format of Kata Containers' QEMU flavour.
#
# Each honoured key is here, most with the value that holds when it is absent. Files in config.d/
# beside this file are laid over it in the order of their names. docs/configuration.md says how files are found, and
# has every key of Kata's, those that are not honoured too.
";

/// What is between the two is written by the test.
const BEGIN: &str =
    "<!-- begin: written by UPDATE_SHIPPED=1 cargo test -p configuration --test shipped -->\n";
const END: &str = "\n<!-- end -->\n";
const COLUMNS: &str = "\
| key | type | default | honoured | annotation | what it is for | difference from Kata |
|---|---|---|---|---|---|---|
";
const STALE: &str = "run with UPDATE_SHIPPED=1 to write it anew";
const ANNOTATIONS: &str = "io.katacontainers.config.";

/// Values that fit the guest this project builds, where the default is Kata's.
const OURS: [(&str, &str); 3] = [
    ("initrd", "\"/usr/share/kata-containers/kata-containers-initrd.img\""),
    // Linux's own choice since 5.15; QEMU warns of less.
    ("msize_9p", "131072"),
    // Our agent applies the profiles.
    ("disable_guest_seccomp", "false"),
];

/// The table with the keys of `[factory]` that Kata's Rust runtime has.
const SAID_TWICE: &str = "hypervisor.qemu.factory";

fn written_out() -> String {
    let mut text = HEAD.to_owned();
    for section in SECTIONS.iter().filter(|section| section.table != SAID_TWICE) {
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
        Kind::Choice(words) => format!(" ({})", keys::list(words)),
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
    let expected = written_out();
    assert_eq!(file(SHIPPED, &expected).unwrap(), expected, "{STALE}");
}

/// What a file holds, after it was written anew if that is asked for.
fn file(path: &str, anew: &str) -> io::Result<String> {
    if env::var_os("UPDATE_SHIPPED").is_some() {
        fs::write(path, anew)?;
    }
    fs::read_to_string(path)
}

#[test]
fn the_page_about_the_configuration_has_every_key_with_what_the_code_says_of_it() {
    let page = fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let tables: String = SECTIONS.iter().map(table).collect();
    let expected = format!("{before}{BEGIN}{tables}{END}{after}");
    assert_eq!(file(PAGE, &expected).unwrap(), expected, "{STALE}");
}

fn table(section: &Section) -> String {
    let rows: String = section.keys.iter().map(|key| row(section, key)).collect();
    format!("\n### `[{}]`\n\n{COLUMNS}{rows}", section.table)
}

fn row(section: &Section, key: &Key) -> String {
    let kind = key.kind.expected().replace(&format!(" to {}", u32::MAX), "");
    let default = key.default.value().map_or("none".to_owned(), |value| format!("`{value}`"));
    let honoured = if key.honoured { "yes" } else { "no" };
    let annotations = annotations::that_set(section.table, key);
    let annotations = annotations.iter().map(|name| format!("`{}`", name.replacen(ANNOTATIONS, "", 1)));
    let annotations = annotations.collect::<Vec<_>>().join(", ");
    let difference = section.difference(key).unwrap_or_default();
    let cells = [&format!("`{}`", key.name), &kind, &default, honoured, &annotations, key.about, difference];
    format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
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
