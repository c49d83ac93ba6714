//! The operator's side: the shipped configuration file with a few keys changed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::assets::Assets;
use crate::{Context, Result};

/// A configuration file to be.
#[derive(Debug, Clone)]
pub struct Configuration {
    file: Table,
}

impl Configuration {
    /// The shipped file, made to use the guest and the helpers of the cache.
    pub fn shipped(assets: &Assets) -> Result<Configuration> {
        let text = fs::read_to_string(&assets.configuration).context(assets.configuration.display())?;
        let file = text.parse::<Table>().context(assets.configuration.display())?;
        let mut configuration = Configuration { file };
        let bin = assets.cache.join("bin");
        configuration
            .set("hypervisor.qemu.kernel", path(&assets.guest.join("vmlinuz")))
            .set("hypervisor.qemu.initrd", path(&assets.guest.join("initrd.img")))
            .set("hypervisor.qemu.virtio_fs_daemon", path(&bin.join("virtiofsd")))
            // As in Kata's own file the profiles are off unless asked for.
            .set("runtime.disable_guest_seccomp", false)
            .remove("hypervisor.qemu.image");
        if let Some(templates) = &assets.templates {
            configuration.set("factory.enable_template", true).set("factory.template_path", path(templates));
        }
        if let Some(qemu) = &assets.qemu {
            configuration.set("hypervisor.qemu.path", path(qemu));
        }
        Ok(configuration)
    }

    /// Sets `key`, written as `table.table.key`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Configuration {
        let (table, name) = self.table_of(key);
        table.insert(name, value.into());
        self
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: &str) -> &mut Configuration {
        let (table, name) = self.table_of(key);
        table.remove(&name);
        self
    }

    /// The value of `key` when it is a string.
    pub fn text(&self, key: &str) -> Option<String> {
        let mut parts = key.split('.');
        let first = self.file.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))?.as_str().map(str::to_owned)
    }

    /// Writes the file, readable for everybody and writable for its owner alone.
    pub fn write(&self, file: &Path) -> Result<()> {
        write_text(file, &toml::to_string(&self.file)?)
    }

    fn table_of(&mut self, key: &str) -> (&mut Table, String) {
        let mut parts: Vec<&str> = key.split('.').collect();
        let name = parts.pop().unwrap_or_default().to_owned();
        let mut table = &mut self.file;
        for part in parts {
            let next = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            if !next.is_table() {
                *next = Value::Table(Table::new());
            }
            let Value::Table(inner) = next else { unreachable!("just made a table") };
            table = inner;
        }
        (table, name)
    }
}

/// Writes a configuration file as it stands, well formed or not.
pub fn write_text(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).context(file.display())?;
    fs::set_permissions(file, Permissions::from_mode(0o644)).context(file.display())
}

/// A path as a value of the file.
pub fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Puts a configuration file named `name` into `dir`: the shipped one after `edit`.
pub fn written(
    assets: &Assets,
    dir: &Path,
    name: &str,
    edit: impl FnOnce(&mut Configuration),
) -> Result<PathBuf> {
    let mut configuration = Configuration::shipped(assets)?;
    edit(&mut configuration);
    let file = dir.join(name);
    configuration.write(&file)?;
    Ok(file)
}
