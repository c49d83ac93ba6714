//! Names that come from outside and become path components.

use crate::error::{Error, Result};

/// containerd's own limit on identifiers (its `identifiers` package).
const LONGEST: usize = 76;

/// Accepts what containerd accepts as an identifier: 1 to 76 ASCII letters and digits, with `-`, `_` and `.` between
/// them. Such a name is safe as one path component.
///
/// # Errors
/// `InvalidArgument` that names `what` and the rule, when the name is not such.
pub(crate) fn check(what: &str, id: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edges = [id.chars().next(), id.chars().next_back()]
        .iter()
        .all(|c| c.is_some_and(|c| c.is_ascii_alphanumeric()));
    if edges && id.len() <= LONGEST && id.chars().all(inner) {
        return Ok(());
    }
    let shown: String = id.chars().take(LONGEST).collect();
    Err(Error::InvalidArgument(format!(
        "{what} {shown:?}: must be 1 to {LONGEST} letters and digits, with '-', '_' and '.' only between them"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_accepts_is_accepted() {
        for id in ["a", "busybox-1", "k8s.io", "0f3c", "a_b.c-d", &"x".repeat(76)] {
            assert!(check("id", id).is_ok(), "{id}");
        }
    }

    #[test]
    fn what_could_be_a_path_or_overflow_one_is_refused_with_its_name() {
        for id in
            ["", ".", "..", "a/b", "../a", "a\0b", "a\nb", "中é", "-a", &"x".repeat(77), &"y".repeat(4096)]
        {
            let error = check("container id", id).expect_err(id).to_string();
            assert!(error.starts_with("container id") && error.len() < 500, "{error}");
        }
    }
}
