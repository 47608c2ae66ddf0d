//! Handles of namespaces: open files of /proc/PID/ns.
//!
//! **Dump.** The handle's inode number is the namespace's. It must be one the tree lives in: such a namespace is there again after a
//! restore, any other is not.
//!
//! **Restore.** /proc/PID/ns/NAME of a task that lives there, once it exists.
//!
//! **What does not come back.** Handles of namespaces that no task of the tree is in, and of user namespaces below the tree's, which
//! tasks enter when their files are in place already: the dump refuses them.
use super::common::{at_cwd, body, settle};
use super::{DumpCx, FileKind, PlanCx, Seen, Stage, malformed};
use crate::error::Result;
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::ns::Ns;
use stasis_proto::pb;

/// The kind.
pub struct NsFile;

const NSFS_MAGIC: i64 = 0x6e73_6673;

impl FileKind for NsFile {
    fn name(&self) -> &'static str {
        "nsfile"
    }
    fn about(&self) -> &'static str {
        "handles of the tree's namespaces"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Ns
    }
    fn claims(&self, seen: &Seen) -> bool {
        seen.fs_type == NSFS_MAGIC && seen.flags & libc::O_PATH as u32 == 0
    }
    fn late(&self) -> bool {
        // who lives there may come later
        true
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        let Some((ns, ns_id)) = cx.namespaces.get(&seen.stat.st_ino) else {
            return Err(seen.unsupported(
                "no task of the tree is in that namespace, so it will not be there again",
                "close it before the dump",
            ));
        };
        if *ns == Ns::User && crate::dump::is_nested(*ns_id) {
            return Err(seen.unsupported(
                "tasks enter user namespaces below the tree's when their files are in place already",
                "close it before the dump",
            ));
        }
        let nsf = pb::NsFileEntry {
            id,
            ns_id: *ns_id,
            ns_cflag: ns.flag().bits() as u32,
            flags: seen.flags,
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            nsf: Some(Box::new(nsf)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::Tasks
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.nsf, "nsf")?;
        let ns = Ns::ALL
            .into_iter()
            .find(|n| n.flag().bits() as u32 == e.ns_cflag)
            .ok_or_else(|| malformed(entry, "a namespace of no known sort"))?;
        let tree = cx.image::<pb::PstreeEntry>("pstree.img")?;
        let root = tree.first().map_or(0, |t| t.pid);
        let nested = cx.spaces.first_of_id(e.ns_id).filter(|_| ns == Ns::Pid);
        let there = nested
            .or_else(|| cx.homes.who_is_in(ns, e.ns_id))
            .unwrap_or(root);
        let file = cx.file(entry.id);
        let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
        let open = Call::new(
            libc::SYS_openat,
            vec![
                at_cwd(),
                Arg::Str(format!("/proc/{there}/ns/{}", ns.name()).into_bytes()),
                Arg::OpenFlags(flags),
            ],
        );
        cx.host(
            open.binds(file),
            format!("a handle of the {} namespace", ns.name()),
        );
        settle(cx, file, e.flags, &pb::FownEntry::default());
        Ok(())
    }
}
