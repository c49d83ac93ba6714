//! What a guest does once before it becomes a template: the first container costs a guest several times what later ones
//! do, and drivers are there then.

use std::time::Duration;

use agent_client::{AgentClient, Error};
use agent_protocol::{
    agent::{CreateContainerRequest, CreateSandboxRequest, KernelModule, Storage},
    convert::spec_to_wire,
};
use oci_spec::runtime::{RootBuilder, Spec};
use tokio::time::timeout;

/// How long all of it may take.
const LIFE: Duration = Duration::from_secs(60);
/// The sandbox and its container.
const NAME: &str = "warm-up";
/// Where the guest has the container's root file system.
const ROOTFS: &str = "/run/kata-containers/warm-up";

/// Drivers that nobody waits for: a guest otherwise loads them while its first container runs.
const DRIVERS: [&str; 2] = ["virtio_balloon", "virtio_rng"];

/// The smallest program: an ELF header, one program header, and `exit(0)` for x86-64 Linux.
#[rustfmt::skip]
const TRUE: &[u8] = &[
    // e_ident: ELF, 64 bits, little endian; then ET_EXEC, EM_X86_64, version 1.
    0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0,
    // e_entry 0x400078, e_phoff 64, e_shoff 0.
    0x78, 0, 0x40, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    // e_flags, e_ehsize 64, e_phentsize 56, e_phnum 1, no sections.
    0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    // PT_LOAD, readable and executable, from offset 0.
    1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    // At 0x400000, all 129 bytes, aligned to 4096.
    0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0,
    129, 0, 0, 0, 0, 0, 0, 0, 129, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
    // mov eax, 60; xor edi, edi; syscall.
    0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05,
];

/// Runs a container to its end and leaves nothing of it.
///
/// # Errors
/// The first call that failed, and one that is not answered: the sandbox may be there still then.
pub(super) async fn up(agent: &AgentClient, storages: &[Storage]) -> Result<(), Error> {
    let late =
        |_| Error::Protocol { call: "WaitProcess", what: format!("no end within {} s", LIFE.as_secs()) };
    timeout(LIFE, live(agent, storages)).await.map_err(late)?
}

async fn live(agent: &AgentClient, storages: &[Storage]) -> Result<(), Error> {
    // Without a host name of its own: the guest would keep it for containers that have none.
    let sandbox = |kernel_modules| CreateSandboxRequest {
        sandbox_id: NAME.to_owned(),
        storages: storages.to_vec(),
        kernel_modules,
        ..Default::default()
    };
    let modules = DRIVERS.map(|name| KernelModule { name: name.to_owned(), ..Default::default() });
    // A kernel that has them built in may not know them by name.
    if agent.create_sandbox(sandbox(modules.to_vec())).await.is_err() {
        agent.create_sandbox(sandbox(Vec::new())).await?;
    }
    let ran = container(agent).await;
    let ended = agent.destroy_sandbox().await;
    ran.and(ended)
}

async fn container(agent: &AgentClient) -> Result<(), Error> {
    agent.copy_file(&format!("{ROOTFS}/true"), 0o100_755, TRUE).await?;
    let spec =
        spec().map_err(|error| Error::Protocol { call: "CreateContainer", what: error.to_string() })?;
    let request = CreateContainerRequest {
        container_id: NAME.to_owned(),
        exec_id: NAME.to_owned(),
        oci: Some(spec_to_wire(&spec)).into(),
        ..Default::default()
    };
    agent.create_container(request).await?;
    agent.start_container(NAME).await?;
    agent.wait_process(NAME, NAME).await?;
    agent.remove_container(NAME, Duration::ZERO).await
}

/// A container like any: the usual mounts, capabilities, limits and hidden paths.
fn spec() -> oci_spec::Result<Spec> {
    let mut spec = Spec::default();
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(vec!["/true".to_owned()]));
    }
    spec.set_root(Some(RootBuilder::default().path(ROOTFS).readonly(false).build()?));
    spec.set_hostname(Some(NAME.to_owned()));
    Ok(spec)
}
