//! Each of a machine's processors on a CPU of its own, where its containers have as many (`enable_vcpus_pinning`).

use std::{collections::HashSet, path::Path};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use vmm::{QmpError, VcpuThread, Vm};

use super::cpus::Cpus;

/// Whether the processors of a machine are bound to CPUs.
#[derive(Debug, Default)]
pub(super) struct Pins(bool);

impl Pins {
    /// Binds the machine's processors to `cpus`, in order, if there are as many, and to none otherwise.
    ///
    /// # Errors
    /// What kept QEMU from telling which they are, or the kernel from binding one; none is bound then.
    pub(super) async fn set(&mut self, vm: &dyn Vm, cpus: Cpus) -> Result<(), String> {
        if cpus == Cpus::default() && !self.0 {
            return Ok(());
        }
        let threads = vm.vcpu_threads().await.map_err(|error: QmpError| error.to_string())?;
        are_of(vm.pid(), &threads)?;
        let Some(plan) = plan(&threads, cpus) else { return self.take_back(vm, &threads) };
        self.0 = true;
        let pinned = plan.into_iter().try_for_each(|(tid, cpu)| pin(tid, cpu));
        pinned.map_err(|why| match self.take_back(vm, &threads) {
            Ok(()) => why,
            Err(further) => format!("{why}; {further}"),
        })
    }

    /// Has the processors run where QEMU itself does.
    fn take_back(&mut self, vm: &dyn Vm, threads: &[VcpuThread]) -> Result<(), String> {
        if !self.0 {
            return Ok(());
        }
        let qemu = vm.pid();
        let everywhere = sched_getaffinity(pid(qemu)?);
        let everywhere = everywhere.map_err(|errno| format!("CPUs of QEMU, process {qemu}: {errno}"))?;
        let each = threads.iter().map(|thread| bind(thread.tid, &everywhere));
        each.fold(Ok(()), Result::and)?;
        self.0 = false;
        Ok(())
    }
}

/// What QEMU says is not taken for granted: others' threads are not its to have bound.
fn are_of(qemu: u32, threads: &[VcpuThread]) -> Result<(), String> {
    let is_its = |thread: &VcpuThread| Path::new(&format!("/proc/{qemu}/task/{}", thread.tid)).exists();
    match threads.iter().find(|thread| !is_its(thread)) {
        Some(other) => Err(format!("QEMU names thread {}, which is not its own", other.tid)),
        None => Ok(()),
    }
}

/// Which thread is to be on which CPU, if each can have one. Emulated processors may share a thread, which would have to
/// do the work of all on one CPU.
fn plan(threads: &[VcpuThread], cpus: Cpus) -> Option<Vec<(u32, usize)>> {
    let different: HashSet<_> = threads.iter().map(|thread| thread.tid).collect();
    let cpus: Vec<_> = cpus.iter().collect();
    let fits = cpus.len() == threads.len() && different.len() == threads.len();
    fits.then(|| threads.iter().map(|thread| thread.tid).zip(cpus).collect())
}

fn pin(tid: u32, cpu: usize) -> Result<(), String> {
    let mut only = CpuSet::new();
    only.set(cpu).map_err(|errno| format!("CPU {cpu}: {errno}"))?;
    bind(tid, &only).map_err(|why| format!("to CPU {cpu}, which a container's cpuset has: {why}"))
}

fn bind(tid: u32, cpus: &CpuSet) -> Result<(), String> {
    sched_setaffinity(pid(tid)?, cpus).map_err(|errno| format!("thread {tid} of QEMU: {errno}"))
}

/// 0 would be this thread.
fn pid(number: u32) -> Result<Pid, String> {
    let number = i32::try_from(number).ok().filter(|number| *number > 0);
    number.map(Pid::from_raw).ok_or_else(|| "QEMU names a thread that cannot be".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(tids: &[u32]) -> Vec<VcpuThread> {
        (0..).zip(tids).map(|(vcpu, tid)| VcpuThread { vcpu, tid: *tid }).collect()
    }

    #[test]
    fn processors_are_bound_in_order_where_each_can_have_a_cpu() {
        let cpus = Cpus::of_list("8,2-3");
        assert_eq!(plan(&threads(&[70, 72, 71]), cpus), Some(vec![(70, 2), (72, 3), (71, 8)]));
        for others in [&[][..], &[70, 71], &[70, 71, 72, 73], &[70, 70, 71]] {
            assert_eq!(plan(&threads(others), cpus), None, "{others:?}");
        }
    }
}
