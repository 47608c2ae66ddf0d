//! What unix sockets hold and no call shows: what was sent on connections that nobody has accepted, and where an out-of-band byte
//! stands. Not a kind of its own: part of [`super::unixsk`].
//!
//! It is read out of the kernel's memory ([`stasis_kernel::unix_inside`]), which takes CAP_BPF and CAP_PERFMON and a kernel with BTF;
//! without them such sockets are refused by name. So are files that travel on such a connection: nobody can get hold of them.
use super::common::opened;
use super::unixsk::inside;
use super::{DumpCx, Seen, sockopts};
use crate::error::{Blame, Error, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use stasis_kernel::error::SysError;
use stasis_kernel::unix::{self, Message};
use stasis_kernel::unix_inside::{Piece, Reader};
use stasis_proto::pb;
use std::os::fd::{AsFd, AsRawFd};

const RIGHTS: &str =
    "to look there takes CAP_BPF and CAP_PERFMON and a kernel with BTF: dump as root";

fn refused(seen: &Seen, code: &'static str, what: &str, why: &str) -> Error {
    seen.refuse(
        code,
        format!("it {what}: {why}"),
        format!("{RIGHTS}, try again when the server has accepted it, or pass --skip-in-flight to leave the connection behind"),
    )
}

/// What a socket has sent on its connection, which nobody has accepted.
pub(super) fn sent(seen: &Seen, cx: &mut DumpCx) -> Result<Vec<pb::StasisUnixMessage>> {
    let reader = opened(&mut cx.unix.reader, Reader::new);
    let sent = reader.and_then(|r| r.sent(seen.fd));
    const WHAT: &str = "has sent something on a connection that is not accepted yet";
    let sent = sent.map_err(|e| refused(seen, "E4504", WHAT, &e.to_string()))?;
    let kept = messages(seen, &sent, cx)?;
    kept.ok_or_else(|| refused(seen, "E4504", WHAT, "open files travel there"))
}

/// The connections of a listening socket that nobody has accepted and whose other ends are closed: so many.
pub(super) fn left(seen: &Seen, count: usize, cx: &mut DumpCx) -> Result<Vec<pb::StasisUnixLeft>> {
    const WHAT: &str =
        "has a connection that it has not accepted yet and that was closed by its other end";
    let refused = |why: &str| refused(seen, "E4505", WHAT, why);
    let reader = opened(&mut cx.unix.reader, Reader::new);
    let all = reader.and_then(|r| r.left(seen.fd));
    let all = all.map_err(|e| refused(&e.to_string()))?;
    if all.len() != count {
        return Err(refused("what waits there changes"));
    }
    let mut kept = Vec::new();
    for l in all {
        kept.push(pb::StasisUnixLeft {
            sent: messages(seen, &l.sent, cx)?.ok_or_else(|| refused("open files travel there"))?,
            name: (!l.name.is_empty()).then_some(l.name),
            cred: Some(inside(l.cred, cx)),
        });
    }
    Ok(kept)
}

/// For the image; `None` if files are among them.
fn messages(seen: &Seen, all: &[Piece], cx: &DumpCx) -> Result<Option<Vec<pb::StasisUnixMessage>>> {
    let stream =
        sockopts::get_int(seen.fd, libc::SOL_SOCKET, libc::SO_TYPE)? == Some(libc::SOCK_STREAM);
    let mut out: Vec<pb::StasisUnixMessage> = Vec::new();
    for p in all {
        if p.files {
            return Ok(None);
        }
        // what an out-of-band byte leaves behind when it is read
        if stream && p.bytes.is_empty() {
            continue;
        }
        let cred = p.cred.map(|c| inside(c, cx));
        match out.last_mut() {
            Some(m) if stream && !p.urgent && m.oob.is_none() && m.cred == cred => {
                m.bytes.extend(&p.bytes);
            }
            _ => out.push(pb::StasisUnixMessage {
                bytes: p.bytes.clone(),
                oob: p.urgent.then_some(true),
                cred,
            }),
        }
    }
    Ok(Some(out))
}

/// Bytes before the out-of-band one in the queue of a stream, and that one.
pub(super) fn urgent(seen: &Seen, cx: &mut DumpCx) -> Result<Option<(usize, u8)>> {
    let reader = opened(&mut cx.unix.reader, Reader::new);
    let told = reader.and_then(|r| r.urgent(seen.fd));
    told.map_err(|e: SysError| {
        seen.refuse(
            "E4506",
            format!("an out-of-band byte waits in its queue, and where it stands cannot be looked at: {e}"),
            format!("{RIGHTS}, or try again when it was read"),
        )
    })
}

/// Do peeks step over an out-of-band byte at the head of a queue, and show what is behind it?
///
/// KERNEL(<6.11): manage_oob() (net/unix/af_unix.c) showed the byte, or nothing at all.
pub(super) fn steps_over() -> bool {
    static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ANSWER.get_or_init(|| {
        let look = || -> nix::Result<Option<Vec<u8>>> {
            let how = (
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
            );
            let (from, to) = socketpair(how.0, how.1, None, how.2)?;
            send(from.as_raw_fd(), b"?", MsgFlags::MSG_OOB)?;
            send(from.as_raw_fd(), b"rest", MsgFlags::empty())?;
            let peek = || {
                unix::set_peek_offset(to.as_fd(), 0)?;
                unix::peek(to.as_fd(), 5, 0)
            };
            Ok(peek().ok().flatten().map(|m| m.bytes))
        };
        look().is_ok_and(|b| b.as_deref() == Some(b"rest"))
    })
}

/// That a queue with an out-of-band byte does not show what it holds.
pub(super) fn unclear(place: &str) -> Error {
    Error::new("E4506", Blame::Container, format!("cannot dump {place}"))
        .why("an out-of-band byte waits in its queue, and this kernel does not show what is behind it")
        .advice("try again when the byte was read")
}

/// The messages of a stream, of which one byte is out of band: that becomes a message of its own. `shown`: peeks show it among the
/// others, as they do unless it is the first and SO_OOBINLINE is off.
pub(super) fn apart(all: Vec<Message>, (at, byte): (usize, u8), shown: bool) -> Vec<Message> {
    let mut out = Vec::new();
    let urgent = |byte| Message {
        bytes: vec![byte],
        urgent: true,
        ..Message::default()
    };
    if !shown {
        out.push(urgent(byte));
        out.extend(all);
        return out;
    }
    let mut start = 0;
    for mut m in all {
        let end = start + m.bytes.len();
        if !(start..end).contains(&at) {
            start = end;
            out.push(m);
            continue;
        }
        let mut behind = m.bytes.split_off(at - start);
        behind.remove(0);
        let cred = m.cred;
        let mut one = Message {
            cred,
            ..urgent(byte)
        };
        // files come with the last byte of a piece
        if behind.is_empty() {
            one.files = std::mem::take(&mut m.files);
        }
        let last = Message {
            bytes: behind,
            files: std::mem::take(&mut m.files),
            cred,
            ..Message::default()
        };
        start = end;
        out.extend([m, one, last].into_iter().filter(|m| !m.bytes.is_empty()));
    }
    out
}
