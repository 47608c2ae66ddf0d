//! Files that the caller of a restore brings along: instead of what a kind would plan, an open file of the engine's own is used.
//!
//! **Keys** (`--inherit-fd fd[N]:KEY`, RPC `inherit_fd`), as CRIU has them: `pipe:[ID]` and `socket:[INODE]` with the numbers of the
//! dumped file, `tty[RDEV:DEV]` and `file[MOUNT:INODE]` with hexadecimal ones, and paths, with or without their first slash.
//! Without a key a standard file of the dumped tree that came from outside (see [`super::outside`]) becomes the engine's own
//! standard file of that number: there runtimes put the new ones.
//!
//! **Pipes.** Each end of the tree is a new open file of the caller's pipe, in the direction it had; so its flags are its own.
//! Where that is not allowed (a pipe of another user) the caller's open file itself is used. What had been in the pipe is put
//! back only if the tree had nothing but reading ends: whoever reads outside still has it in the old pipe.
//!
//! **All else** is the caller's open file itself, with its position and flags.
use super::common::{OPENABLE, settle};
use super::pipe::{contents, fill, reads, writes};
use super::{Act, PlanCx, Stagehand, regular};
use crate::error::{Blame, Error, Result};
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::Mode;
use stasis_kernel::call::FdRef;
use stasis_kernel::error::SysError;
use stasis_kernel::fds;
use stasis_proto::pb;
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};

/// Plans the file of this entry if the caller brings it; false if its kind has to.
///
/// # Errors
/// It was left to the caller, who does not bring it.
pub fn plan(entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<bool> {
    let keys = keys(entry, cx)?;
    let wanted = &cx.options.namespaces.inherit;
    let slots = cx.holders.get(&entry.id);
    let same = |n: &RawFd| slots.is_some_and(|s| s.iter().any(|h| h.1 == *n));
    // several for one key: the one with the number that the tree has it under
    let all = || wanted.iter().filter(|(k, _)| keys.contains(k)).map(|i| i.1);
    let brought = all().find(same).or_else(|| all().next());
    let Some(number) = brought.map_or_else(|| own(entry), |n| Ok(Some(n)))? else {
        return Ok(false);
    };
    if let Some(reg) = entry.reg.as_deref()
        && !regular::is_opened(cx, reg)?
    {
        // only a path beside the entry of a fifo or terminal, which is asked itself
        return Ok(false);
    }
    let given = given(cx, number);
    let file = cx.file(entry.id);
    let (pipe, flags, owner) = match (&entry.pipe, &entry.fifo) {
        (Some(p), _) => (Some(p.pipe_id), p.flags, Some(p.fown)),
        (None, Some(f)) => {
            let path = cx.files.get(&f.regf_id.unwrap_or(entry.id));
            let reg = path.and_then(|e| e.reg.as_deref());
            (None, reg.map_or(0, |r| r.flags), reg.map(|r| r.fown))
        }
        _ => (None, 0, None),
    };
    let again = owner.is_some();
    let act = Adopt {
        from: given,
        file,
        flags,
        again,
        number,
    };
    cx.act_at(cx.stage(), Act::Adopt(act), "the caller brings it");
    if let Some(id) = pipe {
        unread(cx, id, given)?;
    }
    if let Some(owner) = owner {
        settle(cx, file, flags, &owner);
    }
    Ok(true)
}

/// Plans one more descriptor of what a plugin brings for this entry: for mappings.
///
/// # Errors
/// No plugin brings it.
pub fn plan_again(entry: &pb::FileEntry, cx: &mut PlanCx, bind: FdRef) -> Result<()> {
    let keys = keys(entry, cx)?;
    let brought = &cx.options.namespaces.inherit;
    let number = brought.iter().find(|(k, _)| keys.contains(k)).map(|i| i.1);
    let number = number.ok_or_else(|| crate::plugins::not_brought(entry.id))?;
    let act = Adopt {
        from: given(cx, number),
        file: bind,
        flags: 0,
        again: false,
        number,
    };
    cx.act_at(cx.stage(), Act::Adopt(act), "a plugin brings it");
    Ok(())
}

/// All keys that mean this file.
fn keys(entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<Vec<String>> {
    let path = |name: &[u8]| {
        let name = String::from_utf8_lossy(name);
        vec![name.trim_start_matches('/').to_owned(), name.into_owned()]
    };
    if cx.options.namespaces.inherit.is_empty() {
        return Ok(Vec::new());
    }
    Ok(if let Some(p) = &entry.pipe {
        vec![format!("pipe:[{}]", p.pipe_id)]
    } else if let Some(u) = &entry.usk {
        vec![format!("socket:[{}]", u.ino)]
    } else if let Some(i) = &entry.isk {
        vec![format!("socket:[{}]", i.ino)]
    } else if let Some(t) = &entry.tty {
        let all = cx.image::<pb::TtyInfoEntry>("tty-info.img")?;
        let of = all.iter().find(|i| i.id == t.tty_info_id);
        of.map_or(Vec::new(), |i| {
            vec![format!("tty[{:x}:{:x}]", i.rdev, i.dev())]
        })
    } else if let Some(f) = &entry.fifo {
        let reg = cx.files.get(&f.regf_id.unwrap_or(entry.id));
        reg.and_then(|e| e.reg.as_ref())
            .map_or(Vec::new(), |r| path(&r.name))
    } else if let Some(e) = &entry.ext {
        vec![crate::plugins::key(e.id)]
    } else if let Some(r) = &entry.reg {
        path(&r.name)
    } else {
        Vec::new()
    })
}

/// The engine's own standard file that takes the place of one from outside.
fn own(entry: &pb::FileEntry) -> Result<Option<RawFd>> {
    let Some(reg) = entry.reg.as_ref().filter(|r| r.ext()) else {
        return Ok(None);
    };
    match reg.stasis.as_ref().and_then(|s| s.stdio) {
        Some(n @ 0..=2) => Ok(Some(n as RawFd)),
        _ => {
            let name = String::from_utf8_lossy(&reg.name);
            let what = format!("the file {name} is left to the caller");
            Err(Error::new("E7030", Blame::Caller, what)
                .why("it was outside of the tree when it was dumped")
                .advice(format!(
                    "pass an open descriptor for it: --inherit-fd 'fd[N]:{name}'"
                )))
        }
    }
}

/// The name of a descriptor of the engine's among the files of the plan.
fn given(cx: &mut PlanCx, number: RawFd) -> FdRef {
    if let Some((f, _)) = cx.given.iter().find(|g| g.1 == number) {
        return *f;
    }
    let f = cx.temp();
    cx.given.push((f, number));
    f
}

/// What the tree had not read yet of a pipe of which it has no writing end.
fn unread(cx: &mut PlanCx, id: u32, given: FdRef) -> Result<()> {
    let ends = cx.files.values().filter_map(|e| e.pipe.as_ref());
    if ends.filter(|p| p.pipe_id == id).any(|p| writes(p.flags)) {
        return Ok(());
    }
    let all = contents(cx, "pipes-data.img")?;
    let Some(c) = all.get(&id).filter(|c| !c.bytes.is_empty()) else {
        return Ok(());
    };
    let key = ("inherited pipe", u64::from(id));
    if cx.made.contains_key(&key) {
        return Ok(());
    }
    let w = cx.temp();
    let act = Adopt {
        from: given,
        file: w,
        flags: (libc::O_WRONLY | libc::O_NONBLOCK) as u32,
        again: true,
        number: -1,
    };
    cx.act_at(cx.stage(), Act::Adopt(act), "its writing end, for a moment");
    fill(cx, w, c);
    cx.made.insert(key, vec![w]);
    Ok(())
}

/// Takes an open file of the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopt {
    /// The caller's.
    pub from: FdRef,
    /// The tree's.
    pub file: FdRef,
    /// Wanted flags.
    pub flags: u32,
    /// A new open file of the same inode, if that is allowed.
    pub again: bool,
    /// Its number in the caller's words.
    pub number: RawFd,
}

impl Adopt {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let from = on.fd(self.from)?;
        if self.again {
            // never waits for another end; the status flags are set afterwards
            let flags = self.flags & OPENABLE & !(libc::O_DIRECT as u32);
            let flags = OFlag::from_bits_retain(flags as i32)
                | OFlag::O_NONBLOCK
                | OFlag::O_CLOEXEC
                | OFlag::O_NOCTTY;
            let path = format!("/proc/self/fd/{}", from.as_raw_fd());
            if let Ok(fd) = openat(AT_FDCWD, path.as_str(), flags, Mode::empty()) {
                on.host.insert(self.file, fd);
                return Ok(());
            }
            let mode = fcntl(from, FcntlArg::F_GETFL)
                .map_err(|e| SysError::new("fcntl", e, "F_GETFL of an inherited descriptor"))?
                as u32;
            let lacks = |can: fn(u32) -> bool| can(self.flags) && !can(mode);
            if lacks(reads) || lacks(writes) {
                let way = if lacks(reads) { "reading" } else { "writing" };
                return Err(Error::new(
                    "E7031",
                    Blame::Caller,
                    format!("descriptor {} cannot be used by the tree", self.number),
                )
                .why(format!("it is not open for {way}"))
                .advice("inherit the other end"));
            }
        }
        let fd = fds::dup(from)?;
        on.host.insert(self.file, fd);
        Ok(())
    }
}

impl fmt::Display for Adopt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.again { "reopen" } else { "dup" };
        write!(
            f,
            "{how}(inherited file#{}) -> file#{}",
            self.from.0, self.file.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::pipe::Pipe;
    use crate::kinds::testing;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    /// Plans and plays the entries of a dump with these keys.
    fn restored(d: &mut testing::Dumped, inherit: &[(String, RawFd)]) -> Vec<std::fs::File> {
        d.options.namespaces.inherit = inherit.to_vec();
        d.inherited().into_iter().map(std::fs::File::from).collect()
    }

    #[test]
    fn ends_of_a_pipe_are_ends_of_the_callers() {
        let (r, w) = nix::unistd::pipe().unwrap();
        let id = fds::fstat(r.as_fd()).unwrap().st_ino;
        nix::unistd::write(&w, b"old").unwrap();
        let mut d = testing::dump(&Pipe, &[r.as_fd()]).unwrap();
        let (r2, w2) = nix::unistd::pipe().unwrap();
        let key = [(format!("pipe:[{id}]"), w2.as_raw_fd())];
        // the tree read: it gets a reading end though a writing one is brought, and what was there
        let mut got = restored(&mut d, &key);
        nix::unistd::write(&w2, b"new").unwrap();
        let mut b = [0; 10];
        let n = got[0].read(&mut b).unwrap();
        assert_eq!(&b[..n], b"oldnew");
        // the tree wrote: what was there is for whoever reads outside, and is not told twice
        let mut d = testing::dump(&Pipe, &[w.as_fd()]).unwrap();
        let mut got = restored(&mut d, &key);
        got[0].write_all(b"x").unwrap();
        let n = nix::unistd::read(&r2, &mut b).unwrap();
        assert_eq!(&b[..n], b"x");
        assert!(!fds::same_file(got[0].as_fd(), w2.as_fd()).unwrap());
        // another key is none
        assert!(restored(&mut d, &[("pipe:[1]".into(), 1)]).is_empty());
    }

    #[test]
    fn a_file_is_the_callers_own_with_its_position() {
        let tmp = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(tmp.path(), "0123456789").unwrap();
        let f = std::fs::File::open(tmp.path()).unwrap();
        let mut d = testing::dump(&regular::Regular, &[f.as_fd()]).unwrap();
        let mut mine = tempfile::tempfile().unwrap();
        mine.write_all(b"mine").unwrap();
        let name = tmp.path().to_str().unwrap();
        for key in [name, &name[1..]] {
            let got = restored(&mut d, &[(key.into(), mine.as_raw_fd())]);
            assert!(
                fds::same_file(got[0].as_fd(), mine.as_fd()).unwrap(),
                "{key}"
            );
        }
    }
}
