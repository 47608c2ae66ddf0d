//! inotify(7) instances.
//!
//! **Dump.** fdinfo lists the watches: number, mask, inode. [`super::watched`] finds paths.
//!
//! **Restore.** As late as possible ([`Stage::Mapped`]), so that the watches do not see the restore itself open the files.
//! The ioctl INOTIFY_IOC_SETNEXTWD chooses the number of the next watch; they are added in order of their numbers.
//!
//! **What does not come back.** Events not yet read: they cannot be read without taking them from the program. The dump
//! warns of them, CRIU does the same. A watch of a deleted file is an error, as it has no path.
//!
//! KERNEL(>=4.15): INOTIFY_IOC_SETNEXTWD, with CONFIG_CHECKPOINT_RESTORE.
use super::common::{body, ioctl_row, is_anon, settle};
use super::watched::{Watched, find, open_rows, queued};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, malformed};
use crate::error::Result;
use stasis_kernel::call::{Arg, Call};
use stasis_proto::pb;

/// The kind.
pub struct Inotify;

const INOTIFY_IOC_SETNEXTWD: u64 = 0x4004_4900;
/// Events, and what of the rest a watch keeps.
const KEPT: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

impl FileKind for Inotify {
    fn name(&self) -> &'static str {
        "inotify"
    }
    fn about(&self) -> &'static str {
        "inotify watches with their numbers; unread events do not come back"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Inotify
    }
    fn claims(&self, seen: &Seen) -> bool {
        is_anon(seen.link, "inotify")
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let bytes = queued(seen.fd)?;
        if bytes > 0 {
            cx.warn(format!(
                "{}: {bytes} bytes of unread events will not come back",
                seen.place()
            ));
        }
        let mut wd = Vec::new();
        for w in seen.info.inotify()? {
            let f_handle = find(
                seen,
                &Watched {
                    ino: w.ino,
                    sdev: w.sdev,
                    handle: w.handle.as_ref(),
                },
                &cx.options.scan_paths,
            )?;
            wd.push(pb::InotifyWdEntry {
                id,
                i_ino: w.ino,
                mask: w.mask,
                ignored_mask: 0,
                s_dev: w.sdev,
                wd: w.wd as u32,
                f_handle,
            });
        }
        let ify = pb::InotifyFileEntry {
            id,
            flags: seen.flags,
            fown: seen.fown,
            wd,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            ify: Some(Box::new(ify)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.ify, "ify")?;
        let file = cx.file(entry.id);
        let flags = Arg::Named(libc::IN_CLOEXEC as u64, "IN_CLOEXEC".into());
        cx.host(
            Call::new(libc::SYS_inotify_init1, vec![flags]).binds(file),
            "inotify instance",
        );
        settle(cx, file, e.flags, &e.fown);
        // Watches of older images stand in an image of their own.
        let apart = cx.image::<pb::InotifyWdEntry>("inotify-wd.img")?;
        let mut all: Vec<_> =
            e.wd.iter()
                .chain(apart.iter().filter(|w| w.id == entry.id))
                .collect();
        all.sort_by_key(|w| w.wd);
        let before = cx.stage();
        cx.enter(Stage::Mapped);
        let mut done = Ok(());
        for w in all {
            done = watch(cx, entry, w);
            if done.is_err() {
                break;
            }
        }
        cx.enter(before);
        done
    }
}

fn watch(cx: &mut PlanCx, entry: &pb::FileEntry, w: &pb::InotifyWdEntry) -> Result<()> {
    if w.mask & libc::IN_ALL_EVENTS == 0 || w.wd == 0 {
        return Err(malformed(entry, "a watch of nothing"));
    }
    let file = cx.file(entry.id);
    let target = open_rows(cx, entry, &w.f_handle, w.s_dev)?;
    cx.host(
        ioctl_row(Arg::Fd(file), INOTIFY_IOC_SETNEXTWD, Arg::Int(w.wd.into())),
        "the number of the next watch",
    );
    let mask = w.mask & KEPT;
    let add = Call::new(
        libc::SYS_inotify_add_watch,
        vec![Arg::Fd(file), Arg::FdPath(target), Arg::Hex(mask.into())],
    );
    cx.host(add.must_be(w.wd.into()), "a watch");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use nix::sys::inotify::{AddWatchFlags as F, InitFlags, Inotify as I};
    use std::os::fd::AsFd;

    fn watches(fd: impl AsFd) -> Vec<(i32, u64, u32)> {
        let all = testing::info(fd).inotify().unwrap();
        all.iter().map(|w| (w.wd, w.ino, w.mask)).collect()
    }

    /// The watches that unread events are of.
    fn events(fd: impl AsFd) -> Vec<i32> {
        let mut b = [0; 4096];
        let n = nix::unistd::read(fd, &mut b).unwrap_or(0);
        let mut left = &b[..n];
        let mut all = Vec::new();
        while let [a, b, c, d, ..] = *left {
            all.push(i32::from_le_bytes([a, b, c, d]));
            let name = u32::from_le_bytes(left[12..16].try_into().unwrap());
            left = &left[16 + name as usize..];
        }
        all
    }

    #[test]
    fn watches_come_back_with_their_numbers_and_still_tell() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |n: &str| tmp.path().join(n);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let i = I::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        let gap = i.add_watch(tmp.path(), F::IN_OPEN).unwrap();
        i.add_watch(&at("d"), F::IN_CREATE | F::IN_ONLYDIR).unwrap();
        i.rm_watch(gap).unwrap();
        i.add_watch(
            &at("file"),
            F::IN_ATTRIB | F::from_bits_retain(libc::IN_EXCL_UNLINK) | F::IN_ONESHOT,
        )
        .unwrap();
        i.read_events().unwrap();
        let x = testing::dump(&Inotify, &[i.as_fd()]).unwrap();
        assert_eq!(x.warnings, [""; 0]);
        let new = x.files(&Inotify).remove(0);
        assert_eq!(testing::flags(&new), testing::flags(&i));
        assert_eq!(watches(&new), watches(&i));
        let [f, d] = [watches(&i)[0].0, watches(&i)[1].0];
        assert_eq!((d, f), (2, 3));
        assert_eq!(events(&new), [0; 0], "the restore itself was told");
        std::fs::write(at("d/new"), "").unwrap();
        assert_eq!(events(&new), [d]);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(at("file"), mode).unwrap();
        assert_eq!(events(&new)[0], f);
        // now the original has unread events
        let x = testing::dump(&Inotify, &[i.as_fd()]).unwrap();
        assert!(x.warnings[0].contains("bytes of unread events"));
    }

    #[test]
    fn watches_are_added_when_the_files_are_open() {
        let i = I::init(InitFlags::IN_CLOEXEC).unwrap();
        i.add_watch("/proc", F::IN_CREATE).unwrap();
        let d = testing::dump(&Inotify, &[i.as_fd()]).unwrap();
        let dir = stasis_proto::ImageDir::open(d.tmp.path()).unwrap();
        let mut cx = PlanCx::new(&d.options, &dir, &d.files, &d.holders);
        cx.enter(Inotify.stage());
        Inotify.plan(&d.files[&1], &mut cx).unwrap();
        let add = |h: &&crate::kinds::HostAct| h.act.to_string().contains("add_watch");
        let adds: Vec<_> = cx.host.iter().filter(add).map(|h| h.stage).collect();
        assert_eq!(adds, [Stage::Mapped]);
        assert_eq!(cx.stage(), Inotify.stage());
    }

    #[test]
    fn a_watch_by_handle_alone_works_where_handles_open() {
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let i = I::init(InitFlags::IN_CLOEXEC).unwrap();
        i.add_watch(tmp.path(), F::IN_CREATE).unwrap();
        let mut d = testing::dump(&Inotify, &[i.as_fd()]).unwrap();
        let w = &mut d.files.get_mut(&1).unwrap().ify.as_mut().unwrap().wd[0];
        assert_eq!(
            w.f_handle.path.as_deref(),
            Some(tmp.path().as_os_str().as_encoded_bytes())
        );
        w.f_handle.path = None;
        let new = d.files(&Inotify).remove(0);
        assert_eq!(watches(&new), watches(&i));
    }
}
