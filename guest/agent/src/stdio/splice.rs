//! Moving input from a connection into a process' pipe within the kernel: what has arrived is copied once, into pages of
//! the pipe, where reading and writing would copy it twice more.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
};

use nix::{
    errno::Errno,
    fcntl::{SpliceFFlags, splice},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::{io::unix::AsyncFdReadyGuard, sync::oneshot};

use super::{PIPE_SIZE, pump, stream::End};

/// From the host to the process, as [`pump::input`] does it, with the same ends.
pub(super) async fn input(host: End, process: End, closed: oneshot::Receiver<()>) {
    let mut closed = pin!(pump::closed(closed));
    loop {
        let moved = tokio::select! {
            biased;
            has = host.readable() => match has {
                Ok(mut has) => step(&mut has, &process).await,
                Err(error) => Err(error),
            },
            () = &mut closed => return,
        };
        match moved {
            Ok(Step::Moved(0)) => return,
            Ok(_) => {}
            Err(error) => return ::log::debug!("input ends: {error}"),
        }
    }
}

enum Step {
    /// So many bytes; none at the end.
    Moved(usize),
    /// There is nothing yet.
    Empty,
}

/// Moves what has arrived, once the pipe takes some of it. What is at its end, or in error, counts as ready.
async fn step(has: &mut AsyncFdReadyGuard<'_, OwnedFd>, process: &End) -> io::Result<Step> {
    let (host, pipe) = (has.get_ref().get_ref().as_fd(), process.get_ref().as_fd());
    loop {
        let mut takes = process.writable().await?;
        match splice(host, None, pipe, None, PIPE_SIZE as usize, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(moved) => return Ok(Step::Moved(moved)),
            Err(Errno::EINTR) => {}
            // It does not say which of the two it was, and the event loop tells of either once.
            Err(Errno::EAGAIN) => {
                let [has_some, has_room] = ready(host, pipe)?;
                if !has_room {
                    takes.clear_ready();
                }
                if !has_some {
                    has.clear_ready();
                    return Ok(Step::Empty);
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the connection has something, and whether the pipe has room.
fn ready(host: BorrowedFd<'_>, pipe: BorrowedFd<'_>) -> io::Result<[bool; 2]> {
    let mut both = [PollFd::new(host, PollFlags::POLLIN), PollFd::new(pipe, PollFlags::POLLOUT)];
    poll(&mut both, PollTimeout::ZERO)?;
    Ok(both.map(|one| one.any().unwrap_or(true)))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{PipeReader, Read, Write, pipe},
        os::unix::net::UnixStream,
        thread,
        time::Duration,
    };

    use tokio::{io::Interest, task::JoinHandle, time::timeout};

    use super::{super::stream::watch, *};

    /// More than a socket and a pipe hold.
    const MUCH: usize = 8 << 20;

    /// The host's end, the process', and what moves bytes between them.
    fn pumped(closed: oneshot::Receiver<()>) -> (UnixStream, PipeReader, JoinHandle<()>) {
        let (host, guest) = UnixStream::pair().unwrap();
        let (process, to) = pipe().unwrap();
        let guest = watch(guest.into(), Interest::READABLE).unwrap();
        let to = watch(to.into(), Interest::WRITABLE).unwrap();
        (host, process, tokio::spawn(input(guest, to, closed)))
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 7 % 251) as u8).collect()
    }

    /// Reads all of it, at first in pieces that leave the pipe full, on a thread of its own.
    async fn all(mut process: PipeReader) -> Vec<u8> {
        let read = thread::spawn(move || {
            let mut got = vec![0; 64 << 10];
            for piece in got.chunks_mut(100) {
                process.read_exact(piece).unwrap();
            }
            process.read_to_end(&mut got).map(|_| got).unwrap()
        });
        timeout(Duration::from_secs(30), tokio::task::spawn_blocking(|| read.join().unwrap()))
            .await
            .unwrap()
            .unwrap()
    }

    #[tokio::test]
    async fn input_arrives_and_ends_with_its_connection() {
        let (_open, closed) = oneshot::channel();
        let (mut host, process, pump) = pumped(closed);
        let sender = thread::spawn(move || {
            let sent = pattern(MUCH);
            let (pieces, rest) = sent.split_at(1 << 20);
            pieces.chunks(1000).for_each(|piece| host.write_all(piece).unwrap());
            host.write_all(rest).unwrap();
        });
        assert!(all(process).await == pattern(MUCH));
        sender.join().unwrap();
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn input_that_is_closed_ends_behind_what_has_arrived() {
        let (open, closed) = oneshot::channel();
        let (mut host, process, pump) = pumped(closed);
        // More than the pipe takes, whose reader comes late.
        host.set_nonblocking(true).unwrap();
        let (much, mut sent) = (pattern(MUCH), 0);
        while let Ok(written) = host.write(&much[sent..]) {
            sent += written;
            tokio::task::yield_now().await;
        }
        drop(open);
        // Time enough to find that out while the pipe is full.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let arrived = all(process).await;
        assert!(arrived == much[..sent], "{} of {sent} bytes", arrived.len());
        pump.await.unwrap();
        assert!(host.write(b"more").is_err());
    }

    #[tokio::test]
    async fn the_host_learns_that_nobody_reads_the_input() {
        let (_open, closed) = oneshot::channel();
        let (mut host, process, pump) = pumped(closed);
        drop(process);
        host.write_all(b"x").unwrap();
        timeout(Duration::from_secs(10), pump).await.unwrap().unwrap();
        assert!(host.write(b"x").is_err());
    }

    #[tokio::test]
    async fn a_process_that_reads_nothing_holds_the_host_up() {
        let (_open, closed) = oneshot::channel();
        let (mut host, process, pump) = pumped(closed);
        host.write_all(b"first").unwrap();
        let mut first = [0; 5];
        let mut reader = File::from(OwnedFd::from(process));
        let read =
            tokio::task::spawn_blocking(move || reader.read_exact(&mut first).map(|()| (first, reader)));
        let (first, _reader) = read.await.unwrap().unwrap();
        assert_eq!(&first, b"first");
        host.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let held =
            tokio::task::spawn_blocking(move || host.write_all(&pattern(MUCH)).map_err(|error| error.kind()));
        assert_eq!(held.await.unwrap(), Err(io::ErrorKind::WouldBlock));
        pump.abort();
    }
}
