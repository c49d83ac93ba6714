//! What a process' streams carry, beside a bare vsock in the same minute: a round of each after the other, as what a
//! machine gives to one of them changes from moment to moment.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use tests::bundle::{process, spec};
use tests::case::PATIENCE;
use tests::machine::Machine;
use tests::shim::TaskClient;
use tests::stdio::Fifos;
use tests::{Case, Context, Result, check_eq};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use vmm::{Listener, Stream};

use crate::guest::{Between, CHUNK, PORT, rate, rootfs, run};
use crate::report::{Report, median};

/// Bytes of each stream, of which a process' start and end are to be a small part: with all rounds, 1.3 GiB through the shim
/// each way.
const LENGTH: usize = 192 << 20;
const ROUNDS: usize = 7;

/// Measures all streams, of the process by execs in the task's container.
pub(crate) fn measure(case: &Case<'_>, task: &TaskClient, report: &mut Report) -> Result<()> {
    let mut bare = Bare::boot(case)?;
    let measured = rounds(case, task, &mut bare);
    bare.end()?;
    let [stdout, from_guest, piped, stdin, to_guest, piped_in] = &measured?;
    for (key, rates, what) in [
        ("stdout_mb_s", stdout, "from the process to the FIFO's reader"),
        ("stdin_mb_s", stdin, "from the FIFO's writer to the process"),
        ("bare_vsock_mb_s", from_guest, "guest to host with nothing of ours in between"),
        ("bare_vsock_in_mb_s", to_guest, "host to guest, the same"),
        ("piped_vsock_mb_s", piped, "guest to host, from a pipe, by a program that does nothing else"),
        ("piped_vsock_in_mb_s", piped_in, "host to guest, into a pipe, the same"),
    ] {
        report.add(key, median(rates.clone()), what);
    }
    for (key, of, whole, what) in [
        ("stdout_of_bare", stdout, from_guest, "the part of the bare vsock that stdout comes to"),
        ("stdin_of_bare", stdin, to_guest, "the part of it that stdin comes to"),
        ("stdout_of_piped", stdout, piped, "the part of the piped vsock that stdout comes to"),
        ("stdin_of_piped", stdin, piped_in, "the part of it that stdin comes to"),
    ] {
        // Round by round, as a machine is not the same in the next.
        report.add(key, median(of.iter().zip(whole).map(|(of, whole)| of / whole).collect()), what);
    }
    Ok(())
}

/// The rates of each kind, one for each round.
fn rounds(case: &Case<'_>, task: &TaskClient, bare: &mut Bare) -> Result<[Vec<f64>; 6]> {
    let mut rates = [const { Vec::new() }; 6];
    for round in 0..ROUNDS {
        rates[0].push(stdout(case, task, round)?);
        rates[1].push(bare.send(case, Between::Nothing)?);
        rates[2].push(bare.send(case, Between::Pipe)?);
        rates[3].push(stdin(case, task, round)?);
        rates[4].push(bare.take(case, Between::Nothing)?);
        rates[5].push(bare.take(case, Between::Pipe)?);
    }
    Ok(rates)
}

fn stdout(case: &Case<'_>, task: &TaskClient, round: usize) -> Result<f64> {
    let stdio = Fifos::unread(&case.dir(), &format!("out-{round}"))?;
    let out = counted(stdio.stdout.clone());
    let (size, count) = (format!("bs={CHUNK}"), format!("count={}", LENGTH / CHUNK));
    let program = ["dd", "if=/dev/zero", &size, &count];
    task.exec("out", &process(&spec(case.world, &case.namespace, &task.id, &[]), &program), Some(&stdio))?;
    task.start("out")?;
    let began = Instant::now();
    let bytes = out.recv_timeout(PATIENCE)?;
    let took = began.elapsed();
    check_eq!(bytes, LENGTH, "bytes of stdout");
    task.wait("out")?;
    task.delete("out")?;
    Ok(rate(LENGTH, took))
}

/// How many bytes come out of a FIFO, once it ends.
fn counted(fifo: PathBuf) -> Receiver<usize> {
    let (sender, counted) = channel();
    thread::spawn(move || {
        let mut chunk = vec![0; 1 << 20];
        let mut all = 0;
        if let Ok(mut fifo) = File::open(&fifo) {
            while let Ok(more @ 1..) = fifo.read(&mut chunk) {
                all += more;
            }
        }
        sender.send(all)
    });
    counted
}

fn stdin(case: &Case<'_>, task: &TaskClient, round: usize) -> Result<f64> {
    let stdio = Fifos::new(&case.dir(), &format!("in-{round}"))?;
    let program = ["dd", "of=/dev/null", &format!("bs={CHUNK}")];
    task.exec("in", &process(&spec(case.world, &case.namespace, &task.id, &[]), &program), Some(&stdio))?;
    task.start("in")?;
    let began = Instant::now();
    let mut input = stdio.input()?;
    let chunk = vec![0; 1 << 20];
    for _ in 0..LENGTH / chunk.len() {
        input.write_all(&chunk)?;
    }
    drop(input);
    task.close_stdin("in")?;
    check_eq!(task.wait("in")?, 0, "status");
    let took = began.elapsed();
    task.delete("in")?;
    Ok(rate(LENGTH, took))
}

/// A guest without a shim, in which a container connects back and does nothing but send or take.
struct Bare {
    runtime: Runtime,
    machine: Machine,
    connections: Listener,
    made: usize,
}

impl Bare {
    fn boot(case: &Case<'_>) -> Result<Bare> {
        let share = case.dir().join("bare");
        rootfs(&share.join("rootfs"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let machine = runtime.block_on(Machine::boot(case, share, |_| {}))?;
        let connections =
            runtime.block_on(async { machine.vm.vsock().listen(PORT).context("the device") })?;
        Ok(Bare { runtime, machine, connections, made: 0 })
    }

    /// The guest sends.
    fn send(&mut self, case: &Case<'_>, between: Between) -> Result<f64> {
        self.round(case, LENGTH, between, async |stream: &mut dyn Stream| drain(stream, LENGTH).await)
    }

    /// The guest takes.
    fn take(&mut self, case: &Case<'_>, between: Between) -> Result<f64> {
        self.round(case, 0, between, async |stream: &mut dyn Stream| {
            let began = Instant::now();
            stream.write_all(&vec![0; LENGTH]).await?;
            stream.shutdown().await?;
            // It hangs up when it has taken all.
            while stream.read(&mut [0]).await? > 0 {}
            Ok(began.elapsed())
        })
    }

    fn round(
        &mut self,
        case: &Case<'_>,
        sent: usize,
        between: Between,
        measure: impl AsyncFnOnce(&mut dyn Stream) -> Result<Duration>,
    ) -> Result<f64> {
        self.made += 1;
        let id = format!("bare-{}", self.made);
        let Bare { runtime, machine, connections, .. } = self;
        let round = async {
            run(&machine.agent, case, &id, sent, between).await?;
            let mut stream = connections.recv().await.context("the guest's connection")?.stream;
            let took = measure(stream.as_mut()).await?;
            drop(stream);
            machine.agent.remove_container(&id, Duration::ZERO).await?;
            Ok(rate(LENGTH, took))
        };
        runtime.block_on(async { tokio::time::timeout(PATIENCE, round).await? })
    }

    fn end(self) -> Result<()> {
        self.runtime.block_on(self.machine.end())
    }
}

/// How long it takes until so many bytes have come.
async fn drain(stream: &mut dyn Stream, length: usize) -> Result<Duration> {
    let began = Instant::now();
    let mut buffer = vec![0; CHUNK];
    let mut all = 0;
    while all < length {
        match stream.read(&mut buffer).await? {
            0 => check_eq!(all, length, "bytes that came from the guest"),
            more => all += more,
        }
    }
    Ok(began.elapsed())
}
