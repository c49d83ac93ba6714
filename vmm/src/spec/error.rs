//! Values that make no machine.

use std::path::PathBuf;

/// A value that no virtual machine can be made with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A name or tag QEMU or the guest would read as something else.
    #[error("{what} {value:?} is not 1 to {max} letters, digits, '-', '_' and '.'")]
    Word {
        /// Which value.
        what: &'static str,
        /// What was given.
        value: String,
        /// The most characters it may have.
        max: usize,
    },
    /// A UUID that is not 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
    #[error("uuid {0:?} is not of the form 01234567-89ab-cdef-0123-456789abcdef")]
    Uuid(String),
    /// A machine option that is not a switch or an assignment.
    #[error("machine option {0:?} is neither 'name=value' nor a switch such as 'smm' or 'nosmm'")]
    MachineOption(String),
    /// A machine option that would undo what other keys say.
    #[error(
        "machine option {0:?} is not for this list: other keys decide that, such as accelerator, firmware, default_memory and default_vcpus"
    )]
    DecidedElsewhere(String),
    /// A CPU feature without a name, or with a blank.
    #[error("cpu feature {0:?} is not of the form 'name=value', '+name' or '-name'")]
    CpuFeature(String),
    /// Numbers of virtual CPUs that make no machine.
    #[error(
        "{boot} virtual cpus of at most {max}: at least 1, and no more than the maximum of up to 255, would do"
    )]
    Vcpus {
        /// CPUs at boot.
        boot: u32,
        /// CPUs at most.
        max: u32,
    },
    /// Amounts of memory that make no machine.
    #[error(
        "{mib} MiB of memory of at most {max_mib} MiB: at least 1, and no more than the maximum, would do"
    )]
    Memory {
        /// Memory at boot, in MiB.
        mib: u64,
        /// Memory at most, in MiB.
        max_mib: u64,
    },
    /// More memory slots than QEMU has.
    #[error("{0} memory slots are more than the 256 QEMU has")]
    MemorySlots(u32),
    /// More places for PCI devices than the root bus has slots for.
    #[error("{bridges} PCI bridges and {root_ports} root ports: at most 5 and 16 would do")]
    PciPlaces {
        /// Bridges.
        bridges: u32,
        /// Root ports.
        root_ports: u32,
    },
    /// More threads for block devices than make sense.
    #[error("{0} independent I/O threads: at most 64 would do")]
    IoThreads(u32),
    /// Sizes of sectors that no disk has.
    #[error(
        "sectors of {logical} bytes on a medium with {physical}: powers of two from 512 to 65536, or 0, would do, the \
         logical one no larger than the physical one"
    )]
    Sectors {
        /// What the guest addresses.
        logical: u32,
        /// What the medium writes at once.
        physical: u32,
    },
    /// Queues that no virtio device has.
    #[error("{count} queues of {size} descriptors: 1 to 1022 of a power of two from 4 to 1024 would do")]
    Queues {
        /// How many.
        count: u32,
        /// Descriptors in each.
        size: u32,
    },
    /// A path that is no address of a Unix socket.
    #[error("{} is not an absolute path of at most 107 bytes, as a socket's has to be", .0.display())]
    Socket(PathBuf),
    /// NUMA nodes that no machine has.
    #[error(
        "guest nodes on host nodes {0:?}: 1 to 128 of them, each on at least one host node below 128, would do"
    )]
    Numa(Vec<Vec<u32>>),
    /// A position no C-bit has.
    #[error("bit {0} of an address cannot say that memory is encrypted: 32 to 63 could")]
    CBit(u32),
    /// Not what an SEV-SNP identity is made of.
    #[error("the {what} is not {bytes} bytes in base64")]
    SnpIdentity {
        /// Which part.
        what: &'static str,
        /// The size it has to have.
        bytes: usize,
    },
    /// Distances that ACPI does not know.
    #[error(
        "distances {0:?} between NUMA nodes: 10 from each to itself and 10 to 254 to each other would do"
    )]
    NumaDistances(Vec<Vec<u8>>),
    /// More devices than the board has places for.
    #[error(
        "bridges, ports and devices are {asked}, and the board has places for {most}: lower default_bridges or \
         pcie_root_port, or take away guest_extension_images"
    )]
    Places {
        /// How many there are.
        asked: u32,
        /// How many there can be.
        most: u32,
    },
    /// More ports of a switch than make sense.
    #[error("{0} ports of a PCI Express switch: at most 16 would do")]
    SwitchPorts(u32),
    /// More devices of the host than places for them.
    #[error("{device} is to be in the guest, and the machine has no free {what}: {remedy}")]
    NoPlace {
        /// The device.
        device: String,
        /// What there is none of.
        what: &'static str,
        /// What would give it more.
        remedy: &'static str,
    },
    /// A device of the host can be in a machine once.
    #[error("{0} is to be in the guest twice")]
    HostDeviceTwice(String),
    /// More words than the guest's kernel reads.
    #[error(
        "the guest kernel's command line has {0} bytes, and the kernel reads 2047: shorten kernel_params, those of the \
         file or of the pod's annotation, or take away guest_extension_images"
    )]
    CommandLine(usize),
    /// The guest knows extension images by their names.
    #[error("two extension images are called {0:?}")]
    ExtensionTwice(String),
    /// Not an amount of SGX memory.
    #[error(
        "SGX memory of {0:?}: a number of bytes, or of Ki, Mi, Gi, Ti, that is a multiple of 4096 would do"
    )]
    SgxEpc(String),
    /// Two things that cannot be had together.
    #[error("{what} cannot be had with {with}")]
    Clash {
        /// The one.
        what: &'static str,
        /// The other.
        with: &'static str,
    },
    /// A kernel parameter that would be read as none or as several.
    #[error("kernel parameter {0:?} is empty, or has a blank or control character outside double quotes")]
    KernelParam(String),
    /// Not a label of SELinux.
    #[error("{0:?} is no label of SELinux, such as system_u:system_r:container_kvm_t:s0")]
    SelinuxLabel(String),
    /// Arguments that would undo what the shim sets itself.
    #[error(
        "{} is not for the {daemon} of a sandbox: the shim sets it, or it weakens the daemon's jail; remove it",
        quoted(.args)
    )]
    ExtraArgs {
        /// The arguments.
        args: Vec<String>,
        /// The daemon's name.
        daemon: &'static str,
    },
}

fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}
