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
//! **A container's terminal** (`--orphan-pts-master`): a slave in the tree's own devpts whose master the runtime has. The pair is
//! made anew, and the runtime is given the new master.
//!
//! **A terminal that the caller brings** (`--external tty[RDEV:DEV]` at dump, `--inherit-fd fd[N]:tty[RDEV:DEV]` at restore) is
//! used as it is then: nothing is set.
//!
//! **What does not come back.** Half-typed lines; the borders between several lines if the last one was ended by ^D; queues of
//! pairs in packet mode or with one end outside (the dump warns); output stopped by ^S; line disciplines other than
//! N_TTY.
//!
//! KERNEL: TIOCGSID and TIOCGPGRP on a master tell anybody; TIOCSCTTY takes only a terminal no session has.
//!
//! Guests: pty, pty_data, ctty, dev_tty, shell_job.
use super::common::{ask_int, ask_ioctl};
use super::tty_acts::{TCGETS, TERMIOS_LEN, TIOCGPTN, Taken, waiting};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, Undo};
use crate::error::{Blame, Error, Result};
use stasis_kernel::fds;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::pb::{self, TtyType};
use std::os::fd::AsFd;

/// The kind.
pub struct Tty;

const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCGSID: u64 = 0x5429;
const TIOCGPGRP: u64 = 0x540f;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;

/// CRIU knows no higher numbers of pairs.
const MAX_INDEX: u32 = 1000;
/// Record numbers from here on are used by none of CRIU's; the last is what its restore takes.
const FREE_RECORDS: std::ops::RangeInclusive<u32> = 2154..=2176;
/// Words of control characters in the image; also their number.
pub(super) const WORDS: usize = 19;

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
    let inner = |v: &[i32]| cx.level.number(v);
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
        uid: Some(cx.ids.uid(seen.stat.st_uid)),
        gid: Some(cx.ids.gid(seen.stat.st_gid)),
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
    let name = seen.link;
    let reg = pb::RegFileEntry {
        id,
        flags: seen.flags,
        fown: seen.fown,
        name: name.strip_suffix(b" (deleted)").unwrap_or(name).into(),
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
        let (rdev, dev) = (seen.stat.st_rdev, seen.stat.st_dev);
        let left_outside = cx
            .options
            .namespaces
            .other
            .contains(&format!("tty[{rdev:x}:{dev:x}]"));
        let how = match left_outside {
            true => Some(Sort::Other(TtyType::ExtTty, 2 * 1012 + 1)),
            false => sort(rdev),
        };
        let how = how.ok_or_else(|| Error::bug("no terminal"))?;
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
        super::tty_plan::plan(entry, cx)
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
            None if id % 2 == 0 && !cx.options.orphan_pts_master && !cx.options.shell_job => {
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

#[cfg(test)]
#[path = "tty_tests.rs"]
mod tests;
