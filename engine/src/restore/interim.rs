//! interim
use crate::error::{Error, Result};
use crate::kinds::PlanCx;
use stasis_kernel::call::{Arg, Call};
use stasis_proto::pb;

pub fn plan(f: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
    let r = f.reg.as_ref().ok_or_else(|| Error::bug(format!("file type {}", f.r#type)))?;
    let id = cx.file(f.id);
    cx.host(Call::new(libc::SYS_openat, vec![Arg::Int(-100i64 as u64), Arg::Str(r.name.clone().into_bytes()), Arg::Hex(u64::from(r.flags & !0o1300) | libc::O_CLOEXEC as u64)]).binds(id), "open");
    if r.pos != 0 {
        cx.host(Call::new(libc::SYS_lseek, vec![Arg::Fd(id), Arg::Int(r.pos), Arg::Int(0)]), "position");
    }
    Ok(())
}
