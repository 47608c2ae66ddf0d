//! Which pages of an address space exist, and which were written. Long because it answers in two ways, new kernels and old.
//!
//! The PAGEMAP_SCAN ioctl (KERNEL(>=6.7), Documentation/admin-guide/mm/pagemap.rst) answers for gigabytes in
//! milliseconds. Older kernels get the same question answered from the 64-bit words of /proc/PID/pagemap.
//!
//! Traps of the ioctl that this module steps around:
//! 1. `walk_end` can be too small when the walk ended without filling the result; going on from there would report
//!    ranges twice. So: fewer results than asked for means done, and a full result continues behind its last range.
//! 2. Write-protecting skips mappings that are not registered for it, and reports them clean. So
//!    [`Scanner::scan_and_protect`](crate::pagemap::Scanner::scan_and_protect) always adds PM_SCAN_CHECK_WPASYNC, which makes that an EPERM.
//! 3. A category the kernel does not know is EINVAL for the whole call. So the known ones are found out at open, and
//!    [`Scanner::supported`](crate::pagemap::Scanner::supported) tells them.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{SysError, SysResult, check};
use crate::ids::{HostPid, RemotePtr};
use crate::procfs::ProcDir;
use crate::zero::Zeroes;

/// The page size of x86-64, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// What can be said about a page: PAGE_IS_* of include/uapi/linux/fs.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Categories(pub u64);

impl Categories {
    /// Nothing.
    pub const NONE: Categories = Categories(0);
    /// In a mapping registered for asynchronous write protection.
    pub const WP_ALLOWED: Categories = Categories(1);
    /// Written since it was protected; also every page that never was.
    pub const WRITTEN: Categories = Categories(1 << 1);
    /// From a file or shared memory. Costs three times as much to ask.
    pub const FILE: Categories = Categories(1 << 2);
    /// In memory.
    pub const PRESENT: Categories = Categories(1 << 3);
    /// Swapped out.
    pub const SWAPPED: Categories = Categories(1 << 4);
    /// The shared page of zeroes.
    pub const PFN_ZERO: Categories = Categories(1 << 5);
    /// Part of a huge page mapped as such. Costs as much as [`Categories::FILE`].
    pub const HUGE: Categories = Categories(1 << 6);
    /// Soft-dirty.
    pub const SOFT_DIRTY: Categories = Categories(1 << 7);
    /// MADV_GUARD_INSTALL. KERNEL(>=6.15)
    pub const GUARD: Categories = Categories(1 << 8);
    /// All of these.
    const ALL: Categories = Categories(0x1ff);

    /// Whether all of `other` are here.
    pub fn contains(self, other: Categories) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Categories {
    type Output = Categories;
    fn bitor(self, o: Categories) -> Categories {
        Categories(self.0 | o.0)
    }
}

impl fmt::Display for Categories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 9] = [
            "wp-allowed",
            "written",
            "file",
            "present",
            "swapped",
            "zero",
            "huge",
            "soft-dirty",
            "guard",
        ];
        let mut sep = "";
        for (i, name) in NAMES
            .iter()
            .enumerate()
            .filter(|(i, _)| self.0 >> i & 1 == 1)
        {
            debug_assert!(i < 9);
            write!(f, "{sep}{name}")?;
            sep = "|";
        }
        if self.0 == 0 {
            f.write_str("none")?;
        }
        Ok(())
    }
}

/// Neighbouring pages about which the same is said: `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageRange {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What was asked for ([`Query::report`]) and is true.
    pub categories: Categories,
}

impl PageRange {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// Which pages to look for, and what to tell of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Query {
    /// All of these must be true.
    pub all: Categories,
    /// At least one of these must be true, if there are any.
    pub any: Categories,
    /// These count the other way round in `all` and `any`.
    pub inverted: Categories,
    /// What to tell; ranges are split where it changes. What the kernel cannot tell is not told.
    pub report: Categories,
}

impl Query {
    /// Pages with content, and whether they are the page of zeroes.
    pub const POPULATED: Query = Query {
        all: Categories::NONE,
        any: Categories(Categories::PRESENT.0 | Categories::SWAPPED.0),
        inverted: Categories::NONE,
        report: Categories(Categories::PRESENT.0 | Categories::SWAPPED.0 | Categories::PFN_ZERO.0),
    };

    /// Guard pages.
    pub const GUARDS: Query = Query {
        all: Categories::GUARD,
        any: Categories::NONE,
        inverted: Categories::NONE,
        report: Categories::GUARD,
    };

    /// The kernel's rule (fs/proc/task_mmu.c pagemap_scan_is_interesting_page).
    fn matches(&self, page: Categories) -> bool {
        let c = page.0 ^ self.inverted.0;
        c & self.all.0 == self.all.0 && (self.any.0 == 0 || c & self.any.0 != 0)
    }
}

/// One 64-bit word of /proc/PID/pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageWord(pub u64);

impl PageWord {
    /// In memory.
    pub fn present(self) -> bool {
        self.0 >> 63 & 1 == 1
    }

    /// Mapped by nobody else. A private page that is not may be shared by copy-on-write with a parent or child.
    pub fn exclusive(self) -> bool {
        self.0 >> 56 & 1 == 1
    }

    /// Frame number of a present page; `None` when not present, or hidden (0) for want of CAP_SYS_ADMIN.
    pub fn pfn(self) -> Option<u64> {
        let pfn = self.0 & ((1 << 55) - 1);
        (self.present() && pfn != 0).then_some(pfn)
    }

    /// What the word says in the ioctl's terms: no WP_ALLOWED and HUGE; PFN_ZERO is not in the word (see [`crate::zero`]).
    pub fn categories(self) -> Categories {
        let bit = |n: u32, c: Categories| if self.0 >> n & 1 == 1 { c.0 } else { 0 };
        let mut c = bit(63, Categories::PRESENT)
            | bit(62, Categories::SWAPPED)
            | bit(61, Categories::FILE)
            | bit(58, Categories::GUARD)
            | bit(55, Categories::SOFT_DIRTY);
        // As in the ioctl, WRITTEN is the absence of the protection mark, also on pages that are not there.
        if self.0 >> 57 & 1 == 0 {
            c |= Categories::WRITTEN.0;
        }
        Categories(c)
    }

    const TELLS: Categories = Categories(
        Categories::PRESENT.0
            | Categories::SWAPPED.0
            | Categories::FILE.0
            | Categories::GUARD.0
            | Categories::SOFT_DIRTY.0
            | Categories::WRITTEN.0,
    );
}

/// Whether the kernel marks written pages as soft-dirty. Tried on a page of our own, which is new and so must be.
///
/// # Errors
/// No /proc.
pub fn soft_dirty_works() -> SysResult<bool> {
    let page = vec![1u8; 2 * PAGE_SIZE as usize];
    let at = (page.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
    let mut dirty = false;
    let mut own = Scanner::words(HostPid::own())?;
    own.each_word(RemotePtr(at), RemotePtr(at + PAGE_SIZE), |_, w| {
        dirty = w.categories().contains(Categories::SOFT_DIRTY)
    })?;
    Ok(dirty)
}

/// Takes the soft-dirty marks from all pages and mappings of the address space behind `clear_refs`, a file of /proc/PID opened for
/// writing (Documentation/admin-guide/mm/soft-dirty.rst).
///
/// # Errors
/// The process is gone.
pub fn clear_soft_dirty(clear_refs: BorrowedFd<'_>) -> SysResult<()> {
    let file = std::fs::File::from(crate::fds::dup(clear_refs)?);
    std::io::Write::write_all(&mut &file, b"4").map_err(|e| {
        let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
        SysError::new("write /proc/PID/clear_refs", errno, "4")
    })
}

/// `struct pm_scan_arg` of include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    inverted: u64,
    all: u64,
    any: u64,
    report: u64,
}

const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610u32 as libc::Ioctl;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;

/// Ranges per call. The kernel itself works in pieces of 512.
const RANGES: usize = 2048;

/// Words per read of the fallback (32 KiB).
const WORDS: usize = 4096;

/// An open /proc/PID/pagemap, bound to the address space the process had at open.
#[derive(Debug)]
pub struct Scanner {
    file: OwnedFd,
    pid: HostPid,
    /// `None`: no ioctl, read words.
    known: Option<Categories>,
    /// Without the ioctl: what tells pages of zeroes.
    zeroes: Option<Zeroes>,
    found: Vec<PageRange>,
    words: Vec<u8>,
}

impl Scanner {
    /// Opens by number. Needs PTRACE_MODE_READ.
    pub fn open(pid: HostPid) -> SysResult<Self> {
        Self::of(&ProcDir::open(pid)?)
    }

    /// Opens the pagemap of the process behind `dir`.
    pub fn of(dir: &ProcDir) -> SysResult<Self> {
        let mut scanner = Self::words_of(dir)?;
        scanner.known = scanner.ask_known()?;
        if scanner.known.is_none() {
            scanner.zeroes = Zeroes::find()?;
        }
        Ok(scanner)
    }

    /// One that only reads words, whatever the kernel has.
    pub fn words(pid: HostPid) -> SysResult<Self> {
        Self::words_of(&ProcDir::open(pid)?)
    }

    fn words_of(dir: &ProcDir) -> SysResult<Self> {
        Ok(Scanner {
            file: dir.open_file("pagemap", libc::O_RDONLY)?,
            pid: dir.pid(),
            known: None,
            zeroes: None,
            found: Vec::new(),
            words: Vec::new(),
        })
    }

    /// Finds the categories the kernel takes by scanning an empty range with fewer and fewer.
    fn ask_known(&self) -> SysResult<Option<Categories>> {
        let mut try_ = Categories::ALL.0;
        while try_ >= Categories::PRESENT.0 {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                report: try_,
                ..ScanArg::default()
            };
            match self.ioctl(&mut arg) {
                Ok(_) => return Ok(Some(Categories(try_))),
                Err(Errno::EINVAL) => try_ >>= 1, // all bits below are older
                Err(Errno::ENOTTY) => return Ok(None),
                Err(e) => {
                    return Err(SysError::new(
                        "ioctl(PAGEMAP_SCAN)",
                        e,
                        format!("pid {}", self.pid),
                    ));
                }
            }
        }
        Ok(None)
    }

    /// The raw call.
    fn ioctl(&self, arg: &mut ScanArg) -> Result<usize, Errno> {
        // SAFETY: `arg` has the kernel's layout and says its size; `vec` is null or points to `vec_len` ranges that
        // are ours alone for the call.
        let ret = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut *arg) };
        if ret == -1 {
            Err(Errno::last())
        } else {
            Ok(ret as usize)
        }
    }

    /// Whether the kernel has the ioctl; if not, words are read (2 to 4 times slower, and only the categories in
    /// [`Scanner::supported`]).
    pub fn has_ioctl(&self) -> bool {
        self.known.is_some()
    }

    /// The categories that can be told. SOFT_DIRTY and GUARD are accepted also by kernels that never set them.
    pub fn supported(&self) -> Categories {
        let zero = match self.zeroes {
            Some(_) => Categories::PFN_ZERO,
            None => Categories::NONE,
        };
        self.known.unwrap_or(PageWord::TELLS | zero)
    }

    /// Appends to `out` the ranges of pages in `start..end` (page aligned, else EINVAL) that match, in order, without
    /// overlaps. EOPNOTSUPP when `query` selects by a category that is not [supported](Scanner::supported).
    pub fn scan(
        &mut self,
        start: RemotePtr,
        end: RemotePtr,
        query: &Query,
        out: &mut Vec<PageRange>,
    ) -> SysResult<()> {
        self.check_query(start, end, query)?;
        match self.known {
            Some(_) => self.scan_ioctl(start, end, query, 0, out),
            None => self.scan_words(start, end, query, out),
        }
    }

    /// The same, and write-protects what matched, atomically per page. All mappings in the range must be registered
    /// for asynchronous write protection: EPERM means that one is not, and then nothing about it is known: treat it as
    /// written and register it. Give `PRESENT` in [`Query::all`]: protecting pages that are not there allocates page
    /// tables, and they show as written anyway once they come. EOPNOTSUPP without the ioctl.
    pub fn scan_and_protect(
        &mut self,
        start: RemotePtr,
        end: RemotePtr,
        query: &Query,
        out: &mut Vec<PageRange>,
    ) -> SysResult<()> {
        self.check_query(start, end, query)?;
        if self.known.is_none() {
            return Err(self.error(Errno::EOPNOTSUPP, start, end));
        }
        self.scan_ioctl(
            start,
            end,
            query,
            PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            out,
        )
    }

    fn error(&self, errno: Errno, start: RemotePtr, end: RemotePtr) -> SysError {
        SysError::new(
            "ioctl(PAGEMAP_SCAN)",
            errno,
            format!("pid {} {start}-{end}", self.pid),
        )
    }

    fn check_query(&self, start: RemotePtr, end: RemotePtr, q: &Query) -> SysResult<()> {
        if !start.0.is_multiple_of(PAGE_SIZE) || !end.0.is_multiple_of(PAGE_SIZE) || start > end {
            return Err(self.error(Errno::EINVAL, start, end));
        }
        if !self.supported().contains(q.all | q.any | q.inverted) {
            return Err(self.error(Errno::EOPNOTSUPP, start, end));
        }
        Ok(())
    }

    fn scan_ioctl(
        &mut self,
        start: RemotePtr,
        end: RemotePtr,
        q: &Query,
        flags: u64,
        out: &mut Vec<PageRange>,
    ) -> SysResult<()> {
        self.found.resize(RANGES, PageRange::default());
        let first = out.len();
        let mut from = start.0;
        while from < end.0 {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags,
                start: from,
                end: end.0,
                walk_end: 0,
                vec: self.found.as_mut_ptr() as u64,
                vec_len: self.found.len() as u64,
                max_pages: 0,
                inverted: q.inverted.0,
                all: q.all.0,
                any: q.any.0,
                report: q.report.0 & self.supported().0,
            };
            let n = match self.ioctl(&mut arg) {
                Ok(n) => n,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(self.error(e, RemotePtr(from), end)),
            };
            for r in &self.found[..n] {
                append(out, first, *r);
            }
            // KERNEL(>=6.7): walk_end is stale when the walk ended before the result was full (trap 1).
            if n < self.found.len() {
                break;
            }
            from = arg.walk_end.max(self.found[n - 1].end);
        }
        Ok(())
    }

    fn scan_words(
        &mut self,
        start: RemotePtr,
        end: RemotePtr,
        q: &Query,
        out: &mut Vec<PageRange>,
    ) -> SysResult<()> {
        let first = out.len();
        let zeroes = self.zeroes.take();
        let is_zero = |w: PageWord| {
            let frame = w.pfn();
            zeroes.as_ref().zip(frame).is_some_and(|(z, f)| z.has(f))
        };
        let done = self.each_word(start, end, |addr, word| {
            let mut c = word.categories();
            if is_zero(word) {
                c = c | Categories::PFN_ZERO;
            }
            if q.matches(c) {
                append(
                    out,
                    first,
                    PageRange {
                        start: addr,
                        end: addr + PAGE_SIZE,
                        categories: Categories(c.0 & q.report.0),
                    },
                );
            }
        });
        self.zeroes = zeroes;
        done
    }

    /// Calls `f` with the word of each page of `start..end` (page aligned).
    pub fn each_word(
        &mut self,
        start: RemotePtr,
        end: RemotePtr,
        mut f: impl FnMut(u64, PageWord),
    ) -> SysResult<()> {
        self.words.resize(WORDS * 8, 0);
        let mut at = start.0;
        while at < end.0 {
            let want = (((end.0 - at) / PAGE_SIZE) as usize).min(WORDS) * 8;
            let offset = (at / PAGE_SIZE * 8) as i64;
            // SAFETY: `words` has at least `want` bytes and is ours alone for the call.
            let n = unsafe {
                libc::pread64(
                    self.file.as_raw_fd(),
                    self.words.as_mut_ptr().cast(),
                    want,
                    offset,
                )
            };
            check(n as libc::c_long, "pread /proc/PID/pagemap", || {
                format!("pid {} at {at:#x}", self.pid)
            })?;
            // Above the last user address there are no words, as there are no pages.
            if n < 8 {
                return Ok(());
            }
            for w in self.words[..n as usize].chunks_exact(8) {
                f(
                    at,
                    PageWord(u64::from_ne_bytes(w.try_into().expect("eight bytes"))),
                );
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }
}

/// Appends a range, joining it with its neighbour when the kernel's pieces split it; never with those before `first`.
fn append(out: &mut Vec<PageRange>, first: usize, r: PageRange) {
    match out[first..].last_mut() {
        Some(last) if last.end == r.start && last.categories == r.categories => last.end = r.end,
        _ => out.push(r),
    }
}

#[cfg(test)]
#[path = "pagemap_tests.rs"]
mod tests;
