//! TCP connections that wait to be accepted at a listening socket. Not a kind of its own: part of [`super::inet`].
//!
//! Nobody has a descriptor of them. When everything else was described and the lock is closed, each is accepted, read and put back
//! by a process that outlives the engine (`stasis_kernel::repair::queued`); a restore puts them into the queue of the
//! new listener in the same way. They are an extension of the listener's entry, which CRIU reads over.
//!
//! The same lock that keeps others from sending also keeps what the re-made connection would say from leaving: the other end hears of
//! it when it speaks next.
use super::act::Stagehand;
use super::inet_address::{self as address, parse_sockaddr, sockaddr};
use super::inet_options::state;
use super::tcp::{got_fin, record};
use super::{Act, DumpCx, PlanCx, Seen, Stage, malformed, unixsk_diag};
use crate::error::{Blame, Error, Result};
use crate::options::NetworkLock;
use nix::errno::Errno;
use stasis_kernel::call::FdRef;
use stasis_kernel::fds;
use stasis_kernel::ns::{self, Ns};
use stasis_kernel::repair;
use stasis_kernel::usher::{Guest, MOST_BYTES, Usher};
use stasis_proto::pb;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const KEPT: &str = "tcp-queue";

fn cannot(place: &str, n: u32) -> Error {
    Error::new("E4553", Blame::Container, format!("cannot dump {place}"))
        .why(format!("{n} connections wait to be accepted"))
}

/// A listening socket was met, with connections that nobody has accepted.
pub(super) fn meet(seen: &Seen, id: u32, n: u32, cx: &mut DumpCx) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    let o = &cx.options.network;
    if o.skip_in_flight || o.tcp_close {
        cx.warn(format!(
            "{}: {n} connections that wait to be accepted will not come back",
            seen.place()
        ));
        return Ok(());
    }
    let refused = cannot(&seen.place(), n);
    if !o.tcp_established {
        return Err(refused.advice("keep them with --tcp-established, leave them behind with --skip-in-flight, or try again when the program has accepted them"));
    }
    if o.lock == NetworkLock::Skip {
        return Err(refused.advice("they are looked at under the network lock only: dump without --network-lock skip, or leave them behind with --skip-in-flight"));
    }
    const TCP_FASTOPEN: i32 = 23;
    let fast = super::sockopts::get_int(seen.fd, libc::SOL_TCP, TCP_FASTOPEN)?.unwrap_or(0);
    if fast > 0 {
        return Err(refused.advice("with TCP_FASTOPEN some may be in a state that cannot be carried: try again, or leave them behind with --skip-in-flight"));
    }
    cx.keep
        .insert((KEPT, id.into()), (fds::dup(seen.fd)?, seen.place()));
    Ok(())
}

/// Is there something for [`finish`]?
pub(super) fn met(cx: &DumpCx) -> bool {
    cx.keep.range((KEPT, 0)..=(KEPT, u64::MAX)).next().is_some()
}

/// Reads what waits at the sockets that were met. The lock is closed.
pub(super) fn finish(cx: &mut DumpCx) -> Result<()> {
    while let Some(key) = cx
        .keep
        .range((KEPT, 0)..=(KEPT, u64::MAX))
        .map(|(k, _)| *k)
        .next()
    {
        let Some((listener, place)) = cx.keep.remove(&key) else {
            continue;
        };
        let id = key.1 as u32;
        let entry = cx
            .entries
            .iter_mut()
            .find(|e| e.id == id)
            .and_then(|e| e.isk.as_mut());
        let Some(e) = entry else {
            return Err(Error::bug(format!("no entry {id} for {place}")));
        };
        let queued = read(listener.as_fd(), e.family as i32, &place)?;
        e.stasis.get_or_insert_default().queued = queued;
    }
    Ok(())
}

fn read(listener: BorrowedFd<'_>, family: i32, place: &str) -> Result<Vec<pb::StasisQueued>> {
    let long = longest(listener, place)?;
    if long > MOST_BYTES as u32 {
        return Err(cannot(place, 1)
            .why(format!("a connection that waits to be accepted has received {long} bytes, and more than {MOST_BYTES} cannot be carried"))
            .advice("try again when the program has accepted it, or leave such connections behind with --skip-in-flight"));
    }
    let all = in_namespace(listener, || {
        let usher = usher(family).map_err(|e| refused(place, e))?;
        let read = repair::queued(listener, &usher);
        read.map_err(|e| refused(place, e))
    })??;
    let one = |q: &repair::Queued| {
        let (state, stream) = record(&q.connection, place)?;
        Ok(pb::StasisQueued {
            local: sockaddr(&q.local),
            peer: sockaddr(&q.peer),
            state,
            stream,
            receive: q.connection.receive.clone(),
        })
    };
    all.iter().map(one).collect()
}

/// How much the connection has received that waits at this socket and has received most.
fn longest(listener: BorrowedFd<'_>, place: &str) -> Result<u32> {
    let Some(local) = address::local(listener)? else {
        return Err(Error::bug(format!("{place} listens nowhere")));
    };
    in_namespace(listener, || super::inet_diag::unaccepted(local.port()))?
}

fn usher(family: i32) -> std::result::Result<Usher, stasis_kernel::error::SysError> {
    // a listener of IPv6 takes connections of both
    let versions = [true, family == libc::AF_INET6];
    Usher::new(versions, stasis_netlock::PASS_MARK)
}

fn refused(place: &str, e: stasis_kernel::error::SysError) -> Error {
    let advice = match e.errno {
        Errno::ENOSYS => {
            "it takes Linux 6.9 to put them back: leave them behind with --skip-in-flight, or try again when the program has accepted them"
        }
        Errno::EPERM => {
            "it takes CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW on the host: leave them behind with --skip-in-flight, or try again when the program has accepted them"
        }
        _ => {
            "try again when the program has accepted them, or leave them behind with --skip-in-flight"
        }
    };
    Error::new("E4553", Blame::Container, format!("cannot dump {place}"))
        .why(format!(
            "connections wait to be accepted, and cannot be looked at: {e}"
        ))
        .advice(advice)
}

fn in_namespace<R: Send>(socket: BorrowedFd<'_>, f: impl FnOnce() -> R + Send) -> Result<R> {
    let Some(place): Option<OwnedFd> = unixsk_diag::namespace(socket) else {
        return Ok(f());
    };
    Ok(ns::visit(&[(Ns::Net, place.as_fd())], f)?)
}

/// Connections that come into the queue of a listening socket.
#[derive(Debug, Clone)]
pub struct Lead {
    /// The socket.
    pub file: FdRef,
    /// Its family.
    pub family: i32,
    /// Own address, the other end's, and what it holds.
    pub all: Vec<(SocketAddr, SocketAddr, pb::StasisQueued)>,
}

/// Plans what waits at a socket that listens.
pub(super) fn plan(entry: &pb::FileEntry, e: &pb::InetSkEntry, cx: &mut PlanCx) -> Result<()> {
    let queued = e.stasis.as_ref().map_or(&[][..], |x| &x.queued);
    let o = &cx.options.network;
    if queued.is_empty() {
        return Ok(());
    }
    if o.skip_in_flight || o.tcp_close {
        cx.warnings.push(format!(
            "{} connections that nobody had accepted do not come back",
            queued.len()
        ));
        return Ok(());
    }
    let one = |q: &pb::StasisQueued| {
        let at = |b: &[u8]| {
            parse_sockaddr(b).ok_or_else(|| malformed(entry, "a waiting connection has no address"))
        };
        if !matches!(q.state, state::ESTABLISHED | state::CLOSE_WAIT)
            || q.receive.len() > MOST_BYTES
        {
            return Err(malformed(
                entry,
                "a waiting connection in a state that has none",
            ));
        }
        Ok((
            address::moved(&o.addresses, at(&q.local)?),
            address::peer_moved(&o.addresses, at(&q.peer)?, cx.files),
            q.clone(),
        ))
    };
    let lead = Lead {
        file: cx.file(entry.id),
        family: e.family as i32,
        all: queued.iter().map(one).collect::<Result<_>>()?,
    };
    // the other ends of some may be in the tree: they must be there
    cx.act_at(
        Stage::Queues,
        Act::Lead(Box::new(lead)),
        "connections that nobody has accepted",
    );
    Ok(())
}

impl Lead {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let listener = on.fd(self.file)?;
        let cannot = |e: &dyn fmt::Display| {
            Error::new(
                "E6554",
                Blame::Host,
                "connections that wait to be accepted cannot be made again",
            )
            .why(e)
            .advice("it takes Linux 6.9, CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW on the host, and a loopback device that is up; --skip-in-flight restores without them")
        };
        in_namespace(listener, || {
            let usher = usher(self.family).map_err(|e| cannot(&e))?;
            for (local, peer, q) in &self.all {
                let s = &q.stream;
                let guest = Guest {
                    options: s.opt_mask as u8,
                    scale: (s.snd_wscale as u8, s.rcv_wscale.unwrap_or(0) as u8),
                    inq_seq: s.inq_seq,
                    outq_seq: s.outq_seq,
                    mss: s.mss_clamp,
                    timestamp: s.timestamp.unwrap_or(0),
                    window: s.snd_wnd.unwrap_or(0),
                    fin: got_fin(q.state),
                    receive: &q.receive,
                };
                let said = usher.lead(listener, &guest, *local, *peer);
                said.map_err(|e| cannot(&format!("{peer} to {local}: {e}")))?;
            }
            Ok(())
        })?
    }
}

impl fmt::Display for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lead(file#{}", self.file.0)?;
        for (local, peer, q) in &self.all {
            write!(f, ", {peer} to {local} with {} bytes", q.receive.len())?;
        }
        f.write_str(")")
    }
}
