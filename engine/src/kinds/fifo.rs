//! Named fifos: pipes that have a path.
//!
//! **Dump.** As a pipe (see [`super::pipe`]), with the contents in fifo-data.img, and an entry of type REG that no slot
//! has for the path.
//!
//! **Restore.** The path is opened for reading and writing first, which never waits for the other side and keeps the ring
//! alive while contents are put back; through that, each open file of the image is opened with its own mode, so nothing
//! waits either. The helping file is closed before the tree runs.
//!
//! **What does not come back.** If somebody outside of the tree kept the fifo open all the time, the contents are still in
//! it and then there twice. A reader whose fifo never had a writer gets no POLLHUP; after a restore it does (the helping
//! file was a writer).
//!
//! KERNEL: the ring lives from the first open of the inode to the last close.
use super::common::{body, path_entry, path_of, reopen_row, settle};
use super::pipe::{PIPEFS_MAGIC, contents, fill, look_into, put};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, regular};
use crate::error::Result;
use stasis_proto::pb;

/// The kind.
pub struct Fifo;

impl FileKind for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }
    fn about(&self) -> &'static str {
        "named fifos with contents and capacity"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Fifo
    }
    fn claims(&self, seen: &Seen) -> bool {
        // An O_PATH descriptor is only a place, not an open fifo.
        seen.file_type() == libc::S_IFIFO
            && seen.fs_type != PIPEFS_MAGIC
            && seen.flags & libc::O_PATH as u32 == 0
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        // Inode numbers are unique per file system only; the image knows no more than this number.
        let inode = seen.stat.st_ino ^ seen.stat.st_dev.rotate_right(16);
        let pipe_id = match cx.done.get(&("fifo", inode)) {
            Some(p) => *p,
            None => {
                let mut p = seen.stat.st_ino as u32;
                while !cx.first("fifo number", p.into()) {
                    p = p.wrapping_add(1);
                }
                cx.done.insert(("fifo", inode), p);
                let c = look_into(seen)?.ok_or_else(|| {
                    seen.unsupported("its contents may not be read", "run as root")
                })?;
                put(cx, "fifo-data.img", p, c)?;
                p
            }
        };
        let regf_id = path_entry(seen, cx)?;
        let fifo = pb::FifoEntry {
            id,
            pipe_id,
            regf_id: Some(regf_id),
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            fifo: Some(Box::new(fifo)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.fifo, "fifo")?;
        let reg = path_of(entry, e.regf_id, cx)?;
        let flags = reg.flags;
        let key = ("fifo", u64::from(e.pipe_id));
        let ring = match cx.made.get(&key) {
            Some(r) => r[0],
            None => {
                let ring = cx.temp();
                let o = libc::O_RDWR | libc::O_NONBLOCK;
                regular::plan_open(cx, reg.id, o as u32, ring)?;
                let all = contents(cx, "fifo-data.img")?;
                if let Some(c) = all.get(&e.pipe_id) {
                    fill(cx, ring, c);
                }
                cx.made.insert(key, vec![ring]);
                ring
            }
        };
        let file = cx.file(entry.id);
        cx.host(
            reopen_row(ring, flags & !(libc::O_DIRECT as u32), file),
            "an open file of the fifo",
        );
        settle(cx, file, flags, &reg.fown);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
    use nix::sys::stat::Mode;
    use std::os::fd::{AsFd, OwnedFd};

    #[test]
    fn two_fifos_come_back_with_their_contents_and_modes() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str, flags: OFlag| -> OwnedFd {
            let p = tmp.path().join(name);
            let _ = nix::unistd::mkfifo(&p, Mode::from_bits_truncate(0o600));
            open(&p, flags | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
        };
        let r = at("one", OFlag::O_RDONLY | OFlag::O_NONBLOCK);
        let w = at("one", OFlag::O_WRONLY);
        let both = at("two", OFlag::O_RDWR);
        fcntl(&r, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        fcntl(&both, FcntlArg::F_SETPIPE_SZ(32768)).unwrap();
        nix::unistd::write(&w, b"queued").unwrap();
        nix::unistd::write(&both, b"self").unwrap();
        let originals = [r, w, both];
        let d = testing::dump(&Fifo, &originals.each_ref().map(|f| f.as_fd())).unwrap();
        let want = originals.each_ref().map(testing::flags);
        drop(originals);
        let f = d.files(&Fifo);
        assert_eq!(
            want.to_vec(),
            f.iter().map(testing::flags).collect::<Vec<_>>()
        );
        // a test that fails must not wait for ever
        fcntl(&f[0], FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut b = [0; 20];
        let n = nix::unistd::read(&f[0], &mut b).unwrap();
        assert_eq!(&b[..n], b"queued");
        let n = nix::unistd::read(&f[2], &mut b).unwrap();
        assert_eq!(&b[..n], b"self");
        assert_eq!(fcntl(&f[2], FcntlArg::F_GETPIPE_SZ), Ok(32768));
        // no writer stays behind
        let [r, w, _]: [OwnedFd; 3] = f.try_into().unwrap();
        drop(w);
        assert_eq!(nix::unistd::read(&r, &mut b).unwrap(), 0);
    }
}
