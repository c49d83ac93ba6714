//! Every annotation there is, and what it sets.
//!
//! The names are those of both of Kata's runtimes; where they differ from the key they set, so it says here.

use crate::keys::{AGENT, HYPERVISOR, Kind, RUNTIME, U32, nearest};

/// What the names of all annotations about the configuration begin with.
pub(crate) const PREFIX: &str = "io.katacontainers.config.";

/// One annotation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The part after `hypervisor.`, `agent.` or `runtime.`.
    pub(crate) name: &'static str,
    pub(crate) target: Target,
}

/// What an annotation does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Sets a key. With a kind it may say less than a file.
    Key(&'static str, Option<Kind>),
    /// Sets a key, and unsets the other one, which says the same in another way.
    Instead(&'static str, &'static str),
    /// Sets a key to a path that the other key, a list of patterns, has to allow.
    Path(&'static str, &'static str),
    /// Adds words to `kernel_params`.
    KernelParams,
    /// Gives the SHA-512 of the file that a key names.
    Hash(&'static str),
    /// Says that hashes are SHA-512.
    HashType,
    /// Nothing in this version, and nobody is less safe for it.
    Nothing,
    /// Refused, whatever the operator allows.
    Refused(&'static str),
}

/// The annotations about one table of the configuration.
pub(crate) struct Group {
    /// What stands between [`PREFIX`] and the name.
    pub(crate) word: &'static str,
    /// The table whose keys they set.
    pub(crate) table: &'static str,
    pub(crate) known: &'static [Known],
}

impl Group {
    /// The full name of one of its annotations.
    pub(crate) fn full_name(&self, known: &Known) -> String {
        format!("{PREFIX}{}.{}", self.word, known.name)
    }

    /// What `enable_annotations` calls one of its annotations: as Kata does those of the hypervisor, which are the
    /// only ones it asks about.
    pub(crate) fn listed_name(&self, known: &Known) -> String {
        match self.table {
            HYPERVISOR => known.name.to_owned(),
            _ => format!("{}.{}", self.word, known.name),
        }
    }
}

pub(crate) static GROUPS: [Group; 3] = [
    Group { word: "hypervisor", table: HYPERVISOR, known: OF_HYPERVISOR },
    Group { word: "agent", table: AGENT, known: OF_AGENT },
    Group { word: "runtime", table: RUNTIME, known: OF_RUNTIME },
];

/// The annotation of that full name.
///
/// # Errors
/// What is wrong with the name, and what was perhaps meant.
pub(super) fn find(full_name: &str) -> Result<(&'static Group, &'static Known), String> {
    let known = full_name.strip_prefix(PREFIX).and_then(|rest| {
        let (word, name) = rest.split_once('.')?;
        let group = GROUPS.iter().find(|group| group.word == word)?;
        Some((group, group.known.iter().find(|known| known.name == name)?))
    });
    known.ok_or_else(|| format!("unknown annotation{}", hint(full_name).unwrap_or_default()))
}

fn hint(full_name: &str) -> Option<String> {
    let wrong = full_name.strip_prefix(PREFIX)?;
    let of_group =
        |group: &'static Group| group.known.iter().map(move |known| format!("{}.{}", group.word, known.name));
    let names: Vec<_> = GROUPS.iter().flat_map(of_group).collect();
    let near = nearest(wrong, names.iter().map(String::as_str))?;
    Some(format!("; did you mean {PREFIX}{near}?"))
}

const fn key(name: &'static str) -> Known {
    sets(name, name)
}

/// For a key of another name.
const fn sets(name: &'static str, key: &'static str) -> Known {
    Known { name, target: Target::Key(key, None) }
}

const fn at_least(name: &'static str, min: i64) -> Known {
    Known { name, target: Target::Key(name, Some(Kind::Integer { min, max: U32 })) }
}

const fn one_of(name: &'static str, words: &'static [&'static str]) -> Known {
    Known { name, target: Target::Key(name, Some(Kind::Choice(words))) }
}

const fn path(name: &'static str, list: &'static str) -> Known {
    Known { name, target: Target::Path(name, list) }
}

const fn hash(name: &'static str, key: &'static str) -> Known {
    Known { name, target: Target::Hash(key) }
}

const fn nothing(name: &'static str) -> Known {
    Known { name, target: Target::Nothing }
}

const fn refused(name: &'static str, why: &'static str) -> Known {
    Known { name, target: Target::Refused(why) }
}

const EXTRA_ARGS: &str = "virtiofsd's arguments reach every file of the host, so only the configuration file may \
     set them; remove the annotation";
const POLICY: &str = "the guest's agent of this version applies no policy, and the pod counts on one; remove the \
     annotation if it does not";
const INIT_DATA: &str = "the guest of this version measures no initial data, and the pod counts on it; remove the \
     annotation if it does not";

const OF_HYPERVISOR: &[Known] = &[
    path("path", "valid_hypervisor_paths"),
    path("jailer_path", "valid_jailer_paths"),
    path("ctlpath", "valid_ctlpaths"),
    path("virtio_fs_daemon", "valid_virtio_fs_daemon_paths"),
    path("vhost_user_store_path", "valid_vhost_user_store_paths"),
    path("file_mem_backend", "valid_file_mem_backends"),
    path("entropy_source", "valid_entropy_sources"),
    key("kernel"),
    Known { name: "image", target: Target::Instead("image", "initrd") },
    Known { name: "initrd", target: Target::Instead("initrd", "image") },
    key("firmware"),
    key("firmware_volume"),
    hash("hypervisor_hash", "path"),
    hash("path_hash", "path"),
    hash("jailer_hash", "jailer_path"),
    hash("hypervisorctl_hash", "ctlpath"),
    hash("kernel_hash", "kernel"),
    hash("image_hash", "image"),
    hash("initrd_hash", "initrd"),
    hash("firmware_hash", "firmware"),
    hash("firmware_volume_hash", "firmware_volume"),
    Known { name: "asset_hash_type", target: Target::HashType },
    Known { name: "kernel_params", target: Target::KernelParams },
    key("kernel_verity_params"),
    key("machine_type"),
    key("machine_accelerators"),
    key("cpu_features"),
    key("default_vcpus"),
    sets("default_max_vcpus", "default_maxvcpus"),
    at_least("default_memory", 256),
    key("memory_slots"),
    key("memory_offset"),
    key("enable_virtio_mem"),
    key("enable_mem_prealloc"),
    key("enable_hugepages"),
    key("reclaim_guest_freed_memory"),
    key("enable_guest_swap"),
    nothing("enable_swap"),
    key("enable_iommu"),
    key("enable_iommu_platform"),
    key("hotplug_vfio_on_root_bus"),
    key("hot_plug_vfio"),
    key("cold_plug_vfio"),
    key("pcie_root_port"),
    key("pcie_switch_port"),
    one_of("shared_fs", &["virtio-fs", "virtio-9p"]),
    key("virtio_fs_cache"),
    key("virtio_fs_cache_size"),
    refused("virtio_fs_extra_args", EXTRA_ARGS),
    key("msize_9p"),
    key("block_device_driver"),
    key("block_device_aio"),
    key("block_device_cache_set"),
    key("block_device_cache_direct"),
    key("block_device_cache_noflush"),
    sets("blk_logical_sector_size", "block_device_logical_sector_size"),
    sets("blk_physical_sector_size", "block_device_physical_sector_size"),
    sets("block_device_num_queues", "num_queues"),
    sets("block_device_queue_size", "queue_size"),
    key("disable_block_device_use"),
    key("disable_image_nvdimm"),
    key("enable_iothreads"),
    key("enable_vhost_user_store"),
    key("vhost_user_reconnect_timeout_sec"),
    key("disable_vhost_net"),
    nothing("use_vsock"),
    key("rx_rate_limiter_max_rate"),
    key("tx_rate_limiter_max_rate"),
    key("guest_hook_path"),
    key("rootless"),
    key("use_legacy_serial"),
    nothing("default_gpus"),
    nothing("default_gpu_model"),
    refused("cc_init_data", INIT_DATA),
];

const OF_AGENT: &[Known] = &[
    key("kernel_modules"),
    key("enable_tracing"),
    key("container_pipe_size"),
    key("cdh_api_timeout"),
    nothing("cdh_api_timeout_ms"),
    refused("policy", POLICY),
];

const OF_RUNTIME: &[Known] = &[
    key("disable_guest_seccomp"),
    key("sandbox_cgroup_only"),
    key("enable_pprof"),
    key("experimental"),
    key("internetworking_model"),
    key("disable_new_netns"),
    key("vfio_mode"),
    key("create_container_timeout"),
    key("guest_selinux_label"),
    key("enable_vcpus_pinning"),
    key("experimental_force_guest_pull"),
    key("name"),
    key("hypervisor_name"),
    key("agent_name"),
];
