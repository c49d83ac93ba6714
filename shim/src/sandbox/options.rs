//! Which configuration a sandbox gets.

use std::path::PathBuf;

use configuration::Configuration;
use containerd_shim_protos::protobuf::{
    Message, UnknownValueRef,
    well_known_types::{any::Any, empty::Empty},
};
use oci_spec::runtime::Spec;
use slog::{Logger, info, warn};

use crate::error::{Error, Result};

/// The message containerd passes when its configuration has `ConfigPath` in a runtime's options.
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";
/// Its field `config_path`.
const CONFIG_PATH: u32 = 2;

/// Loads the configuration: the file the runtime options name, or the one of this host, and over it what the
/// annotations of the sandbox's own container ask for.
///
/// # Errors
/// `InvalidArgument` with every problem of the files and the annotations.
pub(crate) fn configuration(options: Option<&Any>, spec: &Spec, log: &Logger) -> Result<Configuration> {
    let explicit = options.map(config_path).transpose()?.flatten();
    let annotations = spec.annotations().clone().unwrap_or_default();
    let loaded = Configuration::load(explicit.as_deref(), &annotations)
        .map_err(|error| Error::InvalidArgument(error.to_string()))?;
    info!(log, "configuration"; "file" => loaded.path.display().to_string());
    for warning in &loaded.warnings {
        warn!(log, "configuration: {warning}");
    }
    Ok(loaded.configuration)
}

/// Whether these are runtime options that may name a file.
pub(crate) fn is_runtimes(options: &Any) -> bool {
    options.type_url.rsplit('/').next() == Some(RUNTIME_OPTIONS)
}

/// Whether these say which file it is, whatever the environment says.
pub(crate) fn name_a_file(options: &Any) -> bool {
    matches!(config_path(options), Ok(Some(_)))
}

/// `config_path` of the runtime options; other runtimes' options (runc's, say) name none.
fn config_path(options: &Any) -> Result<Option<PathBuf>> {
    if !is_runtimes(options) {
        return Ok(None);
    }
    // One field is wanted of a message whose other fields mean nothing here: read as an empty message, they all
    // come back as unknown ones.
    let message = Empty::parse_from_bytes(&options.value)
        .map_err(|error| Error::InvalidArgument(format!("runtime options ({RUNTIME_OPTIONS}): {error}")))?;
    match message.special_fields.unknown_fields().get(CONFIG_PATH) {
        Some(UnknownValueRef::LengthDelimited(path)) if !path.is_empty() => {
            let path = std::str::from_utf8(path)
                .map_err(|_| Error::InvalidArgument("runtime options: ConfigPath is not UTF-8".into()))?;
            Ok(Some(PathBuf::from(path)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.into(), value: value.to_vec(), ..Default::default() }
    }

    #[test]
    fn the_runtime_options_may_name_the_file() {
        let path = |any: &Any| config_path(any).unwrap();
        let named = b"\x0a\x03abc\x12\x07/a.toml";
        assert_eq!(path(&any(RUNTIME_OPTIONS, named)), Some("/a.toml".into()));
        assert_eq!(
            path(&any("types.googleapis.com/runtimeoptions.v1.Options", named)),
            Some("/a.toml".into())
        );
        assert_eq!(path(&any(RUNTIME_OPTIONS, b"")), None);
    }

    #[test]
    fn other_runtimes_options_are_none_of_ours() {
        assert_eq!(config_path(&any("containerd.runc.v1.Options", b"\x12\x05/file")).unwrap(), None);
    }

    #[test]
    fn options_that_are_no_message_are_refused() {
        assert!(config_path(&any(RUNTIME_OPTIONS, b"\x12\xff")).is_err());
    }
}
