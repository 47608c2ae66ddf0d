//! memfd: shared memory with a descriptor (memfd_create(2)).
//!
//! **What it is.** A file of a kernel-internal tmpfs (or hugetlbfs) with a name for people, seals, and no path. It may have
//! several open files, made through /proc/PID/fd/N, and be mapped without any.
//!
//! **Dump.** One record in memfd.img per inode (name, size, owner, seals, mode), its pages as those of all shared memory
//! ([`super::shmem`]) under its inode number, one file entry per open file.
//!
//! **Restore.** memfd_create, size, contents, owner, mode. The first entry that was open for reading and writing gets the
//! file itself, because only that one may be executed without others counting as writers; every other one is opened through
//! /proc/self/fd/N. Seals come last of all, when the mappings exist ([`Stage::Mapped`]): F_SEAL_WRITE and
//! F_SEAL_FUTURE_WRITE would forbid them and the filling.
//!
//! **What does not come back.** Inode number, times; which of several open files was the first. A memfd that may be executed
//! cannot be restored where the sysctl vm.memfd_noexec forbids them.
//!
//! Kernel facts: a memfd made without MFD_ALLOW_SEALING has exactly F_SEAL_SEAL, so that value stands for "made without".
//! MFD_NOEXEC_SEAL is F_SEAL_EXEC and a mode without x. KERNEL(>=6.3)
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, fown, malformed, regular, shmem};
use crate::error::{Blame, Error, Result};
use crate::restore::later::Id;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::fds;
use stasis_kernel::host::Host;
use stasis_kernel::names;
use stasis_proto::pb;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;
const PREFIX: &[u8] = b"/memfd:";
const F_SEAL_SEAL: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_HUGETLB: u32 = 4;
/// Where the log2 of the huge page size stands in the flags.
const MFD_HUGE_SHIFT: u32 = 26;

/// memfds, with contents and seals.
pub struct Memfd;

/// Is this a memfd? Anybody may call a file of a tmpfs "/memfd:x (deleted)": what counts is the kernel-internal device.
pub(super) fn is(stat: &libc::stat, fs_type: i64, link: &[u8]) -> Result<bool> {
    if !link.starts_with(PREFIX) || !matches!(fs_type, TMPFS | HUGETLBFS) || stat.st_nlink != 0 {
        return Ok(false);
    }
    if fs_type == HUGETLBFS {
        return Ok(true);
    }
    let probe = fds::memfd_create(c"", 0)?;
    Ok(fds::fstat(probe.as_fd())?.st_dev == stat.st_dev)
}

/// The entry of one open file of a memfd; the inode is described when it is first met.
#[expect(clippy::too_many_arguments, reason = "an open file has as many sides")]
pub(super) fn entry(
    cx: &mut DumpCx,
    fd: BorrowedFd<'_>,
    stat: &libc::stat,
    link: &[u8],
    id: u32,
    flags: u32,
    pos: u64,
    fown: pb::FownEntry,
) -> Result<pb::FileEntry> {
    let key = ("memfd", stat.st_dev, stat.st_ino);
    let inode_id = match cx.inodes.get(&key) {
        Some(i) => *i,
        None => {
            let i = 1 + cx.inodes.keys().filter(|k| k.0 == "memfd").count() as u32;
            inode(cx, fd, stat, link, i)?;
            cx.inodes.insert(key, i);
            i
        }
    };
    Ok(pb::FileEntry {
        r#type: pb::FdTypes::Memfd as i32,
        id,
        memfd: Some(Box::new(pb::MemfdFileEntry {
            id,
            flags,
            pos,
            fown,
            inode_id,
        })),
        ..Default::default()
    })
}

fn inode(
    cx: &mut DumpCx,
    fd: BorrowedFd<'_>,
    stat: &libc::stat,
    link: &[u8],
    inode_id: u32,
) -> Result<()> {
    let place = || format!("cannot dump {}", String::from_utf8_lossy(link));
    let name = link.strip_suffix(b" (deleted)").unwrap_or(link);
    let name = &name[PREFIX.len()..];
    let shmid = u32::try_from(stat.st_ino).map_err(|_| {
        Error::new("E4104", Blame::Container, place()).why(format!(
            "its inode number {} does not fit the image format",
            stat.st_ino
        ))
    })?;
    let huge = (regular::fs_type(fd)? == HUGETLBFS).then_some(stat.st_blksize as u64);
    let get = Call::new(
        libc::SYS_fcntl,
        vec![
            Arg::Int(fd.as_raw_fd() as u64),
            fcntl(libc::F_GET_SEALS),
            Arg::Int(0),
        ],
    );
    let seals = Host::default().play(&get)?.ret as u32;
    shmem::dump_contents(cx, fd, shmid.into(), stat.st_size as u64, huge)?;
    let record = pb::MemfdInodeEntry {
        name: name.to_vec(),
        uid: cx.ids.uid(stat.st_uid),
        gid: cx.ids.gid(stat.st_gid),
        size: stat.st_size as u64,
        shmid,
        seals,
        inode_id: inode_id.into(),
        hugetlb_flag: huge.map(|h| MFD_HUGETLB | (h.trailing_zeros() << MFD_HUGE_SHIFT)),
        mode: Some(stat.st_mode),
    };
    cx.put("memfd.img", &record, &[])
}

/// All memfds of the image.
///
/// # Errors
/// A damaged image.
pub fn inodes(cx: &mut PlanCx) -> Result<std::rc::Rc<Vec<pb::MemfdInodeEntry>>> {
    cx.image::<pb::MemfdInodeEntry>("memfd.img")
}

/// Whether its contents may come when its seals are set: it is in small pages, and nothing forbids writing.
pub fn may_wait(m: &pb::MemfdInodeEntry) -> bool {
    m.hugetlb_flag() == 0 && matches!(m.seals, 0 | F_SEAL_SEAL)
}

/// Plans the inode, once, and gives the file it was made with.
fn plan_inode(cx: &mut PlanCx, entry: &pb::FileEntry, inode_id: u32) -> Result<FdRef> {
    let key = ("memfd", u64::from(inode_id));
    if let Some(f) = cx.made.get(&key) {
        return Ok(f[0]);
    }
    let all = inodes(cx)?;
    let Some(m) = all.iter().find(|m| m.inode_id == u64::from(inode_id)) else {
        return Err(malformed(entry, "its inode is not in memfd.img"));
    };
    if m.name.contains(&0) {
        return Err(malformed(entry, "its name has a NUL in it"));
    }
    let file = cx.temp();
    let mut flags = m.hugetlb_flag() | libc::MFD_CLOEXEC;
    if m.seals != F_SEAL_SEAL {
        flags |= MFD_ALLOW_SEALING;
    }
    let huge = match m.hugetlb_flag() {
        f if f & MFD_HUGETLB == 0 => None,
        f => match f >> MFD_HUGE_SHIFT & 63 {
            log if (12..48).contains(&log) => Some(1u64 << log),
            _ => return Err(malformed(entry, "its huge page size makes no sense")),
        },
    };
    let before = cx.stage();
    cx.enter(Stage::First);
    let args = vec![
        Arg::Str(m.name.clone()),
        Arg::Named(flags.into(), names::memfd_flags(flags.into()).into()),
    ];
    cx.host(
        Call::new(libc::SYS_memfd_create, args).binds(file),
        "the memfd itself",
    );
    if m.size > 0 {
        let c = Call::new(libc::SYS_ftruncate, vec![Arg::Fd(file), Arg::Int(m.size)]);
        cx.host(c, "its size");
    }
    if !cx.later.contains_key(&Id::Memfd(inode_id)) {
        shmem::plan_fill(cx, file, m.shmid.into(), m.size, huge)?;
    }
    let args = vec![
        Arg::Fd(file),
        Arg::Int(m.uid.into()),
        Arg::Int(m.gid.into()),
    ];
    cx.host(Call::new(libc::SYS_fchown, args), "its owner");
    if let Some(mode) = m.mode {
        let mode = mode & 0o7777;
        let args = vec![
            Arg::Fd(file),
            Arg::Named(mode.into(), format!("{mode:#o}").into()),
        ];
        cx.host(Call::new(libc::SYS_fchmod, args), "its permissions");
    }
    if m.seals != F_SEAL_SEAL && m.seals != 0 {
        let seals = Arg::Named(m.seals.into(), names::seals(m.seals.into()).into());
        let c = Call::new(
            libc::SYS_fcntl,
            vec![Arg::Fd(file), fcntl(libc::F_ADD_SEALS), seals],
        );
        cx.host_at(Stage::Mapped, c, "its seals, when all mappings exist");
    }
    cx.enter(before);
    cx.made.insert(key, vec![file]);
    Ok(file)
}

/// Plans one more open of a memfd, for a mapping.
pub(super) fn plan_open(
    cx: &mut PlanCx,
    entry: &pb::FileEntry,
    flags: u32,
    bind: FdRef,
) -> Result<()> {
    let Some(m) = entry.memfd.as_deref() else {
        return Err(malformed(entry, "it has no memfd_file_entry"));
    };
    let inode = plan_inode(cx, entry, m.inode_id)?;
    cx.host(reopen(inode, flags).binds(bind), "a memfd for a mapping");
    Ok(())
}

fn reopen(inode: FdRef, flags: u32) -> Call {
    let bits = regular::open_flags(flags).bits() as u64;
    let args = vec![
        Arg::Named(libc::AT_FDCWD as u64, "AT_FDCWD".into()),
        Arg::FdPath(inode),
        Arg::OpenFlags(bits),
        Arg::Int(0),
    ];
    Call::new(libc::SYS_openat, args)
}

fn fcntl(cmd: i32) -> Arg {
    Arg::Named(cmd as u64, names::fcntl(cmd as u64))
}

impl FileKind for Memfd {
    fn name(&self) -> &'static str {
        "memfd"
    }
    fn about(&self) -> &'static str {
        "memfds come back with name, contents, seals and owner; inode number and times do not"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Memfd
    }
    fn claims(&self, s: &Seen) -> bool {
        is(&s.stat, s.fs_type, s.link).unwrap_or(false)
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, s: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        if s.flags & libc::O_PATH as u32 != 0 {
            return Err(s.unsupported(
                "an O_PATH file of a memfd has no seals to ask for",
                "close it before the dump",
            ));
        }
        let pos = s.info.pos as u64;
        entry(cx, s.fd, &s.stat, s.link, id, s.flags, pos, s.fown)
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let m = entry
            .memfd
            .as_deref()
            .ok_or_else(|| malformed(entry, "it has no memfd_file_entry"))?;
        let inode = plan_inode(cx, entry, m.inode_id)?;
        let file = cx.file(m.id);
        let rw = m.flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32;
        if rw
            && cx
                .made
                .insert(("memfd-rw", m.inode_id.into()), vec![file])
                .is_none()
        {
            let dup = Call::new(
                libc::SYS_fcntl,
                vec![Arg::Fd(inode), fcntl(libc::F_DUPFD_CLOEXEC), Arg::Int(0)],
            );
            cx.host(dup.binds(file), "the file it was made with");
            let bits = u64::from(m.flags & !(libc::O_ASYNC as u32));
            let flags = Arg::OpenFlags(bits);
            let c = Call::new(
                libc::SYS_fcntl,
                vec![Arg::Fd(file), fcntl(libc::F_SETFL), flags],
            );
            cx.host(c, "its flags");
        } else {
            cx.host(reopen(inode, m.flags).binds(file), "opened once more");
        }
        if m.pos != 0 {
            let args = vec![
                Arg::Fd(file),
                Arg::Int(m.pos),
                Arg::Named(libc::SEEK_SET as u64, "SEEK_SET".into()),
            ];
            cx.host(
                Call::new(libc::SYS_lseek, args).must_be(m.pos),
                "its position",
            );
        }
        fown::plan(cx, file, &m.fown, m.flags);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{dump, flags, info, see};
    use nix::fcntl::{FcntlArg, SealFlag};
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;

    fn open_again(fd: &File, write: bool) -> File {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        File::options().read(true).write(write).open(path).unwrap()
    }

    fn sides(fd: &OwnedFd) -> (Vec<u8>, u32, i64, u32, u32, i64) {
        see(fd, |s| {
            let (st, info) = (s.stat, s.info);
            (
                s.link.to_vec(),
                s.flags,
                info.pos,
                st.st_mode,
                st.st_uid,
                st.st_size,
            )
        })
    }

    #[test]
    fn contents_holes_seals_owner_and_all_open_files_come_back() {
        let f = File::from(fds::memfd_create(c"some name", MFD_ALLOW_SEALING).unwrap());
        f.set_len((64 << 20) + 5).unwrap();
        f.write_all_at(&vec![3; 3 << 20], (1 << 20) + 100).unwrap();
        f.write_all_at(b"tail", (64 << 20) + 1).unwrap();
        nix::unistd::fchown(&f, Some(77.into()), None).unwrap();
        nix::sys::stat::fchmod(&f, nix::sys::stat::Mode::from_bits_retain(0o640)).unwrap();
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        let reader = open_again(&f, false);
        let writer = open_again(&f, true);
        nix::fcntl::fcntl(&f, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        nix::unistd::lseek(&reader, 12345, nix::unistd::Whence::SeekSet).unwrap();
        nix::fcntl::fcntl(
            &writer,
            FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_APPEND),
        )
        .unwrap();
        let plain = fds::memfd_create(c"", 0).unwrap();
        let all: Vec<OwnedFd> = vec![f.into(), reader.into(), writer.into(), plain];
        let fds: Vec<_> = all.iter().map(AsFd::as_fd).collect();
        let before: Vec<_> = all.iter().map(sides).collect();
        let d = dump(&Memfd, &fds).unwrap();
        assert_eq!(all.iter().map(sides).collect::<Vec<_>>(), before);
        // 3 MiB and the pages that they cut, and one page of the tail
        let pages = std::fs::metadata(d.tmp.path().join("pages-1.img")).unwrap();
        assert_eq!(pages.len(), (3 << 20) + 4096 + 4096);
        drop(all);

        let new = d.files(&Memfd);
        assert_eq!(new.iter().map(sides).collect::<Vec<_>>(), before);
        let ino = |i: usize| fds::fstat(new[i].as_fd()).unwrap().st_ino;
        assert!(ino(0) == ino(1) && ino(1) == ino(2) && ino(2) != ino(3));
        let get = |fd: &OwnedFd| nix::fcntl::fcntl(fd, FcntlArg::F_GET_SEALS).unwrap();
        assert_eq!(get(&new[0]), seals.bits());
        assert_eq!(get(&new[3]), F_SEAL_SEAL as i32);
        let f = File::from(new[1].try_clone().unwrap());
        let mut b = vec![0; 5 << 20];
        f.read_exact_at(&mut b, 0).unwrap();
        let (start, end) = ((1 << 20) + 100, (4 << 20) + 100);
        assert!(b[..start].iter().chain(&b[end..]).all(|b| *b == 0));
        assert!(b[start..end].iter().all(|b| *b == 3));
        f.read_exact_at(&mut b[..4], (64 << 20) + 1).unwrap();
        assert_eq!(&b[..4], b"tail");
        assert!(std::os::unix::fs::MetadataExt::blocks(&f.metadata().unwrap()) * 512 < 4 << 20);
        assert_eq!((flags(&new[1]) & 3, info(&new[1]).pos), (0, 12345));
    }

    #[test]
    fn huge_pages_keep_their_size_and_holes() {
        let f = match fds::memfd_create(c"huge", MFD_HUGETLB | 21 << MFD_HUGE_SHIFT) {
            Ok(f) => File::from(f),
            // a kernel without 2 MiB pages
            Err(e) => return assert_eq!(e.errno, nix::errno::Errno::ENODEV),
        };
        f.set_len(8 << 20).unwrap();
        let f = OwnedFd::from(f);
        let before = sides(&f);
        let d = dump(&Memfd, &[f.as_fd()]).unwrap();
        let pages = std::fs::metadata(d.tmp.path().join("pages-1.img")).unwrap();
        assert_eq!(pages.len(), 0, "nothing was touched");
        let new = d.files(&Memfd);
        assert_eq!(sides(&new[0]), before);
        assert_eq!(fds::fstat(new[0].as_fd()).unwrap().st_blksize, 2 << 20);
    }

    #[test]
    fn damaged_pagemaps_are_refused() {
        let f = File::from(fds::memfd_create(c"x", 0).unwrap());
        f.set_len(8192).unwrap();
        f.write_all_at(&[1; 8192], 0).unwrap();
        let d = dump(&Memfd, &[f.as_fd()]).unwrap();
        let dir = stasis_proto::ImageDir::open(d.tmp.path()).unwrap();
        let ino = fds::fstat(f.as_fd()).unwrap().st_ino;
        let go = |vaddr: u64, nr: u64, flags: u32| {
            let mut w = dir.writer(&format!("pagemap-shmem-{ino}.img")).unwrap();
            w.write(&pb::PagemapHead { pages_id: 1 }).unwrap();
            w.write(&pb::PagemapEntry {
                vaddr,
                nr_pages: Some(nr),
                flags: Some(flags),
                ..Default::default()
            })
            .unwrap();
            w.finish().unwrap();
            d.restore(&Memfd).map(|_| ()).map_err(|e| e.code)
        };
        assert_eq!(go(4096, 1, 4), Ok(()));
        assert_eq!(go(4096, 2, 4), Err("E5104"));
        assert_eq!(go(u64::MAX - 4095, 2, 4), Err("E5001"));
        assert_eq!(go(0, u64::MAX, 4), Err("E5001"));
        assert_eq!(go(0, 1, 1), Err("E5701"));
        // the pages image is shorter than the map says
        std::fs::File::options()
            .write(true)
            .open(d.tmp.path().join("pages-1.img"))
            .unwrap()
            .set_len(4096)
            .unwrap();
        assert_eq!(go(0, 2, 4), Err("E5021"));
    }
}
