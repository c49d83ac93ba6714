//! The numbers and their two forms.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tests::{Context, Result};

/// One flat object. Its keys are a promise: later versions only add to them.
#[derive(Default)]
pub(crate) struct Report {
    values: Map<String, Value>,
    rows: Vec<(String, String)>,
}

impl Report {
    /// Adds a number, in the unit that ends its key, with what it is.
    pub(crate) fn add(&mut self, key: &str, value: f64, what: &str) {
        // One decimal more than anybody compares.
        let value = (value * 1000.0).round() / 1000.0;
        self.values.insert(key.to_owned(), Value::from(value));
        self.rows.push((format!("{key:<28}{value:>14}"), what.to_owned()));
    }

    /// Adds a heading to the table alone.
    pub(crate) fn heading(&mut self, text: &str) {
        self.rows.push((String::new(), String::new()));
        self.rows.push((text.to_owned(), String::new()));
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        for (number, what) in &self.rows {
            say(format!("{number}  {what}").trim_end());
        }
    }

    /// Writes the JSON.
    pub(crate) fn write(&self) -> Result<()> {
        let dir = target().join("bench");
        fs::create_dir_all(&dir).context(dir.display())?;
        let file = dir.join("report.json");
        fs::write(&file, serde_json::to_string_pretty(&self.values)? + "\n").context(file.display())?;
        say(&format!("\n{}", file.display()));
        Ok(())
    }
}

fn target() -> PathBuf {
    let own = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    own.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"))
}

/// Prints a line. A reader that went away is no reason to stop measuring.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The middle one of some measurements.
pub(crate) fn median(values: Vec<f64>) -> f64 {
    percentile(values, 50)
}

/// The least of some measurements that so many percent of them are no larger than.
pub(crate) fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let above = (values.len() * percent).div_ceil(100).max(1);
    values.get(above - 1).copied().unwrap_or(f64::NAN)
}
