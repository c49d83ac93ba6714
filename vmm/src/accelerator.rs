//! What executes the guest's code, and whether this machine has it.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

/// What executes the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processors.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// KVM where it can run a guest, otherwise TCG.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG.
    Tcg,
}

/// Why KVM is not there, or not to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum NoKvm {
    /// The device does not open.
    #[error("open {} for reading and writing: {source}", path.display())]
    Device {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device opens, yet the processor shows no virtualisation: inside some clouds' machines such a KVM runs
    /// kernels made for it and kills every other guest with an internal error.
    #[error("the processor shows neither vmx nor svm in {}", path.display())]
    Processor {
        /// Where the flags were looked for.
        path: PathBuf,
    },
}

/// The accelerator to use.
#[derive(Debug)]
pub struct Detected {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// What speaks against KVM: under [`Choice::Auto`] why it was not taken, under [`Choice::Kvm`] a warning.
    pub against_kvm: Option<NoKvm>,
}

/// Decides for this machine. Fails only if KVM is demanded and its device does not open.
pub fn detect(choice: Choice) -> Result<Detected, NoKvm> {
    detect_in(Path::new("/"), choice)
}

fn detect_in(root: &Path, choice: Choice) -> Result<Detected, NoKvm> {
    let (accelerator, against_kvm) = match choice {
        Choice::Tcg => (Accelerator::Tcg, None),
        Choice::Kvm => {
            device(root)?;
            (Accelerator::Kvm, processor(root).err())
        }
        Choice::Auto => match device(root).and_then(|()| processor(root)) {
            Ok(()) => (Accelerator::Kvm, None),
            Err(why) => (Accelerator::Tcg, Some(why)),
        },
    };
    Ok(Detected { accelerator, against_kvm })
}

fn device(root: &Path) -> Result<(), NoKvm> {
    let path = root.join("dev/kvm");
    match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(_) => Ok(()),
        Err(source) => Err(NoKvm::Device { path, source }),
    }
}

fn processor(root: &Path) -> Result<(), NoKvm> {
    let path = root.join("proc/cpuinfo");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return Ok(());
    }
    Err(NoKvm::Processor { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(kvm: bool, flags: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        if kvm {
            std::fs::write(root.path().join("dev/kvm"), "").unwrap();
        }
        std::fs::write(
            root.path().join("proc/cpuinfo"),
            format!("processor\t: 0\nflags\t\t: fpu {flags} sse\n"),
        )
        .unwrap();
        root
    }

    #[test]
    fn kvm_is_taken_where_the_device_opens_and_the_processor_virtualises() {
        for flag in ["vmx", "svm"] {
            let found = detect_in(machine(true, flag).path(), Choice::Auto).unwrap();
            assert_eq!(found.accelerator, Accelerator::Kvm);
            assert!(found.against_kvm.is_none());
        }
    }

    #[test]
    fn a_device_that_opens_is_no_proof() {
        let found = detect_in(machine(true, "vmx_not").path(), Choice::Auto).unwrap();
        assert_eq!(found.accelerator, Accelerator::Tcg);
        assert!(matches!(found.against_kvm, Some(NoKvm::Processor { .. })));
    }

    #[test]
    fn kvm_on_demand_is_taken_with_a_warning_where_the_processor_does_not_virtualise() {
        let found = detect_in(machine(true, "").path(), Choice::Kvm).unwrap();
        assert_eq!(found.accelerator, Accelerator::Kvm);
        assert!(matches!(found.against_kvm, Some(NoKvm::Processor { .. })));
    }

    #[test]
    fn kvm_on_demand_without_its_device_is_an_error_that_names_it() {
        let root = machine(false, "vmx");
        let error = detect_in(root.path(), Choice::Kvm).unwrap_err();
        assert!(error.to_string().contains("dev/kvm"), "{error}");
        assert_eq!(detect_in(root.path(), Choice::Auto).unwrap().accelerator, Accelerator::Tcg);
    }

    #[test]
    fn tcg_on_demand_looks_at_nothing() {
        let found = detect_in(Path::new("/nowhere"), Choice::Tcg).unwrap();
        assert_eq!(found.accelerator, Accelerator::Tcg);
        assert!(found.against_kvm.is_none());
    }
}
