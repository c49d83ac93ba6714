//! An emptyDir of huge pages, which are the guest's.

use std::fs;

use tests::pods::{Pod, PodWorld};
use tests::{Result, check, check_eq};

use super::{mount, on_host, volume, with};

/// How much one of these pages is, in bytes.
const PAGE: u64 = 2 << 20;

/// As many as the guest keeps.
const PAGES: u64 = 4;

/// The kernel has such files written by mapping them alone. `devmem` maps what it takes for the machine's memory.
const WRITE: &str = "truncate -s 4M /huge/file && ln -s /huge/file /dev/mem && \
                     devmem 0 32 0x7470656b && devmem 0x200000 32 0x6e656573";

/// The first words of the file's two pages.
const READ: &str = "head -c 4 /huge/file; tail -c 2097152 /huge/file | head -c 4";

pub(crate) fn d15_empty_dirs_of_huge_pages_are_the_guests(world: &PodWorld) -> Result<()> {
    let huge = volume(world, "kubernetes.io~empty-dir", "huge")?;
    // As kubelet mounts it. No page is reserved on the host: nothing is put there.
    on_host(world, &format!("mount -t hugetlbfs -o pagesize=2M nodev {}", huge.display()))?;
    let chmod = on_host(world, &format!("chgrp 4242 {0} && chmod 2770 {0}", huge.display()));
    let mut config = world.config();
    let annotation = "io.katacontainers.config.hypervisor.kernel_params".to_owned();
    config.annotations.insert(annotation, format!("hugepages={PAGES}"));
    let outcome = chmod.and_then(|()| {
        world.pod(config, |pod| {
            let volume = || vec![mount(&huge, "/huge")];
            let (one, two) = (with(pod, "one", volume())?, with(pod, "two", volume())?);
            let kind = pod.sh(&two, "grep ' /huge ' /proc/mounts; stat -c '%g %a' /huge")?;
            let wanted = ["hugetlbfs", "pagesize=2M", "\n4242 2770"];
            check!(wanted.iter().all(|word| kind.contains(word)), "kind, group and mode: {kind}");
            check_eq!(free_pages(pod, &two)?, PAGES, "pages before");
            pod.sh(&one, WRITE)?;
            check_eq!(pod.sh(&two, READ)?, "keptseen", "what another container has written");
            check_eq!(free_pages(pod, &two)?, PAGES - 2, "pages while they are used");
            check!(fs::read_dir(&huge)?.next().is_none(), "they are the guest's");
            [&one, &two].into_iter().try_for_each(|id| pod.end(id))?;
            let again = with(pod, "again", volume())?;
            check_eq!(pod.sh(&again, READ)?, "keptseen", "what outlives its containers");
            pod.sh(&again, "rm /huge/file")?;
            check_eq!(free_pages(pod, &again)?, PAGES, "pages afterwards");
            Ok(())
        })
    });
    outcome.and(on_host(world, &format!("umount {}", huge.display())))
}

fn free_pages(pod: &Pod<'_>, container: &str) -> Result<u64> {
    let said = pod.sh(container, "awk '/HugePages_Free|Hugepagesize/ {print $2}' /proc/meminfo")?;
    let numbers: Vec<u64> = said.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
    check_eq!(numbers.last().map(|kib| kib << 10), Some(PAGE), "bytes of a page");
    Ok(numbers[0])
}
