//! What rtnetlink messages say: which of them make a namespace's state, when two say the same, and how one is said again.
use super::rtm;
use stasis_kernel::netlink::{Attrs, Body, Message, Messages, align};

/// One of the sorts of message that are played back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `struct ifaddrmsg`
    Address,
    /// `struct rtmsg`
    Route,
    /// `struct fib_rule_hdr`
    Rule,
    /// `struct ndmsg`
    Neighbour,
    /// `struct nhmsg`
    NextHop,
}

const RT_TABLE_LOCAL: u32 = 255;
const RTPROT_KERNEL: u8 = 2;
const RTM_F_CLONED: u32 = 0x200;
/// State of a next hop that the kernel tells and does not take: RTNH_F_DEAD, OFFLOAD, LINKDOWN, UNRESOLVED, TRAP.
const RTNH_TOLD: u32 = 0x1 | 0x8 | 0x10 | 0x20 | 0x40;
/// RTM_F_OFFLOAD, TRAP, OFFLOAD_FAILED, NOTIFY
const RTM_TOLD: u32 = 0x100 | 0x4000 | 0x8000 | 0x2000_0000;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_EXPIRES: u16 = 23;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;
const NTF_PROXY: u8 = 0x8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_CACHEINFO: u16 = 3;
const NDA_PROBES: u16 = 4;
const IFA_TARGET_NETNSID: u16 = 10;
/// Ticks per second in times that the kernel tells (USER_HZ).
const TICKS: i32 = 100;
/// Bytes of `struct rtnexthop`.
const RTNEXTHOP: usize = 8;

impl Part {
    /// The type of its messages in images and dumps.
    pub fn kind(self) -> u16 {
        match self {
            Part::Address => rtm::NEWADDR,
            Part::Route => rtm::NEWROUTE,
            Part::Rule => rtm::NEWRULE,
            Part::Neighbour => rtm::NEWNEIGH,
            Part::NextHop => rtm::NEWNEXTHOP,
        }
    }
    /// One word for people.
    pub fn word(self) -> &'static str {
        match self {
            Part::Address => "address",
            Part::Route => "route",
            Part::Rule => "rule",
            Part::Neighbour => "neighbour",
            Part::NextHop => "next hop",
        }
    }
    /// Bytes of the fixed part of the body.
    pub fn fixed(self) -> usize {
        match self {
            Part::Address | Part::NextHop => 8,
            Part::Route | Part::Rule | Part::Neighbour => 12,
        }
    }
    /// Is it state that somebody made, or that the kernel may not make again? The rest the kernel makes with the addresses.
    pub fn matters(self, m: &Message<'_>) -> bool {
        match self {
            Part::Route => {
                let table = m.attrs(self.fixed()).u32(RTA_TABLE);
                let table = table.unwrap_or(u32::from(m.u8(4)));
                let flags = m.u32(8).unwrap_or(0);
                flags & RTM_F_CLONED == 0 && (table != RT_TABLE_LOCAL || m.u8(5) != RTPROT_KERNEL)
            }
            Part::Neighbour => {
                let state = u16::from_ne_bytes([m.u8(8), m.u8(9)]);
                // of NOARP entries the kernel makes its own (loopback, multicast); by hand they are made permanent
                m.u8(10) & NTF_PROXY != 0 || (state & NUD_PERMANENT != 0 && state & NUD_NOARP == 0)
            }
            Part::Address | Part::Rule | Part::NextHop => true,
        }
    }
    /// The messages that matter, whole.
    pub fn keep(self, all: &[u8], also: impl Fn(&Message<'_>) -> bool) -> Vec<u8> {
        let mut kept = Vec::new();
        for m in Messages(all).flatten() {
            if m.kind() == self.kind() && self.matters(&m) && also(&m) {
                kept.extend_from_slice(m.bytes());
                kept.resize(align(kept.len()), 0);
            }
        }
        kept
    }
    /// The message's body as it can be said to the kernel again. `None` if it is too short to be one.
    pub fn said_again(self, m: &Message<'_>) -> Option<Vec<u8>> {
        let mut fixed = m.body().get(..self.fixed())?.to_vec();
        let attrs = m.attrs(self.fixed());
        let mut b;
        match self {
            Part::Route => {
                let flags = m.u32(8)? & !(RTNH_TOLD | RTM_TOLD);
                fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
                b = Body::new(&fixed);
                for (kind, v) in attrs {
                    match kind {
                        RTA_MULTIPATH => {
                            b.attr(kind, &hops_again(v));
                        }
                        RTA_CACHEINFO => {
                            // struct rta_cacheinfo: rta_expires is its third word, in ticks
                            let left = v.get(8..12).map_or(0, |w| {
                                i32::from_ne_bytes(w.try_into().unwrap_or_default())
                            });
                            if left > 0 {
                                b.u32(RTA_EXPIRES, (left / TICKS).max(1) as u32);
                            }
                        }
                        RTA_EXPIRES => {}
                        _ => {
                            b.attr(kind, v);
                        }
                    }
                }
            }
            Part::NextHop => {
                let flags = m.u32(4)? & !RTNH_TOLD;
                fixed[4..8].copy_from_slice(&flags.to_ne_bytes());
                b = Body::new(&fixed);
                b.0.extend_from_slice(attrs.0);
            }
            _ => {
                b = Body::new(&fixed);
                for (kind, v) in attrs {
                    let told = match self {
                        // an address is made here and nowhere else, whatever an image says
                        Part::Address => kind == IFA_TARGET_NETNSID,
                        Part::Neighbour => matches!(kind, NDA_CACHEINFO | NDA_PROBES),
                        _ => false,
                    };
                    if !told {
                        b.attr(kind, v);
                    }
                }
            }
        }
        Some(b.0)
    }
    /// Two messages with equal keys are about the same thing in the same state.
    pub fn key(self, m: &Message<'_>) -> Option<Vec<u8>> {
        let body = self.said_again(m)?;
        let (fixed, rest) = body.split_at(align(self.fixed()));
        let mut fixed = fixed.to_vec();
        let mut attrs: Vec<(u16, &[u8])> = Attrs(rest).collect();
        match self {
            Part::Address => {
                // family, prefix length, device; the rest are flags and scope
                fixed[2..4].fill(0);
                attrs.retain(|(k, _)| matches!(*k, IFA_ADDRESS | IFA_LOCAL));
            }
            Part::Route => {
                fixed[8..12].fill(0);
                attrs.retain(|(k, _)| *k != RTA_EXPIRES);
            }
            Part::Rule | Part::Neighbour | Part::NextHop => {}
        }
        attrs.sort();
        let mut key = fixed;
        for (k, v) in attrs {
            key.extend_from_slice(&k.to_ne_bytes());
            key.extend_from_slice(&(v.len() as u32).to_ne_bytes());
            key.extend_from_slice(v);
        }
        Some(key)
    }
    /// For people: "10.1.0.1/24".
    pub fn shown(self, m: &Message<'_>) -> String {
        let attrs = m.attrs(self.fixed());
        let (family, len) = (m.u8(0), m.u8(1));
        let ip = |kind| attrs.get(kind).and_then(|v| address(family, v));
        match self {
            Part::Address => match ip(IFA_LOCAL).or_else(|| ip(IFA_ADDRESS)) {
                Some(a) => format!("{a}/{len}"),
                None => "without an address".to_string(),
            },
            Part::Route => {
                let to = match ip(1) {
                    Some(a) => format!("{a}/{len}"),
                    None => "default".to_string(),
                };
                match (ip(RTA_GATEWAY), attrs.u32(RTA_OIF)) {
                    (Some(g), _) => format!("{to} via {g}"),
                    (None, Some(d)) => format!("{to} by device number {d}"),
                    _ => to,
                }
            }
            Part::Rule => format!("of priority {}", attrs.u32(6).unwrap_or(0)),
            Part::Neighbour => ip(1).map_or_else(|| "without an address".into(), |a| a.to_string()),
            Part::NextHop => format!("number {}", attrs.u32(1).unwrap_or(0)),
        }
    }
}

fn address(family: u8, v: &[u8]) -> Option<std::net::IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(<[u8; 4]>::try_from(v).ok()?.into()),
        libc::AF_INET6 => Some(<[u8; 16]>::try_from(v).ok()?.into()),
        _ => None,
    }
}

/// `struct rtnexthop` after `struct rtnexthop`, without what only the kernel says.
fn hops_again(v: &[u8]) -> Vec<u8> {
    let mut v = v.to_vec();
    let mut at = 0;
    while let Some(h) = v.get_mut(at..at + RTNEXTHOP) {
        let len = usize::from(u16::from_ne_bytes([h[0], h[1]]));
        h[2] &= !(RTNH_TOLD as u8);
        if len < RTNEXTHOP {
            break;
        }
        at += align(len);
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stasis_kernel::netlink;

    fn route(flags: u32, table: u8, protocol: u8) -> Vec<u8> {
        let mut fixed = vec![2, 24, 0, 0, table, protocol, 0, 1];
        fixed.extend(flags.to_ne_bytes());
        let mut b = Body::new(&fixed);
        b.attr(1, &[10, 1, 0, 0]).u32(RTA_OIF, 3);
        netlink::message(rtm::NEWROUTE, 0, 0, &b.0)
    }

    #[test]
    fn what_the_kernel_makes_with_addresses_is_left_out() {
        let all = [
            route(0, 254, 2),
            route(0, 255, 2),
            route(0, 255, 4),
            route(0x200, 254, 4),
        ];
        let kept = Part::Route.keep(&all.concat(), |_| true);
        assert_eq!(kept, [all[0].clone(), all[2].clone()].concat());
    }

    #[test]
    fn routes_that_differ_in_what_only_the_kernel_says_are_the_same() {
        let (a, b) = (route(0, 254, 2), route(0x11, 254, 2));
        let key = |m: &[u8]| Part::Route.key(&Messages(m).next().expect("one").expect("whole"));
        assert_eq!(key(&a), key(&b));
        assert_ne!(key(&a), key(&route(0, 100, 2)));
    }

    proptest! {
        #[test]
        fn no_image_makes_it_panic(b in proptest::collection::vec(any::<u8>(), 0..120)) {
            for part in [Part::Address, Part::Route, Part::Rule, Part::Neighbour, Part::NextHop] {
                let whole = netlink::message(part.kind(), 0, 0, &b);
                let m = Messages(&whole).next().expect("one").expect("whole");
                let _ = (part.said_again(&m), part.key(&m), part.shown(&m), part.matters(&m));
            }
        }
    }
}
