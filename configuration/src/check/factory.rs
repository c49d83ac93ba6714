//! `[factory]`, which may stand in two places.

use std::path::{Path, PathBuf};

use super::Checker;
use crate::factory::{Factory, VmCache};
use crate::keys::{CACHE, TEMPLATES};
use crate::raw::RawFactory;

/// The longest name that a Unix socket may have, in bytes.
const LONGEST_SOCKET: usize = 107;

/// Something that a table may ask for, and the place of it.
struct Wish {
    is_made: fn(&RawFactory) -> bool,
    key: &'static str,
    place: fn(&RawFactory) -> &PathBuf,
    usual: &'static str,
}

const TEMPLATE: Wish = Wish {
    is_made: |raw| raw.enable_template,
    key: "template_path",
    place: |raw| &raw.template_path,
    usual: TEMPLATES,
};

const KEEPER: Wish = Wish {
    is_made: |raw| raw.vm_cache_number > 0,
    key: "vm_cache_endpoint",
    place: |raw| &raw.vm_cache_endpoint,
    usual: CACHE,
};

/// A table and its name.
type Table<'a> = (&'a str, &'a RawFactory);

impl Checker<'_> {
    /// Of two tables with the same keys what either asks for: Kata's files have both.
    pub(super) fn factory(&mut self, one: (&str, RawFactory), other: (&str, RawFactory)) -> Factory {
        let tables = [(one.0, &one.1), (other.0, &other.1)];
        let templates = self.granted(tables, &TEMPLATE).map(|(_, raw)| raw.template_path.clone());
        let cache = self.granted(tables, &KEEPER).map(|(table, raw)| self.vm_cache(table, raw));
        Factory { templates, cache }
    }

    /// The table that asks for something. Its place is made when it is needed, so it need not be there.
    fn granted<'a>(&mut self, [one, other]: [Table<'a>; 2], wish: &Wish) -> Option<Table<'a>> {
        let (asking, other) = if (wish.is_made)(one.1) { (one, other) } else { (other, one) };
        let ((table, raw), (beside, other)) = (asking, other);
        if !(wish.is_made)(raw) {
            return None;
        }
        let (place, key) = ((wish.place)(raw), format!("{table}.{}", wish.key));
        if !place.is_absolute() {
            self.problem(&key, format!("{:?} is not an absolute path", place.display().to_string()));
        }
        let elsewhere = (wish.place)(other);
        let means_it = (wish.is_made)(other) || elsewhere != Path::new(wish.usual);
        if means_it && elsewhere != place {
            let what = format!("another path than {key}, which is used; set one of the two");
            self.problem(&format!("{beside}.{}", wish.key), what);
        }
        Some(asking)
    }

    fn vm_cache(&mut self, table: &str, raw: &RawFactory) -> VmCache {
        let endpoint = &raw.vm_cache_endpoint;
        if endpoint.as_os_str().len() > LONGEST_SOCKET {
            let what = format!(
                "{:?} is longer than the {LONGEST_SOCKET} bytes of a socket's name",
                endpoint.display()
            );
            self.problem(&format!("{table}.{}", KEEPER.key), what);
        }
        VmCache { machines: raw.vm_cache_number, endpoint: endpoint.clone() }
    }
}
