//! interim
use crate::error::{Blame, Error, Result};
use crate::kinds::{DumpCx, Seen};
use std::os::fd::BorrowedFd;
use stasis_proto::pb;

pub fn reg(id: u32, link: &[u8], flags: u32, pos: u64, st: &libc::stat) -> pb::FileEntry {
    let regular = st.st_mode & libc::S_IFMT == libc::S_IFREG;
    pb::FileEntry {
        id,
        r#type: pb::FdTypes::Reg as i32,
        reg: Some(Box::new(pb::RegFileEntry {
            id,
            flags,
            pos,
            fown: pb::FownEntry::default(),
            name: String::from_utf8_lossy(link).into_owned(),
            size: regular.then_some(st.st_size as u64),
            mode: Some(st.st_mode),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub fn mapped(cx: &mut DumpCx, fd: BorrowedFd, link: &[u8], open: u32) -> Result<(u32, bool)> {
    let st = stasis_kernel::fds::fstat(fd)?;
    let id = cx.new_id();
    let e = reg(id, link, open, 0, &st);
    cx.entries.push(e);
    Ok((id, false))
}

pub fn file(s: &Seen, id: u32) -> Result<pb::FileEntry> {
    if !s.link.starts_with(b"/") {
        return Err(Error::new("E4100", Blame::Container, format!("cannot dump {}", s.place())));
    }
    Ok(reg(id, s.link, s.flags, s.info.pos as u64, &s.stat))
}
