//! Why a case failed, as a sentence.

use std::fmt;

/// What a case of the suite, or a step of one, comes to.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// The reason a step did not do what it should. It holds text only: nothing ever matches on a test's failure.
pub struct Failure(String);

impl Failure {
    /// A failure that reads `what`.
    pub fn new(what: impl Into<String>) -> Failure {
        Failure(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

// `Failure` is no `std::error::Error` itself, which is what allows this blanket conversion.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(error.to_string())
    }
}

/// Says what was being done when an error came up.
pub trait Context<T> {
    /// Puts `what` before the error's own text.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{what}: {}", error.into().0)))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Failure(format!("{what}: nothing there")))
    }
}

/// Returns from a case with a [`Failure`].
#[macro_export]
macro_rules! fail {
    ($($what:tt)*) => { return Err($crate::Failure::new(format!($($what)*))) };
}

/// Fails the case unless `condition` holds; the rest says what was seen.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($what:tt)*) => { if !$condition { $crate::fail!($($what)*) } };
}

/// Fails the case unless both values are equal, and shows both.
#[macro_export]
macro_rules! check_eq {
    ($seen:expr, $wanted:expr, $($what:tt)*) => {
        // As the standard library's assertions do it: a match keeps temporaries alive.
        match (&$seen, &$wanted) {
            (seen, wanted) => {
                if seen != wanted {
                    $crate::fail!("{}: wanted {wanted:?}, saw {seen:?}", format!($($what)*))
                }
            }
        }
    };
}
