//! The contents of a tmpfs, as the gzip'ed tar that images have: whatever GNU tar reads and writes in its own format, plus pax
//! records for what that format cannot say (nanoseconds, extended attributes).
//!
//! **Pack** reads through a detached copy of the mount, read-only and without access times, so what other mounts hide is seen and
//! nothing is changed. **Unpack** makes every entry below the mount's root, one component at a time, without following any link
//! or leaving the mount: an archive is as hostile as the rest of an image. Both go through a buffer of fixed size.
//!
//! Names of unix sockets, which the format has no entries for, are in records of our own, one global header each, which GNU tar skips
//! with a warning. They come back as names that nobody listens to; a socket of the tree that has one takes its place.
//!
//! Long because reading and writing the format stand together.
use crate::error::{Blame, Error, Result};
use crate::ids::Ids;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fstat, fstatat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, lseek};
use rustix::fs::XattrFlags;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use tar::{EntryType, Header};

/// Blocks of the format, in bytes.
const BLOCK: usize = 512;
/// Contents are moved in steps of this size.
const STEP: usize = 1 << 18;
/// Longest path below the root, and longest value of a pax record, that is read.
const MAX_PATH: usize = libc::PATH_MAX as usize - 1;
const MAX_PAX: u64 = 1 << 20;
/// Extended attributes that are carried.
static XATTRS: &[&str] = &[
    "user.",
    "trusted.",
    "security.capability",
    "system.posix_acl_access",
    "system.posix_acl_default",
];
/// Records of extended attributes, as star and GNU tar write them.
const XATTR_KEY: &str = "SCHILY.xattr.";
/// Record of a unix socket's name: `MODE UID GID MTIME PATH`, the mode in octal.
const SOCKET_KEY: &str = "STASIS.socket";
/// Pieces of a sparse file in a header, and in each header that continues it.
const PIECES: usize = 4;
const MORE_PIECES: usize = 21;

type Pieces = Vec<(u64, u64)>;

// ---- pack

fn unreadable(path: &[u8], call: &str, e: impl std::fmt::Display) -> Error {
    Error::new(
        "E4310",
        Blame::Container,
        format!("cannot read {} of a tmpfs", path.escape_ascii()),
    )
    .why(format!("{call}: {e}"))
    .advice("try again; remove the file if that does not help")
}

fn unwritten(e: std::io::Error) -> Error {
    Error::new("E6310", Blame::Host, "cannot write the contents of a tmpfs")
        .why(e)
        .advice("make room where the images go")
}

/// Writes all below `root` as an archive; `ids` turns uids and gids into those of the tree.
///
/// # Errors
/// E4310: something cannot be read, or is named too long; E6310: the archive cannot be written.
pub fn pack(root: BorrowedFd<'_>, out: impl Write, ids: &Ids) -> Result<()> {
    let mut p = Packer {
        out: GzEncoder::new(out, Compression::fast()),
        ids,
        links: BTreeMap::new(),
        buffer: vec![0; STEP],
    };
    let st = fstat(root).map_err(|e| unreadable(b".", "fstat", e))?;
    let own = File::from(
        openat(
            root,
            ".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| unreadable(b".", "openat", e))?,
    );
    p.entry(b"./", &st, own.as_fd(), OsStr::new("."))?;
    p.folder(own, b".")?;
    p.out.write_all(&[0; 2 * BLOCK]).map_err(unwritten)?;
    p.out
        .finish()
        .and_then(|mut f| f.flush())
        .map_err(unwritten)
}

struct Packer<'a, W: Write> {
    out: GzEncoder<W>,
    ids: &'a Ids,
    /// First names of files that have several.
    links: BTreeMap<u64, Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Write> Packer<'_, W> {
    /// All below a folder; an open folder per level, no recursion.
    fn folder(&mut self, top: File, path: &[u8]) -> Result<()> {
        let mut stack = vec![(
            top.try_clone().map_err(unwritten)?,
            path.to_vec(),
            names(top, path)?,
        )];
        while let Some((dir, path, names)) = stack.last_mut() {
            let Some(name) = names.pop() else {
                stack.pop();
                continue;
            };
            let full = [path.as_slice(), b"/", name.as_bytes()].concat();
            if full.len() > MAX_PATH {
                return Err(unreadable(
                    &full,
                    "path",
                    "it is longer than the kernel takes",
                ));
            }
            let st = fstatat(dir.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|e| unreadable(&full, "newfstatat", e))?;
            let dir = dir.try_clone().map_err(unwritten)?;
            match st.st_mode & libc::S_IFMT {
                libc::S_IFDIR => {
                    self.entry(
                        &[&full[..], b"/"].concat(),
                        &st,
                        dir.as_fd(),
                        OsStr::from_bytes(name.as_bytes()),
                    )?;
                    let flags =
                        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    let sub = openat(dir.as_fd(), name.as_c_str(), flags, Mode::empty())
                        .map_err(|e| unreadable(&full, "openat", e))?;
                    let sub = File::from(sub);
                    let inside = self::names(sub.try_clone().map_err(unwritten)?, &full)?;
                    stack.push((sub, full, inside));
                }
                libc::S_IFSOCK => self.socket(&full, &st)?,
                _ => self.entry(&full, &st, dir.as_fd(), OsStr::from_bytes(name.as_bytes()))?,
            }
        }
        Ok(())
    }
    fn entry(
        &mut self,
        path: &[u8],
        st: &FileStat,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<()> {
        let kind = st.st_mode & libc::S_IFMT;
        let mut h = Header::new_gnu();
        h.set_mode(st.st_mode & 0o7777);
        h.set_uid(self.ids.user(st.st_uid).into());
        h.set_gid(self.ids.group(st.st_gid).into());
        h.set_mtime(st.st_mtime.max(0) as u64);
        h.set_size(0);
        let mut target = None;
        let mut file = None;
        let mut pieces = None;
        let again = (kind != libc::S_IFDIR && st.st_nlink > 1)
            .then(|| self.links.get(&st.st_ino).cloned())
            .flatten();
        match kind {
            _ if again.is_some() => {
                h.set_entry_type(EntryType::Link);
                target = again.clone();
            }
            libc::S_IFREG => {
                let flags =
                    OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
                let f = openat(dir, name, flags, Mode::empty())
                    .map_err(|e| unreadable(path, "openat", e))?;
                let f = File::from(f);
                let size = st.st_size as u64;
                let runs = data_runs(&f, size).map_err(|e| unreadable(path, "lseek", e))?;
                let stored: u64 = runs.iter().map(|r| r.1).sum();
                h.set_entry_type(EntryType::Regular);
                h.set_size(size);
                if stored < size {
                    h.set_entry_type(EntryType::GNUSparse);
                    h.set_size(stored);
                    pieces = Some(runs.clone());
                }
                file = Some((f, runs));
            }
            libc::S_IFDIR => h.set_entry_type(EntryType::Directory),
            libc::S_IFLNK => {
                h.set_entry_type(EntryType::Symlink);
                let t = nix::fcntl::readlinkat(dir, name)
                    .map_err(|e| unreadable(path, "readlinkat", e))?;
                target = Some(t.as_bytes().to_vec());
            }
            libc::S_IFIFO => h.set_entry_type(EntryType::Fifo),
            _ => {
                h.set_entry_type(match kind {
                    libc::S_IFBLK => EntryType::Block,
                    _ => EntryType::Char,
                });
                for r in [
                    h.set_device_major(libc::major(st.st_rdev)),
                    h.set_device_minor(libc::minor(st.st_rdev)),
                ] {
                    r.map_err(unwritten)?;
                }
            }
        }
        if kind != libc::S_IFDIR && st.st_nlink > 1 && again.is_none() {
            self.links.insert(st.st_ino, path.to_vec());
        }
        if again.is_none() {
            self.pax(path, st, dir, name)?;
        }
        self.head(
            h,
            path,
            target.as_deref(),
            pieces.as_deref(),
            st.st_size as u64,
        )?;
        if let Some((f, runs)) = file {
            self.data(&f, &runs, path)?;
        }
        Ok(())
    }
    /// What the header cannot say.
    fn pax(&mut self, path: &[u8], st: &FileStat, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let mut all = Vec::new();
        if st.st_mtime_nsec != 0 || st.st_mtime < 0 {
            record(
                &mut all,
                "mtime",
                seconds(st.st_mtime, st.st_mtime_nsec).as_bytes(),
            );
        }
        let full = [
            format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(),
            name.as_bytes(),
        ]
        .concat();
        for (key, value) in xattrs(&full).map_err(|e| unreadable(path, "lgetxattr", e))? {
            record(&mut all, &format!("{XATTR_KEY}{key}"), &value);
        }
        if all.is_empty() {
            return Ok(());
        }
        let mut h = Header::new_ustar();
        h.set_entry_type(EntryType::XHeader);
        h.set_mode(0o600);
        self.block(&mut h, b"./PaxHeaders", &all)
    }
    fn socket(&mut self, path: &[u8], st: &FileStat) -> Result<()> {
        let about = format!(
            "{:o} {} {} {} ",
            st.st_mode & 0o7777,
            self.ids.user(st.st_uid),
            self.ids.group(st.st_gid),
            seconds(st.st_mtime, st.st_mtime_nsec)
        );
        let mut all = Vec::new();
        record(&mut all, SOCKET_KEY, &[about.as_bytes(), path].concat());
        let mut h = Header::new_ustar();
        h.set_entry_type(EntryType::XGlobalHeader);
        h.set_mode(0o600);
        self.block(&mut h, b"./GlobalHead", &all)
    }
    /// A header with what belongs to it, behind it.
    fn block(&mut self, h: &mut Header, name: &[u8], data: &[u8]) -> Result<()> {
        h.as_old_mut().name[..name.len()].copy_from_slice(name);
        h.set_size(data.len() as u64);
        h.set_cksum();
        let pad = data.len().next_multiple_of(BLOCK) - data.len();
        for part in [h.as_bytes().as_slice(), data, &[0; BLOCK][..pad]] {
            self.out.write_all(part).map_err(unwritten)?;
        }
        Ok(())
    }
    fn head(
        &mut self,
        mut h: Header,
        path: &[u8],
        target: Option<&[u8]>,
        pieces: Option<&[(u64, u64)]>,
        size: u64,
    ) -> Result<()> {
        const SHORT: usize = 100;
        for (kind, text) in [
            (EntryType::GNULongLink, target),
            (EntryType::GNULongName, Some(path)),
        ] {
            let Some(text) = text else { continue };
            if text.len() > SHORT {
                let mut long = Header::new_gnu();
                long.set_entry_type(kind);
                self.block(&mut long, b"././@LongLink", &[text, b"\0"].concat())?;
            }
            let place = match kind {
                EntryType::GNULongLink => &mut h.as_old_mut().linkname,
                _ => &mut h.as_old_mut().name,
            };
            let n = text.len().min(SHORT);
            place[..n].copy_from_slice(&text[..n]);
        }
        let Some(pieces) = pieces else {
            h.set_cksum();
            return self.out.write_all(h.as_bytes()).map_err(unwritten);
        };
        // a piece without length at the end says where a hole at the end ends
        let mut list: Vec<(u64, u64)> = pieces.to_vec();
        list.push((size, 0));
        let (first, rest) = list.split_at(list.len().min(PIECES));
        if let Some(g) = h.as_gnu_mut() {
            for (slot, (at, len)) in g.sparse.iter_mut().zip(first) {
                octal(&mut slot.offset, *at);
                octal(&mut slot.numbytes, *len);
            }
            octal(&mut g.realsize, size);
            g.isextended = [u8::from(!rest.is_empty())];
        }
        h.set_cksum();
        self.out.write_all(h.as_bytes()).map_err(unwritten)?;
        let mut chunks = rest.chunks(MORE_PIECES).peekable();
        while let Some(c) = chunks.next() {
            let mut b = [0u8; BLOCK];
            for (slot, (at, len)) in b.chunks_exact_mut(24).zip(c) {
                let (a, l) = slot.split_at_mut(12);
                octal(a, *at);
                octal(l, *len);
            }
            b[MORE_PIECES * 24] = u8::from(chunks.peek().is_some());
            self.out.write_all(&b).map_err(unwritten)?;
        }
        Ok(())
    }
    fn data(&mut self, f: &File, runs: &[(u64, u64)], path: &[u8]) -> Result<()> {
        let mut total = 0;
        for (at, len) in runs {
            let mut done = 0;
            while done < *len {
                let n = (len - done).min(STEP as u64) as usize;
                f.read_exact_at(&mut self.buffer[..n], at + done)
                    .map_err(|e| unreadable(path, "pread64", e))?;
                self.out.write_all(&self.buffer[..n]).map_err(unwritten)?;
                done += n as u64;
            }
            total += len;
        }
        let pad = (total.next_multiple_of(BLOCK as u64) - total) as usize;
        self.out.write_all(&[0; BLOCK][..pad]).map_err(unwritten)
    }
}

/// Names in a folder, last first.
fn names(dir: File, path: &[u8]) -> Result<Vec<CString>> {
    let fail = |e: Errno| unreadable(path, "getdents64", e);
    let mut all = Vec::new();
    let mut d = nix::dir::Dir::from_fd(OwnedFd::from(dir)).map_err(fail)?;
    for e in d.iter() {
        let name = e.map_err(fail)?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            all.push(name);
        }
    }
    all.sort_by(|a, b| b.cmp(a));
    Ok(all)
}

/// Runs of data (offset, length).
fn data_runs(f: &File, size: u64) -> nix::Result<Pieces> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match lseek(f, at as i64, Whence::SeekData) {
            Ok(n) => n as u64,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) if at == 0 => return Ok(vec![(0, size)]),
            Err(e) => return Err(e),
        };
        let end = (lseek(f, start as i64, Whence::SeekHole)? as u64).min(size);
        if end <= start {
            break;
        }
        runs.push((start, end - start));
        at = end;
    }
    Ok(runs)
}

/// Longest list of names and longest value of extended attributes (linux/limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX).
const MAX_XATTR: usize = 1 << 16;

fn xattrs(path: &[u8]) -> rustix::io::Result<Vec<(String, Vec<u8>)>> {
    let mut list = vec![0u8; MAX_XATTR];
    match rustix::fs::llistxattr(path, list.as_mut_slice()) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        n => list.truncate(n?),
    }
    let mut all = Vec::new();
    for name in list
        .split(|b| *b == 0)
        .filter_map(|n| std::str::from_utf8(n).ok())
    {
        if XATTRS.iter().any(|x| name.starts_with(x)) {
            let mut value = vec![0u8; MAX_XATTR];
            let n = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
            value.truncate(n);
            all.push((name.to_owned(), value));
        }
    }
    Ok(all)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(to: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    to.extend_from_slice(format!("{len} {key}=").as_bytes());
    to.extend_from_slice(value);
    to.push(b'\n');
}

/// A time as a decimal number of seconds.
fn seconds(s: i64, ns: i64) -> String {
    match s < 0 && ns > 0 {
        // -1.25 is 750 ms behind -2
        true => format!("-{}.{:09}", -(s + 1), 1_000_000_000 - ns),
        false => format!("{s}.{ns:09}"),
    }
}

/// A number in a field: octal, or if it does not fit in binary with the top bit set.
fn octal(field: &mut [u8], n: u64) {
    let digits = field.len() - 1;
    if n < 1 << (3 * digits).min(63) {
        let text = format!("{n:0digits$o}\0");
        field.copy_from_slice(text.as_bytes());
    } else {
        field.fill(0);
        let at = field.len() - 8;
        field[at..].copy_from_slice(&n.to_be_bytes());
        field[0] = 0x80;
    }
}

// ---- unpack

fn broken(image: &str, why: impl std::fmt::Display) -> Error {
    Error::new(
        "E5305",
        Blame::Image,
        format!("cannot fill a tmpfs from {image}"),
    )
    .why(why)
    .advice("dump again, or copy the folder again if it was copied")
}

fn refused(path: &[u8], why: impl std::fmt::Display) -> Error {
    Error::new(
        "E5306",
        Blame::Image,
        format!(
            "the archive of a tmpfs wants to make {}",
            path.escape_ascii()
        ),
    )
    .why(why)
}

fn unmade(path: &[u8], call: &str, e: impl std::fmt::Display) -> Error {
    Error::new(
        "E6311",
        Blame::Host,
        format!("cannot make {} in a tmpfs", path.escape_ascii()),
    )
    .why(format!("{call}: {e}"))
    .advice("free memory, or restore with the rights the tree had")
}

/// Devices that an archive may hold: those every container has, and those the caller gave.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// Type bits of the mode, and number.
    pub given: Vec<(u32, u64)>,
}

impl Devices {
    /// The devices among these paths of the caller.
    pub fn of<'a>(paths: impl Iterator<Item = &'a str>) -> Self {
        let given = paths
            .filter_map(|p| nix::sys::stat::stat(p).ok())
            .map(|st| (st.st_mode & libc::S_IFMT, st.st_rdev))
            .filter(|d| matches!(d.0, libc::S_IFCHR | libc::S_IFBLK))
            .collect();
        Self { given }
    }
    /// May a device of this type (`S_IFCHR`, `S_IFBLK`) and number be made because an image says so?
    pub fn allow(&self, kind: u32, rdev: u64) -> bool {
        // /dev/console and /dev/ptmx lead to the opener's own; 0:0 is a hole of overlayfs
        static MORE: &[(u32, u32)] = &[(5, 1), (5, 2), (0, 0)];
        let number = (libc::major(rdev), libc::minor(rdev));
        let known =
            crate::look::DEVICES.iter().any(|d| (d.0, d.1) == number) || MORE.contains(&number);
        kind == libc::S_IFCHR && known || self.given.contains(&(kind, rdev))
    }
}

/// An entry whose headers were read.
#[derive(Default)]
struct Entry {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: BTreeMap<String, Vec<u8>>,
}

/// Makes all that an archive holds below `root`, an empty file system that nothing else uses.
///
/// # Errors
/// E5305: not an archive; E5306: it asks for what it may not have; E6311: the kernel refused.
pub fn unpack(root: BorrowedFd<'_>, from: impl Read, image: &str, devices: &Devices) -> Result<()> {
    let mut u = Unpacker {
        root,
        from: MultiGzDecoder::new(from),
        image,
        devices,
        folders: Vec::new(),
        buffer: vec![0; STEP],
    };
    let mut e = Entry::default();
    loop {
        let mut h = Header::new_old();
        u.fill(h.as_mut_bytes())?;
        if h.as_bytes().iter().all(|b| *b == 0) {
            break;
        }
        u.checksum(&h)?;
        let size = h.entry_size().map_err(|e| broken(image, e))?;
        match h.entry_type() {
            EntryType::GNULongName => e.path = Some(u.text(size)?),
            EntryType::GNULongLink => e.link = Some(u.text(size)?),
            EntryType::XHeader => e.pax.extend(u.records(size)?),
            EntryType::XGlobalHeader => {
                if let Some(about) = u.records(size)?.get(SOCKET_KEY) {
                    u.socket(about)?;
                }
            }
            _ => {
                let done = std::mem::take(&mut e);
                u.entry(&h, size, done)?;
            }
        }
    }
    // what is made in a folder changes its time
    for (path, times) in std::mem::take(&mut u.folders).into_iter().rev() {
        let (dir, name) = u.parent(&path)?;
        set_time(dir.as_fd(), &name, times).map_err(|e| unmade(&path, "utimensat", e))?;
    }
    Ok(())
}

struct Unpacker<'a, R: Read> {
    root: BorrowedFd<'a>,
    from: MultiGzDecoder<R>,
    image: &'a str,
    devices: &'a Devices,
    /// Folders made, with their times.
    folders: Vec<(Vec<u8>, TimeSpec)>,
    buffer: Vec<u8>,
}

/// Owner and mode of what was made; the mode last, since a new owner takes bits of it away.
fn own(
    path: &[u8],
    dir: BorrowedFd<'_>,
    name: &CStr,
    (uid, gid): (u32, u32),
    mode: Option<u32>,
) -> Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    nix::unistd::fchownat(dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|e| unmade(path, "fchownat", e))?;
    if let Some(mode) = mode {
        let mode = Mode::from_bits_truncate(mode);
        nix::sys::stat::fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)
            .map_err(|e| unmade(path, "fchmodat", e))?;
    }
    Ok(())
}

fn set_time(dir: BorrowedFd<'_>, name: &CStr, mtime: TimeSpec) -> nix::Result<()> {
    nix::sys::stat::utimensat(dir, name, &mtime, &mtime, UtimensatFlags::NoFollowSymlink)
}

impl<R: Read> Unpacker<'_, R> {
    fn fill(&mut self, to: &mut [u8]) -> Result<()> {
        self.from.read_exact(to).map_err(|e| broken(self.image, e))
    }
    fn checksum(&self, h: &Header) -> Result<()> {
        let b = h.as_bytes();
        let sum: u32 = b
            .iter()
            .enumerate()
            .map(|(i, b)| match i {
                148..156 => u32::from(b' '),
                _ => u32::from(*b),
            })
            .sum();
        match h.cksum() {
            Ok(c) if c == sum => Ok(()),
            _ => Err(broken(self.image, "a header has a wrong checksum")),
        }
    }
    /// The data of an extension header.
    fn small(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_PAX {
            return Err(broken(
                self.image,
                format!("an extension header of {size} bytes"),
            ));
        }
        let mut b = vec![0; (size as usize).next_multiple_of(BLOCK)];
        self.fill(&mut b)?;
        b.truncate(size as usize);
        Ok(b)
    }
    fn text(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut t = self.small(size)?;
        if let Some(end) = t.iter().position(|b| *b == 0) {
            t.truncate(end);
        }
        Ok(t)
    }
    fn records(&mut self, size: u64) -> Result<BTreeMap<String, Vec<u8>>> {
        let all = self.small(size)?;
        let mut rest = all.as_slice();
        let mut out = BTreeMap::new();
        while !rest.is_empty() {
            let one = (|| {
                let space = rest.iter().position(|b| *b == b' ')?;
                let len: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
                let body = rest.get(space + 1..len)?.strip_suffix(b"\n")?;
                let eq = body.iter().position(|b| *b == b'=')?;
                let key = std::str::from_utf8(&body[..eq]).ok()?;
                Some((len, key.to_owned(), body[eq + 1..].to_vec()))
            })();
            let Some((len, key, value)) = one else {
                return Err(broken(self.image, "a pax record cannot be read"));
            };
            out.insert(key, value);
            rest = &rest[len..];
        }
        Ok(out)
    }
    /// The folder that holds an entry, reached without any link, and the entry's name in it.
    fn parent(&self, path: &[u8]) -> Result<(OwnedFd, CString)> {
        let mut parts: Vec<&[u8]> = path
            .split(|b| *b == b'/')
            .filter(|p| !matches!(*p, b"" | b"."))
            .collect();
        if path.starts_with(b"/")
            || path.len() > MAX_PATH
            || path.contains(&0)
            || parts.contains(&&b".."[..])
        {
            return Err(refused(path, "its path does not stay inside")
                .advice("do not restore this image: it was tampered with"));
        }
        let name = parts.pop().unwrap_or(b".");
        let up = match parts.is_empty() {
            true => b".".to_vec(),
            false => parts.join(&b'/'),
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS,
            );
        let dir = openat2(self.root, up.as_slice(), how).map_err(|e| match e {
            Errno::ELOOP | Errno::EXDEV | Errno::ENOENT | Errno::ENOTDIR => refused(
                path,
                format!("the way there is not a folder of this archive: {e}"),
            )
            .advice("do not restore this image: it was tampered with"),
            e => unmade(path, "openat2", e),
        })?;
        let name = CString::new(name).map_err(|_| refused(path, "its name has a NUL"))?;
        Ok((dir, name))
    }
    fn entry(&mut self, h: &Header, size: u64, mut e: Entry) -> Result<()> {
        let image = self.image.to_owned();
        let bad = |what: &str| broken(&image, format!("a header has no {what}"));
        let sparse_name = e.pax.remove("GNU.sparse.name");
        let path = sparse_name
            .or_else(|| e.pax.remove("path"))
            .or(e.path)
            .unwrap_or_else(|| h.path_bytes().into_owned());
        let link = e
            .pax
            .remove("linkpath")
            .or(e.link)
            .or_else(|| h.link_name_bytes().map(|l| l.into_owned()));
        let number = |key: &str| {
            e.pax
                .get(key)
                .and_then(|v| std::str::from_utf8(v).ok())
                .and_then(|v| v.parse::<u64>().ok())
        };
        let uid = number("uid").or(h.uid().ok()).ok_or_else(|| bad("owner"))?;
        let gid = number("gid").or(h.gid().ok()).ok_or_else(|| bad("group"))?;
        let size = number("size").unwrap_or(size);
        let mode = h.mode().map_err(|_| bad("mode"))? & 0o7777;
        let mtime = match e.pax.get("mtime") {
            Some(t) => time(t).ok_or_else(|| bad("time"))?,
            None => TimeSpec::new(h.mtime().map_err(|_| bad("time"))? as i64, 0),
        };
        let (dir, name) = self.parent(&path)?;
        let (d, n) = (dir.as_fd(), name.as_c_str());
        let done = |call: &str, r: nix::Result<()>| r.map_err(|e| unmade(&path, call, e));
        let kind = h.entry_type();
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlag::O_WRONLY
                    | OFlag::O_CREAT
                    | OFlag::O_EXCL
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_CLOEXEC;
                let f = openat(d, n, flags, Mode::from_bits_truncate(0o600))
                    .map_err(|e| unmade(&path, "openat", e))?;
                let f = File::from(f);
                self.contents(h, size, &e.pax, &f, &path)?;
            }
            EntryType::Link => {
                let target = link.ok_or_else(|| bad("link"))?;
                let (from, old) = self.parent(&target)?;
                return done(
                    "linkat",
                    nix::unistd::linkat(from, old.as_c_str(), d, n, AtFlags::empty()),
                );
            }
            EntryType::Symlink => {
                let target = link.ok_or_else(|| bad("link"))?;
                done("symlinkat", nix::unistd::symlinkat(target.as_slice(), d, n))?;
            }
            EntryType::Directory => {
                match nix::sys::stat::mkdirat(d, n, Mode::from_bits_truncate(0o700)) {
                    Err(Errno::EEXIST) if name.as_bytes() == b"." => {}
                    r => done("mkdirat", r)?,
                }
            }
            EntryType::Fifo => done(
                "mknodat",
                nix::sys::stat::mknodat(d, n, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0),
            )?,
            EntryType::Char | EntryType::Block => {
                let part = |r: std::io::Result<Option<u32>>| {
                    r.ok().flatten().ok_or_else(|| bad("device number"))
                };
                let (major, minor) = (part(h.device_major())?, part(h.device_minor())?);
                let rdev = libc::makedev(major, minor);
                let sort = match kind {
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFCHR,
                };
                if !self.devices.allow(sort.bits(), rdev) {
                    return Err(refused(&path, format!("device {major}:{minor} is not one the caller gave"))
                        .advice("pass --external mnt[NAME]:/dev/... with that device if the tree may have it"));
                }
                done(
                    "mknodat",
                    nix::sys::stat::mknodat(d, n, sort, Mode::from_bits_truncate(0o600), rdev),
                )?;
            }
            t => {
                return Err(broken(
                    &image,
                    format!("an entry of type {:?}", char::from(t.as_byte())),
                ));
            }
        }
        let mode = (kind != EntryType::Symlink).then_some(mode);
        own(&path, d, n, (uid as u32, gid as u32), mode)?;
        self.attributes(&e.pax, d, n, &path)?;
        match kind {
            EntryType::Directory => self.folders.push((path, mtime)),
            _ => done("utimensat", set_time(d, n, mtime))?,
        }
        Ok(())
    }
    /// The name of a unix socket, from its record.
    fn socket(&self, about: &[u8]) -> Result<()> {
        let mut words = about.splitn(5, |b| *b == b' ');
        let mut word = || words.next().and_then(|w| std::str::from_utf8(w).ok());
        let parsed = (|| {
            let mode = u32::from_str_radix(word()?, 8).ok()? & 0o7777;
            let owner = (word()?.parse().ok()?, word()?.parse().ok()?);
            Some((mode, owner, time(word()?.as_bytes())?))
        })();
        let (Some((mode, owner, mtime)), Some(path)) = (parsed, words.next()) else {
            return Err(broken(self.image, "the record of a socket cannot be read"));
        };
        let (dir, name) = self.parent(path)?;
        let (d, n) = (dir.as_fd(), name.as_c_str());
        nix::sys::stat::mknodat(d, n, SFlag::S_IFSOCK, Mode::from_bits_truncate(0o600), 0)
            .map_err(|e| unmade(path, "mknodat", e))?;
        own(path, d, n, owner, Some(mode))?;
        set_time(d, n, mtime).map_err(|e| unmade(path, "utimensat", e))
    }
    fn attributes(
        &self,
        pax: &BTreeMap<String, Vec<u8>>,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Result<()> {
        for (key, value) in pax {
            let Some(key) = key.strip_prefix(XATTR_KEY) else {
                continue;
            };
            if !XATTRS.iter().any(|x| key.starts_with(x)) {
                return Err(refused(
                    path,
                    format!("the attribute {key} is none that archives have"),
                )
                .advice("do not restore this image: it was tampered with"));
            }
            let full = [
                format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(),
                name.to_bytes(),
            ]
            .concat();
            rustix::fs::lsetxattr(full, key, value, XattrFlags::empty())
                .map_err(|e| unmade(path, "lsetxattr", e))?;
        }
        Ok(())
    }
    fn contents(
        &mut self,
        h: &Header,
        size: u64,
        pax: &BTreeMap<String, Vec<u8>>,
        f: &File,
        path: &[u8],
    ) -> Result<()> {
        let (pieces, real, stored) = if h.entry_type() == EntryType::GNUSparse {
            let (p, real) = self.old_sparse(h)?;
            (p, real, size)
        } else if pax.contains_key("GNU.sparse.major") || pax.contains_key("GNU.sparse.map") {
            self.new_sparse(pax, size)?
        } else {
            (vec![(0, size)], size, size)
        };
        let wrong = || broken(self.image, "the pieces of a sparse file do not fit");
        let mut end = 0;
        let mut sum = 0u64;
        for (at, len) in &pieces {
            let till = at.checked_add(*len).ok_or_else(wrong)?;
            if *at < end || till > real {
                return Err(wrong());
            }
            end = till;
            sum += len;
        }
        if sum != stored {
            return Err(wrong());
        }
        let length = i64::try_from(real).map_err(|_| wrong())?;
        nix::unistd::ftruncate(f, length).map_err(|e| unmade(path, "ftruncate", e))?;
        for (at, len) in pieces {
            let mut done = 0;
            while done < len {
                let n = (len - done).min(STEP as u64) as usize;
                self.from
                    .read_exact(&mut self.buffer[..n])
                    .map_err(|e| broken(self.image, e))?;
                f.write_all_at(&self.buffer[..n], at + done)
                    .map_err(|e| unmade(path, "pwrite64", e))?;
                done += n as u64;
            }
        }
        let pad = (stored.next_multiple_of(BLOCK as u64) - stored) as usize;
        self.fill(&mut [0; BLOCK][..pad])
    }
    /// GNU tar's own form: pieces in the header and in blocks behind it.
    fn old_sparse(&mut self, h: &Header) -> Result<(Pieces, u64)> {
        let bad = |e: std::io::Error| broken(self.image, e);
        let g = h
            .as_gnu()
            .ok_or_else(|| broken(self.image, "a sparse file without a GNU header"))?;
        let real = g.real_size().map_err(bad)?;
        let mut pieces = Vec::new();
        for p in g.sparse.iter().filter(|p| !p.is_empty()) {
            pieces.push((p.offset().map_err(bad)?, p.length().map_err(bad)?));
        }
        let mut more = g.is_extended();
        while more {
            let mut x = tar::GnuExtSparseHeader::new();
            self.from
                .read_exact(x.as_mut_bytes())
                .map_err(|e| broken(self.image, e))?;
            for p in x.sparse().iter().filter(|p| !p.is_empty()) {
                let bad = |e: std::io::Error| broken(self.image, e);
                pieces.push((p.offset().map_err(bad)?, p.length().map_err(bad)?));
            }
            // a piece needs a byte of tmpfs at least
            if pieces.len() as u64 > real.saturating_add(1) {
                return Err(broken(
                    self.image,
                    "a sparse file has more pieces than bytes",
                ));
            }
            more = x.is_extended();
        }
        Ok((pieces, real))
    }
    /// GNU tar's form in pax archives: the list stands before the data.
    fn new_sparse(
        &mut self,
        pax: &BTreeMap<String, Vec<u8>>,
        size: u64,
    ) -> Result<(Pieces, u64, u64)> {
        let text = |k: &str| pax.get(k).and_then(|v| std::str::from_utf8(v).ok());
        if (text("GNU.sparse.major"), text("GNU.sparse.minor")) != (Some("1"), Some("0")) {
            return Err(broken(
                self.image,
                "a sparse file in a form other than GNU's 1.0",
            ));
        }
        let real = text("GNU.sparse.realsize").and_then(|v| v.parse::<u64>().ok());
        let real = real.ok_or_else(|| broken(self.image, "a sparse file without size"))?;
        let mut used = 0u64;
        let mut block = [0u8; BLOCK];
        let mut at = BLOCK;
        let mut next = |u: &mut Self| -> Result<u64> {
            let mut n: u64 = 0;
            loop {
                if at == BLOCK {
                    used += BLOCK as u64;
                    if used > size {
                        return Err(broken(
                            u.image,
                            "the list of a sparse file is longer than the file",
                        ));
                    }
                    u.fill(&mut block)?;
                    at = 0;
                }
                let b = block[at];
                at += 1;
                match b {
                    b'\n' => return Ok(n),
                    b'0'..=b'9' => {
                        n = n
                            .checked_mul(10)
                            .and_then(|n| n.checked_add(u64::from(b - b'0')))
                            .ok_or_else(|| broken(u.image, "a number that is too large"))?;
                    }
                    _ => return Err(broken(u.image, "the list of a sparse file cannot be read")),
                }
            }
        };
        let count = next(self)?;
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((next(self)?, next(self)?));
        }
        Ok((pieces, real, size - used))
    }
}

/// Seconds with a fraction.
fn time(text: &[u8]) -> Option<TimeSpec> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let s: i64 = whole.parse().ok()?;
    if !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
    let ns: i64 = digits.parse().ok()?;
    Some(match negative && ns > 0 {
        true => TimeSpec::new(s.checked_sub(1)?, 1_000_000_000 - ns),
        false => TimeSpec::new(s, ns),
    })
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
