//! How a template is made.

use std::{fs::File, io, time::Duration};

use slog::info;
use vmm::{
    Vm, VmSpec,
    spec::{Origin, VmName},
};

use super::{
    Maker,
    key::Key,
    store::{Files, Lock},
    warm,
};
use crate::sandbox::{boot, run_dir::RunDir, share::SharedTree};

/// More than a guest writes to before it gives back what it does not use, whatever its size.
const MOST: u64 = 512 << 20;

impl Maker<'_> {
    /// Boots a machine like `spec`, has it do once what it will do often, and saves it.
    ///
    /// # Errors
    /// What went wrong; nothing is left of the attempt.
    pub(super) async fn make(&self, lock: &Lock<'_>, key: &Key, spec: &VmSpec) -> Result<Files, String> {
        info!(self.log, "makes a template"; "key" => &key.name);
        lock.tidy();
        let making = lock.begin(spec.memory.bytes().min(MOST))?;
        let run_dir = RunDir::create(making.directory.join("run")).map_err(|error| error.to_string())?;
        let tree = SharedTree::of(spec, run_dir.path(), &[]).map_err(|error| error.to_string())?;
        let mut template = VmSpec {
            name: VmName::new("template").map_err(|error| error.to_string())?,
            run_dir: run_dir.path().to_path_buf(),
            origin: Origin::Template { memory: making.files.memory.clone() },
            selinux: None,
            extra_monitor: None,
            ..spec.clone()
        };
        if let (Some(share), Some(tree)) = (&mut template.share, &tree) {
            share.source = tree.exported().to_path_buf();
        }
        let vm = self.hypervisor.boot(template).await.map_err(|error| error.to_string())?;
        let made = self.save(vm.as_ref(), spec, &making.files).await;
        // Whatever came of it, the machine is of no more use.
        let stopped = vm.stop(Duration::ZERO).await;
        made?;
        stopped.map_err(|error| error.to_string())?;
        let memory = making.files.memory.clone();
        let sparse = tokio::task::spawn_blocking(move || vmm::make_sparse(&memory)).await;
        sparse
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| format!("the template's memory: {error}"))?;
        let files = making.publish(key)?;
        info!(self.log, "made a template"; "key" => &key.name);
        Ok(files)
    }

    async fn save(&self, vm: &dyn Vm, spec: &VmSpec, files: &Files) -> Result<(), String> {
        let agent = boot::reach_agent(vm, self.configuration).await.map_err(|error| error.to_string())?;
        // A share that another program serves is not there yet.
        let storages = if spec.has_late_share() { &[] } else { self.storages };
        if let Err(why) = warm::up(&agent, storages).await {
            info!(self.log, "the template is not warm"; "why" => why.to_string());
        }
        drop(agent);
        let state =
            File::create_new(&files.state).map_err(|error| format!("{}: {error}", files.state.display()))?;
        vm.save(state).await.map_err(|error| error.to_string())
    }
}
