//! Mounts of autofs whose daemon is in the tree: `autofs-N.img`.
//!
//! **Dump.** mountinfo tells the daemon's process group and its pipe. The leader of the group must be in the tree and read the
//! pipe, and nothing may wait in it: who waits for an answer waits in the kernel.
//!
//! **Restore.** The mount is made without daemon. When the daemon has its files, it gets the device, the mount and the pipe for a
//! moment and takes the mount over (AUTOFS_DEV_IOCTL_SETPIPEFD): the kernel takes the group of who asks.
use crate::error::{Error, Result};
use crate::kinds::{DumpCx, PlanCx, TaskStage};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use stasis_kernel::autofs::{Command, ask};
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::ids::{HostPid, RemoteFd};
use stasis_kernel::procfs::{MountInfo, ProcDir};
use stasis_mounts::autofs;
use stasis_proto::{Kind, pb};
use std::os::fd::AsFd;
use std::path::Path;

/// The pipe of a daemon, among what the dump has met.
pub const PIPE: &str = "autofs pipe";

/// What goes into the image about a mount, or why it cannot be carried.
///
/// # Errors
/// /proc of the daemon cannot be read.
pub fn look(cx: &mut DumpCx, m: &MountInfo) -> Result<Result<pb::AutofsEntry, String>> {
    let (mut e, ino) = match autofs::told(&String::from_utf8_lossy(&m.super_options)) {
        Ok(told) => told,
        Err(why) => return Ok(Err(why)),
    };
    if e.fd == autofs::CATATONIC {
        return Ok(Ok(e));
    }
    let daemon = HostPid(e.pgrp);
    let (Some(pid), Some(ino)) = (cx.pids.get(&daemon), ino) else {
        return Ok(Err("its daemon is not in the tree".into()));
    };
    let proc = ProcDir::open(daemon)?;
    let link = format!("pipe:[{ino}]").into_bytes();
    let mut reads = None;
    let mut writes = false;
    for fd in proc.fds()? {
        if proc.fd_link(fd)? != link {
            continue;
        }
        match proc.fdinfo(fd)?.flags as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => reads = reads.or(Some(fd)),
            _ => writes |= fd.0 == e.fd,
        }
    }
    let Some(RemoteFd(read)) = reads else {
        return Ok(Err("its daemon does not read its pipe".into()));
    };
    let path = format!("/proc/{}/fd/{read}", daemon.0);
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let pipe = open(Path::new(&path), flags, Mode::empty())
        .map_err(|e| stasis_kernel::error::SysError::new("openat", e, path))?;
    if crate::kinds::common::ask_int(pipe.as_fd(), libc::FIONREAD)? > 0 {
        return Ok(Err("somebody waits for its daemon".into()));
    }
    cx.done.insert((PIPE, ino), 0);
    e.pgrp = *pid as i32;
    e.read_fd = (!writes).then_some(read);
    Ok(Ok(e))
}

/// Writes what [`look`] saw of the mounts that are in the image.
///
/// # Errors
/// The folder.
pub fn write(
    cx: &DumpCx,
    all: &stasis_mounts::look::Automounts,
    entries: &[Vec<pb::MntEntry>],
) -> Result<()> {
    for ((major, minor), entry) in all {
        let dev = major << 20 | minor & 0xf_ffff;
        let own = |m: &&pb::MntEntry| m.root_dev == dev && m.ext_key.is_none();
        if let (Some(_), Ok(e)) = (entries.iter().flatten().find(own), entry) {
            cx.dir
                .write_all(&Kind::Autofs.file_of(dev), std::slice::from_ref(e))?;
        }
    }
    Ok(())
}

/// Plans how daemons take their mounts over, when all files are planned.
///
/// # Errors
/// E5309: a daemon that is not there, or has no pipe.
pub fn plan(cx: &mut PlanCx) -> Result<()> {
    let Some(mounts) = cx.mounts.clone() else {
        return Ok(());
    };
    for a in mounts
        .automounts
        .iter()
        .filter(|a| a.entry.fd != autofs::CATATONIC)
    {
        let e = &a.entry;
        let bad = |why: &str| {
            let what = format!("the autofs of task {}", e.pgrp);
            Error::new("E5309", crate::error::Blame::Image, what)
                .why(why)
                .advice("dump again: the image does not describe this autofs")
        };
        let (pid, slot) = (e.pgrp as u32, e.read_fd.unwrap_or(e.fd));
        let holds = |h: &(&u32, &Vec<(u32, i32)>)| h.1.contains(&(pid, slot));
        let id = cx.holders.iter().find(holds).map(|h| *h.0);
        let pipe = id.and_then(|id| cx.files.get(&id)?.pipe.as_deref());
        let ends = pipe.and_then(|p| cx.made.get(&("pipe", u64::from(p.pipe_id))));
        let Some(write) = ends.and_then(|ends| ends.get(1).copied()) else {
            return Err(bad("its daemon has no pipe"));
        };
        let device = cx.lend(pid, a.device, None);
        let root = cx.lend(pid, a.root, None);
        // mountinfo shows the number the pipe had
        let own = cx.lend(pid, write, Some(e.fd));
        let own = own.or_else(|| cx.lend(pid, write, None));
        let (Some(device), Some(root), Some(write)) = (device, root, own) else {
            return Err(bad("its daemon has no free descriptor"));
        };
        let number = |slot: i32| Arg::Int(slot as u64);
        let take = ask(number(device), Command::SetPipe, root, write as u64);
        cx.task(pid, TaskStage::Placed, take);
        for slot in [device, root, write] {
            cx.task(
                pid,
                TaskStage::Placed,
                Call::new(libc::SYS_close, vec![number(slot)]),
            );
        }
    }
    Ok(())
}
