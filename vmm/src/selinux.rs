//! The label that SELinux is to know a machine's processes by.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crate::error::BootError;
use crate::spec::SelinuxLabel;

/// There where the kernel has SELinux and it is on.
const SELINUX: &str = "sys/fs/selinux/enforce";
/// What is written there is the label of the program that the thread becomes.
const EXEC: &str = "proc/thread-self/attr/exec";

/// A label, ready for a new process to take.
#[derive(Debug, Clone)]
pub(crate) struct Labelled(Arc<(CString, SelinuxLabel)>);

impl Labelled {
    /// # Errors
    /// [`BootError::Selinux`] where the kernel would not know what the label means.
    pub(crate) fn new(label: &SelinuxLabel) -> Result<Labelled, BootError> {
        Labelled::new_in(Path::new("/"), label)
    }

    fn new_in(root: &Path, label: &SelinuxLabel) -> Result<Labelled, BootError> {
        let refused = || BootError::Selinux { label: label.to_string() };
        if !root.join(SELINUX).exists() {
            return Err(refused());
        }
        let file = CString::new(root.join(EXEC).as_os_str().as_bytes()).map_err(|_| refused())?;
        Ok(Labelled(Arc::new((file, label.clone()))))
    }

    /// Has the program that the calling thread becomes next run under the label. System calls only.
    pub(crate) fn take(&self) -> io::Result<()> {
        let (file, label) = &*self.0;
        let label = label.as_str().as_bytes();
        // SAFETY: both pointers are to memory that `self` keeps, of a string with its end and of the length given; the
        // descriptor is this call's own.
        unsafe {
            let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // The kernel takes it whole or not at all.
            let written = libc::write(fd, label.as_ptr().cast(), label.len());
            let error = io::Error::last_os_error();
            libc::close(fd);
            if usize::try_from(written).is_ok_and(|written| written == label.len()) {
                Ok(())
            } else {
                Err(error)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    pub(crate) const LABEL: &str = "system_u:system_r:container_kvm_t:s0:c1,c2";

    /// A kernel with SELinux, as far as files go, and a label for it.
    pub(crate) fn labelled(root: &Path) -> Labelled {
        for file in [SELINUX, EXEC] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "").unwrap();
        }
        Labelled::new_in(root, &SelinuxLabel::new(LABEL).unwrap()).unwrap()
    }

    pub(crate) fn written(root: &Path) -> String {
        fs::read_to_string(root.join(EXEC)).unwrap()
    }

    #[test]
    fn a40_a_label_that_the_kernel_does_not_know_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let label = SelinuxLabel::new(LABEL).unwrap();
        let text = Labelled::new_in(root.path(), &label).unwrap_err().to_string();
        assert!(text.contains(LABEL) && text.contains("disable_selinux"), "{text}");
    }

    #[test]
    fn a40_a_kernel_that_will_not_have_the_label_keeps_the_program_from_starting() {
        let root = tempfile::tempdir().unwrap();
        let labelled = labelled(root.path());
        fs::remove_file(root.path().join(EXEC)).unwrap();
        assert_eq!(labelled.take().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
