//! Packets in the queues of sockets (`struct sk_buff`), read out of the kernel's memory ([`crate::inside`]).
//!
//! The bytes of one lie behind each other at first, the others in pages.
use crate::btf;
use crate::error::{SysError, SysResult};
use crate::inside::{At, Inside};
use nix::errno::Errno;

btf::places! {
    next: "sk_buff" "next",
    head: "sk_buff" "head",
    data: "sk_buff" "data",
    end: "sk_buff" "end",
    length: "sk_buff" "len",
    in_pages: "sk_buff" "data_len",
    transport: "sk_buff" "transport_header",
    pieces: "skb_shared_info" "nr_frags",
    first: "skb_shared_info" "frags",
    further: "skb_shared_info" "frag_list",
    received: "sock" "sk_receive_queue",
    unsent: "sock" "sk_write_queue",
}

/// No packet is longer.
const LONGEST: usize = 16 << 20;
/// `skb_frag_t`: page, length, offset.
const FRAGMENT: u64 = 16;

/// A way to read packets.
#[derive(Debug)]
pub(crate) struct Packets {
    pub(crate) inside: Inside,
    at: Places,
}

fn unclear(e: Errno, what: &str) -> SysError {
    SysError::new("bpf(BTF)", e, what.to_string())
}

impl Packets {
    /// One for many sockets: to find out where the kernel's fields lie takes milliseconds.
    ///
    /// # Errors
    /// EPERM without the rights to read the kernel's memory.
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Packets {
            inside: Inside::open()?,
            at: Places::new()?,
        })
    }
    /// What waits to be received in a `struct sock`.
    pub(crate) fn received(&self, sk: At) -> SysResult<Vec<At>> {
        self.queue(sk + self.at.received)
    }
    /// What a `struct sock` has not sent yet.
    pub(crate) fn unsent(&self, sk: At) -> SysResult<Vec<At>> {
        self.queue(sk + self.at.unsent)
    }
    fn queue(&self, head: At) -> SysResult<Vec<At>> {
        let all = self.inside.list(head)?;
        Ok(all.into_iter().map(|p| p - self.at.next).collect())
    }
    /// Length of a packet.
    pub(crate) fn len(&self, packet: At) -> SysResult<usize> {
        Ok(self.inside.int(packet + self.at.length)? as usize)
    }
    /// All bytes of a packet, its headers among them as far as they are there.
    pub(crate) fn bytes(&self, packet: At) -> SysResult<Vec<u8>> {
        let (inside, at) = (&self.inside, &self.at);
        let len = self.len(packet)?;
        let in_pages = inside.int(packet + at.in_pages)? as usize;
        if in_pages > len || len > LONGEST {
            return Err(unclear(Errno::EAGAIN, "a packet that changes"));
        }
        let mut bytes = inside.bytes(inside.word(packet + at.data)?, len - in_pages)?;
        // KERNEL: a distance, not an address, on machines of 64 bits (linux/skbuff.h, skb_end_pointer())
        let shared = inside.word(packet + at.head)? + u64::from(inside.int(packet + at.end)?);
        if inside.word(shared + at.further)? != 0 {
            return Err(unclear(Errno::EOPNOTSUPP, "a packet of packets"));
        }
        let pieces = inside.int(shared + at.pieces)? & 0xff;
        for n in 0..u64::from(pieces) {
            let piece = shared + at.first + n * FRAGMENT;
            let [len, offset] = [8, 12].map(|o| inside.int(piece + o));
            let page = inside.page(inside.word(piece)?)?;
            bytes.extend(inside.bytes(page + u64::from(offset?), (len? as usize).min(LONGEST))?);
        }
        match bytes.len() == len {
            true => Ok(bytes),
            false => Err(unclear(Errno::EAGAIN, "a packet that changes")),
        }
    }
    /// The bytes of a packet behind the header of its network.
    pub(crate) fn payload(&self, packet: At) -> SysResult<Vec<u8>> {
        let (inside, at) = (&self.inside, &self.at);
        let mut bytes = self.bytes(packet)?;
        // counted from where the memory of the packet begins
        let header = u64::from(inside.int(packet + at.transport)? & 0xffff);
        let start = inside.word(packet + at.data)? - inside.word(packet + at.head)?;
        let skip = header.checked_sub(start).map(|n| n as usize);
        match skip.filter(|n| *n <= bytes.len()) {
            Some(n) => Ok(bytes.split_off(n)),
            None => Err(unclear(Errno::EAGAIN, "a packet without header")),
        }
    }
}
