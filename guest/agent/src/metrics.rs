//! The guest's and the agent's own figures, in the text format of Prometheus. Names are those that Kata's
//! dashboards know.

mod sources;

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use sources::Sample;

/// Everything the kernel shows in a form worth keeping; what it does not show is left out.
pub(crate) fn text() -> String {
    static SCRAPES: AtomicU64 = AtomicU64::new(0);
    let scrapes = SCRAPES.fetch_add(1, Ordering::Relaxed) + 1;
    let mut text = String::new();
    for family in sources::FAMILIES {
        render(&mut text, family.name, family.kind, family.help, &family.read());
    }
    let count = [Sample::plain(scrapes as f64)];
    render(&mut text, "kata_agent_scrape_count", "counter", "Times these metrics were asked for.", &count);
    text
}

fn render(text: &mut String, name: &str, kind: &str, help: &str, samples: &[Sample]) {
    if samples.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for sample in samples {
        let labels: Vec<String> =
            sample.labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(text, "{name}{labels} {}", sample.value);
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_its_head_and_a_line_per_sample() {
        let mut text = String::new();
        let samples = [Sample::plain(1.0), Sample::new(&[("item", "a\"b")], 0.5)];
        render(&mut text, "x", "gauge", "Help.", &samples);
        assert_eq!(text, "# HELP x Help.\n# TYPE x gauge\nx 1\nx{item=\"a\\\"b\"} 0.5\n");
        render(&mut text, "y", "gauge", "Nothing.", &[]);
        assert!(!text.contains('y'));
    }

    #[test]
    fn this_machine_has_all_of_it() {
        let text = self::text();
        for name in ["kata_guest_load", "kata_guest_meminfo", "kata_guest_cpu_time", "kata_agent_total_rss"] {
            assert!(text.contains(&format!("\n{name}")), "{name} in {text}");
        }
    }
}
