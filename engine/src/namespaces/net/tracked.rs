//! Connections that netfilter tracks in a namespace, and those it expects (ctnetlink).
//!
//! **Dump.** The kernel's own messages, as CRIU keeps them.
//!
//! **Restore.** Each is said again, but for what the kernel tells and does not take: that a connection was expected follows from its
//! master, so masters come first. A translation (NAT) is told only by a reply that is not the reverse of the original; taken as it is, no
//! packet would be translated any more. So the reverse is said, and the translation beside it, from which the kernel makes the
//! same reply.
use super::filter::{NFGENMSG, damaged, refused, subsystem};
use crate::error::{Error, Result};
use nix::errno::Errno;
use stasis_kernel::netlink::{Attrs, Body, Messages, NLM_F_CREATE, Netlink};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const NFNL_SUBSYS_CTNETLINK_EXP: u16 = 2;
/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_EXP_GET`.
const CT_GET: u16 = 1;
/// Attributes of a tracked connection (linux/netfilter/nfnetlink_conntrack.h).
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_NAT_SRC: u16 = 6;
const CTA_NAT_DST: u16 = 13;
const CTA_TUPLE_MASTER: u16 = 14;
/// Of a tuple.
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// Source and destination: of IPv4, of IPv6, and ports.
const V4: (u16, u16) = (1, 2);
const V6: (u16, u16) = (3, 4);
const PORTS: (u16, u16) = (2, 3);
/// Of a translation: least and largest address, and ports.
const NAT_V4: (u16, u16) = (1, 2);
const NAT_V6: (u16, u16) = (4, 5);
const CTA_NAT_PROTO: u16 = 3;
const NAT_PORTS: (u16, u16) = (1, 2);
/// Status of a connection that another one has announced, and of one that is being forgotten.
const IPS_EXPECTED: u32 = 1;
const IPS_DYING: u32 = 1 << 9;

/// Tracked connections and expectations of the namespace the caller is in.
///
/// # Errors
/// The kernel cannot be asked.
pub fn read() -> Result<(Vec<u8>, Vec<u8>)> {
    let mut nl = match Netlink::netfilter() {
        Ok(nl) => nl,
        Err(e) if e.errno == Errno::EPROTONOSUPPORT => return Ok(Default::default()),
        Err(e) => return Err(e.into()),
    };
    let mut ask = |subsystem: u16| match nl.dump(
        "ctnetlink(dump)",
        subsystem << 8 | CT_GET,
        &[0; NFGENMSG],
    ) {
        Ok(all) => Ok(all),
        // built without it
        Err(e) if matches!(e.errno, Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(Error::from(e)),
    };
    Ok((ask(NFNL_SUBSYS_CTNETLINK)?, ask(NFNL_SUBSYS_CTNETLINK_EXP)?))
}

/// Makes tracked connections, or expectations, in the namespace the caller is in.
///
/// # Errors
/// The image has other messages than such; or the kernel refuses them.
pub fn make(all: &[u8]) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let mut nl = Netlink::netfilter()?;
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for m in Messages(all) {
        let m = m.map_err(|e| damaged(e.to_string()))?;
        let known = [NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_CTNETLINK_EXP];
        // IPCTNL_MSG_CT_NEW and IPCTNL_MSG_EXP_NEW are 0
        if !known.contains(&subsystem(m.kind()))
            || m.kind() & 0xff != 0
            || m.body().len() < NFGENMSG
        {
            return Err(damaged(format!(
                "a message of type {:#x} is about no connection",
                m.kind()
            )));
        }
        if subsystem(m.kind()) == NFNL_SUBSYS_CTNETLINK_EXP {
            first.push((m.kind(), m.body().to_vec()));
            continue;
        }
        let attrs = m.attrs(NFGENMSG);
        if status(&attrs) & IPS_DYING != 0 {
            continue;
        }
        let told = (m.kind(), anew(m.body(), &attrs));
        match attrs.get(CTA_TUPLE_MASTER) {
            None => first.push(told),
            Some(_) => then.push(told),
        }
    }
    for (kind, body) in first.into_iter().chain(then) {
        match nl.act("ctnetlink(new)", kind, NLM_F_CREATE, &body) {
            Ok(()) => {}
            Err(e) if e.errno == Errno::EEXIST => {}
            Err(e) => return Err(refused("a tracked connection", &e)),
        }
    }
    Ok(())
}

fn status(attrs: &Attrs<'_>) -> u32 {
    let word = attrs.get(CTA_STATUS).and_then(|b| b.try_into().ok());
    word.map_or(0, u32::from_be_bytes)
}

/// One direction of a connection: addresses and ports as the kernel has them, empty where there are none.
#[derive(Debug, PartialEq, Eq)]
struct Way<'a> {
    six: bool,
    from: (&'a [u8], &'a [u8]),
    to: (&'a [u8], &'a [u8]),
}

fn way<'a>(attrs: &Attrs<'a>, which: u16) -> Way<'a> {
    let tuple = attrs.nest(which);
    let (ip, proto) = (tuple.nest(CTA_TUPLE_IP), tuple.nest(CTA_TUPLE_PROTO));
    let six = ip.get(V6.0).is_some();
    let ips = if six { V6 } else { V4 };
    let of = |a: &Attrs<'a>, n| a.get(n).unwrap_or(&[]);
    Way {
        six,
        from: (of(&ip, ips.0), of(&proto, PORTS.0)),
        to: (of(&ip, ips.1), of(&proto, PORTS.1)),
    }
}

/// What is said to make a connection that was told so.
fn anew(body: &[u8], attrs: &Attrs<'_>) -> Vec<u8> {
    let (there, back) = (way(attrs, CTA_TUPLE_ORIG), way(attrs, CTA_TUPLE_REPLY));
    let source = (back.to != there.from).then_some(back.to);
    let target = (back.from != there.to).then_some(back.from);
    let mut out = Body::new(&body[..NFGENMSG]);
    for (kind, value) in attrs.clone() {
        match kind {
            CTA_STATUS => {
                out.be32(CTA_STATUS, status(attrs) & !IPS_EXPECTED);
            }
            CTA_TUPLE_REPLY if source.is_some() || target.is_some() => {
                out.nest(CTA_TUPLE_REPLY, |b| reverse(b, attrs, &there));
            }
            CTA_TUPLE_ORIG | CTA_TUPLE_REPLY | CTA_TUPLE_MASTER => {
                out.nest(kind, |b| b.0.extend_from_slice(value));
            }
            _ => {
                out.attr(kind, value);
            }
        }
    }
    for (kind, to) in [(CTA_NAT_SRC, source), (CTA_NAT_DST, target)] {
        let Some((ip, port)) = to else { continue };
        out.nest(kind, |b| {
            let (least, most) = if there.six { NAT_V6 } else { NAT_V4 };
            b.attr(least, ip).attr(most, ip);
            if !port.is_empty() {
                b.nest(CTA_NAT_PROTO, |p| {
                    p.attr(NAT_PORTS.0, port).attr(NAT_PORTS.1, port);
                });
            }
        });
    }
    out.0
}

/// The original with its ends exchanged; what is in neither stays.
fn reverse(b: &mut Body, attrs: &Attrs<'_>, there: &Way<'_>) {
    let ips = if there.six { V6 } else { V4 };
    let exchanged = |within: Attrs<'_>, (from, to): (u16, u16), b: &mut Body| {
        for (kind, value) in within.clone() {
            let other = match kind {
                k if k == from => within.get(to),
                k if k == to => within.get(from),
                _ => None,
            };
            b.attr(kind, other.unwrap_or(value));
        }
    };
    // what is in it besides (its zone) is in the told reply, too
    for (kind, value) in attrs.nest(CTA_TUPLE_REPLY) {
        let original = attrs.nest(CTA_TUPLE_ORIG).nest(kind);
        match kind {
            CTA_TUPLE_IP => b.nest(kind, |b| exchanged(original, ips, b)),
            // ICMP answers have types of their own
            CTA_TUPLE_PROTO if original.get(PORTS.0).is_some() => {
                b.nest(kind, |b| exchanged(original, PORTS, b))
            }
            CTA_TUPLE_PROTO => b.nest(kind, |b| b.0.extend_from_slice(value)),
            _ => b.attr(kind, value),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(b: &mut Body, kind: u16, from: ([u8; 4], u16), to: ([u8; 4], u16)) {
        b.nest(kind, |t| {
            t.nest(CTA_TUPLE_IP, |i| {
                i.attr(V4.0, &from.0).attr(V4.1, &to.0);
            });
            t.nest(CTA_TUPLE_PROTO, |p| {
                p.attr(1, &[6])
                    .attr(PORTS.0, &from.1.to_be_bytes())
                    .attr(PORTS.1, &to.1.to_be_bytes());
            });
        });
    }

    #[test]
    fn a_translation_is_said() {
        let (a, b, c) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]);
        let mut told = Body::new(&[2, 0, 0, 0]);
        tuple(&mut told, CTA_TUPLE_ORIG, (a, 1000), (b, 99));
        tuple(&mut told, CTA_TUPLE_REPLY, (c, 100), (a, 1000));
        told.be32(CTA_STATUS, 0x1af | IPS_EXPECTED);
        let said = anew(&told.0, &Attrs(&told.0[NFGENMSG..]));
        let said = Attrs(&said[NFGENMSG..]);
        assert_eq!(status(&said), 0x1ae);
        let back = way(&said, CTA_TUPLE_REPLY);
        assert_eq!(back.from, (&b[..], &99u16.to_be_bytes()[..]));
        assert_eq!(back.to, (&a[..], &1000u16.to_be_bytes()[..]));
        assert!(said.get(CTA_NAT_SRC).is_none());
        let to = said.nest(CTA_NAT_DST);
        assert_eq!(to.get(NAT_V4.0), Some(&c[..]));
        let ports = to.nest(CTA_NAT_PROTO);
        assert_eq!(ports.get(NAT_PORTS.1), Some(&100u16.to_be_bytes()[..]));
    }

    #[test]
    fn what_is_not_translated_stays() {
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let mut told = Body::new(&[2, 0, 0, 0]);
        tuple(&mut told, CTA_TUPLE_ORIG, (a, 1000), (b, 99));
        tuple(&mut told, CTA_TUPLE_REPLY, (b, 99), (a, 1000));
        told.be32(CTA_STATUS, 0xe);
        assert_eq!(anew(&told.0, &Attrs(&told.0[NFGENMSG..])), told.0);
    }

    #[test]
    fn other_messages_are_refused() {
        let m = stasis_kernel::netlink::message(16, 0, 0, &[0; 16]);
        assert_eq!(make(&m).expect_err("a link").code, "E5606");
    }
}
