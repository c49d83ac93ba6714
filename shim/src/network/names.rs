//! Names that only a container's network namespace knows: where Docker has containers of a network ask 127.0.0.11, its
//! daemon answers in the namespace, not in the guest. The guest's agent takes questions there, and they are asked here.
//!
//! ```text
//! guest -> (its length, a question) -> asked in the namespace -> (its length, the answer) -> guest
//! ```

use std::{
    fs::File,
    io::{self, Read},
    net::{self, Ipv4Addr},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use slog::{Logger, debug};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    net::UdpSocket,
    sync::{Mutex, Semaphore},
    time::timeout,
};
use vmm::{Stream, Vsock};

use super::{namespace, resolver::LONGEST};
use crate::{
    error::{Error, Result},
    thread,
};

/// The guest's vsock port for that.
const PORT: u32 = 1029;
/// Where the daemon answers.
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// The line that sends containers there.
const LINE: &str = "nameserver 127.0.0.11";
/// How long a guest may take over the connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a question may wait for its answer; whoever asks tries again before.
const ANSWER: Duration = Duration::from_secs(10);
/// Questions at a time: the guest's next ones wait in the guest.
const AT_A_TIME: usize = 16;
/// The longest answer.
const LONGEST_ANSWER: usize = u16::MAX as usize;

/// Whether the container's `resolver` has it ask there.
pub(super) fn are_in_the_namespace(resolver: &Path) -> bool {
    let mut text = String::new();
    let read = File::open(resolver).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    read.is_ok() && text.lines().any(|line| line.trim() == LINE)
}

/// Answers the guest's questions until its connection ends.
///
/// # Errors
/// Why the guest does not take the connection.
pub(super) async fn serve(vsock: &dyn Vsock, namespace: Arc<OwnedFd>, log: &Logger) -> Result<()> {
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    let connected = timeout(PATIENCE, vsock.connect(PORT)).await.unwrap_or_else(late);
    let connection = connected.map_err(Error::io(format_args!("vsock port {PORT} of the guest")))?;
    let log = log.clone();
    tokio::spawn(async move {
        // It ends with the machine, or with the agent's place being somebody else's: both are for the log of who looks.
        if let Err(why) = relay(connection.stream, namespace).await {
            debug!(log, "no more questions for names of the container's network"; "why" => why.to_string());
        }
    });
    Ok(())
}

async fn relay(guest: Box<dyn Stream>, namespace: Arc<OwnedFd>) -> io::Result<()> {
    let (mut questions, answers) = split(guest);
    let (answers, turns) = (Arc::new(Mutex::new(answers)), Arc::new(Semaphore::new(AT_A_TIME)));
    loop {
        let mut question = vec![0; questions.read_u16().await?.into()];
        questions.read_exact(&mut question).await?;
        let turn = turns.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (answers, namespace) = (answers.clone(), namespace.clone());
        tokio::spawn(async move {
            let _turn = turn;
            // A question without an answer is asked again by whoever has it.
            let Ok(answer) = ask(namespace, &question).await else { return };
            let mut frame = u16::try_from(answer.len()).unwrap_or_default().to_be_bytes().to_vec();
            frame.extend_from_slice(&answer);
            // A guest that has gone is found to have at the next question.
            let _ = answers.lock().await.write_all(&frame).await;
        });
    }
}

/// By a socket of its own, as the daemon may have moved meanwhile.
///
/// # Errors
/// There is nobody to ask, or no answer in time.
async fn ask(namespace: Arc<OwnedFd>, question: &[u8]) -> Result<Vec<u8>> {
    // A socket stays in the namespace that it was made in; the thread ends with it made.
    let socket = thread::run("names", move || socket(&namespace)).await?;
    let asked = async {
        let socket = UdpSocket::from_std(socket)?;
        socket.send(question).await?;
        let mut answer = vec![0; LONGEST_ANSWER];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        Ok(answer)
    };
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    let answer = timeout(ANSWER, asked).await.unwrap_or_else(late);
    answer.map_err(Error::io("a name server in the container's network"))
}

fn socket(namespace: &OwnedFd) -> Result<net::UdpSocket> {
    namespace::enter_again(namespace)?;
    let connected = || {
        let socket = net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(SERVER).map(|()| socket)
    };
    connected().map_err(Error::io("a socket in the container's network"))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::fakes::Pod;

    #[tokio::test]
    async fn what_the_guest_asks_is_asked_in_the_namespace() {
        let pod = Pod::new();
        pod.run("ip link set lo up");
        let path = pod.path.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            namespace::enter(&path).unwrap();
            let server = net::UdpSocket::bind(SERVER).unwrap();
            ready.send(()).unwrap();
            let mut question = [0; 64];
            let (length, from) = server.recv_from(&mut question).unwrap();
            server.send_to(&[&question[..length], b" is here"].concat(), from).unwrap();
        });
        is_ready.recv().unwrap();
        let namespace = Arc::new(File::open(&pod.path).unwrap().into());
        let (host, mut guest) = duplex(1024);
        let relaying = tokio::spawn(relay(Box::new(host), namespace));
        guest.write_all(b"\0\x04name").await.unwrap();
        let mut answer = vec![0; guest.read_u16().await.unwrap().into()];
        guest.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"name is here");
        drop(guest);
        assert!(relaying.await.unwrap().is_err());
    }

    #[test]
    fn it_is_the_containers_file_that_tells() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        assert!(!are_in_the_namespace(&file));
        std::fs::write(&file, "# nameserver 127.0.0.11\nnameserver 127.0.0.111\n").unwrap();
        assert!(!are_in_the_namespace(&file));
        std::fs::write(&file, "search a\nnameserver 127.0.0.11\noptions ndots:0\n").unwrap();
        assert!(are_in_the_namespace(&file));
    }
}
