//! Devices of the host that a container is given by VFIO: its specification has the files that VFIO has for them.
//!
//! A file stands for all devices of an IOMMU group, or for one. The machine has them from the start, or they are plugged
//! in for the first container that has them, and out when the last one is gone.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Weak},
};

use agent_protocol::agent::Device;
use configuration::VfioMode;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use tokio::sync::Mutex as AsyncMutex;
use vmm::{
    VmSpec,
    plug::Pluggable,
    spec::PassThrough,
    vfio::{DeviceFile, HostDevice, SYSFS},
};

use super::disks::{self, Plugged};
use crate::{
    error::{Error, Result},
    sandbox::Sandbox,
};

/// Where the files are.
const FILES: &str = "/dev/vfio";
/// What QEMU says when the kernel does not let it keep the guest's memory where it is.
const NOT_KEPT: &str = "Cannot allocate memory";

/// A file of VFIO's that a container is given.
#[derive(Debug)]
pub(super) struct Asked {
    /// As the container has it on the host.
    file: LinuxDevice,
    rule: LinuxDeviceCgroup,
    /// The group's number, or what a file of one device is called.
    name: String,
    /// None for what goes with every group.
    devices: Vec<HostDevice>,
}

/// The files of VFIO's that the container of `spec` is given, by a rule about each: a privileged one sees all of the host's
/// and is given none.
///
/// # Errors
/// `InvalidArgument` that names the file, and the device of the host that is not for a guest.
pub(super) fn asked(spec: &Spec) -> Result<Vec<Asked>> {
    let linux = spec.linux().as_ref();
    let files = linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let mut asked = Vec::new();
    for file in files.iter().filter(|file| file.typ() == LinuxDeviceType::C) {
        if let Some(rule) = rules.iter().find(|rule| disks::is_about(rule, file)) {
            asked.extend(behind(file, rule)?);
        }
    }
    Ok(asked)
}

fn behind(file: &LinuxDevice, rule: &LinuxDeviceCgroup) -> Result<Option<Asked>> {
    let path = file.path().display();
    let refused = |why: &dyn std::fmt::Display| {
        Error::InvalidArgument(format!("device {path} ({}:{}): {why}", file.major(), file.minor()))
    };
    let found = DeviceFile::of(Path::new(SYSFS), file.major(), file.minor());
    let (name, devices) = match found.map_err(|error| refused(&error))? {
        Some(DeviceFile::Container) => (String::new(), Vec::new()),
        Some(DeviceFile::Devices { name, devices }) => (name, devices),
        None if file.path().starts_with(FILES) => {
            return Err(refused(&"the host has no such device of VFIO's"));
        }
        None => return Ok(None),
    };
    match devices.iter().find(|device| device.address().is_none()) {
        Some(device) => {
            Err(refused(&format!("{device} is on no PCI bus, and guests of this architecture have no other")))
        }
        None => Ok(Some(Asked { file: file.clone(), rule: rule.clone(), name, devices })),
    }
}

/// When devices come to a machine whose first container is of `spec`, and which it has from the start.
///
/// # Errors
/// As of [`asked`].
pub(crate) fn from_the_start(configured: &PassThrough, spec: &Spec) -> Result<PassThrough> {
    let PassThrough::Cold { port, .. } = configured else { return Ok(configured.clone()) };
    let mut devices: Vec<HostDevice> = Vec::new();
    for device in asked(spec)?.into_iter().flat_map(|asked| asked.devices) {
        // A group may be given as a whole and in part.
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    Ok(PassThrough::Cold { devices, port: *port })
}

/// The devices of the host that a machine has.
pub(crate) struct HostDevices {
    mode: VfioMode,
    /// From the start, and where the guest finds each.
    cold: Vec<(HostDevice, String)>,
    /// Plugged in for containers, by their names.
    hot: AsyncMutex<HashMap<String, Weak<Plugged>>>,
}

/// What a container has of them.
#[derive(Default)]
pub(super) struct Given {
    pub(super) plugged: Vec<Arc<Plugged>>,
    /// What the agent is told.
    pub(super) told: Vec<Device>,
    /// What the container has the files of.
    files: Vec<(LinuxDevice, LinuxDeviceCgroup)>,
}

impl HostDevices {
    /// Of a machine that has booted.
    pub(crate) fn of(machine: &VmSpec, mode: VfioMode) -> HostDevices {
        // What has no place does not boot.
        let places = machine.passed_through().unwrap_or_default();
        let devices = match &machine.pass_through {
            PassThrough::Cold { devices, .. } => devices.as_slice(),
            PassThrough::Never | PassThrough::Hot(_) => &[],
        };
        let cold = devices.iter().cloned().zip(places.into_iter().map(|plugged| plugged.at.to_string()));
        HostDevices { mode, cold: cold.collect(), hot: AsyncMutex::default() }
    }

    /// Has the machine of `sandbox` have the devices.
    ///
    /// # Errors
    /// Names the file, the device, and what keeps the machine from having it; those that it has by then go again.
    pub(super) async fn give(&self, sandbox: &Arc<Sandbox>, asked: Vec<Asked>) -> Result<Given> {
        let mut given = Given::default();
        for Asked { file, rule, name, devices } in asked {
            let path = file.path().clone();
            if self.mode == VfioMode::Vfio {
                given.files.push((file, rule));
            }
            let mut options = Vec::new();
            for device in &devices {
                let place = self
                    .place(sandbox, device, &mut given.plugged)
                    .await
                    .map_err(|error| not_had(&path, device, &error))?;
                options.push(format!("{}={place}", device.address().unwrap_or_default()));
            }
            if !options.is_empty() {
                given.told.push(self.told(&path, name, options));
            }
        }
        Ok(given)
    }

    /// Where the guest finds the device, which is plugged in if it is not there yet.
    async fn place(
        &self,
        sandbox: &Arc<Sandbox>,
        device: &HostDevice,
        plugged: &mut Vec<Arc<Plugged>>,
    ) -> std::result::Result<String, vmm::plug::PlugError> {
        if let Some((_, place)) = self.cold.iter().find(|(cold, _)| cold == device) {
            return Ok(place.clone());
        }
        let mut hot = self.hot.lock().await;
        let its = match hot.get(&device.to_string()).and_then(Weak::upgrade) {
            Some(its) => its,
            None => {
                Arc::new(Plugged::of(sandbox, sandbox.plug(Pluggable::HostDevice(device.clone())).await?))
            }
        };
        hot.retain(|_, device| device.strong_count() > 0);
        hot.insert(device.to_string(), Arc::downgrade(&its));
        let place = its.place();
        plugged.push(its);
        Ok(place)
    }

    fn told(&self, path: &Path, id: String, options: Vec<String>) -> Device {
        let type_ = match self.mode {
            VfioMode::GuestKernel => "vfio-pci-gk",
            VfioMode::Vfio => "vfio-pci",
        };
        let container_path = path.to_string_lossy().into_owned();
        Device { id, type_: type_.into(), container_path, options, ..Device::default() }
    }
}

impl Given {
    /// Adds the files that the container has, which the agent makes the guest's.
    pub(super) fn add_files(&mut self, linux: &mut Linux) {
        let (files, rules): (Vec<_>, Vec<_>) = std::mem::take(&mut self.files).into_iter().unzip();
        if files.is_empty() {
            return;
        }
        linux.devices_mut().get_or_insert_default().extend(files);
        let resources = linux.resources_mut().get_or_insert_default();
        resources.devices_mut().get_or_insert_default().extend(rules);
    }
}

fn not_had(path: &Path, device: &HostDevice, error: &vmm::plug::PlugError) -> Error {
    let why = error.to_string();
    let remedy = if why.contains(NOT_KEPT) {
        "; all of the guest's memory has to stay where it is in the host's: raise LimitMEMLOCK of containerd's unit"
    } else {
        ""
    };
    Error::Failed(format!("device {} ({device}): {why}{remedy}", path.display()))
}
