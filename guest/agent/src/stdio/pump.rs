//! Moving a stream between a process and its connection with the host, a chunk at a time: a slow end holds the other
//! one up, and nothing piles up in between.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
};

/// Bytes read at a time at first: what a pipe holds by default, and what one packet of a vsock does.
const CHUNK: usize = 64 * 1024;
/// Bytes read at a time of a stream that filled the last chunk: all that a process' pipe holds, as each read of a full
/// pipe lets its writer go on.
const MOST: usize = super::PIPE_SIZE as usize;

/// From the process to the host. Ends with what it reads from, when all of it has been written; then hangs up.
///
/// A host that hangs up first has lost interest, which is nothing to the process: what it writes is thrown away, where
/// a closed pipe would kill it and a full one stop it.
pub(super) async fn output(mut process: impl AsyncRead + Unpin, host: impl AsyncWrite + Unpin) {
    let mut host = Some(host);
    let mut chunk = Vec::new();
    loop {
        match read(&mut process, &mut chunk).await {
            Ok(()) if chunk.is_empty() => return,
            Ok(()) => {}
            Err(error) => return ::log::warn!("read what a process writes: {error}"),
        }
        if let Some(to) = &mut host
            && let Err(error) = to.write_all(&chunk).await
        {
            ::log::debug!("output is thrown away, the host took no more: {error}");
            host = None;
        }
    }
}

/// From the host to a terminal; into a pipe goes [`super::splice`]. Ends when either hangs up, or with `closed` once all that has arrived is written; then
/// hangs up on both.
pub(super) async fn input(
    mut host: impl AsyncRead + Unpin,
    mut process: impl AsyncWrite + Unpin,
    closed: oneshot::Receiver<()>,
) {
    let mut closed = pin!(self::closed(closed));
    let mut chunk = Vec::new();
    loop {
        tokio::select! {
            biased;
            read = read(&mut host, &mut chunk) => if let Err(error) = read {
                return ::log::debug!("input ends: {error}");
            },
            () = &mut closed => return,
        }
        if chunk.is_empty() {
            return;
        }
        if let Err(error) = process.write_all(&chunk).await {
            return ::log::debug!("input ends, the process takes no more: {error}");
        }
    }
}

/// Waits until input is closed and the event loop has looked for what had arrived by then.
pub(super) async fn closed(closed: oneshot::Receiver<()>) {
    // Dropping the sender closes just as well.
    let _ = closed.await;
    tokio::task::yield_now().await;
}

/// Reads into `chunk` what there is; nothing at the end. The chunk takes up memory only while there is something to
/// move: most streams are idle most of the time.
async fn read(from: &mut (impl AsyncRead + Unpin), chunk: &mut Vec<u8>) -> io::Result<()> {
    let room = if chunk.len() < CHUNK { CHUNK } else { MOST };
    poll_fn(|cx| {
        chunk.clear();
        chunk.reserve_exact(room);
        let polled = pin!(from.read_buf(chunk)).poll(cx);
        if polled.is_pending() {
            *chunk = Vec::new();
        }
        polled
    })
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::duplex, time::timeout};

    use super::*;

    #[tokio::test]
    async fn all_output_arrives_and_then_its_end() {
        let (mut process, from) = duplex(1000);
        let (to, mut host) = duplex(10);
        let pump = tokio::spawn(output(from, to));
        let sent = vec![7; 200 * 1000];
        let wanted = sent.clone();
        tokio::spawn(async move { process.write_all(&sent).await });
        let mut got = Vec::new();
        host.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, wanted);
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn a_host_that_hangs_up_does_not_stop_the_process() {
        let (mut process, from) = duplex(10);
        let (to, host) = duplex(10);
        let pump = tokio::spawn(output(from, to));
        drop(host);
        process.write_all(&vec![7; 1000 * 1000]).await.unwrap();
        assert!(!pump.is_finished());
        drop(process);
        pump.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_does_not_read_holds_the_process_up() {
        const PIPE: usize = 1000;
        const SOCKET: usize = 10;
        let (mut process, from) = duplex(PIPE);
        let (to, _host) = duplex(SOCKET);
        tokio::spawn(output(from, to));
        let mut taken = 0;
        while let Ok(written) = timeout(Duration::from_secs(1), process.write(&[7; 1000])).await {
            taken += written.unwrap();
        }
        assert!((PIPE..=PIPE + CHUNK + SOCKET).contains(&taken), "{taken}");
    }

    #[tokio::test]
    async fn input_arrives_and_ends_with_its_connection() {
        let (mut host, from) = duplex(10);
        let (to, mut process) = duplex(10);
        let (_open, closed) = oneshot::channel();
        let pump = tokio::spawn(input(from, to, closed));
        tokio::spawn(async move { host.write_all(&[7; 1000]).await });
        let mut got = Vec::new();
        process.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, [7; 1000]);
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn input_that_is_closed_ends_behind_what_has_arrived() {
        let (mut host, from) = duplex(100);
        let (to, mut process) = duplex(10);
        let (open, closed) = oneshot::channel();
        host.write_all(&[7; 100]).await.unwrap();
        drop(open);
        let pump = tokio::spawn(input(from, to, closed));
        let mut got = Vec::new();
        process.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, [7; 100]);
        pump.await.unwrap();
        assert!(host.write_all(b"more").await.is_err());
    }

    #[tokio::test]
    async fn the_host_learns_that_nobody_reads_the_input() {
        let (mut host, from) = duplex(10);
        let (to, process) = duplex(10);
        let (_open, closed) = oneshot::channel();
        tokio::spawn(input(from, to, closed));
        drop(process);
        assert!(host.write_all(&[7; 100]).await.is_err());
    }

    #[tokio::test]
    async fn an_idle_stream_has_no_buffer() {
        let (mut writer, mut reader) = duplex(10);
        let mut chunk = Vec::new();
        assert!(timeout(Duration::from_millis(1), read(&mut reader, &mut chunk)).await.is_err());
        assert_eq!(chunk.capacity(), 0);
        writer.write_all(b"x").await.unwrap();
        read(&mut reader, &mut chunk).await.unwrap();
        assert_eq!(chunk, b"x");
    }
}
