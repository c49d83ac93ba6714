//! How fast an interface may send.

use std::io;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};

use crate::{Netlink, traffic::number};

/// The queueing discipline that lets through as many bytes as it has tokens for, and keeps the rest waiting a while.
const TOKEN_BUCKET: &str = "tbf";
/// What ours are known by: "ka". Numbers from 0x8000 on the kernel gives, and people begin with 1.
const HANDLE: TcHandle = TcHandle { major: 0x6b61, minor: 0 };
/// What follows when tokens are there, in bytes: the largest packet that a guest may leave to be cut up.
const LEAST_BURST: u64 = 64 << 10;
/// So long may a packet wait, as a part of a second.
const WAIT: u64 = 20;
/// So long may a sender be idle and make up for it at once, as a part of a second.
const IDLE: u64 = 100;

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64` and `TCA_TBF_BURST` of the kernel's `pkt_sched.h`.
const PARAMETERS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: bytes are counted as they are sent.
const ETHERNET: u8 = 1;

impl Netlink {
    /// The interface number `link` sends no more than so many bits per second; with less than 8, nothing.
    ///
    /// # Errors
    /// The kernel's refusal: `AlreadyExists` where somebody has set up how the interface sends.
    pub fn limit_rate(&mut self, link: u32, bits_per_second: u64) -> io::Result<()> {
        let mut message = root(link)?;
        message.attributes.push(TcAttribute::Options(options(bits_per_second / 8)));
        self.order(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Undoes [`Netlink::limit_rate`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn unlimit_rate(&mut self, link: u32) -> io::Result<()> {
        self.order(RouteNetlinkMessage::DelQueueDiscipline(root(link)?), 0)
    }

    /// Whether what the interface number `link` sends is limited as [`Netlink::limit_rate`] does it.
    ///
    /// # Errors
    /// The kernel's refusal, or an answer that cannot be read.
    pub fn is_rate_limited(&mut self, link: u32) -> io::Result<bool> {
        let index = number(link)?;
        let answers = self.list(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index)))?;
        Ok(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message) => {
                let is_bucket = message.attributes.contains(&TcAttribute::Kind(TOKEN_BUCKET.to_owned()));
                message.header.index == index && message.header.handle == HANDLE && is_bucket
            }
            _ => false,
        }))
    }
}

fn root(link: u32) -> io::Result<TcMessage> {
    let mut message = TcMessage::with_index(number(link)?);
    (message.header.parent, message.header.handle) = (TcHandle::ROOT, HANDLE);
    message.attributes = vec![TcAttribute::Kind(TOKEN_BUCKET.to_owned())];
    Ok(message)
}

/// In bytes per second. Where a rate fits into no 32 bits, the kernel takes it from the attribute that has 64.
fn options(rate: u64) -> Vec<TcOption> {
    let burst = clamp((rate / IDLE).max(LEAST_BURST));
    let limit = clamp((rate / WAIT).saturating_add(burst.into()));
    vec![
        TcOption::Other(DefaultNla::new(PARAMETERS, parameters(clamp(rate), limit))),
        TcOption::Other(DefaultNla::new(RATE64, rate.to_ne_bytes().to_vec())),
        TcOption::Other(DefaultNla::new(BURST, burst.to_ne_bytes().to_vec())),
    ]
}

/// The kernel's `tc_tbf_qopt`: two rates, the second of which means none, how many bytes may wait, and two bursts, the
/// first of which `TCA_TBF_BURST` gives.
fn parameters(rate: u32, limit: u32) -> Vec<u8> {
    let mut own = [0; 12];
    own[1] = ETHERNET;
    own[8..].copy_from_slice(&rate.to_ne_bytes());
    [own.as_slice(), &[0; 12], &limit.to_ne_bytes(), &[0; 8]].concat()
}

fn clamp(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
