//! Memory that the host cannot read: no machine here can start one, so the arguments are compared with what QEMU's
//! documentation (system/i386/amd-memory-encryption, system/i386/tdx) has.

use super::*;

fn c_bit() -> CBit {
    CBit::new(51).unwrap()
}

fn protected(protection: Protection) -> VmSpec {
    let firmware = match &protection {
        Protection::Sev { .. } => Firmware::Flash { code: "/fw/OVMF.fd".into(), variables: None },
        Protection::Tdx { .. } | Protection::Snp { .. } => Firmware::Bios("/fw/OVMF.fd".into()),
    };
    let (vcpus, memory) = (Vcpus::new(2, 2).unwrap(), Memory::new(512, 0, 512).unwrap());
    VmSpec { protection: Some(protection), firmware, vcpus, memory, ..spec() }
}

fn of(protection: Protection) -> Vec<String> {
    let spec = protected(protection);
    assert_eq!(spec.check(), Ok(()));
    lines(&spec, &inherited())[7..12].to_vec()
}

#[test]
fn a27_tdx_has_its_quotes_made_on_the_host() {
    let expected = [
        r#"-object {"qom-type":"tdx-guest","id":"protection0","quote-generation-socket":{"type":"vsock","cid":"2","port":"4050"}}"#,
        "-bios /fw/OVMF.fd",
        "-accel kvm",
        "-machine q35,memory-backend=memory0,confidential-guest-support=protection0,kernel_irqchip=split",
        "-cpu host,pmu=off",
    ];
    assert_eq!(of(Protection::Tdx { quotes: Some(4050) }), expected);
    assert_eq!(
        of(Protection::Tdx { quotes: None })[0],
        r#"-object {"qom-type":"tdx-guest","id":"protection0"}"#
    );
}

#[test]
fn a27_sev_has_its_firmware_in_flash_and_forbids_debugging() {
    let lines = of(Protection::Sev { c_bit: c_bit(), encrypted_state: false });
    let expected = [
        r#"-object {"qom-type":"sev-guest","id":"protection0","cbitpos":51,"reduced-phys-bits":1,"policy":1}"#,
        r#"-blockdev {"driver":"raw","node-name":"pflash0","read-only":true,"file":{"driver":"file","filename":"/fw/OVMF.fd"}}"#,
        "-accel kvm",
        "-machine q35,memory-backend=memory0,confidential-guest-support=protection0,kernel_irqchip=split,pflash0=pflash0",
        "-cpu host,pmu=off",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a27_sev_es_is_a_policy() {
    let lines = of(Protection::Sev { c_bit: c_bit(), encrypted_state: true });
    assert!(lines[0].ends_with(r#","policy":5}"#), "{lines:?}");
}

#[test]
fn a27_snp_measures_the_kernel_too_and_has_a_policy_and_an_identity() {
    let (block, auth) = ("A".repeat(128), format!("{}==", "B".repeat(5462)));
    let identity = Some(SnpIdentity::new(&block, &auth).unwrap());
    let lines = of(Protection::Snp { c_bit: c_bit(), policy: 196_608, identity });
    let object = format!(
        r#"-object {{"qom-type":"sev-snp-guest","id":"protection0","cbitpos":51,"reduced-phys-bits":1,"policy":196608,"kernel-hashes":true,"id-block":"{block}","id-auth":"{auth}"}}"#
    );
    assert_eq!((&lines[0], lines[1].as_str()), (&object, "-bios /fw/OVMF.fd"));
    assert_eq!(lines[4], "-cpu EPYC-v4,pmu=off");
}

#[test]
fn a27_what_protected_memory_cannot_do_is_refused() {
    let tdx = || protected(Protection::Tdx { quotes: None });
    let sev = || protected(Protection::Sev { c_bit: c_bit(), encrypted_state: true });
    let image = Boot::Image {
        path: "/guest/image".into(),
        fs: ImageFs::Ext4,
        driver: ImageDriver::Nvdimm,
        verity: None,
    };
    for spec in [
        VmSpec { accelerator: Accelerator::Tcg, ..tdx() },
        VmSpec { machine: Machine::Microvm(MachineOptions::default()), ..tdx() },
        VmSpec { firmware: Firmware::BuiltIn, ..tdx() },
        VmSpec { firmware: Firmware::Bios("/fw".into()), ..sev() },
        VmSpec { firmware: Firmware::Flash { code: "/fw".into(), variables: Some("/vars".into()) }, ..sev() },
        VmSpec { vcpus: Vcpus::new(1, 2).unwrap(), ..tdx() },
        VmSpec { memory: Memory::new(512, 1, 1024).unwrap(), ..tdx() },
        VmSpec { boot: image, ..tdx() },
        VmSpec { virtio: VirtioPci::Legacy, ..tdx() },
        VmSpec { reclaim_freed_memory: true, ..tdx() },
        VmSpec { iommu: true, ..tdx() },
    ] {
        let error = spec.check().unwrap_err().to_string();
        assert!(error.ends_with(" cannot be had with protected memory"), "{error}");
    }
}
