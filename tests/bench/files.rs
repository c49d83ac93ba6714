//! What a directory of the host's carries that a guest has as a volume, by the way it is shared and by what the guest keeps.

use std::fs;
use std::path::Path;

use tests::{Case, Context, Result, check_eq};
use vmm::accelerator::{self, Accelerator, Choice};

use crate::report::Report;

/// Bytes of the large file, in MiB, and how many small ones there are.
const LARGE_MIB: usize = 64;
const SMALL: usize = 500;

/// `shared_fs` and `virtio_fs_cache`, by what they are called in the report. An emulated guest crashes on programs from
/// virtio-fs that does not keep everything (docs/decisions/0003).
const BY_ALL: [(&str, &str, &str); 2] = [("9p", "virtio-9p", ""), ("virtiofs_always", "virtio-fs", "always")];
const BY_KVM: [(&str, &str, &str); 3] = [
    ("virtiofs_metadata", "virtio-fs", "metadata"),
    ("virtiofs_auto", "virtio-fs", "auto"),
    ("virtiofs_never", "virtio-fs", "never"),
];

/// The times of the guest's clock between which it reads and writes a large file, and makes and reads small ones.
const SCRIPT: &str = "now() { cut -d ' ' -f 1 /proc/uptime; }; now; \
    cat /share/large >/dev/null; now; \
    dd if=/dev/zero of=/share/written bs=1M count=64 conv=fsync 2>/dev/null; now; \
    i=0; while [ $i -lt 500 ]; do echo $i >/share/small/$i; i=$((i+1)); done; now; \
    cat /share/host/* >/dev/null; now";

pub(crate) fn measure(case: &Case<'_>, report: &mut Report) -> Result<()> {
    report.heading("Files of a volume");
    let by_kvm = accelerator::detect(Choice::Auto)?.accelerator == Accelerator::Kvm;
    let kvm: &[_] = if by_kvm { &BY_KVM } else { &[] };
    BY_ALL.iter().chain(kvm).try_for_each(|share| measure_one(case, share, report))
}

fn measure_one(
    case: &Case<'_>,
    (name, share, cache): &(&str, &str, &str),
    report: &mut Report,
) -> Result<()> {
    let configuration = case.configuration(|file| {
        file.set("hypervisor.qemu.shared_fs", *share);
        if !cache.is_empty() {
            file.set("hypervisor.qemu.virtio_fs_cache", *cache);
        }
    })?;
    let directory = case.dir().join(format!("files-{name}"));
    prepare(&directory)?;
    let mount = format!("type=bind,src={},dst=/share,options=rbind:rw", directory.display());
    let container = case.container(&format!("files-{name}")).configured(&configuration);
    let output = container.flags(["--mount", &mount]).run(["sh", "-c", SCRIPT])?.exits(0)?.out();
    let times = output.lines().map(|line| Ok(line.parse()?)).collect::<Result<Vec<f64>>>()?;
    check_eq!(times.len(), 5, "times of {output}");
    // The clock has hundredths.
    let took = |step: usize| (times[step + 1] - times[step]).max(0.01);
    let large = (LARGE_MIB << 20) as f64 / 1e6;
    report.add(
        &format!("{name}_read_mb_s"),
        large / took(0),
        "a large file of the host's, for the first time",
    );
    report.add(&format!("{name}_write_mb_s"), large / took(1), "a large file, until it is with the host");
    report.add(&format!("{name}_makes_per_s"), SMALL as f64 / took(2), "small files made");
    report.add(&format!("{name}_reads_per_s"), SMALL as f64 / took(3), "small files of the host's read");
    check_eq!(fs::read_dir(directory.join("small"))?.count(), SMALL, "files that the host sees");
    Ok(())
}

fn prepare(directory: &Path) -> Result<()> {
    for part in ["small", "host"] {
        fs::create_dir_all(directory.join(part))?;
    }
    fs::write(directory.join("large"), vec![7; LARGE_MIB << 20])?;
    (0..SMALL).try_for_each(|number| {
        let file = directory.join("host").join(number.to_string());
        fs::write(&file, number.to_string()).context(file.display())
    })
}
