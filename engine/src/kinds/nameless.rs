//! Makes a deleted file again: contents first, then its old names for the few calls that open it. See [`super::ghost`].
//!
//! Names are remembered as they are made and removed on every way out ([`Made`]); only names made here are ever removed.
use super::Stagehand;
use super::act::{STEP, sys};
use super::detached::Aside;
use super::ghost::{From, Nameless};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};
use stasis_kernel::call::FdRef;
use stasis_kernel::{fds, names};
use stasis_proto::{ImageDir, ImageReader, Kind, pb};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

impl Nameless {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        if let (From::Image(ghost), Some(top)) = (&self.from, self.aside) {
            return self.put_aside(on, *ghost, top);
        }
        let mut made = Made::default();
        let at: Vec<PathBuf> = match &self.from {
            From::Image(n) => self.make_from(on.dir, *n, &mut made)?,
            From::Link(p) => {
                let source = open_path(p, "the hard link that the dump made")?;
                let paths = self.names.iter().map(|n| made.link(&source, &n.path));
                paths.collect::<Result<_>>()?
            }
        };
        let mut opened = Vec::new();
        let mut inode = None;
        for (n, path) in self.names.iter().zip(&at) {
            let handle = open_path(path, "the deleted file just made")?;
            let st = fds::fstat(handle.as_fd())?;
            if *inode.get_or_insert((st.st_dev, st.st_ino)) != (st.st_dev, st.st_ino) {
                return Err(failed(path, "open", Errno::ESTALE));
            }
            for (flags, file) in &n.opens {
                let path_only = flags & libc::O_PATH as u32 != 0;
                if !path_only && matches!(st.st_mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK)
                {
                    // would wait for a peer; the fifo kind opens fifos through the handle
                    return Err(failed(path, "open as a regular file", Errno::ENXIO));
                }
                let fd = openat(
                    AT_FDCWD,
                    path,
                    super::regular::open_flags(*flags),
                    Mode::empty(),
                )
                .map_err(|e| failed(path, "open", e))?;
                opened.push((*file, fd));
            }
            opened.push((n.handle, handle));
        }
        made.finish()?;
        for (f, fd) in opened {
            on.host.insert(f, fd);
        }
        Ok(())
    }

    /// Makes the file on a tmpfs that is mounted nowhere, where it keeps its names.
    fn put_aside(&self, on: &mut Stagehand<'_>, ghost: u32, top: FdRef) -> Result<()> {
        if on.host.fd(top).is_none() {
            on.host.insert(top, super::detached::make()?);
        }
        let aside = Aside(fds::dup(on.fd(top)?)?);
        let (e, r) = entry(on.dir, ghost)?;
        if e.mode & libc::S_IFMT != libc::S_IFREG {
            return Err(damaged(ghost, "it lies aside and is no regular file"));
        }
        let first = &self.names[0].path;
        let file = aside.create(first)?;
        contents(&file, &e, r, &|why| damaged(ghost, why))?;
        metadata(file.as_fd(), &e, first)?;
        for n in &self.names {
            if n.path != *first {
                aside.link(first, &n.path)?;
            }
            for (flags, file) in &n.opens {
                let flags = super::regular::open_flags(*flags);
                on.host.insert(*file, aside.open(&n.path, flags)?);
            }
            on.host
                .insert(n.handle, aside.open(&n.path, OFlag::O_PATH)?);
        }
        Ok(())
    }

    /// Makes the inode and gives it its names; returns them as they came to be.
    fn make_from(&self, dir: &ImageDir, ghost: u32, made: &mut Made) -> Result<Vec<PathBuf>> {
        let (e, r) = entry(dir, ghost)?;
        let bad = |why: &str| damaged(ghost, why);
        let first = &self.names[0].path;
        made.parents(first)?;
        let kind = e.mode & libc::S_IFMT;
        if kind == libc::S_IFREG {
            let (file, name) = made.regular(first, ghost)?;
            contents(&file, &e, r, &bad)?;
            metadata(file.as_fd(), &e, first)?;
            let paths = self.names.iter().map(|n| {
                made.parents(&n.path)?;
                made.link(&file, &n.path)
            });
            let paths = paths.collect::<Result<_>>()?;
            if let Some(n) = name {
                made.forget(&n)?;
            }
            return Ok(paths);
        }
        let make = |p: &Path| match kind {
            libc::S_IFDIR => nix::unistd::mkdir(p, Mode::S_IRWXU),
            libc::S_IFIFO => mknod(p, SFlag::S_IFIFO, Mode::empty(), 0),
            libc::S_IFCHR => mknod(p, SFlag::S_IFCHR, Mode::empty(), e.rdev().into()),
            libc::S_IFBLK => mknod(p, SFlag::S_IFBLK, Mode::empty(), e.rdev().into()),
            libc::S_IFLNK => nix::unistd::symlinkat(e.symlnk_target(), AT_FDCWD, p),
            _ => Err(Errno::EINVAL),
        };
        let path = made.with_name(first, kind == libc::S_IFDIR, make)?;
        let handle = open_path(&path, "the deleted file just made")?;
        if fds::fstat(handle.as_fd())?.st_mode & libc::S_IFMT != kind {
            return Err(failed(&path, "open", Errno::ESTALE));
        }
        metadata(handle.as_fd(), &e, first)?;
        let mut paths = vec![path];
        for n in &self.names[1..] {
            if kind == libc::S_IFDIR {
                return Err(bad("a folder with two names"));
            }
            made.parents(&n.path)?;
            paths.push(made.link(&handle, &n.path)?);
        }
        Ok(paths)
    }
}

/// What an image says of a file, and the rest of the image.
fn entry(dir: &ImageDir, ghost: u32) -> Result<(pb::GhostFileEntry, ImageReader)> {
    let mut r = dir.reader(&Kind::GhostFile.file_of(ghost))?;
    match r.read::<pb::GhostFileEntry>()? {
        Some(e) => Ok((e, r)),
        None => Err(damaged(ghost, "it is empty")),
    }
}

fn damaged(ghost: u32, why: &str) -> Error {
    Error::new("E5104", Blame::Image, Kind::GhostFile.file_of(ghost))
        .why(why)
        .advice("dump again: this image does not describe a file")
}

fn contents(
    file: &File,
    e: &pb::GhostFileEntry,
    mut r: ImageReader,
    bad: &dyn Fn(&str) -> Error,
) -> Result<()> {
    let cannot = |e: std::io::Error| sys("write", &e, "the contents of a deleted file");
    let mut out = BufWriter::with_capacity(STEP, file);
    if !e.chunks() {
        r.copy_payload(r.remaining(), &mut out)?;
        return out.flush().map_err(cannot);
    }
    let size = e.size.ok_or_else(|| bad("it has chunks and no size"))?;
    if i64::try_from(size).is_err() {
        return Err(bad("no file is as large as it says"));
    }
    file.set_len(size).map_err(cannot)?;
    while let Some(c) = r.read::<pb::GhostChunkEntry>()? {
        if c.off
            .checked_add(c.len)
            .is_none_or(|end| end > size.next_multiple_of(4096))
        {
            return Err(bad("a chunk lies beyond the file's size"));
        }
        out.seek(SeekFrom::Start(c.off)).map_err(cannot)?;
        r.copy_payload(c.len, &mut out)?;
    }
    out.flush().map_err(cannot)?;
    // a chunk may end with its page rather than with the file
    file.set_len(size).map_err(cannot)
}

/// Owner, permissions (last but for the times: chown clears set-id bits) and times.
fn metadata(fd: BorrowedFd<'_>, e: &pb::GhostFileEntry, name: &Path) -> Result<()> {
    // magic links lead to the inode itself, also if it is a symbolic link, and work for O_PATH files
    let this = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (uid, gid) = (Uid::from_raw(e.uid), Gid::from_raw(e.gid));
    nix::unistd::fchownat(AT_FDCWD, &this, Some(uid), Some(gid), AtFlags::empty())
        .map_err(|e| failed(name, "chown", e))?;
    if e.mode & libc::S_IFMT != libc::S_IFLNK {
        let mode = Mode::from_bits_truncate(e.mode & 0o7777);
        nix::sys::stat::fchmodat(
            AT_FDCWD,
            &this,
            mode,
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )
        .map_err(|e| failed(name, "chmod", e))?;
    }
    let (Some(a), Some(m)) = (&e.atim, &e.mtim) else {
        return Ok(());
    };
    let spec =
        |t: &pb::Timeval| TimeSpec::new(t.tv_sec as i64, (t.tv_usec % 1_000_000) as i64 * 1000);
    nix::sys::stat::utimensat(
        AT_FDCWD,
        &this,
        &spec(a),
        &spec(m),
        UtimensatFlags::FollowSymlink,
    )
    .map_err(|e| failed(name, "utimensat", e))
}

fn open_path(path: &Path, what: &str) -> Result<OwnedFd> {
    openat(
        AT_FDCWD,
        path,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| failed(path, "open", e).on(what))
}

pub(super) fn failed(path: &Path, act: &str, e: Errno) -> Error {
    let (errno, blame) = (
        names::errno(e as i32),
        match e {
            Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS | Errno::EACCES | Errno::EPERM => {
                Blame::Host
            }
            _ => Blame::Kernel,
        },
    );
    Error::new(
        "E6122",
        blame,
        format!("cannot bring back the deleted file {}", path.display()),
    )
    .why(format!("{act}: {errno}"))
    .advice("its folder must be there and writable while it is restored")
}

/// Names this act made, newest last. What is still there when it is dropped is removed.
#[derive(Default)]
struct Made(Vec<(PathBuf, bool)>);

impl Made {
    /// Makes the missing folders above a path.
    fn parents(&mut self, path: &Path) -> Result<()> {
        let Some(up) = path.parent() else {
            return Ok(());
        };
        let missing: Vec<_> = up
            .ancestors()
            .take_while(|p| matches!(p.symlink_metadata(), Err(e) if e.kind() == std::io::ErrorKind::NotFound))
            .collect();
        for p in missing.into_iter().rev() {
            nix::unistd::mkdir(p, Mode::S_IRWXU).map_err(|e| failed(p, "mkdir", e))?;
            self.0.push((p.to_owned(), true));
        }
        Ok(())
    }
    /// A new regular file beside `path`, without a name if the file system can do that.
    fn regular(&mut self, path: &Path, ghost: u32) -> Result<(File, Option<PathBuf>)> {
        let up = path.parent().unwrap_or(Path::new("/"));
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        match openat(AT_FDCWD, up, flags | OFlag::O_TMPFILE, mode) {
            Ok(fd) => return Ok((File::from(fd), None)),
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => return Err(failed(path, "open(O_TMPFILE)", e)),
        }
        let (file, name) = self.named(path, ghost)?;
        Ok((file, Some(name)))
    }
    /// The same where it cannot: under a name that nobody else uses.
    fn named(&mut self, path: &Path, ghost: u32) -> Result<(File, PathBuf)> {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_CREAT | OFlag::O_EXCL;
        let name = with_suffix(path, &format!(".cr.{ghost:x}.ghost"));
        let fd = openat(AT_FDCWD, &name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|e| failed(&name, "open(O_CREAT)", e))?;
        self.0.push((name.clone(), false));
        Ok((File::from(fd), name))
    }
    /// Runs `make` with the path, or with another name beside it if that one is taken; remembers it.
    fn with_name(
        &mut self,
        path: &Path,
        folder: bool,
        make: impl Fn(&Path) -> nix::Result<()>,
    ) -> Result<PathBuf> {
        let other = with_suffix(path, ".cr_link");
        let path = match make(path) {
            Ok(()) => path.to_owned(),
            Err(Errno::EEXIST) => {
                make(&other).map_err(|e| failed(&other, "make", e))?;
                other
            }
            Err(e) => return Err(failed(path, "make", e)),
        };
        self.0.push((path.clone(), folder));
        Ok(path)
    }
    /// Gives an open file one more name.
    fn link(&mut self, file: &impl AsFd, path: &Path) -> Result<PathBuf> {
        self.parents(path)?;
        let this = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        self.with_name(path, false, |p| {
            nix::unistd::linkat(
                AT_FDCWD,
                this.as_str(),
                AT_FDCWD,
                p,
                AtFlags::AT_SYMLINK_FOLLOW,
            )
        })
    }
    /// Removes one name before the others.
    fn forget(&mut self, path: &Path) -> Result<()> {
        self.0.retain(|n| n.0 != path);
        nix::unistd::unlink(path).map_err(|e| failed(path, "unlink", e))
    }
    /// Removes all names.
    fn finish(mut self) -> Result<()> {
        while let Some((p, folder)) = self.0.pop() {
            remove(&p, folder).map_err(|e| failed(&p, "unlink", e))?;
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        while let Some((p, folder)) = self.0.pop() {
            if let Err(e) = remove(&p, folder) {
                tracing::warn!("{} stays behind: {e}", p.display());
            }
        }
    }
}

fn remove(p: &Path, folder: bool) -> nix::Result<()> {
    use nix::unistd::UnlinkatFlags::{NoRemoveDir, RemoveDir};
    nix::unistd::unlinkat(AT_FDCWD, p, if folder { RemoveDir } else { NoRemoveDir })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut s = OsString::from(path);
    s.push(suffix);
    s.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap();
        let mut n: Vec<_> = names
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        n.sort();
        n
    }

    #[test]
    fn a_file_system_without_tmpfile_gets_one_more_name_that_goes_first() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a");
        let mut made = Made::default();
        let (file, name) = made.named(&path, 0x1f).unwrap();
        let linked = made.link(&file, &path).unwrap();
        assert_eq!(linked, path);
        assert_eq!(names_in(tmp.path()), ["a", "a.cr.1f.ghost"]);
        made.forget(&name).unwrap();
        assert_eq!(names_in(tmp.path()), ["a"]);
        made.finish().unwrap();
        assert_eq!(names_in(tmp.path()), [""; 0]);
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(link.to_str().unwrap().ends_with("a.cr.1f.ghost (deleted)"));
    }

    #[test]
    fn what_was_made_goes_when_the_act_fails_and_nothing_else() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("old")).unwrap();
        let deep = tmp.path().join("old/new/newer/file");
        let mut made = Made::default();
        let (file, _) = {
            made.parents(&deep).unwrap();
            made.regular(&deep, 1).unwrap()
        };
        made.link(&file, &deep).unwrap();
        assert!(deep.exists());
        drop(made);
        assert_eq!(names_in(tmp.path()), ["old"]);
        assert_eq!(names_in(&tmp.path().join("old")), [""; 0]);
    }
}
