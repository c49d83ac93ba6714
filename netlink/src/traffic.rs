//! Traffic control: what comes in at one interface goes out at another.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{
        TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
        TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType,
        TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
    },
};

use crate::Netlink;

/// Where filters of what comes in are attached.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// The kind of the queueing discipline that has them.
const INGRESS_KIND: &str = "ingress";

impl Netlink {
    /// Lets filters see what comes in at the interface number `link`.
    ///
    /// # Errors
    /// The kernel's refusal: `AlreadyExists` where somebody's filters see that already.
    pub fn add_ingress(&mut self, link: u32) -> io::Result<()> {
        self.order(RouteNetlinkMessage::NewQueueDiscipline(ingress(link)?), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Undoes [`Netlink::add_ingress`]; the filters go with it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove_ingress(&mut self, link: u32) -> io::Result<()> {
        self.order(RouteNetlinkMessage::DelQueueDiscipline(ingress(link)?), 0)
    }

    /// Whether filters see what comes in at the interface number `link`.
    ///
    /// # Errors
    /// The kernel's refusal, or an answer that cannot be read.
    pub fn has_ingress(&mut self, link: u32) -> io::Result<bool> {
        let index = number(link)?;
        let answers = self.list(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index)))?;
        Ok(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message) => {
                message.header.index == index && message.header.parent == TcHandle::INGRESS
            }
            _ => false,
        }))
    }

    /// Whatever comes in at interface number `from` goes out at `to`, and nowhere else.
    ///
    /// # Errors
    /// The kernel's refusal; `from` needs [`Netlink::add_ingress`] first.
    pub fn redirect(&mut self, from: u32, to: u32) -> io::Result<()> {
        let mut message = TcMessage::with_index(number(from)?);
        message.header.parent = INGRESS;
        // Every protocol, in the order of the wire; the priority above it is the kernel's to choose.
        message.header.info = u32::from((libc::ETH_P_ALL as u16).to_be());
        message.attributes = vec![
            TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
            TcAttribute::Options(vec![
                TcOption::U32(TcFilterU32Option::Selector(anything())),
                TcOption::U32(TcFilterU32Option::Action(vec![out_at(to)])),
            ]),
        ];
        self.order(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
    }
}

fn ingress(link: u32) -> io::Result<TcMessage> {
    let mut message = TcMessage::with_index(number(link)?);
    (message.header.parent, message.header.handle) = (TcHandle::INGRESS, INGRESS);
    message.attributes = vec![TcAttribute::Kind(INGRESS_KIND.to_owned())];
    Ok(message)
}

/// No bit of any packet has to be anything. Kernels without the classifier for just that (matchall) have this one.
fn anything() -> TcU32Selector {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    selector
}

fn out_at(link: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = link;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}

pub(crate) fn number(link: u32) -> io::Result<i32> {
    i32::try_from(link).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}
