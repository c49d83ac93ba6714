//! Every key there is: name, type, default, and whether this version honours it.
//!
//! The one source for telling known keys from unknown ones, for type errors, for defaults, for the warnings about
//! keys that are not honoured, and for the shipped `configuration.toml`.

mod agent;
mod differences;
mod factory;
mod hypervisor;
mod runtime;

pub(crate) use differences::DIFFERENCES;
pub(crate) use factory::{CACHE, TEMPLATES};
pub(crate) use hypervisor::EXTRA_ARGS as VIRTIO_FS_EXTRA_ARGS;

/// The tables of the file and their keys.
pub const SECTIONS: &[Section] = &[
    Section { table: HYPERVISOR, keys: hypervisor::KEYS },
    Section { table: QEMU_FACTORY, keys: factory::KEYS },
    Section { table: FACTORY, keys: factory::KEYS },
    Section { table: AGENT, keys: agent::KEYS },
    Section { table: RUNTIME, keys: runtime::KEYS },
];

pub(crate) const HYPERVISOR: &str = "hypervisor.qemu";
/// The key of `[hypervisor.qemu]` that lists what annotations may set.
pub(crate) const ENABLED: &str = "enable_annotations";
pub(crate) const AGENT: &str = "agent.kata";
pub(crate) const RUNTIME: &str = "runtime";
pub(crate) const FACTORY: &str = "factory";
/// Where Kata's Rust runtime has the same keys.
pub(crate) const QEMU_FACTORY: &str = "hypervisor.qemu.factory";

/// One table of the file.
#[derive(Debug)]
pub struct Section {
    /// The table's name, such as `hypervisor.qemu`.
    pub table: &'static str,
    /// Its keys, in the order of the shipped file.
    pub keys: &'static [Key],
}

impl Section {
    /// Where one of its keys means something else than it does to Kata.
    #[must_use]
    pub fn difference(&self, key: &Key) -> Option<&'static str> {
        let about = |(table, name, _): &&(&str, &str, &str)| *table == self.table && *name == key.name;
        DIFFERENCES.iter().find(about).map(|(_, _, what)| *what)
    }

    /// The key of that name.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// One key of one table.
#[derive(Debug)]
pub struct Key {
    /// The key's name without its table.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// What holds when it is absent.
    pub default: Preset,
    /// Further values that Kata ships or has shipped: for a key that is not honoured they give no warning.
    pub stock: &'static [Preset],
    /// Whether this version acts on it.
    pub honoured: bool,
    /// What it is for, in one line.
    pub about: &'static str,
}

/// What a key may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// An integer within bounds, both included.
    Integer {
        /// The smallest value.
        min: i64,
        /// The largest value.
        max: i64,
    },
    /// A finite number with or without a fraction.
    Number,
    /// A string.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of strings.
    Texts,
    /// A list of tables, or a table, of which this version knows no more than that.
    Tables,
}

/// A value in the table of keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Preset {
    /// The key is absent.
    Unset,
    /// A flag.
    Flag(bool),
    /// An integer.
    Integer(i64),
    /// A string.
    Text(&'static str),
    /// A list of strings.
    Texts(&'static [&'static str]),
}

impl Kind {
    /// Whether a value is of this kind; an error says what would be.
    pub(crate) fn check(self, value: &toml::Value) -> Result<(), String> {
        if holds_nul(value) {
            return Err("holds a NUL character, which no path or argument can have; remove it".to_owned());
        }
        let fits = match (self, value) {
            (Self::Flag, toml::Value::Boolean(_)) | (Self::Text, toml::Value::String(_)) => true,
            (Self::Integer { min, max }, toml::Value::Integer(value)) => (min..=max).contains(value),
            (Self::Number, toml::Value::Integer(_)) => true,
            (Self::Number, toml::Value::Float(value)) => value.is_finite(),
            (Self::Choice(words), toml::Value::String(word)) => words.contains(&word.as_str()),
            (Self::Texts, toml::Value::Array(items)) => items.iter().all(toml::Value::is_str),
            (Self::Tables, toml::Value::Array(items)) => items.iter().all(toml::Value::is_table),
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("expected {}, found {}", self.expected(), found(value))) }
    }

    /// The kind in words, for errors and documentation.
    #[must_use]
    pub fn expected(self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Integer { min, max: i64::MAX } => format!("an integer from {min}"),
            Self::Integer { min, max } => format!("an integer from {min} to {max}"),
            Self::Number => "a number".to_owned(),
            Self::Text => "a string".to_owned(),
            Self::Choice(words) => format!("one of {}", list(words)),
            Self::Texts => "a list of strings".to_owned(),
            Self::Tables => "a list of tables".to_owned(),
        }
    }
}

/// Words in a row, the empty one with quotes so that it is seen.
#[must_use]
pub fn list(words: &[&str]) -> String {
    let shown: Vec<_> = words.iter().map(|word| if word.is_empty() { "\"\"" } else { word }).collect();
    shown.join(", ")
}

fn holds_nul(value: &toml::Value) -> bool {
    match value {
        toml::Value::String(text) => text.contains('\0'),
        toml::Value::Array(items) => items.iter().any(holds_nul),
        _ => false,
    }
}

/// A value in words, short enough for an error.
fn found(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("the string {text:?}"),
        toml::Value::Integer(number) => format!("the integer {number}"),
        toml::Value::Float(number) => format!("the number {number}"),
        toml::Value::Boolean(flag) => format!("{flag}"),
        toml::Value::Datetime(moment) => format!("the date {moment}"),
        toml::Value::Array(items) => match items.iter().find(|item| !item.is_str()) {
            Some(item) => format!("a list holding {}", found(item)),
            None => "a list of strings".to_owned(),
        },
        toml::Value::Table(_) => "a table".to_owned(),
    }
}

impl Preset {
    /// The same as TOML; `None` when the key is absent.
    #[must_use]
    pub fn value(self) -> Option<toml::Value> {
        match self {
            Self::Unset => None,
            Self::Flag(flag) => Some(flag.into()),
            Self::Integer(number) => Some(number.into()),
            Self::Text(text) => Some(text.into()),
            Self::Texts(items) => Some(items.to_vec().into()),
        }
    }
}

impl Key {
    /// Whether a value is the default, or one of those that Kata's own files have.
    pub(crate) fn is_stock(&self, value: &toml::Value) -> bool {
        std::iter::once(&self.default).chain(self.stock).any(|preset| preset.value().as_ref() == Some(value))
    }

    /// Whether it says what annotations may do, rather than what a machine is like.
    pub(crate) fn is_about_annotations(&self) -> bool {
        self.name == ENABLED || self.name.starts_with("valid_")
    }

    const fn new(name: &'static str, kind: Kind, default: Preset, about: &'static str) -> Self {
        Self { name, kind, default, stock: &[], honoured: true, about }
    }

    const fn later(mut self) -> Self {
        self.honoured = false;
        self
    }

    const fn also(mut self, stock: &'static [Preset]) -> Self {
        self.stock = stock;
        self
    }
}

pub(crate) const U32: i64 = u32::MAX as i64;

const fn flag(name: &'static str, default: bool, about: &'static str) -> Key {
    Key::new(name, Kind::Flag, Preset::Flag(default), about)
}

const fn integer(name: &'static str, default: i64, max: i64, about: &'static str) -> Key {
    Key::new(name, Kind::Integer { min: 0, max }, Preset::Integer(default), about)
}

const fn text(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key::new(name, Kind::Text, Preset::Text(default), about)
}

const fn texts(name: &'static str, default: &'static [&'static str], about: &'static str) -> Key {
    Key::new(name, Kind::Texts, Preset::Texts(default), about)
}

const fn choice(
    name: &'static str,
    words: &'static [&'static str],
    default: &'static str,
    about: &'static str,
) -> Key {
    Key::new(name, Kind::Choice(words), Preset::Text(default), about)
}

/// A hint about an unknown name: the table it belongs in, or the known name it looks like.
pub(crate) fn suggestion(section: &Section, wrong: &str) -> Option<String> {
    let elsewhere = SECTIONS.iter().find(|other| other.key(wrong).is_some());
    if let Some(other) = elsewhere {
        return Some(format!("it belongs in [{}]", other.table));
    }
    nearest(wrong, section.keys.iter().map(|key| key.name)).map(|name| format!("did you mean {name}?"))
}

/// The name that differs least from `wrong`, if it differs little.
pub(crate) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = wrong.chars().count();
    let allowed = (length / 3).clamp(1, 4);
    names
        // Names of other lengths differ by at least that, and this is quicker seen.
        .filter(|name| name.len().abs_diff(length) <= allowed)
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
