//! Probes of memory: process_vm_readv, pagemap, userfaultfd.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::child::Child;
use super::{Outcome, Tried, failed, ok};
use crate::ids::{HostPid, RemotePtr};
use crate::pagemap::{Categories, PAGE_SIZE, Query, Scanner};
use crate::procfs::{MapName, ProcDir};
use crate::{uffd, vm};

/// One fresh private page; unmapped when dropped.
struct Page(*mut u8);

impl Page {
    fn new() -> Result<Page, Outcome> {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_SIZE as usize, prot, flags, -1, 0) };
        if p == libc::MAP_FAILED {
            return Err(failed("mmap", Errno::last()));
        }
        Ok(Page(p.cast()))
    }

    fn write(&self) {
        // SAFETY: our own writable page, to which there are no references.
        unsafe { self.0.write_volatile(1) };
    }

    fn range(&self) -> (RemotePtr, RemotePtr) {
        (
            RemotePtr(self.0 as u64),
            RemotePtr(self.0 as u64 + PAGE_SIZE),
        )
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: our own mapping, no references into it remain.
        unsafe { libc::munmap(self.0.cast(), PAGE_SIZE as usize) };
    }
}

pub(super) fn process_vm() -> Tried {
    let page = Page::new()?;
    page.write();
    // A child has the page at the same address.
    let child = Child::sleeping()?;
    let mut byte = [0];
    vm::read(child.pid, page.range().0, &mut byte)?;
    match byte {
        [1] => Ok(Outcome::OK),
        _ => Ok(Outcome::Absent(
            "process_vm_readv read something else".into(),
        )),
    }
}

pub(super) fn pagemap() -> Tried {
    let page = Page::new()?;
    page.write();
    let (start, end) = page.range();
    let mut present = false;
    Scanner::open(HostPid::own())?.each_word(start, end, |_, w| present = w.present())?;
    match present {
        true => Ok(Outcome::OK),
        false => Ok(Outcome::Absent(
            "a written page is not shown as present".into(),
        )),
    }
}

pub(super) fn pagemap_scan() -> Tried {
    let page = Page::new()?;
    page.write();
    let (start, end) = page.range();
    let mut scanner = Scanner::open(HostPid::own())?;
    if !scanner.has_ioctl() {
        return Ok(failed("ioctl(PAGEMAP_SCAN)", Errno::ENOTTY));
    }
    let mut out = Vec::new();
    scanner.scan(start, end, &Query::POPULATED, &mut out)?;
    match out[..] {
        [r] if r.categories == Categories::PRESENT => {
            Ok(Outcome::Present(format!("tells {}", scanner.supported())))
        }
        _ => Ok(Outcome::Absent(
            "a written page is not shown as present".into(),
        )),
    }
}

pub(super) fn guard() -> Tried {
    const MADV_GUARD_INSTALL: i32 = 102;
    let page = Page::new()?;
    // SAFETY: our own page, never touched again.
    let ret = unsafe { libc::madvise(page.0.cast(), PAGE_SIZE as usize, MADV_GUARD_INSTALL) };
    ok(ret.into(), "madvise(MADV_GUARD_INSTALL)")?;
    Ok(Outcome::OK)
}

pub(super) fn mseal() -> Tried {
    let page = Page::new()?;
    // SAFETY: a length of 0 seals nothing.
    let ret = unsafe { libc::syscall(libc::SYS_mseal, page.0, 0, 0) };
    ok(ret, "mseal")?;
    Ok(Outcome::OK)
}

pub(super) fn memfd_secret() -> Tried {
    // SAFETY: an integer goes in, a descriptor comes out.
    let fd = ok(
        unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) },
        "memfd_secret",
    )?;
    // SAFETY: a fresh descriptor that nobody else knows.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32) });
    Ok(Outcome::OK)
}

pub(super) fn map_files() -> Tried {
    let me = ProcDir::open(HostPid::own())?;
    let maps = me.maps()?;
    let file = maps
        .iter()
        .find(|m| m.ino != 0 && matches!(m.name(), MapName::File(_)));
    let file = file.ok_or_else(|| Outcome::Absent("no file is mapped here".into()))?;
    me.open_map_file(file, libc::O_RDONLY)?;
    Ok(Outcome::OK)
}

pub(super) fn uffd_full() -> Tried {
    let fd = uffd::open(0)?;
    uffd::api(fd.as_fd(), 0)?;
    Ok(Outcome::OK)
}

pub(super) fn uffd_user() -> Tried {
    let fd = uffd::open(uffd::USER_MODE_ONLY)?;
    uffd::api(fd.as_fd(), 0)?;
    Ok(Outcome::OK)
}

pub(super) fn uffd_device() -> Tried {
    let path = "/dev/userfaultfd";
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| super::files::io("openat", path, &e))?;
    let fd = uffd::open_by_device(device.as_fd())?;
    uffd::api(fd.as_fd(), 0)?;
    Ok(Outcome::OK)
}

/// All features, asked on a descriptor of their own, since one takes only one handshake.
fn uffd_has(feature: u64, name: &str) -> Tried {
    let fd = uffd::open(uffd::USER_MODE_ONLY)?;
    match uffd::api(fd.as_fd(), 0)? & feature {
        0 => Ok(Outcome::Absent(format!(
            "userfaultfd lacks the feature {name}"
        ))),
        _ => Ok(Outcome::OK),
    }
}

pub(super) fn uffd_wp_async() -> Tried {
    if let absent @ (Outcome::Absent(_) | Outcome::Denied(_)) =
        uffd_has(uffd::FEATURE_WP_ASYNC, "WP_ASYNC")?
    {
        return Ok(absent);
    }
    // And the whole way: protect, write, see the write.
    let fd = uffd::open(uffd::USER_MODE_ONLY)?;
    uffd::api(
        fd.as_fd(),
        uffd::FEATURE_WP | uffd::FEATURE_WP_UNPOPULATED | uffd::FEATURE_WP_ASYNC,
    )?;
    let page = Page::new()?;
    page.write();
    let (start, end) = page.range();
    uffd::register(fd.as_fd(), start, PAGE_SIZE, uffd::MODE_WP)?;
    let written = Query {
        all: Categories::PRESENT | Categories::WRITTEN,
        ..Query::default()
    };
    let mut scanner = Scanner::open(HostPid::own())?;
    let (mut before, mut clean, mut after) = (Vec::new(), Vec::new(), Vec::new());
    scanner.scan_and_protect(start, end, &written, &mut before)?;
    scanner.scan(start, end, &written, &mut clean)?;
    page.write();
    scanner.scan(start, end, &written, &mut after)?;
    match (before.len(), clean.len(), after.len()) {
        (1, 0, 1) => Ok(Outcome::OK),
        _ => Ok(Outcome::Absent(
            "a write to a protected page was not seen".into(),
        )),
    }
}

pub(super) fn uffd_move() -> Tried {
    uffd_has(uffd::FEATURE_MOVE, "MOVE")
}

/// Events that tell of forks and changed mappings.
pub(super) fn uffd_events() -> Tried {
    // UFFD_FEATURE_EVENT_FORK, _REMAP, _REMOVE, _UNMAP
    const EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
    // Only privileged users may ask for the first: it is offered to nobody else.
    let fd = uffd::open(0)?;
    match uffd::api(fd.as_fd(), 0)? & EVENTS {
        EVENTS => Ok(Outcome::OK),
        some => Ok(Outcome::Absent(format!(
            "userfaultfd offers only {some:#x} of the events {EVENTS:#x}"
        ))),
    }
}

/// In the child: a context of Linux AIO, and its ring moved elsewhere.
fn moved_ring() -> i32 {
    let mut context = 0u64;
    // SAFETY: `context` is a place for one word; the ring is this child's alone, and so is the address it goes to.
    unsafe {
        if libc::syscall(libc::SYS_io_setup, 1, &raw mut context) != 0 {
            return super::child::errno();
        }
        let len = PAGE_SIZE as usize;
        let to = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        if libc::mremap(context as *mut libc::c_void, len, len, flags, to) == libc::MAP_FAILED {
            return super::child::errno();
        }
        // it is known by its new address
        match libc::syscall(libc::SYS_io_destroy, to) {
            0 => 0,
            _ => super::child::errno(),
        }
    }
}

pub(super) fn aio_ring() -> Tried {
    match super::child::in_child(moved_ring)? {
        0 => Ok(Outcome::OK),
        e => Ok(super::failed(
            "io_setup, mremap of its ring",
            nix::errno::Errno::from_raw(e),
        )),
    }
}

pub(super) fn soft_dirty() -> Tried {
    // Every page of a new mapping counts as dirty where the kernel has the bit at all.
    let page = Page::new()?;
    page.write();
    let (start, end) = page.range();
    let mut dirty = false;
    Scanner::open(HostPid::own())?.each_word(start, end, |_, w| {
        dirty = w.categories().contains(Categories::SOFT_DIRTY)
    })?;
    match dirty {
        true => Ok(Outcome::OK),
        false => Ok(Outcome::Absent(
            "a new page is not soft-dirty (no CONFIG_MEM_SOFT_DIRTY)".into(),
        )),
    }
}
