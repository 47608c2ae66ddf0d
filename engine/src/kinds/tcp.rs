//! TCP connections: how they are read. Not a kind of its own: part of [`super::inet`].
//!
//! The queues, the sequence numbers and the windows of a connection are given out only in repair mode, which the program
//! would notice. So they are read at the end of the dump, after everything else was described, by a process that outlives the
//! engine (`stasis_kernel::repair`); no connection is in repair mode when it is done. When the tree was killed, the duplicates
//! that the engine holds are the last ones: they are put into repair mode and closed, which sends nothing and leaves nothing
//! behind.
//!
//! The image counts as CRIU does: `inq_seq` and `outq_seq` are behind the last byte of their queue, a FIN counts as one, but is
//! in neither length.
use super::inet_options::state;
use super::{DumpCx, Seen, Undo, inet_address as address, tcp_queue, unixsk_diag};
use crate::error::{Blame, Error, Result};
use crate::netlock::Tuple;
use crate::network;
use nix::errno::Errno;
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_kernel::ids::HostPid;
use stasis_kernel::repair::{self, Connection};
use stasis_proto::{Kind, pb};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

/// TCPI_OPT_*: what both ends have agreed on (linux/tcp.h).
pub(super) mod agreed {
    pub const TIMESTAMPS: u32 = 1;
    pub const SACK: u32 = 2;
    pub const WSCALE: u32 = 4;
}

/// States in which the socket itself has sent a FIN, or has one to send.
pub(super) fn sent_fin(state: u32) -> bool {
    matches!(
        state,
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK
    )
}

/// States in which the other end's FIN has come.
pub(super) fn got_fin(state: u32) -> bool {
    matches!(state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING)
}

/// Is this a state of a connection that can be carried?
pub(super) fn carried(state: u32) -> bool {
    matches!(
        state,
        state::ESTABLISHED | state::SYN_SENT | state::CLOSE_WAIT
    ) || sent_fin(state)
}

fn cannot(place: &str, why: impl std::fmt::Display) -> Error {
    Error::new("E4554", Blame::Container, format!("cannot dump {place}")).why(why)
}

/// A connection was met: it is read at the end.
pub(super) fn meet(seen: &Seen, id: u32, state: u32, cx: &mut DumpCx) -> Result<()> {
    let o = &cx.options.network;
    if o.tcp_close {
        return Ok(());
    }
    if !o.tcp_established {
        return Err(seen.refuse("E4555", "it is a TCP connection", "keep connections with --tcp-established, or have them come back closed with --tcp-close"));
    }
    if !carried(state) {
        return Err(
            cannot(&seen.place(), "the connection is being accepted (SYN_RECV)")
                .advice("try again in a moment"),
        );
    }
    let kept = (fds::dup(seen.fd)?, seen.place());
    cx.keep.insert(("tcp", id.into()), kept);
    Ok(())
}

/// Reads all connections that were met, and writes their images.
pub(super) fn finish(cx: &mut DumpCx) -> Result<()> {
    let mine: Vec<(&'static str, u64)> = cx
        .keep
        .range(("tcp", 0)..=("tcp", u64::MAX))
        .map(|(k, _)| *k)
        .collect();
    if mine.is_empty() && !tcp_queue::met(cx) {
        return Ok(());
    }
    let mut all = Vec::new();
    for key in mine {
        if let Some((fd, place)) = cx.keep.remove(&key) {
            all.push((key.1 as u32, fd, place));
        }
    }
    lock(cx, &all)?;
    // before others are looked at: their own ends may be among those
    tcp_queue::finish(cx)?;
    let sockets: Vec<_> = all.iter().map(|c| c.1.as_fd()).collect();
    crate::kill_point();
    let read = repair::read(&sockets)?;
    let places: BTreeMap<u32, usize> = cx.entries.iter().map(|e| e.id).zip(0..).collect();
    for ((id, fd, place), c) in all.into_iter().zip(read) {
        let c = c.map_err(|e| refused(&place, &e))?;
        let (state, record) = record(&c, &place)?;
        let Some(sk) = places.get(&id).and_then(|at| cx.entries[*at].isk.as_mut()) else {
            return Err(Error::bug(format!("no entry {id} for {place}")));
        };
        // an ACK or a FIN may have come since it was described
        sk.state = state;
        let name = Kind::TcpStream.file_of(sk.ino);
        let (receive, send) = queues(&c, &record);
        let payload = [receive, send].concat();
        cx.put(&name, &record, &payload)?;
        if let Some(w) = cx.writers.remove(&name) {
            w.finish()?;
        }
        cx.undo.push(Undo::Connection(fd));
        crate::kill_point();
    }
    Ok(())
}

/// Packets of the connections, and for those who wait for some, are held from now on.
fn lock(cx: &mut DumpCx, connections: &[(u32, OwnedFd, String)]) -> Result<()> {
    let locks = std::mem::take(&mut cx.locks);
    if locks.are_needless() {
        return Ok(());
    }
    let locks = locks.ready()?;
    let root = stasis_kernel::procfs::ProcDir::open(HostPid(cx.options.pid))?.ns("net")?;
    let root = cx.namespaces.get(&root).map(|n| n.1);
    let mine: BTreeSet<u32> = connections.iter().map(|c| c.0).collect();
    // with the namespace they are in
    let tuples = cx.entries.iter().filter_map(|e| {
        let sk = e.isk.as_deref()?;
        let listens = sk.state == state::LISTEN && sk.proto == libc::IPPROTO_TCP as u32;
        (listens || mine.contains(&e.id)).then_some(())?;
        let at = |w: &[u32], port| address::from_words(e, sk.family as i32, w, port).ok();
        let local = at(&sk.src_addr, sk.src_port)?;
        let t = network::tuple(sk.state, local, at(&sk.dst_addr, sk.dst_port)?)?;
        Some((e.id, sk.ns_id, t))
    });
    let tuples: Vec<_> = tuples.collect();
    let (at_root, nested): (Vec<_>, Vec<_>) = tuples.iter().partition(|t| t.1 == root);
    let only = |of: &[(u32, Option<u32>, Tuple)]| of.iter().map(|t| t.2).collect::<Vec<_>>();
    for (n, lock, of) in [
        (0, locks.own, only(&at_root)),
        (1, locks.crossing, only(&tuples)),
    ] {
        let Some(mut lock) = lock else { continue };
        network::close(&mut lock, &of)?;
        cx.locked[n] = Some(lock.id());
        cx.undo.push(Undo::Lock(Box::new(lock.into())));
    }
    let mut done = BTreeSet::new();
    for (id, ns, _) in nested {
        let Some((_, socket, _)) = connections.iter().find(|c| c.0 == id) else {
            continue;
        };
        if done.insert(ns)
            && let Some(place) = unixsk_diag::namespace(socket)
            && let Some(lock) = network::nested(cx.options, place.as_fd())?
        {
            cx.undo.push(Undo::NestedLock(Box::new(lock.into())));
        }
    }
    Ok(())
}

fn refused(place: &str, e: &SysError) -> Error {
    let e2 = cannot(place, e);
    match e.errno {
        Errno::EPERM => e2.advice(
            "repair mode needs CAP_NET_ADMIN in the user namespace that owns the network namespace",
        ),
        _ => e2.advice("try again; `stasis check` tells what the kernel lacks"),
    }
}

/// The state, and the record for the image.
pub(super) fn record(c: &Connection, place: &str) -> Result<(u32, pb::TcpStreamEntry)> {
    let state = u32::from(c.info[0]);
    if !carried(state) {
        return Err(
            cannot(place, "the connection ended while it was looked at").advice("try again")
        );
    }
    let fin = u32::from(sent_fin(state));
    // In FIN_WAIT2 the FIN is acknowledged, so the queue does not hold it any more.
    let outq_len = c.outq_len.saturating_sub(fin);
    let unsq_len = c.unsq_len.saturating_sub(fin).min(outq_len);
    if c.receive.len() != c.inq_len as usize {
        return Err(cannot(
            place,
            format!(
                "{} bytes of its {} unread ones can be looked at: there is urgent data among them",
                c.receive.len(),
                c.inq_len
            ),
        )
        .advice("try again when the program has read it"));
    }
    if (c.send.len() as u64) < u64::from(outq_len) {
        return Err(cannot(
            place,
            format!(
                "{} of its {outq_len} unacknowledged bytes can be looked at",
                c.send.len()
            ),
        )
        .advice("try again"));
    }
    let options = u32::from(c.info[5]);
    let has = |bit| options & bit != 0;
    let (snd, rcv) = (u32::from(c.info[6] & 0xf), u32::from(c.info[6] >> 4));
    let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] = c.window;
    Ok((
        state,
        pb::TcpStreamEntry {
            inq_len: c.inq_len,
            inq_seq: c.inq_seq,
            outq_len,
            outq_seq: c.outq_seq,
            unsq_len: Some(unsq_len),
            opt_mask: options,
            snd_wscale: if has(agreed::WSCALE) { snd } else { 0 },
            rcv_wscale: has(agreed::WSCALE).then_some(rcv),
            mss_clamp: c.mss,
            timestamp: has(agreed::TIMESTAMPS).then_some(c.timestamp),
            snd_wl1: Some(snd_wl1),
            snd_wnd: Some(snd_wnd),
            max_window: Some(max_window),
            rcv_wnd: Some(rcv_wnd),
            rcv_wup: Some(rcv_wup),
            ..Default::default()
        },
    ))
}

/// The bytes of both queues that go into the image.
fn queues<'a>(c: &'a Connection, r: &pb::TcpStreamEntry) -> (&'a [u8], &'a [u8]) {
    // KERNEL: a segment of which only a part is acknowledged is still given as a whole (net/ipv4/tcp.c, tcp_peek_sndq())
    let known = c.send.len() - r.outq_len as usize;
    (&c.receive, &c.send[known..])
}
