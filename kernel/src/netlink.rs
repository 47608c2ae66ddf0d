//! Netlink (netlink(7)): raw messages, their attributes, and a socket that asks and waits.
//!
//! Raw on purpose: images hold the kernel's own messages, and a reader with types for attributes would lose those it has no
//! name for. Bytes from images and from the kernel are walked by the same code, which trusts no length. Long, because reader,
//! builder and socket belong together.
use crate::error::SysError;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// `NLM_F_REQUEST` and its neighbours (linux/netlink.h).
pub const NLM_F_REQUEST: u16 = 0x1;
/// More messages of this answer follow.
pub const NLM_F_MULTI: u16 = 0x2;
/// Answer with an error message, also on success.
pub const NLM_F_ACK: u16 = 0x4;
/// The object changed while it was being dumped.
pub const NLM_F_DUMP_INTR: u16 = 0x10;
/// All objects (`NLM_F_ROOT | NLM_F_MATCH`).
pub const NLM_F_DUMP: u16 = 0x300;
/// Replace what is there.
pub const NLM_F_REPLACE: u16 = 0x100;
/// Fail if it is there.
pub const NLM_F_EXCL: u16 = 0x200;
/// Make it if it is not there.
pub const NLM_F_CREATE: u16 = 0x400;
/// Add behind what is there.
pub const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The flag of an attribute that holds attributes.
pub const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// The kernel answers in parts of at most 32 KiB (net/netlink/af_netlink.c, netlink_dump()).
const ROOM: usize = 1 << 16;
/// How often a dump is begun again because something changed meanwhile.
const AGAIN: usize = 16;
/// No answer of the kernel takes this long, in seconds; without a limit a lost one would be waited for forever.
const PATIENCE: i64 = 10;

/// Rounds up to the next multiple of four, as all lengths in netlink are.
pub const fn align(len: usize) -> usize {
    (len + 3) & !3
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

/// One message with its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The message type.
    pub fn kind(&self) -> u16 {
        u16_at(self.bytes, 4).unwrap_or(0)
    }
    /// Flags of the header.
    pub fn flags(&self) -> u16 {
        u16_at(self.bytes, 6).unwrap_or(0)
    }
    /// All of it, with its header, without padding.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
    /// What follows the header.
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[HEADER..]
    }
    /// A word of the body; `None` if the body is shorter.
    pub fn u32(&self, at: usize) -> Option<u32> {
        u32_at(self.body(), at)
    }
    /// A byte of the body; 0 if the body is shorter.
    pub fn u8(&self, at: usize) -> u8 {
        self.body().get(at).copied().unwrap_or(0)
    }
    /// Attributes behind a fixed part of `skip` bytes.
    pub fn attrs(&self, skip: usize) -> Attrs<'a> {
        Attrs(self.body().get(align(skip)..).unwrap_or(&[]))
    }
}

/// The messages in a run of bytes; the last item is an error if bytes are left over that are none.
#[derive(Debug, Clone)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let len = u32_at(self.0, 0).unwrap_or(0) as usize;
        if len < HEADER || len > self.0.len() {
            self.0 = &[];
            return Some(Err(Malformed));
        }
        let (now, _) = self.0.split_at(len);
        self.0 = self.0.get(align(len)..).unwrap_or(&[]);
        Some(Ok(Message { bytes: now }))
    }
}

/// Bytes that are no netlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a netlink message has an impossible length")]
pub struct Malformed;

/// The attributes in a run of bytes, as (type without flags, value). Ends early at an impossible length.
#[derive(Debug, Clone)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Attrs<'a> {
    /// The first attribute of a type.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(k, _)| *k == kind).map(|(_, v)| v)
    }
    /// The attributes within the first attribute of a type; none if it is missing.
    pub fn nest(&self, kind: u16) -> Attrs<'a> {
        Attrs(self.get(kind).unwrap_or(&[]))
    }
    /// A 32-bit value in the machine's order.
    pub fn u32(&self, kind: u16) -> Option<u32> {
        u32_at(self.get(kind)?, 0)
    }
    /// A 16-bit value in the machine's order.
    pub fn u16(&self, kind: u16) -> Option<u16> {
        u16_at(self.get(kind)?, 0)
    }
    /// An 8-bit value.
    pub fn u8(&self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }
    /// Text up to its NUL.
    pub fn text(&self, kind: u16) -> Option<String> {
        let v = self.get(kind)?;
        let end = v.iter().position(|b| *b == 0).unwrap_or(v.len());
        Some(String::from_utf8_lossy(&v[..end]).into_owned())
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let len = u16_at(self.0, 0)? as usize;
        let kind = u16_at(self.0, 2)? & NLA_TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(align(len)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// The body of a message under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Body(pub Vec<u8>);

impl Body {
    /// A body that begins with a fixed part.
    pub fn new(fixed: &[u8]) -> Self {
        let mut b = Body(fixed.to_vec());
        b.0.resize(align(fixed.len()), 0);
        b
    }
    /// Adds an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = 4 + value.len();
        debug_assert!(len <= usize::from(u16::MAX), "an attribute of {len} bytes");
        self.0.extend_from_slice(&(len as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }
    /// Adds a 32-bit attribute in the machine's order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }
    /// Adds a 32-bit attribute in network order.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }
    /// Adds text with its NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut v = value.as_bytes().to_vec();
        v.push(0);
        self.attr(kind, &v)
    }
    /// Adds an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Body)) -> &mut Self {
        let mut inner = Body::default();
        fill(&mut inner);
        self.attr(kind | NLA_F_NESTED, &inner.0)
    }
}

/// A message with its header.
pub fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let mut m = Vec::with_capacity(align(HEADER + body.len()));
    m.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    m.extend_from_slice(&kind.to_ne_bytes());
    m.extend_from_slice(&flags.to_ne_bytes());
    m.extend_from_slice(&seq.to_ne_bytes());
    m.extend_from_slice(&[0; 4]);
    m.extend_from_slice(body);
    m.resize(align(m.len()), 0);
    m
}

/// A netlink socket of the network namespace it was opened in, for one question at a time.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    seq: u32,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Netlink {
    /// NETLINK_ROUTE: links, addresses, routes (rtnetlink(7)).
    ///
    /// # Errors
    /// As socket(2): the family is not built, or no descriptor is free.
    pub fn route() -> Result<Self, SysError> {
        Self::open(SockProtocol::NetlinkRoute)
    }
    /// NETLINK_NETFILTER: nftables, conntrack.
    ///
    /// # Errors
    /// As socket(2): EPROTONOSUPPORT if the kernel has no nfnetlink.
    pub fn netfilter() -> Result<Self, SysError> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }
    /// NETLINK_SOCK_DIAG: sockets (sock_diag(7)).
    ///
    /// # Errors
    /// As socket(2): EPROTONOSUPPORT if the kernel has no sock_diag.
    pub fn sock_diag() -> Result<Self, SysError> {
        Self::open(SockProtocol::NetlinkSockDiag)
    }
    fn open(protocol: SockProtocol) -> Result<Self, SysError> {
        let err = |call| move |e| SysError::new(call, e, "netlink");
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )
        .map_err(err("socket"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(err("bind"))?;
        // without them answers are merely terser
        let _ = setsockopt(&fd, sockopt::RcvBuf, &(4 * ROOM));
        let _ = setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE));
        let mut n = Self { fd, seq: 0 };
        n.extended_answers();
        Ok(n)
    }
    /// Errors carry the kernel's own sentence (NETLINK_EXT_ACK) and not a copy of the request (NETLINK_CAP_ACK).
    fn extended_answers(&mut self) {
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: the option's value is an int that lives through the call; the descriptor is open.
            #[allow(unsafe_code)]
            let _ = unsafe {
                libc::setsockopt(
                    self.fd.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
        }
    }
    /// Asks for all objects: the kernel's messages, one behind the other, without the end mark.
    ///
    /// # Errors
    /// The kernel's answer; EAGAIN if the objects never stood still; ETIMEDOUT after ten seconds without an answer.
    pub fn dump(
        &mut self,
        call: &'static str,
        kind: u16,
        body: &[u8],
    ) -> Result<Vec<u8>, SysError> {
        for _ in 0..AGAIN {
            let seq = self.send(call, kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
            let (all, whole) = self.collect(call, seq)?;
            if whole {
                return Ok(all);
            }
        }
        Err(SysError::new(
            call,
            Errno::EAGAIN,
            "it changes all the time",
        ))
    }
    /// Asks for one object: the first message of the answer.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn get(&mut self, call: &'static str, kind: u16, body: &[u8]) -> Result<Vec<u8>, SysError> {
        let seq = self.send(call, kind, NLM_F_REQUEST | NLM_F_ACK, body)?;
        Ok(self.collect(call, seq)?.0)
    }
    /// Has something done and waits for the kernel's word on it.
    ///
    /// # Errors
    /// The kernel's answer, with its sentence if it has one.
    pub fn act(
        &mut self,
        call: &'static str,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> Result<(), SysError> {
        let seq = self.send(call, kind, flags | NLM_F_REQUEST | NLM_F_ACK, body)?;
        self.collect(call, seq).map(drop)
    }
    /// Sends a batch that is done wholly or not at all (nfnetlink), whose last message with NLM_F_ACK tells how it went.
    ///
    /// # Errors
    /// The first complaint of the kernel.
    pub fn batch(
        &mut self,
        call: &'static str,
        parts: &[(u16, u16, Vec<u8>)],
    ) -> Result<(), SysError> {
        let mut bytes = Vec::new();
        let mut last = 0;
        for (kind, flags, body) in parts {
            self.seq += 1;
            if flags & NLM_F_ACK != 0 {
                last = self.seq;
            }
            bytes.extend(message(*kind, *flags | NLM_F_REQUEST, self.seq, body));
        }
        // a batch is one datagram; the default buffer holds about 200 KiB
        let _ = setsockopt(&self.fd, sockopt::SndBuf, &(bytes.len() * 2 + ROOM));
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())
            .map_err(|e| SysError::new(call, e, "send"))?;
        self.collect(call, last)?;
        // KERNEL: the word on the whole batch comes behind that on its last message, and all words are there when send() ends
        // (net/netfilter/nfnetlink.c, nfnetlink_rcv_batch())
        let mut buf = vec![0; ROOM];
        while let Ok(n) = recv(self.fd.as_raw_fd(), &mut buf, MsgFlags::MSG_DONTWAIT) {
            for m in Messages(&buf[..n]).flatten() {
                let errno = -(m.u32(0).unwrap_or(0) as i32);
                if m.kind() == NLMSG_ERROR && errno != 0 {
                    return Err(SysError::new(call, Errno::from_raw(errno), sentence(&m)));
                }
            }
        }
        Ok(())
    }
    fn send(
        &mut self,
        call: &'static str,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> Result<u32, SysError> {
        self.seq += 1;
        let m = message(kind, flags, self.seq, body);
        send(self.fd.as_raw_fd(), &m, MsgFlags::empty())
            .map_err(|e| SysError::new(call, e, "send"))?;
        Ok(self.seq)
    }
    /// Messages up to the end of the answer to `seq`; false if the objects changed meanwhile. Complaints about earlier messages of
    /// a batch end it, too.
    fn collect(&mut self, call: &'static str, seq: u32) -> Result<(Vec<u8>, bool), SysError> {
        let (mut all, mut whole) = (Vec::new(), true);
        let mut buf = vec![0; ROOM];
        loop {
            let n = match recv(self.fd.as_raw_fd(), &mut buf, MsgFlags::empty()) {
                Ok(n) => n,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {
                    return Err(SysError::new(call, Errno::ETIMEDOUT, "no answer"));
                }
                Err(e) => return Err(SysError::new(call, e, "recv")),
            };
            for m in Messages(&buf[..n]) {
                let m = m.map_err(|_| SysError::new(call, Errno::EBADMSG, ""))?;
                let of = u32_at(m.bytes(), 8).unwrap_or(0);
                whole &= m.flags() & NLM_F_DUMP_INTR == 0;
                match m.kind() {
                    NLMSG_ERROR => {
                        let errno = -(m.u32(0).unwrap_or(0) as i32);
                        if errno != 0 {
                            let e = Errno::from_raw(errno);
                            return Err(SysError::new(call, e, sentence(&m)));
                        }
                        if of == seq {
                            return Ok((all, whole));
                        }
                    }
                    NLMSG_DONE if of == seq => {
                        let errno = -(m.u32(0).unwrap_or(0) as i32);
                        if errno > 0 {
                            return Err(SysError::new(call, Errno::from_raw(errno), ""));
                        }
                        return Ok((all, whole));
                    }
                    NLMSG_OVERRUN => return Err(SysError::new(call, Errno::ENOBUFS, "")),
                    _ if of == seq => {
                        all.extend_from_slice(m.bytes());
                        all.resize(align(all.len()), 0);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The kernel's own words about an error, if it has any.
fn sentence(m: &Message<'_>) -> String {
    if m.flags() & NLM_F_ACK_TLVS == 0 {
        return String::new();
    }
    let inner = if m.flags() & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        m.u32(4).unwrap_or(0) as usize
    };
    m.attrs(4 + inner)
        .text(NLMSGERR_ATTR_MSG)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_built_is_read_back() {
        let mut b = Body::new(&[1, 2, 3, 4, 5]);
        b.u32(7, 42).text(8, "lo").nest(9, |n| {
            n.u32(1, 5);
        });
        let m = message(16, NLM_F_ACK, 3, &b.0);
        let two = [m.clone(), m].concat();
        let all: Vec<_> = Messages(&two).map(|m| m.expect("whole")).collect();
        assert_eq!(all.len(), 2);
        let a = all[1].attrs(5);
        assert_eq!((all[1].kind(), all[1].u8(4)), (16, 5));
        assert_eq!((a.u32(7), a.text(8)), (Some(42), Some("lo".into())));
        assert_eq!(a.nest(9).u32(1), Some(5));
    }

    #[test]
    fn a_length_that_lies_ends_the_walk() {
        let mut m = message(16, 0, 1, &Body::default().u32(1, 2).0);
        m[0] = 200;
        assert_eq!(Messages(&m).next(), Some(Err(Malformed)));
        m[0] = 3;
        assert_eq!(Messages(&m).next(), Some(Err(Malformed)));
        let mut attr = Body::default();
        attr.u32(1, 2);
        attr.0[0] = 9;
        assert_eq!(Attrs(&attr.0).next(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(b in proptest::collection::vec(any::<u8>(), 0..200)) {
            for m in Messages(&b).flatten() {
                for (_, v) in m.attrs(4) {
                    let _ = Attrs(v).count();
                }
                let _ = sentence(&m);
            }
            let _ = Attrs(&b).count();
        }
    }

    #[test]
    fn loopback_is_the_first_link() {
        let mut n = Netlink::route().expect("socket");
        let all = n
            .dump("rtnetlink(RTM_GETLINK)", 18, &[0; 16])
            .expect("dump");
        let first = Messages(&all).next().expect("one").expect("whole");
        assert_eq!(first.attrs(16).text(3).as_deref(), Some("lo"));
    }

    #[test]
    fn errors_have_the_kernels_sentence() {
        let mut n = Netlink::route().expect("socket");
        let mut b = Body::new(&[0; 16]);
        b.text(3, "a name that is far too long for a device");
        let e = n
            .get("rtnetlink(RTM_GETLINK)", 18, &b.0)
            .expect_err("no such link");
        assert!(!e.what.is_empty(), "{e}");
    }
}
