//! Firmware, and memory that is protected from the host.

use vmm::protection::{Amd, Available};
use vmm::spec::{CBit, Firmware, Protection, SnpIdentity};

use super::Place;
use super::values::refused;

#[test]
fn a26_firmware_is_in_read_only_memory_or_in_flash() {
    let place = Place::new();
    let flashes = "hypervisor.qemu.pflashes";
    refused(
        &place,
        &[
            (
                "hypervisor.qemu.firmware_volume = '@DIR@/image'",
                "hypervisor.qemu.firmware_volume",
                "the variables of no firmware",
            ),
            ("hypervisor.qemu.pflashes = ['/no']", flashes, "/no: no such file"),
            (
                "hypervisor.qemu = {pflashes = ['@DIR@/image'], firmware = '@DIR@/image'}",
                flashes,
                "choose one",
            ),
            (
                "hypervisor.qemu.pflashes = ['@DIR@/image', '@DIR@/image', '@DIR@/image']",
                flashes,
                "room for two",
            ),
        ],
    );
    place.file("odd", &"x".repeat(5000));
    place.file("page", &"x".repeat(4096));
    let image = "hypervisor.qemu = {initrd = '', image = '@DIR@/odd'}";
    refused(
        &place,
        &[
            ("hypervisor.qemu.firmware = '@DIR@/page'", "hypervisor.qemu.firmware", "blocks of 65536 bytes"),
            ("hypervisor.qemu.pflashes = ['@DIR@/odd']", flashes, "no whole number of blocks of 4096 bytes"),
            (image, "hypervisor.qemu.image", "blocks of 4096 bytes"),
        ],
    );
    place.load_with(&image.replace('}', ", disable_image_nvdimm = true}")).unwrap();
    place.load_with("hypervisor.qemu.pflashes = ['@DIR@/page']").unwrap();
    let firmware = |text| place.load_with(text).unwrap().configuration.hypervisor.firmware;
    let (code, variables) = (place.path("kernel"), Some(place.path("image")));
    assert_eq!(firmware(""), Firmware::BuiltIn);
    assert_eq!(firmware("hypervisor.qemu.firmware = '@DIR@/kernel'"), Firmware::Bios(code.clone()));
    let flash = Firmware::Flash { code, variables };
    assert_eq!(firmware("hypervisor.qemu.pflashes = ['@DIR@/kernel', '@DIR@/image']"), flash);
    let pair = "hypervisor.qemu = {firmware = '@DIR@/kernel', firmware_volume = '@DIR@/image'}";
    assert_eq!(firmware(pair), flash);
}

#[test]
fn a26_flash_memory_is_no_more_than_the_board_has_room_for() {
    let place = Place::new();
    place.sparse("code", 7 << 20);
    place.sparse("vars", (1 << 20) + 4096);
    let (pair, flashes) = (
        "firmware = '@DIR@/code', firmware_volume = '@DIR@/vars'",
        "pflashes = ['@DIR@/code', '@DIR@/vars']",
    );
    let what = "more than the 8388608 bytes that the board has";
    for (text, key) in [(pair, "firmware"), (flashes, "pflashes")] {
        let key = format!("hypervisor.qemu.{key}");
        refused(&place, &[(&format!("hypervisor.qemu = {{{text}}}"), &key, what)]);
        let room = "machine_accelerators = 'max_fw_size=16M'";
        place.load_with(&format!("hypervisor.qemu = {{{text}, {room}}}")).unwrap();
    }
    place.sparse("vars", 1 << 20);
    place.load_with(&format!("hypervisor.qemu = {{{pair}}}")).unwrap();
    let (key, options) = ("hypervisor.qemu.firmware", "hypervisor.qemu.machine_accelerators");
    let less = format!("hypervisor.qemu = {{{pair}, machine_accelerators = 'max-fw-size=4096k'}}");
    refused(&place, &[(&less, key, "more than the 4194304 bytes")]);
    for room in ["16777217", "much", "32M"] {
        let text = format!("{options} = 'max-fw-size={room}'");
        refused(&place, &[(&text, options, "is no number of bytes up to 16777216")]);
    }
    place.sparse("bios", (16 << 20) + 65536);
    refused(&place, &[("hypervisor.qemu.firmware = '@DIR@/bios'", key, "more than the 16777216 bytes")]);
}

#[test]
fn a27_protected_memory_has_firmware_and_a_whole_identity() {
    let place = Place::new();
    let with = |text: &str| {
        format!("[hypervisor.qemu]\nfirmware = '@DIR@/image'\nconfidential_guest = true\n{text}\n")
    };
    let (block, auth) = ("snp_id_block = 'AAAA'", "snp_id_auth = 'AAAA'");
    let [block, auth, both] = [block, auth, &format!("{block}\n{auth}")].map(with);
    refused(
        &place,
        &[
            (
                "hypervisor.qemu.confidential_guest = true",
                "hypervisor.qemu.confidential_guest",
                "set hypervisor.qemu.firmware",
            ),
            (block.as_str(), "hypervisor.qemu.snp_id_auth", "missing"),
            (auth.as_str(), "hypervisor.qemu.snp_id_block", "missing"),
            (both.as_str(), "hypervisor.qemu.snp_id_block", "is not 96 bytes in base64"),
        ],
    );
    for key in [
        "machine_type = 'microvm'",
        "accelerator = 'tcg'",
        "enable_iommu = true",
        "reclaim_guest_freed_memory = true",
        "block_device_driver = 'nvdimm'",
        "firmware_volume = '@DIR@/image'",
    ] {
        let name = format!("hypervisor.qemu.{}", key.split(' ').next().unwrap());
        refused(&place, &[(&with(key), &name, "unset this, or hypervisor.qemu.confidential_guest")]);
    }
    let flash =
        "hypervisor.qemu = {confidential_guest = true, sev_snp_guest = true, pflashes = ['@DIR@/image']}";
    refused(&place, &[(flash, "hypervisor.qemu.pflashes", "SEV-SNP starts from hypervisor.qemu.firmware")]);
    let loaded = place.load_with("hypervisor.qemu.sev_snp_guest = true").unwrap();
    assert!(loaded.warnings[0].concerns("hypervisor.qemu.sev_snp_guest"));
    assert_eq!(loaded.configuration.hypervisor.protection, None);
}

pub(super) fn amd(snp: bool) -> Available {
    Available { tdx: false, amd: Some(Amd { encrypted_state: true, snp }) }
}

const TDX: Available = Available { tdx: true, amd: None };

fn protected(more: &str) -> String {
    format!("[hypervisor.qemu]\nfirmware = '@DIR@/image'\nconfidential_guest = true\n{more}\n")
}

#[test]
fn a27_the_host_s_processor_decides_by_what() {
    let c_bit = CBit::new(51).unwrap();
    let identity = ("A".repeat(128), format!("{}==", "B".repeat(5462)));
    let snp = format!(
        "sev_snp_guest = true\nsnp_guest_policy = 1\nsnp_id_block = '{}'\nsnp_id_auth = '{}'",
        identity.0, identity.1
    );
    let identity = SnpIdentity::new(&identity.0, &identity.1).ok();
    assert!(identity.is_some());
    let mut place = Place::new();
    for (text, host, expected) in [
        ("", TDX, Protection::Tdx { quotes: Some(4050) }),
        ("tdx_quote_generation_service_socket_port = 0", TDX, Protection::Tdx { quotes: None }),
        ("", amd(true), Protection::Sev { c_bit, encrypted_state: true }),
        ("sev_snp_guest = true", amd(true), Protection::Snp { c_bit, policy: 196_608, identity: None }),
        (&snp, amd(true), Protection::Snp { c_bit, policy: 1, identity }),
    ] {
        place.host.protection = host;
        let hypervisor = place.load_with(&protected(text)).unwrap().configuration.hypervisor;
        assert_eq!(hypervisor.protection, Some(expected), "{text}");
    }
}

#[test]
fn a27_a_host_without_it_runs_no_guest_unprotected() {
    let mut place = Place::new();
    let (any, snp) = ("hypervisor.qemu.confidential_guest", "hypervisor.qemu.sev_snp_guest");
    for (text, host, key, what) in [
        ("", Available::default(), any, "this host has neither TDX nor SEV; unset it"),
        ("sev_snp_guest = true", TDX, snp, "no SEV-SNP"),
        ("sev_snp_guest = true", amd(false), snp, "no SEV-SNP"),
    ] {
        place.host.protection = host;
        refused(&place, &[(&protected(text), key, what)]);
    }
    (place.host.protection, place.host.c_bit) = (amd(false), None);
    refused(&place, &[(&protected(""), any, "cannot say that memory is encrypted")]);
}
