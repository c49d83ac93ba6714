//! The guest's figures, in Prometheus' text format if the guest is honest.
//!
//! Whoever scrapes a host reads the text of all of its guests, as one. So nothing of a guest's is passed on as it came:
//! what is understood is written anew, by names that are a guest's, without labels that say whose figures they are.

use std::{collections::BTreeMap, fmt::Write};

/// More than this of a guest's text, in bytes, is not looked at.
const LONGEST: usize = 512 << 10;
/// What names begin with.
const PREFIXES: [&str; 2] = ["kata_guest_", "kata_agent_"];
/// Kata's agent has the Prometheus library's names for its own process, which mean another in the shim's text.
const OWN: &str = "process_";
const OWN_PREFIX: &str = "kata_agent_";
/// Labels that `kata-monitor` adds.
const RESERVED: [&str; 4] = ["sandbox_id", "cri_uid", "cri_name", "cri_namespace"];

/// Samples of one name.
#[derive(Default)]
struct Family {
    kind: Option<&'static str>,
    help: Option<String>,
    /// Values by labels: a second of the same would have the whole text refused.
    samples: BTreeMap<String, String>,
}

/// What of `text` may be passed on.
pub(super) fn cleaned(text: &str) -> String {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in whole_lines(text) {
        if let Some(comment) = line.strip_prefix("# ") {
            note(&mut families, comment);
        } else if let Some((name, labels, value)) = sample(line) {
            families.entry(name).or_default().samples.entry(labels).or_insert(value);
        }
    }
    let mut clean = String::new();
    for (name, family) in families.iter().filter(|(_, family)| !family.samples.is_empty()) {
        // Writing to a String cannot fail.
        if let Some(help) = &family.help {
            let _ = writeln!(clean, "# HELP {name} {help}");
        }
        let _ = writeln!(clean, "# TYPE {name} {}", family.kind.unwrap_or("untyped"));
        for (labels, value) in &family.samples {
            let _ = writeln!(clean, "{name}{labels} {value}");
        }
    }
    clean
}

fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    let text = match text.get(..text.floor_char_boundary(LONGEST)) {
        Some(cut) if cut.len() < text.len() => cut.rsplit_once('\n').map_or("", |(whole, _)| whole),
        _ => text,
    };
    text.lines()
}

/// `TYPE name gauge` and `HELP name words`. Histograms and summaries come as their single samples.
fn note(families: &mut BTreeMap<String, Family>, comment: &str) {
    let mut words = comment.splitn(3, ' ');
    let (Some(what), Some(name), Some(rest)) = (words.next(), words.next().and_then(allowed), words.next())
    else {
        return;
    };
    let family = families.entry(name).or_default();
    match (what, rest.trim()) {
        ("TYPE", kind) => {
            let known = ["gauge", "counter", "untyped"].into_iter().find(|known| *known == kind);
            family.kind = family.kind.or(known);
        }
        // A backslash would have to be a right one.
        ("HELP", help) if !help.contains(|letter: char| letter.is_control() || letter == '\\') => {
            family.help.get_or_insert_with(|| help.to_owned());
        }
        _ => {}
    }
}

/// The name that a name of the guest's is passed on by.
fn allowed(name: &str) -> Option<String> {
    let name = if name.starts_with(OWN) { format!("{OWN_PREFIX}{name}") } else { name.to_owned() };
    let is_its = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    (is_its && is_identifier(&name)).then_some(name)
}

fn is_identifier(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// Name, labels and value of a line; a time is dropped.
fn sample(line: &str) -> Option<(String, String, String)> {
    let end = line.find(['{', ' ', '\t'])?;
    let name = allowed(&line[..end])?;
    let (labels, rest) = match line[end..].strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), &line[end..]),
    };
    let mut words = rest.split_whitespace();
    let value = words.next().filter(|word| word.parse::<f64>().is_ok())?;
    if words.next().is_some_and(|time| time.parse::<i64>().is_err()) || words.next().is_some() {
        return None;
    }
    let pairs: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let labels = if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) };
    Some((name, labels, value.to_owned()))
}

/// Labels in their order, values still escaped, and what follows the brace.
fn labels(mut rest: &str) -> Option<(BTreeMap<&str, &str>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (label, after) = rest.split_once('=')?;
        let (value, after) = quoted(after.strip_prefix('"')?)?;
        if !is_label(label) || labels.insert(label, value).is_some() {
            return None;
        }
        rest = match after.strip_prefix(',') {
            Some(next) => next,
            None if after.starts_with('}') => after,
            None => return None,
        };
    }
}

fn is_label(label: &str) -> bool {
    is_identifier(label) && !label.starts_with("__") && !RESERVED.contains(&label)
}

/// A value up to its closing quote, and what follows that.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match (escaped, letter) {
            (true, '\\' | '"' | 'n') => escaped = false,
            (true, _) => return None,
            (false, '\\') => escaped = true,
            (false, '"') => return Some((&text[..at], &text[at + 1..])),
            (false, letter) if letter.is_control() => return None,
            (false, _) => {}
        }
    }
    None
}

/// The names in a text that is understood, for tests.
#[cfg(test)]
pub(super) fn names(text: &str) -> std::collections::BTreeSet<String> {
    let scrape = prometheus_parse::Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    scrape.samples.into_iter().map(|sample| sample.metric).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn c22_what_an_honest_guest_says_is_passed_on() {
        let text = "# HELP kata_guest_load Load.\n# TYPE kata_guest_load gauge\nkata_guest_load{item=\"load1\"} 0.5\n";
        assert_eq!(cleaned(text), text);
        let own = "# TYPE process_open_fds gauge\nprocess_open_fds 7 1700000000000\n";
        let passed = "# TYPE kata_agent_process_open_fds gauge\nkata_agent_process_open_fds 7\n";
        assert_eq!(cleaned(own), passed);
    }

    #[test]
    fn c22_a_guest_has_no_figures_but_its_own() {
        for forged in [
            "kata_shim_threads 1",
            "kata_hypervisor_fds 1",
            "up 1",
            "kata_guest_load{sandbox_id=\"another\"} 1",
            "kata_guest_load{item=\"a\",cri_name=\"b\"} 1",
            "kata_guest_load{__name__=\"up\"} 1",
            "kata_guest_load{item=\"a\"} 1\u{b}kata_shim_x 1",
        ] {
            assert_eq!(cleaned(&format!("{forged}\n")), "", "{forged}");
        }
    }

    #[test]
    fn c22_what_is_not_understood_is_dropped_and_the_rest_is_not() {
        let good = "# TYPE kata_guest_x untyped\nkata_guest_x 1\n";
        for bad in [
            "kata_guest_y",
            "kata_guest_y one",
            "kata_guest_y 1 2 3",
            "kata_guest_y 1 soon",
            "kata_guest_y{ 1",
            "kata_guest_y{a=\"1\" 1",
            "kata_guest_y{a=\"\\x\"} 1",
            "kata_guest_y{a=\"1\",a=\"2\"} 1",
            "kata_guest_y{1a=\"1\"} 1",
            "kata_guest_é 1",
            "# TYPE kata_guest_x histogram",
            "# HELP kata_guest_x \\x",
            "#",
            "",
        ] {
            assert_eq!(cleaned(&format!("{bad}\nkata_guest_x 1\n{bad}\n")), good, "{bad}");
        }
        // The same labels in another order are the same.
        let twice = "kata_guest_x{a=\"1\",b=\"2\"} 1\nkata_guest_x{b=\"2\",a=\"1\"} 2\n";
        assert_eq!(cleaned(twice), "# TYPE kata_guest_x untyped\nkata_guest_x{a=\"1\",b=\"2\"} 1\n");
    }

    #[test]
    fn c22_a_guest_that_never_stops_talking_is_cut_off() {
        let text: String = (0..100_000).map(|number| format!("kata_guest_x{{n=\"{number}\"}} 1\n")).collect();
        let clean = cleaned(&text);
        assert!(clean.len() <= LONGEST + 100 && clean.lines().count() > 1000);
        assert_eq!(cleaned(&format!("kata_guest_x 1{}", "1".repeat(LONGEST))), "");
    }

    proptest! {
        #[test]
        fn c22_whatever_a_guest_says_the_text_is_a_text(
            lines in proptest::collection::vec(
                "(# (TYPE|HELP) )?(kata_guest_[a-c]|process_a|up)?(\\{([a-b]=\"[^\"]{0,3}\",?){0,2}\\}?)? ?[0-9a-zN.+-]{0,4} ?\\PC{0,4}",
                0..20,
            ),
        ) {
            let clean = cleaned(&lines.join("\n"));
            prop_assert!(names(&clean).iter().all(|name| allowed(name).is_some()));
            prop_assert_eq!(cleaned(&clean), clean);
        }
    }
}
