//! Standard streams through FIFOs.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
};

use containerd_shim_protos::api::{CreateTaskRequest, Status};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{io::AsyncReadExt, net::unix::pipe};

use crate::fakes::{Shim, on_fakes, soon};

/// A FIFO as containerd makes one for each stream.
fn fifo(shim: &Shim, name: &str) -> String {
    let path = shim.dir.path().join(name);
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    path.to_str().unwrap().into()
}

/// Opens a FIFO to read from it, as containerd does before Create.
fn open_reader(fifo: &str) -> fs::File {
    fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(fifo).unwrap()
}

/// Everything that is in a FIFO right now: without a writer it ends there, with one it would block.
fn read_now(fifo: &mut fs::File) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = fifo.read_to_end(&mut all);
    all
}

/// Bytes that show when some are missing, doubled or out of order.
fn numbers(count: usize) -> Vec<u8> {
    (0..count / 8).flat_map(|number| format!("{number:07}\n").into_bytes()).collect()
}

#[test]
fn everything_a_process_printed_is_in_its_fifos_before_its_exit_is_told() {
    on_fakes(async |shim| {
        let (stdout, stderr) = (fifo(shim, "out"), fifo(shim, "err"));
        let (mut out, mut err) = (open_reader(&stdout), open_reader(&stderr));
        shim.create_as(CreateTaskRequest { stdout, stderr, ..shim.request("c1") }).await.unwrap();
        shim.start("c1").await.unwrap();
        let (printed, complained) = (numbers(48 * 1024), numbers(16 * 1024));
        shim.guest.init("c1").prints(&printed);
        shim.guest.init("c1").prints_error(&complained);
        shim.guest.init("c1").exits(0);
        assert_eq!(shim.published(3).await, ["create c1", "start c1", "exit c1 0"]);
        assert!(read_now(&mut out) == printed);
        assert!(read_now(&mut err) == complained);
    });
}

#[test]
fn a_reader_that_takes_nothing_holds_up_no_exit_and_loses_nothing() {
    on_fakes(async |shim| {
        let stdout = fifo(shim, "out");
        let mut reader = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
        shim.create_as(CreateTaskRequest { stdout, ..shim.request("c1") }).await.unwrap();
        shim.start("c1").await.unwrap();
        let printed = numbers(256 * 1024);
        shim.guest.init("c1").prints(&printed);
        reader.readable().await.unwrap();
        shim.guest.init("c1").exits(0);
        assert_eq!(soon(shim.waiting("c1")).await.unwrap(), 0);
        assert_eq!(shim.published(3).await, ["create c1", "start c1", "exit c1 0"]);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.unwrap();
        assert!(all == printed, "{} bytes of {}", all.len(), printed.len());
    });
}

#[test]
fn an_answer_longer_than_asked_for_ends_that_stream_and_nothing_else() {
    on_fakes(async |shim| {
        let (stdout, stderr) = (fifo(shim, "out"), fifo(shim, "err"));
        let mut out = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
        let mut err = pipe::OpenOptions::new().open_receiver(&stderr).unwrap();
        shim.create_as(CreateTaskRequest { stdout, stderr, ..shim.request("c1") }).await.unwrap();
        shim.start("c1").await.unwrap();
        let process = shim.guest.init("c1");
        process.prints(b"before\n");
        process.floods(vec![b'x'; 1 << 20]);
        let mut all = String::new();
        out.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "before\n");
        process.prints_error(b"still here\n");
        let mut line = [0; 11];
        err.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"still here\n");
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
        process.exits(5);
        assert_eq!(shim.wait("c1").await.unwrap(), 5);
        shim.published(3).await;
    });
}

#[test]
fn input_ends_once_it_is_closed_and_its_last_writer_gone_and_not_before() {
    on_fakes(async |shim| {
        let stdin = fifo(shim, "in");
        shim.create_as(CreateTaskRequest { stdin: stdin.clone(), ..shim.request("c1") }).await.unwrap();
        shim.start("c1").await.unwrap();
        let write = |text: &str| {
            let mut writer = fs::OpenOptions::new().write(true).open(&stdin).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
            writer
        };
        let process = shim.guest.init("c1");
        drop(write("one "));
        assert_eq!(process.reads(4).await, b"one ");
        let last = write("two");
        assert_eq!(process.reads(7).await, b"one two");
        shim.close_stdin("c1").await.unwrap();
        assert!(!process.has_no_input());
        drop(last);
        assert_eq!(process.reads_to_the_end().await, b"one two");
        shim.published(2).await;
    });
}

#[test]
fn an_execs_streams_are_its_own() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let (stdin, stdout) = (fifo(shim, "in"), fifo(shim, "out"));
        let mut out = open_reader(&stdout);
        shim.exec_as("c1/e1", |request| {
            request.stdin.clone_from(&stdin);
            request.stdout.clone_from(&stdout);
        })
        .await
        .unwrap();
        shim.start("c1/e1").await.unwrap();
        let exec = shim.guest.exec();
        fs::OpenOptions::new().write(true).open(&stdin).unwrap().write_all(b"in").unwrap();
        shim.close_stdin("c1/e1").await.unwrap();
        assert_eq!(exec.reads_to_the_end().await, b"in");
        exec.prints(b"out");
        exec.exits(0);
        assert_eq!(shim.published(3).await[2], "exit c1/e1 0");
        assert_eq!(read_now(&mut out), b"out");
        assert_eq!(shim.state("c1").await.unwrap().0, Status::RUNNING);
    });
}

#[test]
fn input_closed_before_the_process_runs_ends_when_it_has_been_read() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let stdin = fifo(shim, "in");
        shim.exec_as("c1/e1", |request| request.stdin = stdin.clone()).await.unwrap();
        let late = shim.guest.delays("ExecProcess");
        let starting = shim.starting("c1/e1");
        shim.guest.is_asked("ExecProcess").await;
        // The shim has opened its end, so this does not wait.
        fs::write(&stdin, "all").unwrap();
        shim.close_stdin("c1/e1").await.unwrap();
        drop(late);
        starting.await.unwrap().unwrap();
        let process = shim.guest.exec();
        assert_eq!(process.reads_to_the_end().await, b"all");
        process.exits(0);
        shim.guest.init("c1").exits(0);
        assert_eq!(shim.wait("c1").await.unwrap(), 0);
        let told = ["exec-added c1/e1", "exec-started c1/e1", "exit c1/e1 0", "exit c1 0"];
        assert_eq!(shim.published(4).await, told);
    });
}
