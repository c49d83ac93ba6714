//! What the operator's page about clusters says, for those who do as it says.

use std::path::Path;

use super::PAUSE;
use crate::{Context, Result};

/// The operator's page about clusters.
const PAGE: &str = include_str!("../../../docs/kubernetes.md");

/// A piece of the page that is in `language` and has `word` in it.
pub fn snippet(language: &str, word: &str) -> Result<&'static str> {
    let mut pieces = PAGE.split("```").skip(1).step_by(2).filter_map(|piece| piece.strip_prefix(language));
    pieces
        .find(|piece| piece.contains(word))
        .context(format_args!("docs/kubernetes.md: {word} in {language}"))
}

/// What CRI's configuration is called, by the generations of containerd.
pub(super) struct Dialect {
    /// The plugin that makes pods.
    cri: &'static str,
    /// The key of the image that a sandbox's own container is of, in its table where that is another plugin's.
    pause: &'static str,
    /// Where the network's plugins are.
    network: &'static str,
    /// The key that says who makes sandboxes.
    sandboxer: &'static str,
    /// Whether the runtime has its options then. containerd 2.1 takes them for runc's, and makes no container.
    keeps_options: bool,
}

impl Dialect {
    pub(super) fn of(generation: u32) -> Dialect {
        match generation {
            ..2 => Dialect {
                cri: "io.containerd.grpc.v1.cri",
                pause: "sandbox_image",
                network: "bin_dir = \"/usr/lib/cni\"",
                sandboxer: "sandbox_mode",
                keeps_options: true,
            },
            2.. => Dialect {
                cri: "io.containerd.cri.v1.runtime",
                pause: "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox",
                network: "bin_dirs = [\"/usr/lib/cni\"]",
                sandboxer: "sandboxer",
                keeps_options: false,
            },
        }
    }

    /// The runtime's table as the page has it, with what it adds for the Sandbox API.
    fn runtime(&self, handler: &str, sandbox_api: bool) -> Result<String> {
        let table = format!("[plugins.\"{}\".containerd.runtimes.{handler}]", self.cri);
        let runtime = snippet("toml", &format!("{table}\n  runtime_type"))?;
        if !sandbox_api {
            return Ok(runtime.to_owned());
        }
        let added = snippet("toml", &format!("{table}\n  {}", self.sandboxer))?;
        let options = runtime.find("  [plugins").filter(|_| !self.keeps_options);
        let runtime = &runtime[..options.unwrap_or(runtime.len())];
        Ok(runtime.replacen(&table, added.trim(), 1))
    }

    /// CRI's configuration as the page has it, for a world of its own.
    pub(super) fn plugins(&self, handler: &str, dir: &Path, sandbox_api: bool) -> Result<String> {
        let file = dir.join("configuration.toml");
        // Where nobody needs the image, none is to be had.
        let image = if sandbox_api { "localhost/none:latest" } else { PAUSE };
        let runtime = self.runtime(handler, sandbox_api)?;
        let runtime = runtime.replace("/etc/kata-containers/configuration.toml", &file.to_string_lossy());
        let Dialect { cri, pause, network, .. } = self;
        let dir = dir.display();
        Ok(format!(
            "[plugins.\"{cri}\"]\n\
             netns_mounts_under_state_dir = true\n\
             {pause} = \"{image}\"\n\
             [plugins.\"{cri}\".cni]\n\
             {network}\n\
             conf_dir = \"{dir}/cni\"\n\
             [plugins.\"{cri}\".containerd]\n\
             default_runtime_name = \"{handler}\"\n\
             {runtime}"
        ))
    }
}

/// The variable in containerd's environment that the page tells of, and its value.
pub(super) fn sandbox_api_switch() -> Result<(&'static str, &'static Path)> {
    let line =
        snippet("ini", "ENABLE_CRI_SANDBOXES")?.lines().find_map(|line| line.strip_prefix("Environment="));
    let variable = line.and_then(|line| line.trim_matches('"').split_once('='));
    variable.map(|(name, value)| (name, Path::new(value))).context("docs/kubernetes.md: the variable")
}

/// A bridge on the pods' host, and addresses of both families.
pub(super) fn network(dir: &Path) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "kt0", "isGateway": true, "isDefaultGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": dir.join("addresses"),
                "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]]
            }
        }]
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use toml::{Table, Value};

    use super::*;
    use crate::command::run;

    const HANDLER: &str = "kata";

    /// Keys of a runtime's table that CRI-O's page crio.conf(5) has.
    const CRIO_KEYS: [&str; 7] = [
        "runtime_path",
        "runtime_root",
        "runtime_type",
        "runtime_config_path",
        "privileged_without_host_devices",
        "allowed_annotations",
        "platform_runtime_paths",
    ];

    fn text<'a>(table: &'a Value, key: &str) -> &'a str {
        table[key].as_str().unwrap()
    }

    #[test]
    fn what_the_page_says_to_crio_is_what_is_installed_in_words_that_crio_knows() {
        let crio: Table = snippet("toml", "crio.runtime").unwrap().parse().unwrap();
        let runtime = &crio["crio"]["runtime"]["runtimes"][HANDLER];
        for key in runtime.as_table().unwrap().keys() {
            assert!(CRIO_KEYS.contains(&key.as_str()), "{key} is no key of a runtime of CRI-O's");
        }
        assert_eq!(text(runtime, "runtime_type"), "vm");
        assert_eq!(runtime["privileged_without_host_devices"].as_bool(), Some(true));
        assert_eq!(text(runtime, "runtime_config_path"), configuration::USUAL[0]);
        let (dir, shim) = text(runtime, "runtime_path").rsplit_once('/').unwrap();
        let mut make = Command::new("make");
        for variable in ["PREFIX", "DESTDIR", "MAKEFLAGS"] {
            make.env_remove(variable);
        }
        let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        make.args(["--dry-run", "--no-print-directory", "--directory", repository, "install"]);
        let made = run(&mut make, Duration::from_secs(30)).unwrap().exits(0).unwrap().out();
        let installed = format!("--target-directory {dir} ");
        let installs = |line: &str| line.contains(&installed) && line.ends_with(&format!("/{shim}"));
        assert!(made.lines().any(installs), "{shim} goes to {dir} in {made}");
    }

    #[test]
    fn the_page_has_the_runtime_of_each_generation_of_containerd() {
        for dialect in [1, 2].map(Dialect::of) {
            for sandbox_api in [false, true] {
                let all = dialect.plugins(HANDLER, Path::new("/w"), sandbox_api).unwrap();
                let all: Table = all.parse().unwrap();
                let runtime = &all["plugins"][dialect.cri]["containerd"]["runtimes"][HANDLER];
                assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.kata.v2"));
                assert_eq!(runtime.get(dialect.sandboxer).is_some(), sandbox_api);
                let options = runtime.get("options").map(|options| options["ConfigPath"].as_str());
                let wanted = Some(Some("/w/configuration.toml"));
                assert_eq!(options, wanted.filter(|_| dialect.keeps_options || !sandbox_api));
            }
        }
    }

    #[test]
    fn what_the_readme_says_to_containerd_the_page_says_too() {
        let table = format!("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{HANDLER}]\n");
        let readme = include_str!("../../../README.md");
        let readme: Table = readme.split("\n\n").find(|part| part.contains(&table)).unwrap().parse().unwrap();
        let page: Table = snippet("toml", &format!("{table}  runtime_type")).unwrap().parse().unwrap();
        let runtime = |all: &Table| {
            let plugin = &all["plugins"]["io.containerd.grpc.v1.cri"];
            plugin["containerd"]["runtimes"][HANDLER].as_table().cloned().unwrap()
        };
        let page = runtime(&page);
        for (key, value) in runtime(&readme) {
            assert_eq!(page.get(&key), Some(&value), "{key}");
        }
    }
}
