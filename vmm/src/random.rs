//! Random numbers from the kernel.

use std::io;

/// Fills `bytes`, of which there may be up to 256: that many come in one piece.
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    debug_assert!(bytes.len() <= 256);
    // SAFETY: the pointer and the length are those of one exclusively borrowed slice.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got).is_ok_and(|got| got == bytes.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
