//! Capabilities that nobody here knows, as those of kernels to come: a process does without them, as runc has it and the
//! OCI runtime specification wants it.

use serde::de::DeserializeOwned;
use serde_json::{Error, Value};
use slog::{Logger, warn};

use oci_spec::runtime::Capability;

/// The names that were left out of a process's capabilities: each once, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unknown(Vec<String>);

impl Unknown {
    /// Tells whoever reads `log`, if there are any.
    pub(crate) fn warn(&self, log: &Logger) {
        if !self.0.is_empty() {
            warn!(log, "unknown capabilities, which the process does without"; "capabilities" => self.0.join(", "));
        }
    }
}

/// Reads a configuration whose capabilities are at `place`, a JSON pointer, without those that are unknown.
///
/// # Errors
/// What else cannot be read, and where.
pub(super) fn read<T: DeserializeOwned>(
    text: &[u8],
    place: &str,
) -> std::result::Result<(T, Unknown), Error> {
    let why = match serde_json::from_slice(text) {
        Ok(read) => return Ok((read, Unknown::default())),
        Err(why) => why,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else { return Err(why) };
    let unknown = value.pointer_mut(place).map(take_unknown).unwrap_or_default();
    // It has another fault, whose place the first error knows.
    if unknown.is_empty() {
        return Err(why);
    }
    Ok((serde_json::from_value(value)?, Unknown(unknown)))
}

/// Takes the names that are no capability's out of all `sets`.
fn take_unknown(sets: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let lists = sets.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut);
    for names in lists.filter_map(Value::as_array_mut) {
        names.retain(|name| match name.as_str() {
            Some(text) if serde_json::from_value::<Capability>(name.clone()).is_err() => {
                unknown.push(text.to_owned());
                false
            }
            _ => true,
        });
    }
    unknown.sort_unstable();
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Process;
    use serde_json::json;

    use super::*;

    fn process(capabilities: &Value) -> std::result::Result<(Process, Unknown), Error> {
        let user = json!({"uid": 0, "gid": 0});
        let text =
            json!({"cwd": "/", "args": ["sh"], "user": user, "capabilities": capabilities}).to_string();
        read(text.as_bytes(), "/capabilities")
    }

    #[test]
    fn a_process_does_without_capabilities_that_nobody_knows() {
        let all = json!({
            "bounding": ["CAP_FUTURE", "CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["", "CAP_KILL"],
            "ambient": ["CAP_FUTURE"],
        });
        let (read, unknown) = process(&all).unwrap();
        assert_eq!(unknown.0, ["", "CAP_FUTURE"]);
        let sets = read.capabilities().clone().unwrap();
        for set in [sets.bounding(), sets.effective(), sets.permitted()] {
            assert_eq!(set.clone().unwrap().into_iter().collect::<Vec<_>>(), [Capability::Kill]);
        }
        assert!(sets.ambient().clone().unwrap().is_empty(), "and does not get others instead");
    }

    #[test]
    fn each_unknown_one_is_named_once() {
        let mut sets = json!({"bounding": ["CAP_B", "CAP_A", "CAP_KILL"], "ambient": ["CAP_A", 7]});
        assert_eq!(take_unknown(&mut sets), ["CAP_A", "CAP_B"]);
        assert_eq!(sets, json!({"bounding": ["CAP_KILL"], "ambient": [7]}));
    }

    #[test]
    fn what_is_no_name_is_still_refused() {
        for wrong in
            [json!({"bounding": [7]}), json!({"bounding": "CAP_KILL"}), json!({"ambient": ["CAP_FUTURE", 7]})]
        {
            process(&wrong).unwrap_err();
        }
    }
}
