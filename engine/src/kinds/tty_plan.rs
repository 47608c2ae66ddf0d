//! How terminals come back: the plan side of [`super::tty`].
use super::common::{OPENABLE, ask_ioctl, at_cwd, body, ioctl_row, path_of, reopen_row, settle};
use super::tty::WORDS;
use super::tty_acts::{CurrentTty, Pty, Queue, TCGETS, TCSETS, TERMIOS_LEN};
use super::{Act, PlanCx, Stage, TaskStage, malformed, regular};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_proto::pb::{self, TtyType};
use std::os::fd::AsFd;

const TIOCSLCKTRMIOS: u64 = 0x5457;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCSPGRP: u64 = 0x5410;
const TIOCSCTTY: u64 = 0x540e;
pub(super) const TIOCEXCL: u64 = 0x540c;
const TIOCPKT: u64 = 0x5420;
pub(super) const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTPEER: u64 = 0x5441;

/// Plans a terminal; see [`super::FileKind::plan`].
pub(super) fn plan(entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
    let e = body(entry, &entry.tty, "tty")?;
    let i = info_of(entry, e.tty_info_id, cx)?;
    let file = cx.file(entry.id);
    match (i.r#type(), i.pty) {
        (TtyType::Pty, Some(p)) => {
            let Some(pair) = pair(entry, p.index, cx)? else {
                return inherit(entry, e, &i, cx);
            };
            if is_master(&i) {
                // the pair's own file; nothing else can be opened of it
                if pair.master != file {
                    return Err(malformed(entry, "a second master of one terminal"));
                }
            } else {
                slave_rows(cx, entry, &pair, &i, e.flags, file)?;
            }
        }
        (TtyType::Ctty, None) => {
            let via = slave_of_session(entry, i.sid, cx)?;
            let flags = e.flags;
            let act = Act::CurrentTty(CurrentTty { via, flags, file });
            cx.act_at(Stage::Second, act, "the controlling terminal as /dev/tty");
            let before = cx.stage();
            cx.enter(Stage::Second);
            settle(cx, file, e.flags, &e.fown);
            cx.enter(before);
            return Ok(());
        }
        (TtyType::Console | TtyType::Vt | TtyType::Serial, None) => {
            let reg = path_of(entry, e.regf_id, cx)?;
            let flags = e.flags & !(libc::O_DIRECT as u32);
            regular::plan_open(cx, reg.id, flags, file)?;
            params(cx, entry, file, &i, true)?;
            control(cx, entry, &i, file)?;
        }
        (TtyType::ExtTty, None) => {
            let key = format!("tty[{:x}:{:x}]", i.rdev, i.dev());
            return Err(Error::new(
                "E5104",
                Blame::Image,
                format!("the terminal {key} is left to the caller"),
            )
            .why("the dump was told that it is external")
            .advice(format!("bring it: --inherit-fd 'fd[N]:{key}'")));
        }
        _ => return Err(malformed(entry, "a terminal of no sort")),
    }
    settle(cx, file, e.flags, &e.fown);
    if i.exclusive {
        let row = ioctl_row(Arg::Fd(file), TIOCEXCL, Arg::Int(0));
        cx.host_at(Stage::Mapped, row, "no further opens of the terminal");
    }
    Ok(())
}

/// The kernel's structure again.
fn raw_termios(entry: &pb::FileEntry, t: &pb::TermiosEntry) -> Result<Vec<u8>> {
    let mut raw = Vec::with_capacity(TERMIOS_LEN);
    for w in [t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag] {
        raw.extend(w.to_le_bytes());
    }
    raw.push(t.c_line as u8);
    raw.extend(t.c_cc.iter().flat_map(|w| w.to_le_bytes()).take(WORDS));
    if raw.len() != TERMIOS_LEN {
        return Err(malformed(entry, "its control characters are cut"));
    }
    Ok(raw)
}

/// A pair of the plan.
#[derive(Clone, Copy)]
struct Pair {
    master: FdRef,
    /// One slave, for what needs any.
    slave: FdRef,
}

fn is_master(i: &pb::TtyInfoEntry) -> bool {
    i.pty.is_some() && i.rdev == libc::makedev(5, 2) as u32
}

fn info_of(entry: &pb::FileEntry, id: u32, cx: &mut PlanCx) -> Result<pb::TtyInfoEntry> {
    let all = cx.image::<pb::TtyInfoEntry>("tty-info.img")?;
    let found = all.iter().find(|i| i.id == id).cloned();
    found.ok_or_else(|| malformed(entry, &format!("tty-info.img has no record {id}")))
}

/// The pair with this number, made if it is met first; `None`: its master is not in the tree.
fn pair(entry: &pb::FileEntry, index: u32, cx: &mut PlanCx) -> Result<Option<Pair>> {
    let key = ("tty pair", u64::from(index));
    if let Some(p) = cx.made.get(&key) {
        return Ok(Some(Pair {
            master: p[0],
            slave: p[1],
        }));
    }
    let all = cx.image::<pb::TtyInfoEntry>("tty-info.img")?;
    let of = |master: bool| {
        all.iter()
            .find(|i| i.pty.is_some_and(|p| p.index == index) && is_master(i) == master)
    };
    let files = cx.files;
    let the_master = of(true).and_then(|i| {
        let tty = |f: &&pb::FileEntry| f.tty.as_ref().is_some_and(|t| t.tty_info_id == i.id);
        files.values().find(tty).map(|f| (i, f))
    });
    let hung = of(false).is_some_and(|i| i.termios.is_none());
    let (path, flags, master, i) = match the_master {
        Some((i, f)) => {
            let t = body(f, &f.tty, "tty")?;
            let path = match path_of(f, t.regf_id, cx) {
                Ok(reg) => super::regular::shown(reg),
                Err(_) => "/dev/ptmx".into(),
            };
            (path, t.flags, cx.file(f.id), Some(i))
        }
        // Slaves that were hung up: so they are again when this master is closed.
        None if hung => ("/dev/ptmx".into(), libc::O_RDWR as u32, cx.temp(), None),
        // The container's own terminal, whose master the runtime had and gets again.
        None if cx.options.orphan_pts_master => {
            let master = cx.temp();
            cx.orphans.push(master);
            let flags = (libc::O_RDWR | libc::O_NOCTTY) as u32;
            ("/dev/ptmx".into(), flags, master, of(false))
        }
        None => return Ok(None),
    };
    let act = Pty {
        path,
        index,
        flags,
        file: master,
    };
    cx.act_at(cx.stage(), Act::Pty(act), format!("/dev/pts/{index}"));
    let slave = cx.temp();
    peer(cx, master, libc::O_RDWR as u32, slave, "its slave");
    cx.made.insert(key, vec![master, slave]);
    let pair = Pair { master, slave };
    let Some(i) = i else { return Ok(Some(pair)) };
    params(cx, entry, slave, i, true)?;
    queues(cx, entry, index, &pair, i)?;
    if i.packet_mode {
        let row = ioctl_row(Arg::Fd(master), TIOCPKT, Arg::In(vec![1, 0, 0, 0]));
        cx.host(row, "packet mode");
    }
    if i.locked {
        let row = ioctl_row(Arg::Fd(master), TIOCSPTLCK, Arg::In(vec![1, 0, 0, 0]));
        cx.host_at(Stage::Mapped, row, "no opens of the slave");
    }
    // Either record may know the session.
    let owner = of(false).filter(|s| s.sid != 0).unwrap_or(i).clone();
    control(cx, entry, &owner, slave)?;
    Ok(Some(pair))
}

/// Rows: opens the slave of a master.
///
/// KERNEL: TIOCGPTPEER leaves O_CLOEXEC among the flags of the open file, for fcntl(F_GETFL) to show. And it is no open(2), so
/// O_LARGEFILE is not added.
fn peer(cx: &mut PlanCx, master: FdRef, flags: u32, slave: FdRef, why: &'static str) {
    const O_LARGEFILE: u32 = 0o100000;
    let f = flags & (OPENABLE | O_LARGEFILE) | libc::O_NOCTTY as u32;
    let named = Arg::OpenFlags(f.into());
    cx.host(
        ioctl_row(Arg::Fd(master), TIOCGPTPEER, named).binds(slave),
        why,
    );
    let cloexec = vec![
        Arg::Fd(slave),
        Arg::Named(libc::F_SETFD as u64, "F_SETFD".into()),
        Arg::Named(libc::FD_CLOEXEC as u64, "FD_CLOEXEC".into()),
    ];
    cx.host(Call::new(libc::SYS_fcntl, cloexec), "ours, not a child's");
}

fn slave_rows(
    cx: &mut PlanCx,
    entry: &pb::FileEntry,
    pair: &Pair,
    i: &pb::TtyInfoEntry,
    flags: u32,
    file: FdRef,
) -> Result<()> {
    let flags = flags & !(libc::O_DIRECT as u32);
    peer(cx, pair.master, flags, file, "a slave");
    if let (Some(uid), Some(gid)) = (i.uid, i.gid) {
        let args = vec![Arg::Fd(file), Arg::Int(uid.into()), Arg::Int(gid.into())];
        cx.host(Call::new(libc::SYS_fchown, args), "owner of the slave");
    }
    let regf = body(entry, &entry.tty, "tty")?.regf_id;
    if let Ok(reg) = path_of(entry, regf, cx)
        && let Some(mode) = reg.mode.map(|m| m & 0o777)
    {
        let args = vec![
            Arg::Fd(file),
            Arg::Named(mode.into(), format!("{mode:#o}").into()),
        ];
        cx.host(
            Call::new(libc::SYS_fchmod, args),
            "permissions of the slave",
        );
    }
    Ok(())
}

/// Rows: settings and, if `size`, the window.
fn params(
    cx: &mut PlanCx,
    entry: &pb::FileEntry,
    file: FdRef,
    i: &pb::TtyInfoEntry,
    size: bool,
) -> Result<()> {
    if let Some(t) = &i.termios {
        let raw = raw_termios(entry, t)?;
        cx.host(ioctl_row(Arg::Fd(file), TCSETS, Arg::In(raw)), "settings");
    }
    if let Some(t) = &i.termios_locked {
        let raw = raw_termios(entry, t)?;
        // Locking needs CAP_SYS_ADMIN in the first user namespace, and next to nobody does it.
        if raw.iter().any(|b| *b != 0) {
            let row = ioctl_row(Arg::Fd(file), TIOCSLCKTRMIOS, Arg::In(raw));
            cx.host_at(Stage::Second, row, "locked settings");
        }
    }
    if let (Some(w), true) = (&i.winsize, size) {
        let four = [w.ws_row, w.ws_col, w.ws_xpixel, w.ws_ypixel];
        let raw = four
            .iter()
            .flat_map(|n| (*n as u16).to_le_bytes())
            .collect();
        cx.host(
            ioctl_row(Arg::Fd(file), TIOCSWINSZ, Arg::In(raw)),
            "window size",
        );
    }
    Ok(())
}

fn queues(
    cx: &mut PlanCx,
    entry: &pb::FileEntry,
    index: u32,
    pair: &Pair,
    i: &pb::TtyInfoEntry,
) -> Result<()> {
    let all = cx.image::<pb::TtyDataEntry>("tty-data.img")?;
    let of = |id: u32| -> Vec<u8> {
        let mine = all.iter().filter(|d| d.tty_id == id);
        mine.flat_map(|d| d.data.iter().copied()).collect()
    };
    let (input, output) = (of(2 * index), of(2 * index + 1));
    let Some(t) = i
        .termios
        .as_ref()
        .filter(|_| !(input.is_empty() && output.is_empty()))
    else {
        return Ok(());
    };
    let act = Queue {
        master: pair.master,
        slave: pair.slave,
        input,
        output,
        termios: raw_termios(entry, t)?,
    };
    cx.act_at(cx.stage(), Act::Queue(act), "queued data");
    Ok(())
}

/// Rows for the session leader: takes the terminal and says which group is in the foreground.
fn control(
    cx: &mut PlanCx,
    entry: &pb::FileEntry,
    i: &pb::TtyInfoEntry,
    file: FdRef,
) -> Result<()> {
    let tree = cx.image::<pb::PstreeEntry>("pstree.img")?;
    if i.sid == 0 || !tree.iter().any(|t| t.pid == i.sid && t.sid == i.sid) {
        return Ok(());
    }
    if cx
        .made
        .insert(("session with a terminal", i.sid.into()), vec![file])
        .is_some()
    {
        return Ok(());
    }
    let Some(slot) = cx.lend(i.sid, file, None) else {
        return Err(malformed(entry, "no slot is free in the session leader"));
    };
    let at = || Arg::Int(slot as u64);
    let take = ioctl_row(at(), TIOCSCTTY, Arg::Int(0));
    cx.task(i.sid, TaskStage::Placed, take);
    if i.pgrp != 0 && tree.iter().any(|t| t.pgid == i.pgrp) {
        let group = cx.spaces.seen_by(i.sid, i.pgrp);
        let group = Arg::In(group.to_le_bytes().to_vec());
        cx.task(i.sid, TaskStage::Placed, ioctl_row(at(), TIOCSPGRP, group));
    } else if i.pgrp != 0 {
        cx.warnings.push(format!(
            "the foreground group {} of a terminal has no members: the session leader's is used",
            i.pgrp
        ));
    }
    cx.task(
        i.sid,
        TaskStage::Placed,
        Call::new(libc::SYS_close, vec![at()]),
    );
    Ok(())
}

/// A slave of the terminal that this session has.
fn slave_of_session(entry: &pb::FileEntry, sid: u32, cx: &mut PlanCx) -> Result<FdRef> {
    let all = cx.image::<pb::TtyInfoEntry>("tty-info.img")?;
    let pty = all
        .iter()
        .filter(|i| i.sid == sid && sid != 0)
        .find_map(|i| i.pty);
    if let Some(p) = pty
        && let Some(pair) = pair(entry, p.index, cx)?
    {
        return Ok(pair.slave);
    }
    if cx.options.shell_job {
        return own_terminal(cx);
    }
    Err(malformed(
        entry,
        &format!("/dev/tty of session {sid}, whose terminal is not in the image"),
    ))
}

/// The terminal of whoever restores, under a temporary name.
fn own_terminal(cx: &mut PlanCx) -> Result<FdRef> {
    let key = ("own terminal", 0);
    if let Some(t) = cx.made.get(&key) {
        return Ok(t[0]);
    }
    let t = cx.temp();
    let std = [
        std::io::stdin().as_fd().try_clone_to_owned().ok(),
        std::io::stdout().as_fd().try_clone_to_owned().ok(),
        std::io::stderr().as_fd().try_clone_to_owned().ok(),
    ];
    let is_tty = |f: &Option<std::os::fd::OwnedFd>| {
        f.as_ref()
            .is_some_and(|f| ask_ioctl(f, TCGETS, TERMIOS_LEN).is_ok())
    };
    let path = match std.iter().position(is_tty) {
        Some(n) => format!("/proc/self/fd/{n}"),
        None => "/dev/tty".into(),
    };
    let o = (libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
    let row = Call::new(
        libc::SYS_openat,
        vec![at_cwd(), Arg::Str(path.into_bytes()), Arg::OpenFlags(o)],
    );
    cx.host(row.binds(t), "the terminal of whoever restores");
    cx.made.insert(key, vec![t]);
    Ok(t)
}

/// A slave without master becomes the terminal of whoever restores.
fn inherit(
    entry: &pb::FileEntry,
    e: &pb::TtyFileEntry,
    i: &pb::TtyInfoEntry,
    cx: &mut PlanCx,
) -> Result<()> {
    if !cx.options.shell_job {
        return Err(Error::new(
            "E2130",
            Blame::Caller,
            format!("cannot open the terminal of file entry {}", entry.id),
        )
        .why("its other end was outside of the tree when it was dumped")
        .advice("pass --shell-job to give it the terminal of whoever restores"));
    }
    let file = cx.file(entry.id);
    let own = own_terminal(cx)?;
    let flags = e.flags & !(libc::O_DIRECT as u32);
    let row = reopen_row(own, flags, file);
    cx.host(row, "the terminal of whoever restores");
    settle(cx, file, e.flags, &e.fown);
    if cx
        .made
        .insert(("inherited", i.id.into()), vec![file])
        .is_some()
    {
        return Ok(());
    }
    // Whoever restores may be in the background of this terminal, and would be stopped for changing it.
    let ttou = |how: i32, name: &'static str| {
        let mask: u64 = 1 << (libc::SIGTTOU - 1);
        let args = vec![
            Arg::Named(how as u64, name.into()),
            Arg::In(mask.to_le_bytes().to_vec()),
            Arg::Null,
            Arg::Int(8),
        ];
        Call::new(libc::SYS_rt_sigprocmask, args)
    };
    cx.host(ttou(libc::SIG_BLOCK, "SIG_BLOCK"), "no SIGTTOU");
    params(cx, entry, file, i, false)?;
    cx.host(ttou(libc::SIG_UNBLOCK, "SIG_UNBLOCK"), "SIGTTOU again");
    // The job that was in the foreground of its terminal is so again.
    let tree = cx.image::<pb::PstreeEntry>("pstree.img")?;
    let Some(root) = tree.first().filter(|r| r.sid != r.pid && r.pgid == r.pid) else {
        return Ok(());
    };
    if let Some(slot) = cx.lend(root.pid, file, None) {
        let at = || Arg::Int(slot as u64);
        let group = Arg::In(root.pgid.to_le_bytes().to_vec());
        // Any answer: who restores may itself be without controlling terminal.
        let row = ioctl_row(at(), TIOCSPGRP, group).any();
        cx.task(root.pid, TaskStage::Placed, row);
        let close = Call::new(libc::SYS_close, vec![at()]);
        cx.task(root.pid, TaskStage::Placed, close);
    }
    Ok(())
}
