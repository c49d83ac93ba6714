//! A TCP connection that is carried between host and guest, by a vsock connection to [`FORWARD_PORT`] of the guest.
//!
//! ```text
//! host:       Target, three bytes
//! guest:      0, or the number of the error that kept it from connecting there (one byte); it hangs up then
//! both ways:  frames: length (two bytes, the first one the higher), and as many bytes; the length 0 ends that way
//! ```
//!
//! Frames, because a vsock connection that is broken off and one that has ended look the same to who reads it: a hang-up
//! before the end is a connection broken off, and becomes a reset of the TCP connection.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::Notify,
};

/// The vsock port on which agents that forward take connections.
pub const FORWARD_PORT: u32 = 1028;

const HEAD: usize = 2;
const END: [u8; HEAD] = [0; HEAD];
/// Most bytes of a frame that is sent, so that with its head it is 32 KiB.
const MOST: usize = 32 * 1024 - HEAD;

/// Seconds of silence after which the kernel asks a peer whether it is still there. One that has closed its end
/// altogether looks as if it had ended one way, until it is sent something.
const SILENCE: u32 = 60;

/// Where the guest is to connect: a port of its loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether it was asked for by IPv6.
    pub is_ipv6: bool,
    /// The port.
    pub port: u16,
}

impl Target {
    /// Bytes of one on the wire.
    pub const SIZE: usize = 3;

    /// What whoever connected to `local` has asked for.
    pub fn of(local: SocketAddr) -> Self {
        Self { is_ipv6: local.ip().to_canonical().is_ipv6(), port: local.port() }
    }

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let [high, low] = self.port.to_be_bytes();
        [if self.is_ipv6 { 6 } else { 4 }, high, low]
    }

    /// As it was sent; nothing if it is none.
    pub fn from_bytes([family, high, low]: [u8; Self::SIZE]) -> Option<Self> {
        let port = u16::from_be_bytes([high, low]);
        matches!(family, 4 | 6).then_some(Self { is_ipv6: family == 6, port })
    }

    /// Where that may be listened on, the family that was asked for first. Who asks for "localhost" means either, and
    /// would try the other one had the first been refused, which it cannot know of.
    pub fn addresses(self) -> [SocketAddr; 2] {
        let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        let both = if self.is_ipv6 { [v6, v4] } else { [v4, v6] };
        both.map(|ip| SocketAddr::new(ip, self.port))
    }
}

/// A TCP connection that is to be carried. Dropped before that has come to its end it is reset, so that nobody takes what
/// has arrived for all there is.
#[derive(Debug)]
pub struct Carried(TcpStream);

impl Carried {
    /// One that has been accepted, and what it is for.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn with_target(stream: TcpStream) -> io::Result<(Self, Target)> {
        let target = Target::of(stream.local_addr()?);
        Ok((Self::new(stream)?, target))
    }

    /// # Errors
    /// What the kernel refused.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_zero_linger()?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &SILENCE)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &SILENCE)?;
        Ok(Self(stream))
    }

    /// Moves what comes to either, each way until it ends there. Returns when both ways have.
    ///
    /// # Errors
    /// Why the connection was broken off before. It is reset then; `wire` is dropped, by which the other side knows.
    pub async fn over(mut self, wire: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let (from_wire, to_wire) = tokio::io::split(wire);
        let (from_tcp, to_tcp) = self.0.split();
        // A way that is held up reads nothing, and would not see it.
        let broken = async {
            from_tcp.ready(Interest::ERROR).await?;
            Err(io::ErrorKind::ConnectionReset.into())
        };
        tokio::select! {
            biased;
            ended = both_ways(&from_tcp, to_tcp, from_wire, to_wire) => ended?,
            broken = broken => return broken,
        }
        // None of both has anything to say any more, so this does not linger.
        let off = libc::linger { l_onoff: 0, l_linger: 0 };
        Ok(setsockopt(&self.0, sockopt::Linger, &off)?)
    }
}

async fn both_ways(
    from_tcp: &ReadHalf<'_>,
    mut to_tcp: WriteHalf<'_>,
    mut from_wire: impl AsyncRead + Unpin,
    mut to_wire: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let all_sent = Notify::new();
    let sends = async {
        send(from_tcp, &mut to_wire).await?;
        all_sent.notify_one();
        Ok(())
    };
    let receives = async {
        receive(&mut from_wire, &mut to_tcp).await?;
        tokio::select! {
            biased;
            () = all_sent.notified() => Ok(()),
            // Whoever waits for the other way's end would do so for ever.
            why = hung_up(&mut from_wire) => Err(why),
        }
    };
    tokio::try_join!(sends, receives).map(drop)
}

/// A buffer is there only while there is something to move: most connections are idle most of the time.
async fn send(tcp: &ReadHalf<'_>, wire: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    loop {
        tcp.readable().await?;
        let mut frame = vec![0; HEAD + MOST];
        let read = match tcp.try_read(&mut frame[HEAD..]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            read => read?,
        };
        if read == 0 {
            wire.write_all(&END).await?;
            return wire.flush().await;
        }
        let length = u16::try_from(read).map_err(io::Error::other)?;
        frame[..HEAD].copy_from_slice(&length.to_be_bytes());
        wire.write_all(&frame[..HEAD + read]).await?;
    }
}

async fn receive(wire: &mut (impl AsyncRead + Unpin), tcp: &mut WriteHalf<'_>) -> io::Result<()> {
    loop {
        let length = usize::from(wire.read_u16().await?);
        if length == 0 {
            return tcp.shutdown().await;
        }
        let mut frame = vec![0; length];
        wire.read_exact(&mut frame).await?;
        tcp.write_all(&frame).await?;
    }
}

/// Why nothing can come any more from where everything has come from.
async fn hung_up(wire: &mut (impl AsyncRead + Unpin)) -> io::Error {
    match wire.read(&mut [0]).await {
        Ok(0) => io::ErrorKind::ConnectionReset.into(),
        Ok(_) => io::Error::new(io::ErrorKind::InvalidData, "more than the end of it"),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests;
