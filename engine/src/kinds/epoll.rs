//! epoll(7) instances.
//!
//! **What it is.** A list of targets, each an open file *and the number under which it was added*, with events and data.
//! The number is only a key: the target lives as long as the open file, even if that number was closed or means
//! something else by now.
//!
//! **Dump.** Late, when all open files have ids. fdinfo lists the targets; kcmp(2) with KCMP_EPOLL_TFD finds the open file
//! of each: in the slot of its number first, then anywhere in the task, then anywhere in the tree.
//!
//! **Restore.** The number that the kernel stores is the one in the caller's table, so a holder of the instance adds the
//! targets itself, when all descriptors are in their slots. A target that no slot of that task has under the wanted number
//! is lent to it under that number for the moment, or under a free one if the number is taken.
//!
//! **Image.** `tfd` says where the target is now, as CRIU writes it (and CRIU adds it under that number). Two extension
//! fields hold the number it was added under and the open file's id; an image of CRIU has neither, there `tfd` counts in
//! the table of the holder with the lowest pid.
//!
//! **What does not come back.** A one-shot target that has fired gets EPOLLERR and EPOLLHUP back, because EPOLL_CTL_ADD
//! always sets them. An edge that was told already is told once more. A number that is taken by another file is not used.
//!
//! Guests: epoll, epoll_closed.
use super::common::{body, is_anon, settle};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, TaskStage, malformed};
use crate::error::Result;
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::fds::kcmp_epoll;
use stasis_kernel::ids::{HostPid, RemoteFd};
use stasis_kernel::procfs::EpollTarget;
use stasis_proto::pb;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// The kind.
pub struct Epoll;

/// Finds the open file of a target: its slot and id.
fn find(
    seen: &Seen,
    t: &EpollTarget,
    nth: u32,
    cx: &DumpCx,
) -> Result<Option<(HostPid, i32, u32)>> {
    let mut met = BTreeSet::new();
    let same = |pid: HostPid, slot: i32| {
        kcmp_epoll(
            pid,
            RemoteFd(slot),
            seen.pid,
            RemoteFd(seen.slot),
            t.tfd,
            nth,
        )
        .map(|o| o == Ordering::Equal)
    };
    let own = cx.slots.get_key_value(&(seen.pid, t.tfd));
    let mine = cx.slots.range((seen.pid, i32::MIN)..=(seen.pid, i32::MAX));
    for ((pid, slot), id) in own.into_iter().chain(mine).chain(&cx.slots) {
        if met.insert((*id, *pid == seen.pid)) && same(*pid, *slot)? {
            return Ok(Some((*pid, *slot, *id)));
        }
    }
    Ok(None)
}

impl FileKind for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }
    fn about(&self) -> &'static str {
        "epoll instances with all targets, also closed, renumbered and nested ones"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Eventpoll
    }
    fn claims(&self, seen: &Seen) -> bool {
        is_anon(seen.link, "eventpoll")
    }
    fn late(&self) -> bool {
        true
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let mut nth = BTreeMap::new();
        let mut tfd = Vec::new();
        for t in seen.info.epoll()? {
            let n = nth.entry(t.tfd).or_insert(0u32);
            let Some((pid, slot, file)) = find(seen, &t, *n, cx)? else {
                return Err(seen.unsupported(
                    format!(
                        "its target added as fd {} (inode {}) is held by no task of the tree",
                        t.tfd, t.ino
                    ),
                    "dump its holder as well, or remove the target from the instance",
                ));
            };
            *n += 1;
            let now = if pid == seen.pid { slot } else { t.tfd };
            tfd.push(pb::EventpollTfdEntry {
                id,
                tfd: now as u32,
                events: t.events,
                data: t.data,
                dev: Some(t.sdev),
                inode: Some(t.ino),
                pos: Some(t.pos as u64),
                added_as: (now != t.tfd).then_some(t.tfd as u32),
                file_id: Some(file),
            });
        }
        let epfd = pb::EventpollFileEntry {
            id,
            flags: seen.flags,
            fown: seen.fown,
            tfd,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            epfd: Some(Box::new(epfd)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.epfd, "epfd")?;
        let file = cx.file(entry.id);
        cx.host(
            Call::new(
                libc::SYS_epoll_create1,
                vec![Arg::Named(
                    libc::EPOLL_CLOEXEC as u64,
                    "EPOLL_CLOEXEC".into(),
                )],
            )
            .binds(file),
            "epoll instance",
        );
        settle(cx, file, e.flags, &e.fown);
        let mut holders = cx.holders.get(&entry.id).cloned().unwrap_or_default();
        holders.sort();
        let mut used = BTreeSet::new();
        // Targets of older images stand in an image of their own.
        let apart = cx.image::<pb::EventpollTfdEntry>("eventpoll-tfd.img")?;
        for t in e
            .tfd
            .iter()
            .chain(apart.iter().filter(|t| t.id == entry.id))
        {
            let Some((pid, epoll)) = holders.first().copied() else {
                return Err(malformed(
                    entry,
                    "an epoll instance with targets that no task holds",
                ));
            };
            let want = t.added_as.unwrap_or(t.tfd) as i32;
            let id = match t.file_id {
                Some(id) => id,
                None => at(cx, pid, t.tfd as i32).ok_or_else(|| {
                    malformed(
                        entry,
                        &format!("its target fd {} is not open in task {pid}", t.tfd),
                    )
                })?,
            };
            let Some(its) = cx.holders.get(&id) else {
                return Err(malformed(
                    entry,
                    &format!("its target, file {id}, is held by no task"),
                ));
            };
            // The number itself; the number lent for the moment; any other number of the same open file; a free one.
            let lent = |cx: &mut PlanCx, n| {
                let f = cx.file(id);
                cx.lend(pid, f, n).map(|s| (s, true))
            };
            let other = its
                .iter()
                .map(|h| (*h, false))
                .find(|((p, s), _)| *p == pid && !used.contains(s))
                .map(|((_, s), l)| (s, l));
            let slot = if its.contains(&(pid, want)) {
                Some((want, false))
            } else {
                lent(cx, Some(want)).or(other).or_else(|| lent(cx, None))
            };
            let Some((slot, borrowed)) = slot else {
                return Err(malformed(entry, "no number is free for its targets"));
            };
            used.insert(slot);
            let mut event = t.events.to_le_bytes().to_vec();
            event.extend(t.data.to_le_bytes());
            let num = |n: i32| Arg::Int(n as u64);
            cx.task(
                pid,
                TaskStage::Placed,
                Call::new(
                    libc::SYS_epoll_ctl,
                    vec![
                        num(epoll),
                        Arg::Named(libc::EPOLL_CTL_ADD as u64, "EPOLL_CTL_ADD".into()),
                        num(slot),
                        Arg::In(event),
                    ],
                ),
            );
            if borrowed {
                cx.task(
                    pid,
                    TaskStage::Placed,
                    Call::new(libc::SYS_close, vec![num(slot)]),
                );
            }
        }
        Ok(())
    }
}

/// The open file in a slot.
fn at(cx: &PlanCx, pid: u32, slot: i32) -> Option<u32> {
    cx.holders
        .iter()
        .find(|(_, h)| h.contains(&(pid, slot)))
        .map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use nix::sys::epoll::{Epoll as E, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::sys::eventfd::EventFd;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};

    fn epoll() -> E {
        E::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap()
    }
    fn targets(e: &E) -> Vec<(i32, u32, u64)> {
        let mut t: Vec<_> = testing::info(&e.0)
            .epoll()
            .unwrap()
            .iter()
            .map(|t| (t.tfd, t.events, t.data))
            .collect();
        t.sort();
        t
    }

    #[test]
    fn targets_nested_instances_and_bits_come_back() {
        let (inner, outer) = (epoll(), epoll());
        let (a, b) = (EventFd::new().unwrap(), EventFd::from_value(1).unwrap());
        inner
            .add(
                &a,
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1 << 40),
            )
            .unwrap();
        inner
            .add(
                &b,
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 2),
            )
            .unwrap();
        outer
            .add(&inner.0, EpollEvent::new(EpollFlags::EPOLLIN, 3))
            .unwrap();
        outer
            .add(
                &a,
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, 4),
            )
            .unwrap();
        // fires and disarms b
        let mut ev = [EpollEvent::empty(); 4];
        assert_eq!(inner.wait(&mut ev, EpollTimeout::ZERO), Ok(1));
        let mut was = (targets(&inner), targets(&outer));
        let d = testing::dump_beside(
            &Epoll,
            &[outer.0.as_fd(), inner.0.as_fd()],
            &[a.as_fd(), b.as_fd()],
        )
        .unwrap();
        d.in_place(&Epoll);
        let spent = was.0.iter_mut().find(|t| t.2 == 2).unwrap();
        assert_eq!(spent.1, EpollFlags::EPOLLONESHOT.bits() as u32);
        spent.1 |= (EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP).bits() as u32;
        assert_eq!((targets(&inner), targets(&outer)), was);
        assert_eq!(inner.wait(&mut ev, EpollTimeout::ZERO), Ok(0));
        a.write(1).unwrap();
        assert_eq!(outer.wait(&mut ev, EpollTimeout::ZERO), Ok(2));
        assert_eq!(inner.wait(&mut ev, EpollTimeout::ZERO), Ok(1));
        assert_eq!(ev[0].data(), 1 << 40);
    }

    /// Adds under a number of its own, which is closed then.
    fn add_and_close(e: &E, f: &EventFd, data: u64) -> i32 {
        let copy: OwnedFd = f.as_fd().try_clone_to_owned().unwrap();
        e.add(&copy, EpollEvent::new(EpollFlags::EPOLLIN, data))
            .unwrap();
        copy.as_raw_fd()
    }

    #[test]
    fn a_target_whose_number_is_closed_is_lent_under_it() {
        let e = epoll();
        let a = EventFd::new().unwrap();
        let gone = add_and_close(&e, &a, 9);
        let d = testing::dump_beside(&Epoll, &[e.0.as_fd()], &[a.as_fd()]).unwrap();
        let t = &d.files[&1].epfd.as_ref().unwrap().tfd[0];
        assert_eq!(t.tfd, a.as_fd().as_raw_fd() as u32, "CRIU finds it here");
        assert_eq!((t.added_as, t.file_id), (Some(gone as u32), Some(2)));
        let p = d.restore(&Epoll).unwrap();
        let me = std::process::id();
        assert_eq!(p.lent, [(me, gone, stasis_kernel::call::FdRef(2))]);
        let rows: Vec<String> = p.task.iter().map(|t| t.2.to_string()).collect();
        assert_eq!(rows.len(), 2);
        assert!(
            rows[0].contains(&format!("EPOLL_CTL_ADD, {gone}, ")),
            "{rows:?}"
        );
        assert_eq!(rows[1], format!("close({gone})"));
    }

    #[test]
    fn a_target_whose_number_means_another_file_is_added_where_it_is_now() {
        let e = epoll();
        let a = EventFd::new().unwrap();
        let other = EventFd::new().unwrap();
        let reused = add_and_close(&e, &a, 9);
        let mut d =
            testing::dump_beside(&Epoll, &[e.0.as_fd()], &[a.as_fd(), other.as_fd()]).unwrap();
        let me = std::process::id();
        d.holders.get_mut(&3).unwrap().push((me, reused));
        let p = d.restore(&Epoll).unwrap();
        assert_eq!(p.lent, []);
        let now = a.as_fd().as_raw_fd();
        assert!(
            p.task[0]
                .2
                .to_string()
                .contains(&format!("EPOLL_CTL_ADD, {now}, "))
        );
    }

    #[test]
    fn a_target_outside_the_tree_is_an_error_that_names_it() {
        let e = epoll();
        let a = EventFd::new().unwrap();
        e.add(&a, EpollEvent::new(EpollFlags::EPOLLIN, 1)).unwrap();
        let err = testing::dump(&Epoll, &[e.0.as_fd()]).err().unwrap();
        assert_eq!(err.code, "E4100");
        assert!(
            err.why
                .contains(&format!("added as fd {}", a.as_fd().as_raw_fd()))
        );
    }

    #[test]
    fn an_image_of_criu_is_read_in_the_table_of_the_first_holder() {
        let e = epoll();
        let a = EventFd::new().unwrap();
        e.add(&a, EpollEvent::new(EpollFlags::EPOLLIN, 1)).unwrap();
        let mut d = testing::dump_beside(&Epoll, &[e.0.as_fd()], &[a.as_fd()]).unwrap();
        let was = targets(&e);
        d.files.get_mut(&1).unwrap().epfd.as_mut().unwrap().tfd[0].file_id = None;
        d.in_place(&Epoll);
        assert_eq!(targets(&e), was);
        d.files.get_mut(&1).unwrap().epfd.as_mut().unwrap().tfd[0].tfd = 999_999;
        assert_eq!(d.restore(&Epoll).err().unwrap().code, "E5100");
    }
}
