//! Rings of Linux AIO (io_setup(2)): the name of a context is the address of its ring.
//!
//! The task makes a new context, moves its ring to the old address, and lets as many requests finish as the old tail
//! says: the kernel keeps the tail for itself and only shows it in the ring. Then the engine writes finished requests that
//! nobody has read, and the head. A ring whose unread part wraps around begins anew at 0.
//!
//! KERNEL: the ring's number in the first word is that of the new context; the rest is struct aio_ring and struct
//! io_event (fs/aio.c). A ring follows mremap(2) (aio_ring_mremap).
use super::memory;
use crate::error::{Blame, Error, Result};
use crate::kinds::{Act, PlanCx, Stage};
use crate::pages::{Run, Source, Store};
use stasis_kernel::call::{Arg, Call, FdRef, Part};
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::vm;
use stasis_proto::pb;

const HEADER: usize = 32;
const EVENT: usize = 32;

/// One ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    start: u64,
    len: u64,
    requests: u32,
    head: u32,
    tail: u32,
    /// Finished requests nobody has read, at the head.
    events: Vec<u8>,
    /// A file from which nothing is read, for requests that finish at once.
    pub file: FdRef,
}

impl Ring {
    /// Plans a ring from its pages.
    pub fn plan(
        mm: &pb::MmEntry,
        v: &pb::VmaEntry,
        cx: &mut PlanCx,
        sources: &[Source],
        pages: &[Run],
    ) -> Result<Self> {
        let bad = |why: &str| {
            Error::new("E5014", Blame::Image, format!("AIO ring at {:#x}", v.start))
                .why(why)
                .advice("dump again")
        };
        let len = v.end - v.start;
        let entry = mm.aios.iter().find(|a| a.id == v.start);
        let entry = entry.ok_or_else(|| bad("it has no entry"))?;
        let run = pages
            .iter()
            .find(|(a, n, _)| *a <= v.start && v.end <= a + n)
            .ok_or_else(|| bad("its pages are not in the image"))?;
        let store = Store::open(cx.dir, sources)?;
        let mut header = [0u8; HEADER];
        let at = run.2 + (v.start - run.0);
        store.read(&mut header, at)?;
        let w = |i: usize| u32::from_le_bytes(header[i..i + 4].try_into().expect("four bytes"));
        let (nr, head, tail) = (w(4), w(8), w(12));
        let room = (len as usize - HEADER) / EVENT;
        if nr as usize > room || nr == 0 || head >= nr || tail >= nr || len > 64 << 20 {
            return Err(bad("its head or tail lies outside of it"));
        }
        let mut events = vec![0u8; len as usize - HEADER];
        store.read(&mut events, at + HEADER as u64)?;
        let slot = |i: u32| i as usize * EVENT;
        let (head, tail, events) = if head <= tail {
            (head, tail, events[slot(head)..slot(tail)].to_vec())
        } else {
            let both = [&events[slot(head)..slot(nr)], &events[..slot(tail)]].concat();
            (0, nr - head + tail, both)
        };
        let file = cx.temp();
        let act = Act::SharedMemory { file, size: 4096 };
        cx.act_at(Stage::First, act, "a file for requests that finish at once");
        Ok(Self {
            start: v.start,
            len,
            requests: entry.nr_req,
            head,
            tail,
            events,
            file,
        })
    }
    /// The row that makes the context; its second argument answers where the ring is.
    pub fn setup(&self) -> Call {
        let args = vec![Arg::Int(self.requests.into()), Arg::InOut(vec![0; 8])];
        Call::new(libc::SYS_io_setup, args)
    }
    /// The rows that move the ring from `at` and bring its tail forward. Number 0 is free, and its file on its way.
    pub fn rows(&self, at: u64, service: i32) -> Vec<Call> {
        let mut rows = memory::receive(service, 1);
        rows.push(super::vdso::move_to(at, self.len, self.start));
        if self.tail > 0 {
            // struct iocb (linux/aio_abi.h) of zeroes: IOCB_CMD_PREAD of nothing from number 0
            let list = (0..self.tail).map(|_| Part::Ptr(Arg::In(vec![0; 64])));
            let args = vec![
                Arg::Hex(self.start),
                Arg::Int(self.tail.into()),
                Arg::Struct(list.collect()),
            ];
            rows.push(Call::new(libc::SYS_io_submit, args).must_be(self.tail.into()));
        }
        rows.push(Call::new(libc::SYS_close, vec![Arg::Int(0)]));
        rows
    }
    /// Writes what waits in the ring.
    pub fn write(&self, pid: HostPid) -> Result<()> {
        let at = self.start + HEADER as u64 + u64::from(self.head) * EVENT as u64;
        vm::write(pid, RemotePtr(at), &self.events)?;
        vm::write(pid, RemotePtr(self.start + 8), &self.head.to_le_bytes())?;
        Ok(())
    }
}
