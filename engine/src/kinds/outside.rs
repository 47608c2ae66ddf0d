//! Open files that stay outside when a tree is dumped: the image only says that the caller brings them back.
//!
//! - What `--external file[MOUNT:INODE]` names, both in hexadecimal (mount id as in mountinfo).
//! - Standard files (0 to 2) of a tree with a mount namespace of its own that lie on a mount of the host: files, fifos. A
//!   runtime opened them before the container began; whoever restores gives it new ones. CRIU refuses these.
use super::{DumpCx, Seen};
use crate::error::Result;
use stasis_kernel::ids::HostPid;
use stasis_kernel::procfs::ProcDir;
use stasis_proto::pb;

const PIPEFS_MAGIC: i64 = super::pipe::PIPEFS_MAGIC;

/// The entry of a file that stays outside; `None` for all others.
///
/// # Errors
/// /proc cannot be read.
pub fn entry(seen: &Seen, id: u32, cx: &DumpCx) -> Result<Option<pb::FileEntry>> {
    let by_name = format!("file[{:x}:{:x}]", seen.info.mnt_id, seen.stat.st_ino);
    let asked = cx.options.namespaces.other.contains(&by_name);
    if !asked && !is_foreign_stdio(seen)? {
        return Ok(None);
    }
    let reg = pb::RegFileEntry {
        id,
        flags: seen.flags,
        pos: seen.info.pos as u64,
        fown: seen.fown,
        name: by_name.into_bytes(),
        ext: Some(true),
        mode: Some(seen.stat.st_mode),
        stasis: (!asked).then(|| pb::StasisRegEntry {
            stdio: Some(seen.slot as u32),
            path: Some(String::from_utf8_lossy(seen.link).into_owned()),
        }),
        ..Default::default()
    };
    Ok(Some(pb::FileEntry {
        r#type: pb::FdTypes::Reg as i32,
        id,
        reg: Some(Box::new(reg)),
        ..Default::default()
    }))
}

/// Is it a standard file on a mount that the task's mount namespace does not have?
fn is_foreign_stdio(seen: &Seen) -> Result<bool> {
    let plain = match seen.file_type() {
        libc::S_IFREG => true,
        libc::S_IFIFO => seen.fs_type != PIPEFS_MAGIC,
        _ => false,
    };
    if !(0..=2).contains(&seen.slot) || !plain || !seen.link.starts_with(b"/") {
        return Ok(false);
    }
    let task = ProcDir::open(seen.pid)?;
    if task.ns("mnt")? == ProcDir::open(HostPid::own())?.ns("mnt")? {
        return Ok(false);
    }
    let mounts = task.mountinfo()?;
    Ok(!mounts.iter().any(|m| m.id == seen.info.mnt_id))
}
