//! Which files are read, and which are refused.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::{Place, problems, texts};
use crate::Configuration;
use crate::annotations::Annotations;
use crate::find::Search;

#[test]
fn e1_the_first_usual_file_that_exists_is_used() {
    let place = Place::new();
    let usual = [place.path("etc/configuration.toml"), place.path("usr/configuration.toml")];
    let found = |search: &Search| {
        Configuration::load_from(search, &Annotations::default(), &place.host).unwrap().path
    };

    place.file("usr/configuration.toml", &place.base());
    assert_eq!(found(&Search::usual_in(&usual)), usual[1]);

    place.file("etc/configuration.toml", &place.base());
    assert_eq!(found(&Search::usual_in(&usual)), usual[0]);
}

#[test]
fn e1_without_any_file_the_error_names_all_that_were_tried() {
    let usual = ["/nowhere/one.toml".into(), "/nowhere/two.toml".into()];
    let error =
        Configuration::load_from(&Search::usual_in(&usual), &Annotations::default(), &Place::new().host)
            .unwrap_err()
            .to_string();
    assert!(error.contains("/nowhere/one.toml, /nowhere/two.toml"), "{error}");
}

#[test]
fn a_usual_file_may_have_any_owner_and_mode() {
    let place = Place::new();
    let path = place.file("configuration.toml", &place.base());
    place.mode("configuration.toml", 0o666);
    Configuration::load_from(&Search::usual_in(&[path]), &Annotations::default(), &place.host).unwrap();
}

#[test]
fn a_named_file_that_cannot_be_trusted_is_refused_with_path_and_reason() {
    let place = Place::new();
    let base = place.base();
    place.file("group", &base);
    place.mode("group", 0o664);
    place.file("world", &base);
    place.mode("world", 0o646);
    symlink(place.path("world"), place.path("link")).unwrap();
    for (name, reason) in [
        ("absent", "no such file or directory"),
        ("group", "mode 664 lets group or others write to it"),
        ("world", "mode 646 lets group or others write to it"),
        ("link", "mode 646 lets group or others write to it"),
        (".", "not a regular file"),
    ] {
        let path = place.path(name);
        let error = place.load_named(&path).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&path.display().to_string()), "{name}: {error}");
    }
    let error = place.load_named("configuration.toml".as_ref()).unwrap_err().to_string();
    assert!(error.contains("not an absolute path"), "{error}");
}

#[test]
fn a_named_file_of_another_owner_is_refused() {
    let place = Place::new();
    let path = place.file("configuration.toml", &place.base());
    let stranger = nix::unistd::getuid().as_raw() + 1;
    let error =
        Configuration::load_from(&Search::named_by(&path, stranger), &Annotations::default(), &place.host)
            .unwrap_err()
            .to_string();
    assert!(error.contains("not by root; chown it to root"), "{error}");
}

#[test]
fn a_fifo_in_place_of_a_file_is_refused_at_once() {
    let place = Place::new();
    nix::unistd::mkfifo(&place.path("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let error = place.load_named(&place.path("fifo")).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn e2_drop_ins_lie_over_the_main_file_in_name_order_whatever_they_are_called() {
    let place = Place::new();
    place.file("config.d/20-later", "[hypervisor.qemu]\ndefault_memory = 512\n");
    place.file("config.d/10-earlier.toml", "[hypervisor.qemu]\ndefault_memory = 1024\nmemory_slots = 3\n");
    let hypervisor = place.load(&place.base()).unwrap().configuration.hypervisor;
    assert_eq!((hypervisor.default_memory_mib, hypervisor.memory_slots), (512, 3));
}

#[test]
fn e2_a_drop_in_changes_its_keys_and_leaves_the_others_of_a_table() {
    let place = Place::new();
    place.file("config.d/1", "[hypervisor.qemu]\nmemory_slots = 3\n");
    let text = format!("{}memory_slots = 5\nmsize_9p = 16384\n", place.base());
    let hypervisor = place.load(&text).unwrap().configuration.hypervisor;
    assert_eq!((hypervisor.memory_slots, hypervisor.msize_9p), (3, 16384));
}

#[test]
fn e2_no_drop_ins_are_needed() {
    let place = Place::new();
    place.load(&place.base()).unwrap();
    fs::create_dir(place.path("config.d")).unwrap();
    place.load(&place.base()).unwrap();
}

#[test]
fn e2_a_drop_in_replaces_a_list_as_a_whole() {
    let place = Place::new();
    let loaded =
        place.load_with("[hypervisor.qemu]\nvirtio_fs_extra_args = [\"--log-level=debug\"]\n").unwrap();
    let arguments = loaded.configuration.hypervisor.virtio_fs_extra_args;
    assert_eq!(arguments.iter().collect::<Vec<_>>(), ["--log-level=debug"]);
}

#[test]
fn e2_drop_ins_are_beside_the_file_that_a_symbolic_link_leads_to() {
    let place = Place::new();
    place.file("real/config.d/1", "[runtime]\nenable_debug = true\n");
    place.file("config.d/1", "[runtime]\nnonsense = true\n");
    let real = place.file("real/configuration.toml", &place.base());
    symlink(&real, place.path("link.toml")).unwrap();
    let loaded = place.load_named(&place.path("link.toml")).unwrap();
    assert!(loaded.configuration.runtime.debug);
    assert_eq!(loaded.path, real);
}

#[test]
fn e2_the_error_names_the_drop_in_that_a_bad_key_came_from() {
    let place = Place::new();
    let text =
        texts(&problems(place.load_with("[runtime]\nnonsense = 1\n[hypervisor.qemu]\nkernel = \"/no\"\n")));
    let drop_in = place.path("config.d/10-test");
    assert_eq!(
        text,
        [
            format!("{}: runtime.nonsense: unknown key", drop_in.display()),
            format!(
                "{}: hypervisor.qemu.kernel: /no: no such file or directory; install it, or set the path of an \
                 existing file",
                drop_in.display()
            ),
        ]
    );
}

#[test]
fn text_that_is_not_toml_is_reported_with_line_and_column_for_every_file() {
    let place = Place::new();
    place.file("config.d/1", "[runtime]\nenable_debug = ja\n");
    place.file("config.d/2", "[runtime]\nnonsense = 1\n");
    let found = texts(&problems(place.load("[hypervisor.qemu]\n\nkernel = \"unfinished\nimage = 1\n")));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("configuration.toml:3:21: not TOML: "), "{found:?}");
    assert!(found[1].contains("config.d/1:2:16: not TOML: "), "{found:?}");
    assert!(found[2].ends_with("config.d/2: runtime.nonsense: unknown key"), "{found:?}");
}

#[test]
fn a_key_set_twice_is_reported_with_its_name() {
    let place = Place::new();
    let found = texts(&problems(place.load("[runtime]\nenable_debug = true\nenable_debug = true\n")));
    assert!(found[0].contains("configuration.toml:3:1: not TOML: duplicate key"), "{found:?}");
}

#[test]
fn e2_drop_ins_that_cannot_be_read_are_problems() {
    let place = Place::new();
    fs::create_dir_all(place.path("config.d/directory")).unwrap();
    fs::write(place.path("config.d/latin1"), b"# \xe4").unwrap();
    symlink("/nowhere", place.path("config.d/link")).unwrap();
    place.file("config.d/writable", "");
    place.mode("config.d/writable", 0o622);
    let found = texts(&problems(place.load(&place.base())));
    let expected = [
        "directory: not a regular",
        "latin1: byte 2 is not UTF-8",
        "link: no such file",
        "writable: mode 622",
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found} should contain {expected}");
    }
}

#[test]
fn e2_a_config_d_that_is_no_directory_is_a_problem() {
    let place = Place::new();
    place.file("config.d", "");
    let found = texts(&problems(place.load(&place.base())));
    assert!(found[0].contains("config.d: not a directory"), "{found:?}");
}

#[test]
fn the_environment_names_a_file_only_if_it_can_be_trusted() {
    // A process of its own, because the environment belongs to all tests of this one.
    let place = Place::new();
    let run = |value: &str| {
        let test = "tests::files::prints_what_the_environment_names";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output =
            command.args(["--exact", test, "--ignored", "--nocapture"]).env("KATA_CONF_FILE", value).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert!(run("configuration.toml").contains("named by KATA_CONF_FILE: not an absolute path"));
    let open = place.file("open", "");
    place.mode("open", 0o666);
    let said = run(open.to_str().unwrap());
    assert!(said.contains("named by KATA_CONF_FILE: mode 666") || said.contains("not by root"), "{said}");
}

#[test]
#[ignore = "run by the test above in a process of its own"]
fn prints_what_the_environment_names() {
    match Configuration::load(None, &HashMap::new()) {
        Ok(loaded) => println!("{}", loaded.path.display()),
        Err(error) => println!("{error}"),
    }
}
