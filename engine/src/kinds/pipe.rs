//! Pipes made by pipe(2).
//!
//! **What it is.** One object, the ring of buffers, with an inode number in pipefs; and any number of open files on it,
//! reading ends, writing ends, or both in one (opened through /proc/PID/fd). The entry in files.img describes an open file;
//! `pipe_id`, the inode number, says which belong together. Contents and capacity are in pipes-data.img, once per pipe.
//!
//! **Dump.** The contents are copied with tee(2) into a private pipe of the same capacity and read from there: the
//! original keeps every byte. When only a writing end is at hand, a reading end is opened through /proc/self/fd for that
//! moment. Packets (O_DIRECT) keep their borders in tee(2), and each read of the private pipe gives one; their lengths go
//! into an extension field, so that CRIU restores the bytes, run together.
//!
//! **Restore.** pipe2(2); capacity; contents written by the engine into the still empty ring; then every open file of the
//! image is either one of the two original ends or a new open file through /proc/self/fd. O_LARGEFILE tells them apart: it
//! is set by open(2), never by pipe(2). Ends that no open file of the image has are closed with the engine's other
//! temporary files, so a half-closed pipe is half-closed again.
//!
//! **What does not come back.** An end outside the tree (a shell pipeline, a log collector): the pipe comes back without
//! it, and the dump warns. A capacity above /proc/sys/fs/pipe-max-size needs CAP_SYS_RESOURCE, else the default stays,
//! unless the contents do not fit.
//!
//! KERNEL: opening a pipe through /proc with O_DIRECT is EINVAL (it is not FMODE_CAN_ODIRECT); fcntl(F_SETFL) may set it.
//!
//! Guests: pipe, pipe_packets.
use super::common::{body, reopen_row, settle};
use super::{Act, DumpCx, FileKind, PlanCx, Seen, Stage};
use crate::error::{Error, Result};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stasis_kernel::call::{Arg, Call, FdRef, is_errno};
use stasis_kernel::host::Host;
use stasis_proto::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

/// The kind.
pub struct Pipe;

pub(super) const PIPEFS_MAGIC: i64 = 0x5049_5045;
/// The kernel's O_LARGEFILE; libc's is 0 where `off_t` has 64 bits.
const O_LARGEFILE: u32 = 0o100000;

/// Access mode: reads.
pub(super) fn reads(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32
}
/// Access mode: writes.
pub(super) fn writes(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

/// What is in a pipe, and how much fits in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// F_GETPIPE_SZ, in bytes; `None` in images that do not tell.
    pub size: Option<u32>,
    /// All bytes.
    pub bytes: Vec<u8>,
    /// Lengths of the packets, if any of it is packets.
    pub packets: Vec<u32>,
}

/// A tape's refusal as an error about this file.
fn refused(seen: &Seen, e: impl std::fmt::Display) -> Error {
    seen.unsupported(e, "let the pipe run empty and try again")
}

/// Copies what is in the pipe behind `seen`, without taking anything out. `None`: this is a writing end, and we may not open
/// a reading one (a pipe of another user); whoever has a reading end in the tree will tell.
pub(super) fn look_into(seen: &Seen) -> Result<Option<Contents>> {
    let opened;
    let reader: BorrowedFd = if reads(seen.flags) {
        seen.fd
    } else {
        let path = format!("/proc/self/fd/{}", seen.fd.as_raw_fd());
        let open = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        match open {
            Ok(f) => opened = f,
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(None),
            Err(e) => return Err(refused(seen, format!("cannot open its reading end: {e}"))),
        }
        opened.as_fd()
    };
    let size = fcntl(reader, FcntlArg::F_GETPIPE_SZ).map_err(|e| refused(seen, e))?;
    let (r, w): (OwnedFd, OwnedFd) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK).map_err(
            |e| stasis_kernel::error::SysError::new("pipe2", e, "a private pipe for the contents"),
        )?;
    // Capacity in buffers is what tee needs, and a pipe of the same capacity in bytes has as many.
    fcntl(&w, FcntlArg::F_SETPIPE_SZ(size)).map_err(|e| {
        refused(
            seen,
            format!("cannot make a private pipe of {size} bytes: {e}"),
        )
    })?;
    const SPLICE_F_NONBLOCK: u64 = 2;
    let tee = Call::new(
        libc::SYS_tee,
        vec![
            Arg::Int(reader.as_raw_fd() as u64),
            Arg::Int(w.as_raw_fd() as u64),
            Arg::Int(size as u64),
            Arg::Named(SPLICE_F_NONBLOCK, "SPLICE_F_NONBLOCK".into()),
        ],
    );
    let n = Host::default().play(&tee.clone().any())?.ret;
    // EAGAIN: empty, with a writer; 0: empty, without.
    if is_errno(n) && n != -(libc::EAGAIN as i64) as u64 {
        return Err(refused(seen, tee.with_answer(n)));
    }
    drop(w);
    let mut c = Contents {
        size: Some(size as u32),
        ..Contents::default()
    };
    if is_errno(n) {
        return Ok(Some(c));
    }
    // A read takes all there is, unless it comes to the end of a packet: so a short one tells that there are packets.
    // (Only the writing end has O_DIRECT in its flags, and this may be the reading one.)
    let mut f = std::fs::File::from(r);
    let mut buf = vec![0; n as usize];
    loop {
        match f.read(&mut buf) {
            Ok(0) => break,
            Ok(k) => {
                c.bytes.extend_from_slice(&buf[..k]);
                c.packets.push(k as u32);
            }
            Err(e) => return Err(refused(seen, e)),
        }
    }
    if c.packets.len() < 2 {
        c.packets.clear();
    }
    Ok(Some(c))
}

/// Writes the contents to `image`.
pub(super) fn put(cx: &mut DumpCx, image: &str, pipe_id: u32, c: Contents) -> Result<()> {
    let record = pb::PipeDataEntry {
        pipe_id,
        bytes: c.bytes.len() as u32,
        size: c.size,
        packets: c.packets,
    };
    cx.put(image, &record, &c.bytes)
}

/// All contents in `image`, by pipe.
pub(super) fn contents(
    cx: &mut PlanCx,
    image: &'static str,
) -> Result<Rc<BTreeMap<u32, Contents>>> {
    if !cx.cache.contains_key(image) {
        let mut all = BTreeMap::new();
        if cx.dir.exists(image)? {
            let mut r = cx.dir.reader(image)?;
            while let Some(e) = r.read::<pb::PipeDataEntry>()? {
                let bytes = r.payload(e.bytes.into())?;
                all.insert(
                    e.pipe_id,
                    Contents {
                        size: e.size,
                        bytes,
                        packets: e.packets,
                    },
                );
            }
        }
        cx.cache.insert(image, Rc::new(all));
    }
    cx.cache[image]
        .clone()
        .downcast()
        .map_err(|_| Error::bug(format!("{image} was read as something else")))
}

/// Rows: capacity and contents into an empty pipe through `w`, which must be non-blocking.
pub(super) fn fill(cx: &mut PlanCx, w: FdRef, c: &Contents) {
    if let Some(size) = c.size {
        // Any answer: without CAP_SYS_RESOURCE a large one is EPERM. If the contents do not fit then, the write says so.
        let row = Call::new(
            libc::SYS_fcntl,
            vec![
                Arg::Fd(w),
                Arg::Named(libc::F_SETPIPE_SZ as u64, "F_SETPIPE_SZ".into()),
                Arg::Int(size.into()),
            ],
        );
        cx.host(row.any(), "capacity of the pipe");
    }
    let write = |b: &[u8]| {
        let n = b.len() as u64;
        Call::new(
            libc::SYS_write,
            vec![Arg::Fd(w), Arg::In(b.to_vec()), Arg::Int(n)],
        )
        .must_be(n)
    };
    if c.packets.iter().map(|n| u64::from(*n)).sum::<u64>() != c.bytes.len() as u64 {
        if !c.bytes.is_empty() {
            cx.host(write(&c.bytes), "contents of the pipe");
        }
        return;
    }
    let mut at = 0;
    for n in &c.packets {
        let to = at + *n as usize;
        cx.host(write(&c.bytes[at..to]), "a packet in the pipe");
        at = to;
    }
}

/// Numbers of the pipes that some open file writes packets to.
fn with_packets(cx: &mut PlanCx) -> Rc<BTreeSet<u32>> {
    const NAME: &str = "pipes with packets";
    let known = cx.cache.get(NAME).cloned();
    if let Some(set) = known.and_then(|k| k.downcast().ok()) {
        return set;
    }
    let direct = |p: &&pb::PipeEntry| p.flags & libc::O_DIRECT as u32 != 0;
    let pipes = cx.files.values().filter_map(|f| f.pipe.as_deref());
    let set: Rc<BTreeSet<u32>> = Rc::new(pipes.filter(direct).map(|p| p.pipe_id).collect());
    cx.cache.insert(NAME, set.clone());
    set
}

impl FileKind for Pipe {
    fn name(&self) -> &'static str {
        "pipe"
    }
    fn about(&self) -> &'static str {
        "pipes with contents, packets and capacity; an end outside the tree does not come back"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Pipe
    }
    fn claims(&self, seen: &Seen) -> bool {
        seen.file_type() == libc::S_IFIFO && seen.fs_type == PIPEFS_MAGIC
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let ino = seen.stat.st_ino;
        let pipe_id = ino as u32;
        // Asked before look_into opens a reading end of its own.
        let mut p = [PollFd::new(seen.fd, PollFlags::empty())];
        poll(&mut p, PollTimeout::ZERO).map_err(|e| refused(seen, e))?;
        let alone = p[0]
            .revents()
            .is_some_and(|r| r.intersects(PollFlags::POLLERR | PollFlags::POLLHUP));
        if reads(seen.flags) {
            cx.done.insert(("pipe reader", ino), 0);
        }
        if writes(seen.flags) {
            cx.done.insert(("pipe writer", ino), 0);
        }
        if !alone {
            cx.done.insert(("pipe with both ends", ino), 0);
        }
        if cx.first("pipe", ino) {
            match look_into(seen)? {
                Some(c) => put(cx, "pipes-data.img", pipe_id, c)?,
                None => drop(cx.done.remove(&("pipe", ino))),
            }
        }
        let pipe = pb::PipeEntry {
            id,
            pipe_id,
            flags: seen.flags,
            fown: seen.fown,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            pipe: Some(Box::new(pipe)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.pipe, "pipe")?;
        let key = ("pipe", u64::from(e.pipe_id));
        if !cx.made.contains_key(&key) {
            let (r, w) = (cx.temp(), cx.temp());
            let all = contents(cx, "pipes-data.img")?;
            let c = all.get(&e.pipe_id);
            // A single packet looks like a stream. If it came back as one, the next packet would be merged into it.
            let packets = c.is_some_and(|c| {
                !c.packets.is_empty()
                    || !c.bytes.is_empty() && with_packets(cx).contains(&e.pipe_id)
            });
            let flags =
                libc::O_CLOEXEC | libc::O_NONBLOCK | if packets { libc::O_DIRECT } else { 0 };
            cx.host(
                Call::new(
                    libc::SYS_pipe2,
                    vec![Arg::Out(8), Arg::OpenFlags(flags as u64)],
                )
                .binds_out(r, 0, 0)
                .binds_out(w, 0, 4),
                format!("pipe:[{}]", e.pipe_id),
            );
            if let Some(c) = c {
                fill(cx, w, c);
            }
            cx.made.insert(key, vec![r, w]);
        }
        let ends = cx.made[&key].clone();
        let file = cx.file(entry.id);
        let side = usize::from(!reads(e.flags));
        let given = (["pipe read end", "pipe write end"][side], key.1);
        let both = reads(e.flags) && writes(e.flags);
        if e.flags & O_LARGEFILE == 0 && !both && !cx.made.contains_key(&given) {
            cx.made.insert(given, vec![file]);
            let (from, to) = (ends[side], file);
            cx.act_at(cx.stage(), Act::Rename { from, to }, "an end of the pipe");
            if let Some(ends) = cx.made.get_mut(&key) {
                ends[side] = file;
            }
        } else {
            let flags = e.flags & !(libc::O_DIRECT as u32);
            cx.host(
                reopen_row(ends[side], flags, file),
                "one more open file of the pipe",
            );
        }
        settle(cx, file, e.flags, &e.fown);
        Ok(())
    }
}

/// Warns of pipes that lead out of the tree.
pub(super) fn finish(cx: &mut DumpCx) -> Result<()> {
    let pipes: Vec<u64> = cx
        .done
        .keys()
        .filter(|k| k.0 == "pipe with both ends")
        .map(|k| k.1)
        .collect();
    // the kernel's own end of an autofs mount comes back with that
    let own = |ino: &u64| {
        cx.done
            .contains_key(&(crate::namespaces::autofs::PIPE, *ino))
    };
    let pipes: Vec<u64> = pipes.into_iter().filter(|p| !own(p)).collect();
    for ino in pipes {
        for (have, lacks) in [("pipe reader", "writing"), ("pipe writer", "reading")] {
            let other = if have == "pipe reader" {
                "pipe writer"
            } else {
                "pipe reader"
            };
            if cx.done.contains_key(&(have, ino)) && !cx.done.contains_key(&(other, ino)) {
                cx.warn(format!(
                    "pipe:[{ino}]: its {lacks} end is held outside of the tree and will not come back"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "pipe_tests.rs"]
mod tests;
