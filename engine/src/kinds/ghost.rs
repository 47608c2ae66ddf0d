//! Deleted files: open, but without a name that leads to them.
//!
//! **What it is.** A file whose last name was removed lives on while somebody has it open or mapped; /proc shows its old name
//! with ` (deleted)` behind. Two cases: no name at all is left (link count 0, a *ghost*), or the name it was opened by is
//! gone while other hard links exist that nobody can find (a *linked remap*).
//!
//! **Dump.** A ghost's contents are carried in ghost-file-HEX.img: one image per inode however many files have it open, found
//! by device and inode number. Small files are copied whole; from 12 KiB on only what SEEK_DATA finds, in chunks. They are
//! read through a second open file (/proc/self/fd/N of our duplicate), so the target's position does not move; where the
//! target holds a write lease, opening would break it, and the duplicate itself is read with pread. For a linked remap a
//! further hard link `link_remap.ID` is made beside the old name; only with `--link-remap`, because it is a change in the
//! container's file system. It is on the dump's undo list. remap-fpath.img ties the file entry to either.
//!
//! **Restore.** The file gets its contents, owner, permissions and times while it has no name (O_TMPFILE), then for the few
//! calls in which its open files are opened it gets the old name, so that /proc shows it as before. A name that is taken is
//! never replaced: then the file gets `.cr_link` behind its name. An engine that dies leaves nothing behind except in those
//! few calls (measured: 4 us for one file on ext4). Three options were weighed: writing under the old name (leaves up to
//! gigabytes behind), never a name (leaves nothing; but /proc then shows `#INODE (deleted)`, which programs that look for
//! their own deleted log see), and this. Missing parent folders are made for the same few calls. File systems without
//! O_TMPFILE get a temporary name `.cr.ID.ghost` from the start.
//!
//! **What does not come back.** Inode number, change time, extended attributes, ACLs, nanoseconds of the times; the contents
//! of a deleted folder (it has none). A file that had names on two mounts of one file system (EXDEV). Watchers of the old folder see the name come and go (IN_CREATE, IN_DELETE), and a
//! watcher of the deleted file itself sees it being read by the dump. The dump's readlink of a deleted symbolic link counts
//! as an access.
//!
//! Kernel facts: linkat(2) of an inode with link count 0 fails with ENOENT, except once for one made by O_TMPFILE without
//! O_EXCL (fs/namei.c vfs_link, I_LINKABLE), so all its names are made before the first is removed. overlayfs reports link
//! count 1 for a deleted file of the lower layer and refuses to link it (ENOENT): that is a ghost, too; btrfs reports 1 for
//! every folder.
use super::act::{STEP, sys};
use super::paths::FileView;
use super::{DumpCx, PlanCx, malformed};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use stasis_kernel::call::FdRef;
use stasis_kernel::error::SysError;
use stasis_kernel::names;
use stasis_proto::{Kind, pb};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Files from this size on are carried in chunks; the limit is CRIU's, though both readers take either form.
const CHUNKS_FROM: u64 = 3 * 4096;

// ---- dump

/// Carries a deleted file's contents, unless they are carried already, and ties the entry `id` to them.
///
/// # Errors
/// E4112: larger than `--ghost-limit`; failures to read.
pub(super) fn dump(cx: &mut DumpCx, v: &FileView, id: u32) -> Result<()> {
    tie(cx, v, id, None)
}

/// The same for a file that is not deleted, but on a detached mount (of this number): see [`super::detached`].
///
/// # Errors
/// As [`dump`].
pub(super) fn dump_aside(cx: &mut DumpCx, v: &FileView, id: u32, aside: u32) -> Result<()> {
    tie(cx, v, id, Some(aside))
}

fn tie(cx: &mut DumpCx, v: &FileView, id: u32, aside: Option<u32>) -> Result<()> {
    let key = ("ghost", v.stat.st_dev, v.stat.st_ino);
    let ghost = match cx.inodes.get(&key) {
        Some(g) => *g,
        None => {
            let g = 1 + cx.inodes.keys().filter(|k| k.0 == "ghost").count() as u32;
            carry(cx, v, g, aside)?;
            cx.inodes.insert(key, g);
            g
        }
    };
    let remap = pb::RemapFilePathEntry {
        orig_id: id,
        remap_id: ghost,
        remap_type: Some(pb::RemapType::Ghost as i32),
    };
    cx.put("remap-fpath.img", &remap, &[])
}

fn carry(cx: &DumpCx, v: &FileView, ghost: u32, aside: Option<u32>) -> Result<()> {
    let st = &v.stat;
    let held = st.st_blocks as u64 * 512;
    if let Some(limit) = cx.options.ghost_limit
        && held > limit
    {
        return Err(Error::new(
            "E4112",
            Blame::Container,
            format!("cannot dump {}", v.place),
        )
        .why(format!(
            "the deleted file holds {held} bytes, the limit is {limit} bytes"
        ))
        .advice(format!("pass --ghost-limit={held} or more")));
    }
    let kind = st.st_mode & libc::S_IFMT;
    let size = st.st_size as u64;
    let chunks = kind == libc::S_IFREG && size >= CHUNKS_FROM;
    let time = |s: i64, ns: i64| {
        Some(pb::Timeval {
            tv_sec: s as u64,
            tv_usec: (ns / 1000) as u64,
        })
    };
    let entry = pb::GhostFileEntry {
        uid: cx.ids.uid(st.st_uid),
        gid: cx.ids.gid(st.st_gid),
        mode: st.st_mode,
        dev: Some(kernel_dev(st.st_dev)),
        ino: Some(st.st_ino),
        rdev: matches!(kind, libc::S_IFCHR | libc::S_IFBLK).then_some(st.st_rdev as u32),
        atim: time(st.st_atime, st.st_atime_nsec),
        mtim: time(st.st_mtime, st.st_mtime_nsec),
        chunks: chunks.then_some(true),
        size: chunks.then_some(size),
        symlnk_target: match kind {
            libc::S_IFLNK => Some(target(v)?),
            _ => None,
        },
        stasis_aside: aside,
    };
    let mut w = cx.dir.writer(&Kind::GhostFile.file_of(ghost))?;
    w.write(&entry)?;
    if kind == libc::S_IFREG && size > 0 {
        let file = v.contents()?;
        let mut buf = vec![0u8; STEP];
        let runs = match chunks {
            true if v.write_lease => vec![(0, size)],
            true => data_runs(&file, size)?,
            false => vec![(0, size)],
        };
        for (at, len) in runs {
            if chunks {
                w.write(&pb::GhostChunkEntry { len, off: at })?;
            }
            let mut done = 0;
            while done < len {
                let n = (len - done).min(STEP as u64) as usize;
                file.read_exact_at(&mut buf[..n], at + done)
                    .map_err(|e| sys("pread64", &e, v.place.clone()))?;
                w.raw(&buf[..n])?;
                done += n as u64;
            }
        }
    }
    Ok(w.finish()?)
}

fn target(v: &FileView) -> Result<Vec<u8>> {
    let t = nix::fcntl::readlinkat(v.fd, "")
        .map_err(|e| SysError::new("readlinkat", e, v.place.clone()))?;
    Ok(t.into_encoded_bytes())
}

/// Runs of data (offset, length) by SEEK_DATA and SEEK_HOLE; the whole file where the file system knows neither. The
/// position of `file`, which must be the engine's own, moves.
pub(super) fn data_runs(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match lseek(file, at as i64, Whence::SeekData) {
            Ok(n) => n as u64,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if at == 0 => return Ok(vec![(0, size)]),
            Err(e) => return Err(SysError::new("lseek", e, format!("SEEK_DATA {at}")).into()),
        };
        let end = lseek(file, start as i64, Whence::SeekHole)
            .map_err(|e| SysError::new("lseek", e, format!("SEEK_HOLE {start}")))?
            as u64;
        let end = end.min(size);
        if end <= start {
            break;
        }
        runs.push((start, end - start));
        at = end;
    }
    Ok(runs)
}

/// Device number in the kernel's own encoding (20 bits of minor), as images have it.
pub(super) fn kernel_dev(dev: u64) -> u32 {
    (libc::major(dev) << 20) | (libc::minor(dev) & 0xf_ffff)
}

// ---- plan

/// Where a file without a name comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// ghost-file-HEX.img with this number.
    Image(u32),
    /// A hard link the dump made.
    Link(PathBuf),
}

/// A file that gets names for as long as it takes to open it, and loses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nameless {
    /// The inode.
    pub from: From,
    /// Its names of old, at least one.
    pub names: Vec<OldName>,
    /// It lies on this tmpfs, which is mounted nowhere and which the first of its files makes; and it keeps its names.
    pub aside: Option<FdRef>,
}

/// A name that a file without names once had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldName {
    /// Absolute path.
    pub path: PathBuf,
    /// An O_PATH file of it, through which the inode can be opened again later.
    pub handle: FdRef,
    /// What is opened by this name: open flags, and the name of the file.
    pub opens: Vec<(u32, FdRef)>,
}

/// The number of the tmpfs aside on which it lies, if it does.
///
/// A deleted device is made again only if the container may have it: an image alone opens no disk of the machine.
fn aside(cx: &PlanCx, ghost: u32) -> Result<Option<u32>> {
    let image = Kind::GhostFile.file_of(ghost);
    let Some(e) = cx.dir.reader(&image)?.read::<pb::GhostFileEntry>()? else {
        return Ok(None);
    };
    let kind = e.mode & libc::S_IFMT;
    let is_device = matches!(kind, libc::S_IFCHR | libc::S_IFBLK);
    if !is_device || crate::namespaces::mnt::devices(cx.options).allow(kind, e.rdev().into()) {
        return Ok(e.stasis_aside);
    }
    let number = (libc::major(e.rdev().into()), libc::minor(e.rdev().into()));
    Err(Error::new("E5195", Blame::Image, image)
        .why(format!("it is the device {}:{}", number.0, number.1))
        .advice("name the device with --external mnt[NAME]:PATH if the tree may have it"))
}

/// Plans the file behind the remap, once for all entries that share it, and gives the handle through which `reg` can be
/// opened (`Arg::FdPath`). Entries in slots of tasks are bound to their own id.
pub(super) fn plan(
    cx: &mut PlanCx,
    reg: &pb::RegFileEntry,
    remap: &pb::RemapFilePathEntry,
) -> Result<FdRef> {
    let key = ("deleted", u64::from(reg.id));
    if let Some(h) = cx.made.get(&key) {
        return Ok(h[0]);
    }
    let (kind, number) = super::regular::remap_of(remap);
    let mut lies = None;
    let from = match kind {
        pb::RemapType::Ghost => {
            lies = aside(cx, number)?;
            From::Image(number)
        }
        _ => {
            let link = cx.files.get(&number).and_then(|f| f.reg.as_deref());
            let link = link.ok_or_else(|| {
                malformed(
                    &super::regular::stand_in(reg),
                    "its remap names a file that is not there",
                )
            })?;
            let path = super::regular::path_of(link)?;
            let last = path.file_name().map(|n| n.as_encoded_bytes().to_vec());
            // it will be unlinked at the end: an image must not name anything it likes
            if !last.is_some_and(|n| n.starts_with(b"link_remap.")) {
                return Err(malformed(
                    &super::regular::stand_in(link),
                    "it is the target of a remap and not called link_remap.N",
                ));
            }
            From::Link(path)
        }
    };
    // all entries of the same inode
    let all = cx.image::<pb::RemapFilePathEntry>("remap-fpath.img")?;
    let mut names: Vec<OldName> = Vec::new();
    for r in all
        .iter()
        .filter(|r| super::regular::remap_of(r) == (kind, number))
    {
        let Some(e) = cx.files.get(&r.orig_id).and_then(|f| f.reg.as_deref()) else {
            continue;
        };
        let path = super::regular::path_of(e)?;
        let n = match names.iter().position(|n| n.path == path) {
            Some(n) => n,
            None => {
                let handle = cx.temp();
                names.push(OldName {
                    path,
                    handle,
                    opens: Vec::new(),
                });
                names.len() - 1
            }
        };
        if super::regular::is_opened(cx, e)? {
            names[n].opens.push((e.flags, cx.file(e.id)));
        }
        cx.made
            .insert(("deleted", u64::from(e.id)), vec![names[n].handle]);
    }
    let Some(h) = cx.made.get(&key).map(|h| h[0]) else {
        return Err(malformed(
            &super::regular::stand_in(reg),
            "its remap is not in remap-fpath.img",
        ));
    };
    if let From::Link(path) = &from {
        use std::os::unix::ffi::OsStrExt;
        let path = stasis_kernel::call::Arg::Str(path.as_os_str().as_bytes().to_vec());
        let c = stasis_kernel::call::Call::new(libc::SYS_unlink, vec![path]);
        cx.host_at(super::Stage::Last, c, "the dump's link is no longer needed");
    }
    let stage = cx.stage();
    let aside = lies.map(|number| {
        let key = ("aside", (cx.home as u64) << 32 | u64::from(number));
        let known = cx.made.get(&key).map(|f| f[0]);
        let top = known.unwrap_or_else(|| cx.temp());
        cx.made.insert(key, vec![top]);
        top
    });
    let why = match aside {
        Some(_) => "a file on a detached mount",
        None => "a deleted file",
    };
    cx.act_at(
        stage,
        super::Act::Nameless(Nameless { from, names, aside }),
        why,
    );
    Ok(h)
}

impl fmt::Display for Nameless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            From::Image(n) => write!(f, "nameless({}", Kind::GhostFile.file_of(*n))?,
            From::Link(p) => write!(f, "nameless({}", p.display())?,
        }
        if let Some(top) = self.aside {
            write!(f, ", on a tmpfs aside file#{}", top.0)?;
        }
        for n in &self.names {
            write!(f, ", as {} -> file#{}", n.path.display(), n.handle.0)?;
            for (flags, file) in &n.opens {
                let flags = names::open_flags((*flags).into());
                write!(f, ", {flags} -> file#{}", file.0)?;
            }
        }
        f.write_str(")")
    }
}
