//! Files as Kata ships them.

use vmm::spec::{Boot, ImageDriver, ImageFs};

use super::values::refused;
use super::{Place, texts, words};
use crate::keys::{DIFFERENCES, Key, Kind, Preset, SECTIONS, Section};
use crate::raw::{RawAgent, RawFactory, RawHypervisor, RawRuntime};
use crate::{AcceleratorChoice, Configuration, MemoryBacking, SharedFs, VirtioFsCache, VmCache, VsockChoice};

const KATA_4: &str = include_str!("../../tests/data/kata-4-qemu.toml");
const EVERY: &str = include_str!("../../tests/data/kata-every-key-qemu.toml");
/// The keys that Kata does not have.
const OURS: [&str; 3] = ["accelerator", "vsock", "enable_port_forward"];
const KATA_3: &str = include_str!("../../tests/data/kata-3-qemu.toml");
const KATA_2: &str = include_str!("../../tests/data/kata-2-qemu.toml");

#[test]
fn a_file_of_kata_4_with_all_its_keys_loads_without_a_warning() {
    let place = Place::new();
    let loaded = place.load(KATA_4).unwrap();
    assert_eq!(texts(&loaded.warnings), Vec::<String>::new());
    let hypervisor = loaded.configuration.hypervisor;
    assert_eq!(
        hypervisor.boot,
        Boot::Image {
            path: place.path("image"),
            fs: ImageFs::Ext4,
            driver: ImageDriver::Nvdimm,
            verity: None
        }
    );
    assert_eq!(hypervisor.shared_fs, SharedFs::VirtioFs);
    assert_eq!(words(&hypervisor.kernel_params), ["cgroup_no_v1=all", "systemd.unified_cgroup_hierarchy=1"]);
}

#[test]
fn a_file_of_kata_3_loads_and_warns_of_what_it_asks_for_in_vain() {
    let place = Place::new();
    let loaded = place.load(KATA_3).unwrap();
    let main = place.path("configuration.toml");
    assert_eq!(texts(&loaded.warnings), [format!("{}: image: unknown, ignored", main.display())]);
    assert!(loaded.configuration.runtime.guest_empty_dirs);
    let Configuration { hypervisor, .. } = loaded.configuration;
    let args: Vec<_> = hypervisor.virtio_fs_extra_args.iter().collect();
    assert_eq!(args, ["--thread-pool-size=1", "--announce-submounts"]);
    assert!(matches!(hypervisor.boot, Boot::Image { driver: ImageDriver::Nvdimm, .. }));
}

#[test]
fn a_file_of_kata_2_loads_and_warns_of_what_it_asks_for_in_vain() {
    let place = Place::new();
    let loaded = place.load(KATA_2).unwrap();
    assert_eq!(texts(&loaded.warnings), Vec::<String>::new());
    assert_eq!(
        loaded.configuration.hypervisor.seccompsandbox,
        "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
    );
    assert_eq!(loaded.configuration.agent.dial_timeout.as_secs(), 30);
}

#[test]
fn a_file_with_every_key_of_kata_s_loads_and_what_changes_nothing_is_named_in_warnings() {
    let place = Place::new();
    let file: toml::Table = EVERY.parse().unwrap();
    let loaded = place.load(EVERY).unwrap();
    for section in SECTIONS {
        let table =
            section.table.split('.').try_fold(&file, |table, name| table.get(name)?.as_table()).unwrap();
        for key in section.keys.iter().filter(|key| !OURS.contains(&key.name)) {
            let name = format!("{}.{}", section.table, key.name);
            let value = table.get(key.name).unwrap_or_else(|| panic!("{name} is not in the file"));
            let warned = loaded.warnings.iter().any(|warning| warning.concerns(&name));
            assert!(warned || key.honoured || key.is_stock(value), "{name}: {:?}", loaded.warnings);
        }
    }
    let Configuration { hypervisor, agent, runtime, factory } = loaded.configuration;
    assert_eq!((hypervisor.default_vcpus, hypervisor.default_maxvcpus), (2, 4));
    assert_eq!(hypervisor.memory_backing, MemoryBacking::HugePages);
    assert_eq!(agent.kernel_modules.len(), 2);
    assert_eq!(runtime.create_container_timeout.as_secs(), 120);
    assert_eq!(factory.templates, None);
}

#[test]
fn e3_templates_are_asked_for_in_either_table() {
    let place = Place::new();
    let templates = |text: &str| {
        place.load_with(text).unwrap().configuration.factory.templates.map(|path| path.display().to_string())
    };
    let (on, elsewhere) = ("enable_template = true\n", "template_path = '/elsewhere'\n");
    assert_eq!(templates(&format!("[factory]\n{elsewhere}")), None);
    assert_eq!(templates(&format!("[factory]\n{on}")).as_deref(), Some("/run/vc/vm/template"));
    let both = format!("[hypervisor.qemu.factory]\nenable_template = false\n[factory]\n{on}{elsewhere}");
    assert_eq!(templates(&both).as_deref(), Some("/elsewhere"));
    assert_eq!(
        templates(&format!("[hypervisor.qemu.factory]\n{on}{elsewhere}")).as_deref(),
        Some("/elsewhere")
    );
    let (key, qemus) = ("factory.template_path", "hypervisor.qemu.factory.template_path");
    let relative = "template_path = 'here'\n";
    refused(
        &place,
        &[
            (&format!("[factory]\n{on}{relative}"), key, "not an absolute path"),
            (&format!("[hypervisor.qemu.factory]\n{on}{relative}"), qemus, "not an absolute path"),
        ],
    );
    place.load_with(&format!("[factory]\n{relative}")).unwrap();
}

#[test]
fn e3_tables_of_templates_that_differ_are_refused_by_name() {
    let place = Place::new();
    let both = |kata: &str, rust: &str| format!("[factory]\n{kata}\n[hypervisor.qemu.factory]\n{rust}");
    let (on, here, there) = ("enable_template = true\n", "template_path = '/a'\n", "template_path = '/b'\n");
    let (key, qemus) = ("factory.template_path", "hypervisor.qemu.factory.template_path");
    refused(
        &place,
        &[
            (
                &both(&format!("{on}{here}"), &format!("{on}{there}")),
                qemus,
                "another path than factory.template_path",
            ),
            (&both(on, &format!("{on}{there}")), qemus, "set one of the two"),
            (
                &both(here, &format!("{on}{there}")),
                key,
                "another path than hypervisor.qemu.factory.template_path",
            ),
        ],
    );
    for right in [both(&format!("{on}{here}"), &format!("{on}{here}")), both("", &format!("{on}{there}"))] {
        place.load_with(&right).unwrap();
    }
}

#[test]
fn e3_machines_are_kept_ready_by_whom_either_table_names() {
    let place = Place::new();
    let cache = |text: &str| place.load_with(text).unwrap().configuration.factory.cache;
    assert_eq!(cache("[factory]\nvm_cache_endpoint = '/elsewhere'\n"), None);
    let usual = VmCache { machines: 3, endpoint: "/var/run/kata-containers/cache.sock".into() };
    for table in ["factory", "hypervisor.qemu.factory"] {
        assert_eq!(cache(&format!("[{table}]\nvm_cache_number = 3\n")), Some(usual.clone()));
    }
    let key = "factory.vm_cache_endpoint";
    let at = |path: &str| format!("[factory]\nvm_cache_number = 1\nvm_cache_endpoint = '{path}'\n");
    let (relative, long) = (at("here"), at(&format!("/{}", "x".repeat(107))));
    let two = format!("{}[hypervisor.qemu.factory]\nvm_cache_endpoint = '/there'\n", at("/here"));
    refused(
        &place,
        &[
            (&relative, key, "not an absolute path"),
            (&long, key, "107 bytes"),
            (
                &two,
                "hypervisor.qemu.factory.vm_cache_endpoint",
                "another path than factory.vm_cache_endpoint",
            ),
            ("[factory]\nvm_cache_number = 1001\n", "factory.vm_cache_number", "1000"),
        ],
    );
}

#[test]
fn e3_what_the_page_about_fast_starts_says_is_asked_for() {
    let place = Place::new();
    let page = include_str!("../../../docs/fast-starts.md");
    let snippets: Vec<_> =
        page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [templates, cache] = &*snippets else { panic!("{snippets:?}") };
    let factory = |text: &str| place.load_with(text).unwrap().configuration.factory;
    assert!(factory(templates).templates.is_some() && factory(templates).cache.is_none());
    assert!(factory(cache).cache.is_some() && factory(cache).templates.is_none());
}

#[test]
fn keys_that_kata_does_not_have_choose_for_themselves_when_absent() {
    let hypervisor = Place::new().load_with("").unwrap().configuration.hypervisor;
    assert_eq!(hypervisor.accelerator, AcceleratorChoice::Auto);
    assert_eq!(hypervisor.vsock, VsockChoice::Auto);
    assert_eq!(hypervisor.shared_fs, SharedFs::Auto);
    assert_eq!(hypervisor.virtio_fs_cache, VirtioFsCache::Auto);
}

#[test]
fn every_honoured_key_has_a_field_and_every_field_a_honoured_key() {
    let defaults = |table: &str| {
        let section = SECTIONS.iter().find(|section| section.table == table).unwrap();
        let honoured = section.keys.iter().filter(|key| key.honoured && !key.is_about_annotations());
        honoured.filter_map(|key| Some((key.name.to_owned(), key.default.value()?))).collect::<toml::Table>()
    };
    let mut hypervisor = defaults("hypervisor.qemu");
    hypervisor.insert("initrd".to_owned(), "/initrd".into());
    hypervisor.insert("image".to_owned(), "/image".into());
    hypervisor.try_into::<RawHypervisor>().unwrap();
    defaults("agent.kata").try_into::<RawAgent>().unwrap();
    defaults("runtime").try_into::<RawRuntime>().unwrap();
    defaults("factory").try_into::<RawFactory>().unwrap();
}

#[test]
fn every_default_and_every_stock_value_is_of_its_key_s_kind() {
    for key in SECTIONS.iter().flat_map(|section| section.keys) {
        for value in std::iter::once(&key.default).chain(key.stock).filter_map(|preset| preset.value()) {
            assert_eq!(key.kind.check(&value), Ok(()), "{}", key.name);
        }
        assert!(!key.about.is_empty() && key.about.len() < 110, "{}", key.name);
    }
}

#[test]
fn every_difference_from_kata_is_one_of_a_key() {
    let said =
        |section: &Section| section.keys.iter().filter(|key| section.difference(key).is_some()).count();
    assert_eq!(SECTIONS.iter().map(said).sum::<usize>(), DIFFERENCES.len());
}

#[test]
fn no_table_has_a_key_twice() {
    for section in SECTIONS {
        for (index, key) in section.keys.iter().enumerate() {
            assert!(section.keys[..index].iter().all(|other| other.name != key.name), "{}", key.name);
        }
    }
}

#[test]
fn a_key_that_is_not_honoured_warns_once_its_value_differs_from_the_default() {
    let place = Place::new();
    for section in SECTIONS {
        for key in section.keys.iter().filter(|key| !key.honoured) {
            let name = format!("{}.{}", section.table, key.name);
            let loaded = place.load_with(&format!("{name} = {}\n", unusual(key))).unwrap();
            let drop_in = place.path("config.d/10-test");
            let expected = format!("{}: {name}: recognised, not honoured by this version", drop_in.display());
            assert_eq!(texts(&loaded.warnings), [expected]);
        }
    }
    let loaded = place.load_with("[hypervisor.qemu]\nvirtio_fs_is_dax = true\n").unwrap();
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.virtio_fs_is_dax"));
}

/// A value of the key's kind that no template has.
fn unusual(key: &Key) -> String {
    match key.kind {
        Kind::Flag => (key.default == Preset::Flag(false)).to_string(),
        Kind::Integer { .. } | Kind::Number => "77".to_owned(),
        Kind::Text => "\"unusual\"".to_owned(),
        Kind::Choice(words) => format!("{:?}", words[words.len() - 1]),
        Kind::Texts => "[\"/unusual\"]".to_owned(),
        Kind::Tables => "[{ name = \"unusual\" }]".to_owned(),
    }
}
