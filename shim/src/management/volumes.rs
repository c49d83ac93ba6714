//! Volumes that a storage driver has assigned to the machine: how full they are, and that they grow.

use std::{path::Path, sync::Arc};

use agent_protocol::csi::VolumeStatsResponse;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::{
    container::direct,
    error::{Error, Result},
    sandbox::Sandbox,
};

/// What storage drivers read, by the names and numbers of the container storage interface.
#[derive(Serialize)]
struct Stats {
    usage: Vec<Usage>,
    volume_condition: Condition,
}

#[derive(Serialize)]
struct Usage {
    available: u64,
    total: u64,
    used: u64,
    /// 1 is bytes, 2 inodes.
    unit: i32,
}

#[derive(Serialize)]
struct Condition {
    abnormal: bool,
    message: String,
}

/// What a storage driver asks for.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Resize {
    volume_path: String,
    /// Bytes.
    size: u64,
}

/// How full the volume is that the query names.
///
/// # Errors
/// `NotFound` for what is no volume of this sandbox.
pub(super) async fn stats(sandbox: &Arc<Sandbox>, query: &str) -> Result<Vec<u8>> {
    let path = path_in(query)?;
    let (volume, _disk) = direct::in_use(sandbox, Path::new(&path)).await?;
    let stats = sandbox.ask(sandbox.agent().volume_stats(&volume.mount_point)).await?;
    serde_json::to_vec(&told(&stats)).map_err(|error| Error::Failed(format!("volume stats: {error}")))
}

/// Tools escape the path, slashes and all; a plus is a plus.
fn path_in(query: &str) -> Result<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("path="));
    let value = value.filter(|value| !value.is_empty());
    let value = value.ok_or_else(|| Error::InvalidArgument("path: missing in the query".into()))?;
    let path = percent_decode_str(value).decode_utf8();
    path.map(Into::into).map_err(|_| Error::InvalidArgument(format!("path {value:?}: it is no text")))
}

fn told(stats: &VolumeStatsResponse) -> Stats {
    let usage = stats.usage.iter().map(|usage| Usage {
        available: usage.available,
        total: usage.total,
        used: usage.used,
        unit: usage.unit.value(),
    });
    let condition = &stats.volume_condition;
    Stats {
        usage: usage.collect(),
        volume_condition: Condition { abnormal: condition.abnormal, message: condition.message.clone() },
    }
}

/// Has the machine see how large a volume's disk is by now, and the guest's file system grow with it.
///
/// # Errors
/// `FailedPrecondition` while the disk is not as large as that.
pub(super) async fn resize(sandbox: &Arc<Sandbox>, body: &[u8]) -> Result<()> {
    let asked: Resize = serde_json::from_slice(body)
        .map_err(|error| Error::InvalidArgument(format!("not {{\"VolumePath\", \"Size\"}}: {error}")))?;
    let (volume, disk) = direct::in_use(sandbox, Path::new(&asked.volume_path)).await?;
    let has = sandbox.resize_disk(disk.id()).await?;
    if has < asked.size {
        return Err(Error::FailedPrecondition(format!(
            "{}: its device has {has} bytes, and has to grow before its file system can have {}",
            asked.volume_path, asked.size
        )));
    }
    sandbox.ask(sandbox.agent().resize_volume(&volume.mount_point, asked.size)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c22_a_path_is_taken_as_tools_escape_it() {
        assert_eq!(path_in("path=%2Fvar%2Fa+b%25").unwrap(), "/var/a+b%");
        assert_eq!(path_in("x=1&path=/var").unwrap(), "/var");
        for query in ["", "path=", "pat=/x", "path=%ff"] {
            assert!(matches!(path_in(query), Err(Error::InvalidArgument(_))), "{query}");
        }
    }
}
