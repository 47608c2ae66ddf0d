//! fanotify(7) groups.
//!
//! **Dump.** fdinfo lists the group's flags and its marks on inodes and mounts. [`super::watched`] finds paths of inodes.
//!
//! **Restore.** fanotify_init(2) with the same flags; marks as late as possible ([`Stage::Mapped`]), so that they do not see
//! the restore itself open the files.
//!
//! **What does not come back.** Events not yet read (the dump warns); permission events that wait for an answer hold
//! their tasks inside a system call and are among them. Marks on whole file systems and on mount namespaces have no place in
//! the image format and are errors.
//!
//! KERNEL: fdinfo shows the flags as fanotify_init(2) was given them, FAN_CLOEXEC and FAN_NONBLOCK included, whatever became
//! of them by fcntl(2) since. So the group is made with exactly those, and fcntl(2) sets what is true now.
use super::common::{body, is_anon, settle};
use super::watched::{Watched, find, mountpoint, open_rows, queued};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, malformed};
use crate::error::{Error, Result};
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::procfs::FanotifyLine as Line;
use stasis_proto::pb;

/// The kind.
pub struct Fanotify;

const FAN_MARK_ADD: u32 = 1;
const FAN_MARK_MOUNT: u32 = 0x10;
const FAN_MARK_IGNORED_MASK: u32 = 0x20;
const FAN_MARK_IGNORED_SURV_MODIFY: u32 = 0x40;
const FAN_MARK_EVICTABLE: u32 = 0x200;
const FAN_MARK_IGNORE: u32 = 0x400;
/// What of a mark's flags an image may ask for.
const MARK_FLAGS: u32 = FAN_MARK_IGNORED_SURV_MODIFY | FAN_MARK_EVICTABLE | FAN_MARK_IGNORE;

fn unsupported(seen: &Seen, what: &str) -> Error {
    seen.unsupported(
        format!("it marks {what}, which the image format cannot say"),
        "remove the mark before the dump",
    )
}

fn mark(
    seen: &Seen,
    id: u32,
    line: &Line,
    scan: &[std::path::PathBuf],
) -> Result<Option<pb::FanotifyMarkEntry>> {
    let blank = |kind: pb::MarkType, mflags, mask, ignored_mask, s_dev| pb::FanotifyMarkEntry {
        id,
        r#type: kind as i32,
        mflags,
        mask,
        ignored_mask,
        s_dev,
        ie: None,
        me: None,
    };
    Ok(Some(match line {
        Line::Group { .. } => return Ok(None),
        Line::Inode {
            ino,
            sdev,
            mflags,
            mask,
            ignored,
            handle,
        } => {
            let w = Watched {
                ino: *ino,
                sdev: *sdev,
                handle: handle.as_ref(),
            };
            pb::FanotifyMarkEntry {
                ie: Some(pb::FanotifyInodeMarkEntry {
                    i_ino: *ino,
                    f_handle: find(seen, &w, scan)?,
                }),
                ..blank(pb::MarkType::Inode, *mflags, *mask, *ignored, *sdev)
            }
        }
        Line::Mount {
            mnt_id,
            mflags,
            mask,
            ignored,
        } => {
            let Some((path, sdev)) = mountpoint(seen.pid, *mnt_id)? else {
                return Err(unsupported(seen, "a mount that the task does not see"));
            };
            let path = path.into_os_string().into_string();
            let path = path.map_err(|_| unsupported(seen, "a mount whose path is not UTF-8"))?;
            pb::FanotifyMarkEntry {
                me: Some(pb::FanotifyMountMarkEntry {
                    mnt_id: *mnt_id as u32,
                    // Relative to the root of the mount namespace, as CRIU has it.
                    path: Some(path.trim_start_matches('/').to_owned())
                        .map(|p| if p.is_empty() { ".".into() } else { p }),
                }),
                ..blank(pb::MarkType::Mount, *mflags, *mask, *ignored, sdev)
            }
        }
        Line::FileSystem { .. } => return Err(unsupported(seen, "a whole file system")),
        Line::MountNs { .. } => return Err(unsupported(seen, "a mount namespace")),
    }))
}

impl FileKind for Fanotify {
    fn name(&self) -> &'static str {
        "fanotify"
    }
    fn about(&self) -> &'static str {
        "fanotify marks on inodes and mounts; unread events do not come back"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Fanotify
    }
    fn claims(&self, seen: &Seen) -> bool {
        is_anon(seen.link, "fanotify")
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
        let lines = seen.info.fanotify()?;
        let group = lines.iter().find_map(|l| match l {
            Line::Group { flags, event_flags } => Some((*flags, *event_flags)),
            _ => None,
        });
        let (faflags, evflags) =
            group.ok_or_else(|| seen.unsupported("fdinfo does not tell its flags", ""))?;
        let mut all = Vec::new();
        for l in &lines {
            all.extend(mark(seen, id, l, &cx.options.scan_paths)?);
        }
        let ffy = pb::FanotifyFileEntry {
            id,
            flags: seen.flags,
            fown: seen.fown,
            faflags,
            evflags,
            mark: all,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            ffy: Some(Box::new(ffy)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.ffy, "ffy")?;
        let file = cx.file(entry.id);
        let flags = vec![Arg::Hex(e.faflags.into()), Arg::Hex(e.evflags.into())];
        cx.host(
            Call::new(libc::SYS_fanotify_init, flags).binds(file),
            "fanotify group",
        );
        let cloexec = vec![
            Arg::Fd(file),
            Arg::Named(libc::F_SETFD as u64, "F_SETFD".into()),
            Arg::Named(libc::FD_CLOEXEC as u64, "FD_CLOEXEC".into()),
        ];
        cx.host(Call::new(libc::SYS_fcntl, cloexec), "ours, not a child's");
        settle(cx, file, e.flags, &e.fown);
        let apart = cx.image::<pb::FanotifyMarkEntry>("fanotify-mark.img")?;
        let before = cx.stage();
        cx.enter(Stage::Mapped);
        let mut done = Ok(());
        for m in e
            .mark
            .iter()
            .chain(apart.iter().filter(|m| m.id == entry.id))
        {
            done = mark_rows(cx, entry, file, m);
            if done.is_err() {
                break;
            }
        }
        cx.enter(before);
        done
    }
}

fn mark_rows(
    cx: &mut PlanCx,
    entry: &pb::FileEntry,
    file: FdRef,
    m: &pb::FanotifyMarkEntry,
) -> Result<()> {
    let (kind, target) = match (m.r#type(), &m.ie, &m.me) {
        (pb::MarkType::Inode, Some(ie), _) => (0, open_rows(cx, entry, &ie.f_handle, m.s_dev)?),
        (pb::MarkType::Mount, _, Some(me)) => {
            let path = me.path.as_ref().ok_or_else(|| {
                malformed(
                    entry,
                    &format!("its mark on mount {} has no path", me.mnt_id),
                )
            })?;
            let fh = pb::FhEntry {
                path: Some(match path.strip_prefix("./").unwrap_or(path) {
                    "." | "" => "/".into(),
                    p if p.starts_with('/') => p.into(),
                    p => format!("/{p}").into(),
                }),
                ..Default::default()
            };
            (FAN_MARK_MOUNT, open_rows(cx, entry, &fh, m.s_dev)?)
        }
        _ => return Err(malformed(entry, "a mark on nothing")),
    };
    if m.mflags & !MARK_FLAGS != 0 {
        return Err(malformed(entry, "a mark with flags that no kernel shows"));
    }
    let row = |flags: u32, mask: u32| {
        Call::new(
            libc::SYS_fanotify_mark,
            vec![
                Arg::Fd(file),
                Arg::Hex(flags.into()),
                Arg::Hex(mask.into()),
                super::common::at_cwd(),
                Arg::FdPath(target),
            ],
        )
    };
    let plain = FAN_MARK_ADD | kind | m.mflags & FAN_MARK_EVICTABLE;
    if m.mask != 0 {
        cx.host(row(plain, m.mask), "a mark");
    }
    if m.ignored_mask != 0 {
        let how = match m.mflags & FAN_MARK_IGNORE {
            0 => FAN_MARK_IGNORED_MASK,
            ignore => ignore,
        };
        let surv = m.mflags & FAN_MARK_IGNORED_SURV_MODIFY;
        cx.host(row(plain | how | surv, m.ignored_mask), "what it ignores");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;
    use nix::fcntl::AT_FDCWD;
    use nix::sys::fanotify::{
        EventFFlags, Fanotify as F, InitFlags, MarkFlags as Mark, MaskFlags as Mask,
    };
    use std::os::fd::AsFd;

    #[test]
    fn flags_and_marks_come_back() {
        let tmp = tempfile::tempdir().unwrap();
        let path = |n: &str| {
            let p = tmp.path().join(n);
            std::fs::write(&p, "").unwrap();
            p
        };
        let f = match F::init(
            InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK,
            EventFFlags::O_RDONLY,
        ) {
            Ok(f) => f,
            // Without CAP_SYS_ADMIN there is none to test.
            Err(nix::errno::Errno::EPERM) => return,
            Err(e) => panic!("{e}"),
        };
        let mark = |flags, mask, p: &std::path::Path| {
            f.mark(Mark::FAN_MARK_ADD | flags, mask, AT_FDCWD, Some(p))
                .unwrap()
        };
        let (a, b) = (path("a"), path("b"));
        mark(Mark::empty(), Mask::FAN_OPEN | Mask::FAN_MODIFY, &a);
        mark(Mark::empty(), Mask::FAN_MODIFY, &b);
        let surv = Mark::FAN_MARK_IGNORED_MASK | Mark::FAN_MARK_IGNORED_SURV_MODIFY;
        mark(surv, Mask::FAN_MODIFY, &b);
        mark(
            Mark::FAN_MARK_MOUNT,
            Mask::FAN_CLOSE_WRITE,
            "/proc".as_ref(),
        );
        let was = testing::info(&f);
        let d = testing::dump(&Fanotify, &[f.as_fd()]).unwrap();
        let new = d.files(&Fanotify).remove(0);
        assert_eq!(testing::flags(&new), testing::flags(&f));
        let (mut was, mut now) = (
            was.fanotify().unwrap(),
            testing::info(&new).fanotify().unwrap(),
        );
        assert_eq!(was.len(), 4);
        was.sort_by_key(|l| format!("{l:?}"));
        now.sort_by_key(|l| format!("{l:?}"));
        assert_eq!(was, now);
        assert_eq!(
            queued(new.as_fd()).unwrap(),
            0,
            "the restore itself was told"
        );
        std::fs::read(&a).unwrap();
        assert!(queued(new.as_fd()).unwrap() > 0);
        let d = testing::dump(&Fanotify, &[new.as_fd()]).unwrap();
        assert!(d.warnings[0].contains("unread events"));
    }

    #[test]
    fn a_mark_on_a_file_system_is_an_error_that_says_so() {
        let Ok(f) = F::init(InitFlags::FAN_CLASS_NOTIF, EventFFlags::O_RDONLY) else {
            return;
        };
        f.mark(
            Mark::FAN_MARK_ADD | Mark::FAN_MARK_FILESYSTEM,
            Mask::FAN_OPEN_EXEC,
            AT_FDCWD,
            Some("/proc"),
        )
        .unwrap();
        let e = testing::dump(&Fanotify, &[f.as_fd()]).err().unwrap();
        assert!(e.why.contains("a whole file system"), "{e}");
    }
}
