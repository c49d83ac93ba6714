//! `factory init|status|destroy`, for operators who want the template there before the first pod, or gone.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self},
    io::Write as _,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use configuration::{Configuration, Loaded, VmCache};
use oci_spec::runtime::Spec;
use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, o};
use vmm::Qemu;

use super::{
    Maker,
    key::Key,
    store,
    store::{Lock, Store},
};
use crate::{
    cache,
    error::{Error, Result},
    sandbox::boot,
    serve,
};

/// How long another maker may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The kernel has no event for a lock that is free, short of waiting for it without a deadline.
const PAUSE: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Factory {
    action: Action,
    /// The configuration file; none is the one of this host.
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Init,
    Status,
    Destroy,
    /// What `init` starts: a shim that waits for its sandbox.
    Wait,
}

impl Factory {
    /// Reads the arguments after `factory`.
    ///
    /// # Errors
    /// Names what is not right.
    pub(crate) fn parse(args: &[OsString]) -> Result<Factory> {
        let wrong = |what: &str| {
            Error::InvalidArgument(format!(
                "{what}: factory init, factory status or factory destroy, with -config FILE"
            ))
        };
        let words: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap_or_default()).collect();
        match words.as_slice() {
            [cache::WAIT, _] => return Ok(Factory { action: Action::Wait, file: None }),
            [cache::WAIT, "-config", file, _] => {
                return Ok(Factory { action: Action::Wait, file: Some(PathBuf::from(file)) });
            }
            _ => {}
        }
        let (action, file) = match words.as_slice() {
            [action] => (*action, None),
            [action, "-config", file] | ["-config", file, action] => (*action, Some(PathBuf::from(file))),
            _ => return Err(wrong("command line")),
        };
        let action = match action {
            "init" => Action::Init,
            "status" => Action::Status,
            "destroy" => Action::Destroy,
            other => return Err(wrong(&format!("{other:?} is no action"))),
        };
        Ok(Factory { action, file })
    }
}

/// Does it, and tells on standard output.
///
/// # Errors
/// What is wrong with the configuration or the machine.
pub(crate) fn run(factory: &Factory) -> Result<()> {
    if factory.action == Action::Wait {
        return cache::wait(factory.file.as_deref());
    }
    let loaded = Configuration::load(factory.file.as_deref(), &HashMap::new());
    let Loaded { configuration, path, .. } =
        loaded.map_err(|error| Error::InvalidArgument(error.to_string()))?;
    let (templates, kept) =
        (configuration.factory.templates.as_deref(), configuration.factory.cache.as_ref());
    if templates.is_none() && kept.is_none() {
        return Err(Error::FailedPrecondition(format!(
            "{}: neither factory.enable_template nor factory.vm_cache_number is set: no machine is made ahead of time",
            path.display()
        )));
    }
    let store = templates.map(Store::open).transpose().map_err(Error::Failed)?;
    let templates = store.as_ref().zip(templates);
    match factory.action {
        // The first that waits makes the template.
        Action::Init if let Some(cache) = kept => keep(&configuration, factory.file.as_deref(), cache),
        Action::Init => templates.map_or(Ok(()), |(store, directory)| init(&configuration, store, directory)),
        Action::Status => {
            templates.map_or(Ok(()), |(store, directory)| status(&configuration, store, directory))?;
            kept.map_or(Ok(()), |cache| cache::status(&cache.endpoint).map(|text| say(text.trim())))
        }
        Action::Destroy if let Some((store, directory)) = templates => destroy(store, directory),
        Action::Destroy => {
            say("no templates; machines that are kept ready end with their `factory init`");
            Ok(())
        }
        Action::Wait => Ok(()),
    }
}

fn keep(configuration: &Configuration, file: Option<&Path>, cache: &VmCache) -> Result<()> {
    // What cannot be had is told here, and not by each shim that would wait.
    boot::needs(configuration, &Spec::default(), &Logger::root(slog::Discard, o!()))?;
    cache::keep(file, cache, &progress())
}

fn progress() -> Logger {
    Logger::root(Progress(Instant::now()).filter_level(Level::Info).ignore_res(), o!())
}

fn init(configuration: &Configuration, store: &Store, directory: &Path) -> Result<()> {
    serve::private_mounts()?;
    let log = progress();
    let hypervisor = Qemu::new(Logger::root(slog::Discard, o!()));
    let machine = boot::any_machine(configuration, "template", directory, &log)?;
    if let Some(what) = machine.spec.against_template() {
        return Err(Error::FailedPrecondition(format!(
            "{what} cannot be had with a template: change that in the configuration, or unset factory.enable_template"
        )));
    }
    let key = Key::of(&machine.spec).map_err(Error::Failed)?;
    if store.find(&key).is_some() {
        // Whoever makes one does it as well.
        store.lock().map_err(Error::Failed)?.iter().for_each(Lock::tidy);
        say(&format!("{} is there already", directory.join(&key.name).display()));
        return Ok(());
    }
    let lock = own(store)?;
    // Whoever had the lock may have made it meanwhile.
    if store.find(&key).is_some() {
        say(&format!("{} is there", directory.join(&key.name).display()));
        return Ok(());
    }
    let maker = Maker { hypervisor: &hypervisor, configuration, storages: &machine.storages, log: &log };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("asynchronous runtime"))?;
    let made = runtime.block_on(maker.make(&lock, &key, &machine.spec));
    let files = made.map_err(Error::Failed)?;
    say(&format!(
        "{}: {} KiB",
        directory.join(&key.name).display(),
        kibibytes(&[&files.memory, &files.state])
    ));
    Ok(())
}

/// Waits until nobody else makes a template: its maker, or a process that one has just been killed with.
fn own(store: &Store) -> Result<Lock<'_>> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = store.lock().map_err(Error::Failed)? {
            return Ok(lock);
        }
        if Instant::now() > until {
            return Err(Error::DeadlineExceeded(format!(
                "somebody else has been making a template for {PATIENCE:?}: `fuser` of the file `lock` tells who"
            )));
        }
        sleep(PAUSE);
    }
}

fn status(configuration: &Configuration, store: &Store, directory: &Path) -> Result<()> {
    let log = Logger::root(slog::Discard, o!());
    let machine = boot::any_machine(configuration, "template", directory, &log)?;
    let key = Key::of(&machine.spec).map_err(Error::Failed)?;
    let all = store.all();
    for (template, current) in &all {
        let own = template.file_name().is_some_and(|name| name.to_str() == Some(&key.name));
        let what = match (own, current) {
            (true, _) => "of this configuration",
            (false, true) => "of another configuration",
            (false, false) => "stale: made of files that have changed",
        };
        let size = kibibytes(&[&template.join("memory"), &template.join("state")]);
        say(&format!("{}: {size} KiB, {what}", template.display()));
    }
    if let Some(making) = store.making() {
        let what = match store.lock().map_err(Error::Failed)? {
            None => "a template is being made",
            Some(_) => "left by a maker that was killed; `factory init` and `factory destroy` remove it",
        };
        say(&format!("{}: {what}", making.display()));
    }
    if store.find(&key).is_none() {
        say("none of this configuration; the next sandbox makes it, as `factory init` does");
    }
    Ok(())
}

fn destroy(store: &Store, directory: &Path) -> Result<()> {
    let lock = own(store)?;
    lock.tidy();
    for (template, _) in store.all() {
        store::remove(&template);
        say(&format!("{}: removed", template.display()));
    }
    drop(lock);
    say(&format!("{}: no templates", directory.display()));
    Ok(())
}

/// What files take on their file system.
fn kibibytes(files: &[&Path]) -> u64 {
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|metadata| metadata.blocks() / 2).sum()
}

fn say(text: &str) {
    // With standard output gone there is nobody left to tell.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A log for somebody who waits.
struct Progress(Instant);

impl Drain for Progress {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> std::result::Result<(), Never> {
        let mut why = Why(String::new());
        // A value that cannot be rendered leaves the rest of the line standing.
        let _ = record.kv().serialize(record, &mut why);
        say(&format!("{:6.2} s  {}{}", self.0.elapsed().as_secs_f64(), record.msg(), why.0));
        Ok(())
    }
}

struct Why(String);

impl slog::Serializer for Why {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        self.0.push_str(&format!(", {key}: {value}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Factory> {
        Factory::parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn b23_a_factory_is_told_what_to_do_and_by_which_file() {
        assert_eq!(parse("init").unwrap(), Factory { action: Action::Init, file: None });
        let file = Some(PathBuf::from("/c.toml"));
        assert_eq!(
            parse("status -config /c.toml").unwrap(),
            Factory { action: Action::Status, file: file.clone() }
        );
        assert_eq!(parse("-config /c.toml destroy").unwrap(), Factory { action: Action::Destroy, file });
        for wrong in ["", "make", "init now", "init -config"] {
            assert!(matches!(parse(wrong), Err(Error::InvalidArgument(_))), "{wrong}");
        }
    }
}
