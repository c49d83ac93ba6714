//! Which protection of a guest's memory this host has.

use std::fs;
use std::path::Path;

/// What the host can protect a guest's memory with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Available {
    /// Intel TDX.
    pub tdx: bool,
    /// AMD's kinds.
    pub amd: Option<Amd>,
}

/// What a host with AMD's protection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amd {
    /// SEV-ES beside SEV.
    pub encrypted_state: bool,
    /// SEV-SNP.
    pub snp: bool,
}

/// Looks at what the kernel shows below `root`, which is `/` but for tests.
#[must_use]
pub fn detect(root: &Path) -> Available {
    let parameter = |path: &str| {
        let value = fs::read_to_string(root.join("sys/module").join(path)).unwrap_or_default();
        value.starts_with(['1', 'Y', 'y'])
    };
    let cpus = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let flag = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    let module = root.join("sys/firmware/tdx_seam").is_dir();
    Available {
        tdx: module || flag("tdx") || flag("tdx_host_platform") && parameter("kvm_intel/parameters/tdx"),
        amd: parameter("kvm_amd/parameters/sev").then(|| Amd {
            encrypted_state: parameter("kvm_amd/parameters/sev_es"),
            snp: parameter("kvm_amd/parameters/sev_snp"),
        }),
    }
}

/// The bit of an address that says that memory is encrypted, where the processor has one; for anything but AMD's
/// processors it means nothing.
#[must_use]
pub fn c_bit() -> Option<u32> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        /// Encrypted memory (AMD64 Architecture Programmer's Manual, volume 3, appendix E).
        const LEAF: u32 = 0x8000_001f;
        let most = __cpuid(0x8000_0000).eax;
        (most >= LEAF).then(|| __cpuid(LEAF).ebx & 0x3f)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> Available {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        detect(root.path())
    }

    const SEV: (&str, &str) = ("sys/module/kvm_amd/parameters/sev", "Y\n");

    #[test]
    fn a27_a_host_without_it_has_none() {
        assert_eq!(host(&[]), Available::default());
        let off =
            [("sys/module/kvm_amd/parameters/sev", "N\n"), ("sys/module/kvm_amd/parameters/sev_snp", "Y\n")];
        assert_eq!(host(&off), Available::default());
        assert_eq!(host(&[("proc/cpuinfo", "flags : vmx tdx_host_platform\n")]), Available::default());
    }

    #[test]
    fn a27_tdx_shows_in_the_firmware_or_in_the_processor_s_flags() {
        for file in [("sys/firmware/tdx_seam/x", ""), ("proc/cpuinfo", "model : x\nflags\t: vmx tdx\n")] {
            assert_eq!(host(&[file]), Available { tdx: true, amd: None });
        }
        let loaded = [
            ("proc/cpuinfo", "flags\t: vmx tdx_host_platform\n"),
            ("sys/module/kvm_intel/parameters/tdx", "Y\n"),
        ];
        assert!(host(&loaded).tdx);
    }

    #[test]
    fn a27_sev_sev_es_and_snp_show_in_the_module_s_parameters() {
        let amd = |encrypted_state, snp| Available { tdx: false, amd: Some(Amd { encrypted_state, snp }) };
        assert_eq!(host(&[SEV]), amd(false, false));
        let es = ("sys/module/kvm_amd/parameters/sev_es", "1\n");
        assert_eq!(host(&[SEV, es]), amd(true, false));
        assert_eq!(host(&[SEV, es, ("sys/module/kvm_amd/parameters/sev_snp", "Y\n")]), amd(true, true));
    }
}
