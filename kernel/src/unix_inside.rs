//! What unix sockets hold where no call shows it, read out of the kernel's memory ([`crate::inside`]): what was sent on connections
//! that nobody has accepted, and where an out-of-band byte stands.
//!
//! A connection that waits to be accepted is a socket that has no descriptor. Its other end knows it; so does the listening socket, in whose
//! queue stands a packet for each.
use crate::btf;
use crate::error::{SysError, SysResult};
use crate::inside::At;
use crate::skb::Packets;
use crate::unix::Ucred;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

btf::places! {
    peer: "unix_sock" "peer",
    urgent: "unix_sock" "oob_skb",
    address: "unix_sock" "addr",
    length: "unix_address" "len",
    name: "unix_address" "name",
    open: "sock" "sk_socket",
    process: "sock" "sk_peer_pid",
    rights: "sock" "sk_peer_cred",
    user: "cred" "euid",
    group: "cred" "egid",
    of: "sk_buff" "sk",
    beside: "sk_buff" "cb",
    sender: "unix_skb_parms" "pid",
    sender_user: "unix_skb_parms" "uid",
    sender_group: "unix_skb_parms" "gid",
    files: "unix_skb_parms" "fp",
    consumed: "unix_skb_parms" "consumed",
}

/// Bytes of `sun_family`, and the longest `sun_path`.
const FAMILY: usize = 2;
const LONGEST_NAME: usize = 108;

/// A message, or what one call has sent into a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What was not read yet.
    pub bytes: Vec<u8>,
    /// It is an out-of-band byte.
    pub urgent: bool,
    /// Open files travel with it.
    pub files: bool,
    /// Who sent it, where the kernel has written that down; its number is the one in the caller's pid namespace, 0: it has none.
    pub cred: Option<Ucred>,
}

/// A connection that nobody has accepted, and whose other end is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// What was sent on it.
    pub sent: Vec<Piece>,
    /// `sun_path` of the other end; empty: it had none.
    pub name: Vec<u8>,
    /// Who connected.
    pub cred: Ucred,
}

/// A way to read it.
#[derive(Debug)]
pub struct Reader {
    packets: Packets,
    at: Places,
}

impl Reader {
    /// One for many sockets.
    ///
    /// # Errors
    /// EPERM without the rights to read the kernel's memory.
    pub fn new() -> SysResult<Self> {
        Ok(Reader {
            packets: Packets::new()?,
            at: Places::new()?,
        })
    }
    /// How many bytes wait in a stream before the out-of-band one, and that one. `None`: there is none.
    ///
    /// # Errors
    /// EAGAIN: it changes meanwhile.
    pub fn urgent(&self, socket: BorrowedFd<'_>) -> SysResult<Option<(usize, u8)>> {
        let all = self.queue(self.packets.inside.socket(socket)?)?;
        let mut before = 0;
        for p in &all {
            if let (true, [byte]) = (p.urgent, &p.bytes[..]) {
                return Ok(Some((before, *byte)));
            }
            before += p.bytes.len();
        }
        Ok(None)
    }
    /// What a socket has sent on its connection, which nobody has accepted.
    ///
    /// # Errors
    /// EAGAIN: it was accepted meanwhile.
    pub fn sent(&self, socket: BorrowedFd<'_>) -> SysResult<Vec<Piece>> {
        let inside = &self.packets.inside;
        let other = inside.word(inside.socket(socket)? + self.at.peer)?;
        if other == 0 || self.is_open(other)? {
            return Err(SysError::new("bpf(BTF)", Errno::EAGAIN, "it was accepted"));
        }
        self.queue(other)
    }
    /// The connections of a listening socket that nobody has accepted and whose other ends are closed, the first first.
    ///
    /// # Errors
    /// As for [`Reader::sent`].
    pub fn left(&self, listener: BorrowedFd<'_>) -> SysResult<Vec<Left>> {
        let (inside, at) = (&self.packets.inside, &self.at);
        let mut all = Vec::new();
        for packet in self.packets.received(inside.socket(listener)?)? {
            let own = inside.word(packet + at.of)?;
            let other = inside.word(own + at.peer)?;
            if other == 0 || self.is_open(other)? {
                continue;
            }
            let rights = inside.word(own + at.rights)?;
            all.push(Left {
                sent: self.queue(own)?,
                name: self.name(other)?,
                cred: Ucred {
                    pid: inside.number(inside.word(own + at.process)?)?,
                    uid: inside.int(rights + at.user)?,
                    gid: inside.int(rights + at.group)?,
                },
            });
        }
        Ok(all)
    }
    /// Has somebody a descriptor of it?
    fn is_open(&self, sk: At) -> SysResult<bool> {
        Ok(self.packets.inside.word(sk + self.at.open)? != 0)
    }
    fn name(&self, sk: At) -> SysResult<Vec<u8>> {
        let (inside, at) = (&self.packets.inside, &self.at);
        let address = inside.word(sk + at.address)?;
        if address == 0 {
            return Ok(Vec::new());
        }
        let len = inside.int(address + at.length)? as usize;
        let bytes = inside.bytes(address + at.name, len.min(FAMILY + LONGEST_NAME))?;
        Ok(bytes.get(FAMILY..).unwrap_or_default().to_vec())
    }
    /// What waits to be received.
    fn queue(&self, sk: At) -> SysResult<Vec<Piece>> {
        let (inside, at) = (&self.packets.inside, &self.at);
        let urgent = inside.word(sk + at.urgent)?;
        let mut all = Vec::new();
        for packet in self.packets.received(sk)? {
            let beside = packet + at.beside;
            let mut bytes = self.packets.bytes(packet)?;
            let read = inside.int(beside + at.consumed)? as usize;
            bytes.drain(..read.min(bytes.len()));
            let cred = match inside.word(beside + at.sender)? {
                0 => None,
                pid => Some(Ucred {
                    pid: inside.number(pid)?,
                    uid: inside.int(beside + at.sender_user)?,
                    gid: inside.int(beside + at.sender_group)?,
                }),
            };
            all.push(Piece {
                bytes,
                urgent: packet == urgent,
                files: inside.word(beside + at.files)? != 0,
                cred,
            });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unix;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn reader() -> Option<Reader> {
        match Reader::new() {
            Ok(r) => Some(r),
            Err(e) if e.errno == Errno::EPERM => {
                eprintln!("skipped: {e}");
                None
            }
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn the_place_of_an_out_of_band_byte_is_found() {
        let Some(reader) = reader() else { return };
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"before").unwrap();
        assert_eq!(reader.urgent(b.as_fd()).unwrap(), None);
        unix::send(a.as_fd(), None, b"!", &[], None, libc::MSG_OOB).unwrap();
        a.write_all(b"behind").unwrap();
        assert_eq!(reader.urgent(b.as_fd()).unwrap(), Some((6, b'!')));
        (&b).read_exact(&mut [0; 2]).unwrap();
        assert_eq!(reader.urgent(b.as_fd()).unwrap(), Some((4, b'!')));
    }

    #[test]
    fn what_was_sent_before_the_accept_is_read_and_stays() {
        let Some(reader) = reader() else { return };
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("s");
        let l = UnixListener::bind(&path).unwrap();
        let mut lives = UnixStream::connect(&path).unwrap();
        let mut gone = UnixStream::connect(&path).unwrap();
        let long: Vec<u8> = (0..100_000u32).map(|n| (n ^ n >> 8) as u8).collect();
        lives.write_all(b"early").unwrap();
        gone.write_all(&long).unwrap();
        drop(gone);
        let sent = reader.sent(lives.as_fd()).unwrap();
        assert_eq!(sent.len(), 1);
        assert_eq!((&sent[0].bytes[..], sent[0].files), (&b"early"[..], false));
        let left = reader.left(l.as_fd()).unwrap();
        assert_eq!(left.len(), 1);
        let all: Vec<u8> = left[0].sent.iter().flat_map(|p| p.bytes.clone()).collect();
        assert!(all == long, "{} bytes", all.len());
        assert_eq!(left[0].cred.pid as u32, std::process::id());
        assert_eq!(left[0].name, b"");
        let (mut s, _) = l.accept().unwrap();
        let mut b = [0; 5];
        s.read_exact(&mut b).unwrap();
        assert_eq!(&b, b"early");
        assert!(reader.sent(lives.as_fd()).is_err());
    }
}
