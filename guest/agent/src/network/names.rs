//! Name servers that only the host's end of a container's network has, as Docker's: the guest answers in their place, by a
//! connection that the host has made for that.
//!
//! ```text
//! program -> datagram -> (its length, the question) -> host, which asks -> (its length, the answer) -> datagram
//! ```

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::UdpSocket,
    try_join,
};

/// Where containers ask.
const PLACE: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// No question is longer; a connection takes that much at once.
const LONGEST_QUESTION: usize = 4096;
/// The number at the beginning of a message by which an answer is known (RFC 1035, 4.1.1).
const ID: usize = 2;

/// Questions that wait for an answer. With more of them, those before are given up.
const MOST: usize = 1024;

/// Who has asked. Programs choose numbers each for itself, so on the way a question may have another.
#[derive(Default)]
struct Asked(HashMap<u16, ([u8; ID], SocketAddr)>);

/// Answers until the host hangs up.
///
/// # Errors
///
/// Somebody else is there already, or how the connection ended.
pub(crate) async fn serve(host: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    relay(host, &UdpSocket::bind(PLACE).await?).await
}

async fn relay(host: impl AsyncRead + AsyncWrite, socket: &UdpSocket) -> io::Result<()> {
    let (from_host, to_host) = split(host);
    let asked = Mutex::default();
    try_join!(pass_questions(socket, to_host, &asked), pass_answers(socket, from_host, &asked)).map(drop)
}

async fn pass_questions(
    socket: &UdpSocket,
    mut host: impl AsyncWrite + Unpin,
    asked: &Mutex<Asked>,
) -> io::Result<()> {
    let mut question = vec![0; LONGEST_QUESTION + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut question).await {
            // It is about an earlier answer, which its program did not wait for.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            received => received?,
        };
        if !(ID..=LONGEST_QUESTION).contains(&length) {
            continue;
        }
        let id = lock(asked).ask([question[0], question[1]], from);
        question[..ID].copy_from_slice(&id.to_be_bytes());
        let mut frame = u16::try_from(length).unwrap_or_default().to_be_bytes().to_vec();
        frame.extend_from_slice(&question[..length]);
        host.write_all(&frame).await?;
    }
}

async fn pass_answers(
    socket: &UdpSocket,
    mut host: impl AsyncRead + Unpin,
    asked: &Mutex<Asked>,
) -> io::Result<()> {
    loop {
        let mut answer = vec![0; host.read_u16().await?.into()];
        host.read_exact(&mut answer).await?;
        let Some(id) = answer.first_chunk_mut::<ID>() else { continue };
        let Some((own, from)) = lock(asked).0.remove(&u16::from_be_bytes(*id)) else { continue };
        *id = own;
        // Who does not wait any more has gone.
        let _ = socket.send_to(&answer, from).await;
    }
}

impl Asked {
    /// The number that the question has from here on: its own, which nobody else can guess, unless another waits by that.
    fn ask(&mut self, own: [u8; ID], from: SocketAddr) -> u16 {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let mut id = u16::from_be_bytes(own);
        while self.0.get(&id).is_some_and(|other| *other != (own, from)) {
            id = id.wrapping_add(1);
        }
        self.0.insert(id, (own, from));
        id
    }
}

fn lock(asked: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn framed(host: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
        let mut message = vec![0; host.read_u16().await.unwrap().into()];
        host.read_exact(&mut message).await.unwrap();
        message
    }

    #[test]
    fn a_question_keeps_its_number_unless_another_waits_by_it() {
        let mut asked = Asked::default();
        let [one, other] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(asked.ask([0xff, 0xff], one), 0xffff);
        assert_eq!(asked.ask([0xff, 0xff], one), 0xffff);
        assert_eq!(asked.ask([0xff, 0xff], other), 0);
        (0..2 * MOST as u16).for_each(|id| {
            asked.ask(id.to_be_bytes(), one);
        });
        assert!(asked.0.len() <= MOST);
    }

    #[tokio::test]
    async fn each_program_gets_the_answer_to_its_own_question() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let place = socket.local_addr().unwrap();
        let (mut host, guest) = duplex(1024);
        let serving = tokio::spawn(async move { relay(guest, &socket).await });
        let programs = [UdpSocket::bind("127.0.0.1:0").await, UdpSocket::bind("127.0.0.1:0").await];
        let programs = programs.map(Result::unwrap);
        let mut questions = Vec::new();
        for (program, name) in programs.iter().zip(["one", "two"]) {
            program.send_to(format!("##{name}").as_bytes(), place).await.unwrap();
            questions.push(framed(&mut host).await);
        }
        assert_ne!(questions[0][..ID], questions[1][..ID]);
        // Neither an answer nobody waits for nor one without a number is anybody's.
        host.write_all(&[0, 3, 0xff, 0xff, 0, 0, 1, 0]).await.unwrap();
        for question in questions.iter().rev() {
            host.write_u16(5).await.unwrap();
            host.write_all(question).await.unwrap();
        }
        for (program, name) in programs.iter().zip(["one", "two"]) {
            let mut answer = [0; 16];
            let length = program.recv(&mut answer).await.unwrap();
            assert_eq!(&answer[..length], format!("##{name}").as_bytes());
        }
        drop(host);
        assert!(serving.await.unwrap().is_err());
    }
}
