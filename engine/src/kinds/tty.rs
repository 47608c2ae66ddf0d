//! Terminals: pseudo terminals (/dev/ptmx and /dev/pts/N), consoles, serial lines, and /dev/tty.
//!
//! **What it is.** A pair has a number; the master is one open file, slaves are any number of them. Settings, window size,
//! session and foreground group belong to the pair. /dev/tty is an open file of the controlling terminal of whoever opened it.
//!
//! **Dump.** The entry names the open file, its path (an entry of type REG) and its record in tty-info.img; a master's record
//! has the odd number 2N+1, its slaves' 2N, as CRIU pairs them. Everything is asked for by ioctl(2) from our duplicate, except
//! session and group of a slave, which the kernel tells only to members of the session: they are taken from
//! /proc/PID/stat of the tasks that have it as controlling terminal. The queues cannot be looked at. They are emptied as the
//! very last thing ([`finish`]), when everything else is written, and put back if the dump fails or the tree runs on.
//!
//! **Restore.** A devpts gives out the lowest free number, so lower ones are held until the wanted one comes. Slaves are opened
//! through the master (TIOCGPTPEER), which follows no path. Queued data is put back with all translation off, then the settings
//! are made. The session leader takes the terminal with TIOCSCTTY in a slot of its own or a lent one, and sets the foreground
//! group. An open /dev/tty is made by a helper process that owns the terminal for a moment.
//!
//! **A terminal from outside** (`--shell-job`): a slave whose master is not in the tree becomes an open file of the terminal
//! of whoever restores: stdin, else stdout, stderr, /dev/tty. It gets the saved settings, not the window size.
//!
//! **What does not come back.** Half-typed lines; the borders between several lines if the last one was ended by ^D; queues of
//! pairs in packet mode or with one end outside (the dump warns); output stopped by ^S; line disciplines other than
//! N_TTY.
//!
//! KERNEL: TIOCGSID and TIOCGPGRP on a master tell anybody; TIOCSCTTY takes only a terminal no session has.
use super::common::{ask_int, ask_ioctl, body, ioctl_row, path_of, settle};
use super::tty_acts::{
    CurrentTty, Pty, Queue, TCGETS, TCSETS, TERMIOS_LEN, TIOCGPTN, Taken, waiting,
};
use super::{Act, DumpCx, FileKind, PlanCx, Seen, Stage, TaskStage, Undo, malformed, regular};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::fds;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::pb::{self, TtyType};
use std::os::fd::AsFd;

/// The kind.
pub struct Tty;

const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCSLCKTRMIOS: u64 = 0x5457;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCGSID: u64 = 0x5429;
const TIOCGPGRP: u64 = 0x540f;
const TIOCSPGRP: u64 = 0x5410;
const TIOCSCTTY: u64 = 0x540e;
const TIOCEXCL: u64 = 0x540c;
const TIOCPKT: u64 = 0x5420;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTPEER: u64 = 0x5441;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;

/// CRIU knows no higher numbers of pairs.
const MAX_INDEX: u32 = 1000;
/// Record numbers from here on are used by none of CRIU's; the last is what its restore takes.
const FREE_RECORDS: std::ops::RangeInclusive<u32> = 2154..=2176;
const WORDS: usize = 19;

/// Sorts of terminals, by device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Master,
    Slave(u32),
    /// Type, and the record's number in CRIU's scheme.
    Other(TtyType, u32),
}

fn sort(rdev: u64) -> Option<Sort> {
    let minor = libc::minor(rdev);
    Some(match (libc::major(rdev), minor) {
        (5, 0) => Sort::Other(TtyType::Ctty, 2 * 1006 + 1),
        (5, 1) => Sort::Other(TtyType::Console, 2 * 1002 + 1),
        (5, 2) => Sort::Master,
        (4, 1..=63) => Sort::Other(TtyType::Vt, 2 * 1004 + 1),
        (4 | 188 | 204, _) => Sort::Other(TtyType::Serial, 2 * 1010 + 1),
        (m @ 136..=143, _) => Sort::Slave((m - 136) << 20 | minor),
        _ => return None,
    })
}

// ---- dump

fn termios(raw: &[u8]) -> pb::TermiosEntry {
    let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    // The characters are packed four to a word, and as many words are written as there are characters.
    let mut chars = raw[17..TERMIOS_LEN].to_vec();
    chars.resize(WORDS * 4, 0);
    let pack = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
    pb::TermiosEntry {
        c_iflag: word(0),
        c_oflag: word(4),
        c_cflag: word(8),
        c_lflag: word(12),
        c_line: raw[16].into(),
        c_ispeed: 0,
        c_ospeed: 0,
        c_cc: chars.chunks(4).map(pack).collect(),
    }
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

/// Session and foreground group as the tree sees them, 0 for none.
fn session(seen: &Seen, how: Sort, cx: &DumpCx) -> Result<(u32, u32)> {
    let rdev = seen.stat.st_rdev;
    let dev = match how {
        Sort::Master => (136, ask_int(seen.fd, TIOCGPTN)? as u32),
        _ => (libc::major(rdev), libc::minor(rdev)),
    };
    let mut all = Vec::new();
    for pid in cx.pids.keys() {
        let dir = ProcDir::open(*pid)?;
        all.push((dir.stat()?, dir));
    }
    let mut found = (0, 0);
    let inner = |v: &[i32]| v.last().copied().unwrap_or(0).max(0) as u32;
    let mine = all.iter().find(|(stat, _)| match how {
        // the terminal behind /dev/tty is that of the task
        Sort::Other(TtyType::Ctty, _) => stat.pid == seen.pid && stat.tty_nr != 0,
        _ => stat.tty() == Some(dev),
    });
    if let Some((stat, dir)) = mine {
        found.0 = inner(&dir.status()?.ns_sid);
        let member = all.iter().find(|(s, _)| s.pgrp.0 == stat.tpgid);
        found.1 = match member {
            Some((_, d)) => inner(&d.status()?.ns_pgid),
            // a group outside of the tree has a number in it only if there is one namespace
            None if cx.pids.iter().all(|(h, n)| h.0 as u32 == *n) => stat.tpgid.max(0) as u32,
            None => 0,
        };
    }
    if found.0 == 0 && how == Sort::Master {
        let get = |r| ask_int(seen.fd, r).map_or(0, |n| n.max(0) as u32);
        let known = |host: u32| {
            cx.pids
                .get(&stasis_kernel::ids::HostPid(host as i32))
                .copied()
                .unwrap_or(host)
        };
        found = (known(get(TIOCGSID)), known(get(TIOCGPGRP)));
    }
    Ok(found)
}

fn info(seen: &Seen, how: Sort, id: u32, cx: &DumpCx) -> Result<pb::TtyInfoEntry> {
    let (sid, pgrp) = session(seen, how, cx)?;
    let flag = |r| ask_int(seen.fd, r).is_ok_and(|n| n != 0);
    let master = how == Sort::Master;
    let (kind, pty) = match how {
        Sort::Master => (TtyType::Pty, Some(ask_int(seen.fd, TIOCGPTN)? as u32)),
        Sort::Slave(n) => (TtyType::Pty, Some(n)),
        Sort::Other(t, _) => (t, None),
    };
    let mut e = pb::TtyInfoEntry {
        id,
        r#type: kind as i32,
        locked: master && flag(TIOCGPTLCK),
        exclusive: flag(TIOCGEXCL),
        packet_mode: master && flag(TIOCGPKT),
        sid,
        pgrp,
        rdev: seen.stat.st_rdev as u32,
        pty: pty.map(|index| pb::TtyPtyEntry { index }),
        dev: Some(seen.stat.st_dev as u32),
        uid: Some(seen.stat.st_uid),
        gid: Some(seen.stat.st_gid),
        ..Default::default()
    };
    // A terminal that was hung up answers nothing any more.
    let Ok(t) = ask_ioctl(seen.fd, TCGETS, TERMIOS_LEN) else {
        return Ok(e);
    };
    e.termios = Some(termios(&t));
    e.termios_locked = Some(termios(&ask_ioctl(seen.fd, TIOCGLCKTRMIOS, TERMIOS_LEN)?));
    let w = ask_ioctl(seen.fd, TIOCGWINSZ, 8)?;
    let half = |at: usize| u32::from(u16::from_le_bytes([w[at], w[at + 1]]));
    e.winsize = Some(pb::WinsizeEntry {
        ws_row: half(0),
        ws_col: half(2),
        ws_xpixel: half(4),
        ws_ypixel: half(6),
    });
    Ok(e)
}

/// The path alone: a terminal from outside may be hidden or gone here.
fn path(seen: &Seen, cx: &mut DumpCx) -> u32 {
    let id = cx.new_id();
    let name = String::from_utf8_lossy(seen.link);
    let reg = pb::RegFileEntry {
        id,
        flags: seen.flags,
        fown: seen.fown,
        name: name.strip_suffix(" (deleted)").unwrap_or(&name).into(),
        mode: Some(seen.stat.st_mode),
        ..Default::default()
    };
    cx.entries.push(pb::FileEntry {
        r#type: pb::FdTypes::Reg as i32,
        id,
        reg: Some(Box::new(reg)),
        ..Default::default()
    });
    id
}

/// The number of the record of this terminal, and whether it has to be written.
fn record(seen: &Seen, how: Sort, cx: &mut DumpCx) -> Result<(u32, bool)> {
    let index = match how {
        Sort::Master => Some(ask_int(seen.fd, TIOCGPTN)? as u32),
        Sort::Slave(n) => Some(n),
        Sort::Other(..) => None,
    };
    if let Some(n) = index {
        if n > MAX_INDEX {
            return Err(seen.unsupported(
                format!("the image format has no terminal numbers above {MAX_INDEX}"),
                "use a devpts of its own for the container",
            ));
        }
        let id = 2 * n + u32::from(how == Sort::Master);
        return Ok((id, cx.first("tty record", id.into())));
    }
    // CRIU has one number for all of a type; a second device of that type gets a spare one.
    let rdev = seen.stat.st_rdev;
    if let Some(id) = cx.done.get(&("tty device", rdev)) {
        return Ok((*id, false));
    }
    let Sort::Other(_, usual) = how else {
        return Err(Error::bug("a pair without a number"));
    };
    let id = std::iter::once(usual)
        .chain(FREE_RECORDS)
        .find(|id| cx.first("tty record", (*id).into()));
    let id = id.ok_or_else(|| seen.unsupported("too many terminals", "close some of them"))?;
    cx.done.insert(("tty device", rdev), id);
    Ok((id, true))
}

impl FileKind for Tty {
    fn name(&self) -> &'static str {
        "tty"
    }
    fn about(&self) -> &'static str {
        "terminal pairs with settings, sessions and queued data; a terminal from outside with --shell-job"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Tty
    }
    fn claims(&self, seen: &Seen) -> bool {
        seen.file_type() == libc::S_IFCHR
            && seen.flags & libc::O_PATH as u32 == 0
            && sort(seen.stat.st_rdev).is_some()
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let how = sort(seen.stat.st_rdev).ok_or_else(|| Error::bug("no terminal"))?;
        let (tty_info_id, fresh) = record(seen, how, cx)?;
        if fresh {
            let e = info(seen, how, tty_info_id, cx)?;
            if e.pty.is_some() && e.termios.is_some() {
                let copy = fds::dup(seen.fd)?;
                cx.keep
                    .insert(("tty", tty_info_id.into()), (copy, seen.place()));
                if e.packet_mode {
                    cx.first("tty in packet mode", tty_info_id.into());
                }
            }
            cx.put("tty-info.img", &e, &[])?;
        }
        let regf_id = Some(path(seen, cx));
        let tty = pb::TtyFileEntry {
            id,
            tty_info_id,
            flags: seen.flags,
            fown: seen.fown,
            regf_id,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            tty: Some(Box::new(tty)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
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
                return Err(Error::new(
                    "E5104",
                    Blame::Image,
                    format!(
                        "cannot open the external terminal of file entry {}",
                        entry.id
                    ),
                )
                .why("the dump left it to the caller to provide it, which is not supported yet"));
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
}

/// Judges what all terminals together say, and takes what is queued in them.
pub(super) fn finish(cx: &mut DumpCx) -> Result<()> {
    let keep = std::mem::take(&mut cx.keep);
    let (mut ttys, rest): (Vec<_>, Vec<_>) = keep.into_iter().partition(|(k, _)| k.0 == "tty");
    cx.keep = rest.into_iter().collect();
    ttys.sort_by_key(|(k, _)| k.1);
    let mut ttys = ttys.into_iter().map(|(k, v)| (k.1, v)).peekable();
    while let Some((id, (fd, place))) = ttys.next() {
        let peer = ttys.next_if(|(other, _)| id % 2 == 0 && *other == id + 1);
        let queued = waiting(fd.as_fd());
        match peer {
            Some((m, (master, _))) if !cx.done.contains_key(&("tty in packet mode", m)) => {
                let t = Taken::take(master, fd)?;
                let mut put = |tty_id: u64, data: &[u8]| match data {
                    [] => Ok(()),
                    d => cx.put(
                        "tty-data.img",
                        &pb::TtyDataEntry {
                            tty_id: tty_id as u32,
                            data: d.to_vec(),
                        },
                        &[],
                    ),
                };
                let written = put(m, &t.output).and_then(|()| put(id, &t.input));
                cx.undo.push(Undo::Terminal(t));
                written?;
            }
            Some((_, (master, _))) => {
                let n = queued + waiting(master.as_fd());
                if n > 0 {
                    cx.warn(format!(
                        "{place}: {n} bytes queued in a terminal in packet mode will not come back"
                    ));
                }
            }
            None if id % 2 == 0 && !cx.options.shell_job => {
                return Err(Error::new(
                    "E4130",
                    Blame::Container,
                    format!("cannot dump {place}"),
                )
                .why("its other end is a terminal outside of the tree")
                .advice("pass --shell-job to take the terminal of whoever restores, or redirect the program's files"));
            }
            None if queued > 0 => {
                cx.warn(format!(
                    "{place}: {queued} bytes queued in the terminal will not come back"
                ));
            }
            None => {}
        }
    }
    Ok(())
}

// ---- restore

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
                Ok(reg) => reg.name.clone(),
                Err(_) => "/dev/ptmx".into(),
            };
            (path, t.flags, cx.file(f.id), Some(i))
        }
        // Slaves that were hung up: so they are again when this master is closed.
        None if hung => ("/dev/ptmx".into(), libc::O_RDWR as u32, cx.temp(), None),
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
fn peer(cx: &mut PlanCx, master: FdRef, flags: u32, slave: FdRef, why: &str) {
    const O_LARGEFILE: u32 = 0o100000;
    let f = flags & (super::common::OPENABLE | O_LARGEFILE) | libc::O_NOCTTY as u32;
    let named = Arg::Named(f.into(), stasis_kernel::names::open_flags(f.into()));
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
        let args = vec![Arg::Fd(file), Arg::Named(mode.into(), format!("{mode:#o}"))];
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
        let group = Arg::In(i.pgrp.to_le_bytes().to_vec());
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
        vec![
            super::common::at_cwd(),
            Arg::Str(path.into_bytes()),
            Arg::Named(o, stasis_kernel::names::open_flags(o)),
        ],
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
    let row = super::common::reopen_row(own, flags, file);
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
    let ttou = |how: i32, name: &str| {
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

#[cfg(test)]
#[path = "tty_tests.rs"]
mod tests;
