//! What a storage driver says of a volume that it assigns to a machine.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use agent_protocol::{agent::FSGroup, types::FSGroupChangePolicy};
use base64::{Engine, engine::general_purpose::URL_SAFE};
use serde::Deserialize;

/// Where the notes are, as all shims of the field have it.
pub(crate) const NOTES: &str = "/run/kata-containers/shared/direct-volumes";
/// The file, in a directory named after the volume.
pub(crate) const NOTE: &str = "mountInfo.json";

/// The block device that a volume is on, and what its files are to be.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Note {
    volume_type: String,
    pub(super) device: PathBuf,
    #[serde(rename = "fstype", default)]
    pub(super) file_system: String,
    #[serde(default)]
    metadata: HashMap<String, String>,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

impl Note {
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &[u8]) -> Result<Note, String> {
        let note: Note = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if note.volume_type != "block" {
            return Err(format!("volume-type {:?}: only block is possible", note.volume_type));
        }
        if !note.device.is_absolute() {
            return Err(format!("device {:?}: must be the path of a block device", note.device));
        }
        note.group()?;
        Ok(note)
    }

    /// The group that the volume's files are to belong to.
    pub(super) fn group(&self) -> Result<Option<FSGroup>, String> {
        let Some(text) = self.metadata.get("fsGroup") else { return Ok(None) };
        let group_id =
            text.parse().map_err(|_| format!("fsGroup {text:?}: must be the number of a group"))?;
        let policy = match self.metadata.get("fsGroupChangePolicy").map(String::as_str) {
            Some("OnRootMismatch") => FSGroupChangePolicy::OnRootMismatch,
            Some("Always") | None => FSGroupChangePolicy::Always,
            Some(other) => {
                return Err(format!("fsGroupChangePolicy {other:?}: Always and OnRootMismatch are possible"));
            }
        };
        Ok(Some(FSGroup { group_id, group_change_policy: policy.into(), ..Default::default() }))
    }
}

/// The name of a volume's directory.
pub(super) fn name_of(volume: &Path) -> String {
    URL_SAFE.encode(volume.as_os_str().as_encoded_bytes())
}
