//! The part of a datagram that a UDP or UDP-Lite socket holds back (UDP_CORK, MSG_MORE). Not a kind of its own: part of
//! [`super::inet`].
//!
//! No call shows it, so it is read out of the kernel's memory ([`stasis_kernel::cork`]). It comes back by being sent to the same address
//! with MSG_MORE, in one piece: nothing leaves the socket before the program says so.
//!
//! What control messages said of it (IP_PKTINFO, IP_TTL, ...) does not come back.
use super::act::Stagehand;
use super::common::{ask_int, opened};
use super::inet::SIOCOUTQ;
use super::inet_address::{self as address, parse_sockaddr, sockaddr};
use super::inet_options::Sort;
use super::sockopts::Buffers;
use super::udp_queue::longest;
use super::{Act, DumpCx, PlanCx, Seen, Stage, malformed};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::cork::Reader;
use stasis_kernel::error::SysError;
use stasis_proto::pb;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What a socket holds back.
pub(super) fn read(seen: &Seen, cx: &mut DumpCx) -> Result<Option<pb::StasisCorked>> {
    if ask_int(seen.fd, SIOCOUTQ)? == 0 {
        return Ok(None);
    }
    let read = match opened(&mut cx.corks, Reader::new) {
        Ok(reader) => reader.read(seen.fd),
        Err(e) => return unreadable(seen, &e),
    };
    let found = read.map_err(|e| refused(seen, &e))?;
    Ok(found.map(|c| pb::StasisCorked {
        to: sockaddr(&c.to),
        bytes: c.bytes,
    }))
}

/// Without the rights to look at it: is there anything at all?
fn unreadable(seen: &Seen, e: &SysError) -> Result<Option<pb::StasisCorked>> {
    // what a device has not sent yet counts as well, and is gone in a moment
    for _ in 0..20 {
        if ask_int(seen.fd, SIOCOUTQ)? == 0 {
            return Ok(None);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(refused(seen, e))
}

fn refused(seen: &Seen, e: &SysError) -> Error {
    seen.refuse(
        "E4552",
        format!("it holds back part of a datagram (UDP_CORK, MSG_MORE), which cannot be looked at: {e}"),
        "to look at it takes CAP_BPF and CAP_PERFMON and a kernel with BTF: dump as root, or try again when the program has sent it",
    )
}

/// A part of a datagram that goes into a socket and stays there.
#[derive(Debug, Clone)]
pub struct Cork {
    /// The socket, bound and connected as it was.
    pub file: FdRef,
    /// Whom the datagram is for.
    pub to: SocketAddr,
    /// The part.
    pub bytes: Vec<u8>,
    /// What the socket's buffers will be.
    pub buffers: Buffers,
}

/// Plans what a socket holds back.
pub(super) fn plan(
    entry: &pb::FileEntry,
    e: &pb::InetSkEntry,
    s: Sort,
    cx: &mut PlanCx,
) -> Result<()> {
    let Some(c) = e.stasis.as_ref().and_then(|x| x.corked.as_ref()) else {
        return Ok(());
    };
    let to = parse_sockaddr(&c.to).filter(|_| c.bytes.len() <= longest(s.family));
    let to = to.map(|to| address::peer_moved(&cx.options.network.addresses, to, cx.files));
    let to = match (to, s.family) {
        (Some(to @ SocketAddr::V4(_)), libc::AF_INET)
        | (Some(to @ SocketAddr::V6(_)), libc::AF_INET6) => to,
        (Some(SocketAddr::V4(to)), libc::AF_INET6) => {
            SocketAddr::new(IpAddr::V6(to.ip().to_ipv6_mapped()), to.port())
        }
        _ => return Err(malformed(entry, "it holds back a datagram for nobody")),
    };
    let cork = Cork {
        file: cx.file(e.id),
        to,
        bytes: c.bytes.clone(),
        buffers: Buffers::of(cx.file(e.id), &e.opts),
    };
    cx.act_at(
        Stage::Queues,
        Act::Cork(Box::new(cork)),
        "part of a datagram that is held back",
    );
    Ok(())
}

impl Cork {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let roomy = Buffers {
            send: self.buffers.send.max(4 * (self.bytes.len() as u32 + 4096)),
            lock: None,
            ..self.buffers
        };
        roomy.perform(on)?;
        let flags = libc::MSG_MORE | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let to = sockaddr(&self.to);
        let len = Arg::Int(to.len() as u64);
        let row = Call::new(
            libc::SYS_sendto,
            vec![
                Arg::Fd(self.file),
                Arg::In(self.bytes.clone()),
                Arg::Int(self.bytes.len() as u64),
                Arg::Named(flags as u64, "MSG_MORE|MSG_DONTWAIT|MSG_NOSIGNAL".into()),
                Arg::In(to),
                len,
            ],
        );
        let row = row.must_be(self.bytes.len() as u64);
        on.host.play(&row).map_err(|e| {
            Error::new(
                "E6556",
                Blame::Host,
                format!(
                    "part of a datagram for {} cannot be held back again",
                    self.to
                ),
            )
            .why(e)
            .advice("bring back the device and the route to the other end")
        })?;
        self.buffers.perform(on)
    }
}

impl fmt::Display for Cork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cork(file#{}, {} bytes to {})",
            self.file.0,
            self.bytes.len(),
            self.to
        )
    }
}
