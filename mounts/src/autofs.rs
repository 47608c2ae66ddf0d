//! autofs: mounts that a daemon of the tree fills when somebody looks.
//!
//! A mount is made with a pipe that nobody reads, and is catatonic until its daemon is there, who takes it over: see
//! `Plan::automounts`.
use crate::error::{Blame, Error};
use crate::perform::Performer;
use crate::plan::Automount;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use stasis_kernel::autofs::{self, Command};
use stasis_kernel::call::{Arg, FdRef};
use stasis_kernel::mnt;
use stasis_proto::pb;
use std::os::fd::AsRawFd;

/// The pipe of a mount without daemon.
pub const CATATONIC: i32 = -1;
/// The sorts of mounts, by their number in images.
static MODES: &[&str] = &["direct", "indirect", "offset"];

/// What mountinfo tells of a mount, the group of the daemon as the reader numbers it; and the inode number of its pipe.
///
/// # Errors
/// An option is missing.
pub fn told(options: &str) -> Result<(pb::AutofsEntry, Option<u64>), String> {
    let words: Vec<&str> = options.split(',').collect();
    let value = |key: &str| {
        let found = words
            .iter()
            .find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        found.and_then(|v| v.parse::<i64>().ok())
    };
    let need = |key: &str| {
        let n = value(key).and_then(|n| i32::try_from(n).ok());
        n.ok_or_else(|| format!("the kernel does not tell its {key}"))
    };
    let mode = MODES.iter().position(|m| words.contains(m));
    let entry = pb::AutofsEntry {
        fd: need("fd")?,
        pgrp: need("pgrp")?,
        timeout: need("timeout")?,
        minproto: need("minproto")?,
        maxproto: need("maxproto")?,
        mode: mode.ok_or("the kernel does not tell of which sort it is")? as i32,
        uid: need("uid").ok(),
        gid: need("gid").ok(),
        read_fd: None,
    };
    Ok((entry, value("pipe_ino").and_then(|n| u64::try_from(n).ok())))
}

/// Checks what an image says of a mount.
pub(crate) fn check(e: &pb::AutofsEntry, place: &str) -> crate::Result<()> {
    let whole =
        e.timeout >= 0 && e.minproto >= 0 && e.maxproto >= 0 && (e.pgrp > 0 || e.fd == CATATONIC);
    match usize::try_from(e.mode).is_ok_and(|m| m < MODES.len()) && whole {
        true => Ok(()),
        false => Err(missing(place, "its numbers make no sense")),
    }
}

pub(crate) fn missing(place: &str, why: &str) -> Error {
    Error::new("E5309", Blame::Image, format!("cannot make {place}"))
        .why(why)
        .advice("dump again: the image does not describe this autofs")
}

/// Makes the mount, catatonic. `own`: names of the performer's.
pub(crate) fn perform(p: &mut Performer<'_>, a: &Automount, own: u32) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (_read, write) = nix::unistd::pipe().map_err(|e| text(&e))?;
    let context = FdRef(own);
    let e = &a.entry;
    // KERNEL: the group of who makes the mount walks in without asking; whoever takes it over must be of the same pid namespace
    // as that group (fs/autofs/dev-ioctl.c). A leader of a session leads its group already
    let none = nix::unistd::Pid::from_raw(0);
    let _ = nix::unistd::setpgid(none, none);
    let mut options = vec![
        ("fd", write.as_raw_fd()),
        ("minproto", e.minproto),
        ("maxproto", e.maxproto),
    ];
    options.extend(
        e.uid
            .map(|n| ("uid", n))
            .into_iter()
            .chain(e.gid.map(|n| ("gid", n))),
    );
    let mut calls = vec![
        mnt::fsopen("autofs").binds(context),
        mnt::fsconfig(context, "source", Some(&a.source)),
    ];
    for (key, value) in &options {
        calls.push(mnt::fsconfig(context, key, Some(&value.to_string())));
    }
    calls.push(mnt::fsconfig(context, MODES[e.mode as usize], None));
    calls.extend([
        mnt::create(context),
        mnt::fsmount(context, 0).binds(a.mount),
    ]);
    for c in &calls {
        p.host.play(c).map_err(|e| text(&e))?;
    }
    p.host.take(context);
    let mount = p.host.fd(a.mount).ok_or("it is not open")?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let root = openat(mount, ".", flags, Mode::empty()).map_err(|e| format!("openat: {e}"))?;
    for folder in &a.folders {
        let ups: Vec<_> = std::path::Path::new(folder).ancestors().collect();
        for up in ups.iter().rev().filter(|u| !u.as_os_str().is_empty()) {
            match nix::sys::stat::mkdirat(&root, *up, Mode::from_bits_truncate(0o555)) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(e) => return Err(format!("mkdirat of {}: {e}", up.display())),
            }
        }
    }
    let number = root.as_raw_fd();
    for (command, value) in [
        (Command::Timeout, e.timeout as u64),
        (Command::Catatonic, 0),
    ] {
        let row = autofs::ask(Arg::Fd(a.device), command, number, value);
        p.host.play(&row).map_err(|e| text(&e))?;
    }
    p.host.insert(a.root, root);
    Ok(())
}

#[test]
fn what_mountinfo_tells_is_read() {
    let shown = "rw,fd=4,pgrp=3927,timeout=30,minproto=5,maxproto=5,indirect,pipe_ino=15579074";
    let (e, ino) = told(shown).expect("an entry");
    assert_eq!(
        (e.fd, e.pgrp, e.timeout, e.mode, ino),
        (4, 3927, 30, 1, Some(15_579_074))
    );
    assert!(check(&e, "").is_ok());
    assert!(told("rw,fd=4").is_err());
    let bad = pb::AutofsEntry { mode: 3, ..e };
    assert_eq!(check(&bad, "").expect_err("no mode").code, "E5309");
}
