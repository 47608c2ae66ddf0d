//! `/proc/PID/maps` and `/proc/PID/smaps`: the mappings of an address space (proc_pid_maps(5), proc_pid_smaps(5)).
//!
//! The text of maps is faster to get than one PROCMAP_QUERY per mapping. smaps alone tells the VmFlags, and pays by
//! walking every page table entry (18 ms for each GiB of small pages).
//!
//! Two things the text cannot tell: a newline in a path is written `\012`, but a real backslash is not escaped, so a
//! file named `a\012b` looks the same; and a file whose name ends in ` (deleted)` looks like a deleted one. The link
//! `/proc/PID/map_files/START-END` tells the first, its inode the second.

use std::fmt;

use super::text::{Cur, Why, number, unescape, words};
use crate::error::{ParseError, Result};

/// One mapping, as maps shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapsLine {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// PROT_READ, PROT_WRITE, PROT_EXEC.
    pub prot: u32,
    /// MAP_SHARED rather than MAP_PRIVATE (the kernel shows the right to become shared, VM_MAYSHARE).
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Device as (major, minor) of the file system; on btrfs and overlayfs not what stat(2) says.
    pub dev: (u32, u32),
    /// Inode number, 0 without a file.
    pub ino: u64,
    /// Path or bracketed name, without ` (deleted)`; empty for a plain anonymous mapping.
    pub path: Vec<u8>,
    /// The path ended in ` (deleted)`.
    pub deleted: bool,
}

/// What the last column of a mapping says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapName<'a> {
    /// Nothing: private anonymous memory without a name.
    Anonymous,
    /// `[heap]`: overlaps the brk area.
    Heap,
    /// `[stack]`: holds the initial stack.
    Stack,
    /// `[vdso]`: code the kernel gives to programs.
    Vdso,
    /// `[vvar]`: data of the vDSO.
    Vvar,
    /// `[vvar_vclock]`: clock pages of the vDSO, KERNEL(>=6.13) a mapping of its own.
    VvarVclock,
    /// `[vsyscall]`: the fixed page above all user memory; not a real mapping.
    Vsyscall,
    /// `[uprobes]`: code copied by the kernel for probes.
    Uprobes,
    /// `[anon:NAME]`: private anonymous memory named by PR_SET_VMA_ANON_NAME.
    AnonNamed(&'a [u8]),
    /// `[anon_shmem:NAME]`: shared anonymous memory named by PR_SET_VMA_ANON_NAME.
    ShmemNamed(&'a [u8]),
    /// Another bracketed name, which this program does not know.
    Other(&'a [u8]),
    /// A path, or the name of a file that has none (`/memfd:x`, `anon_inode:[io_uring]`).
    File(&'a [u8]),
}

impl MapsLine {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true: the parser refuses empty mappings.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What the last column says. A file cannot fake a bracketed name, as its path begins with a slash.
    pub fn name(&self) -> MapName<'_> {
        let p = &self.path[..];
        let inner = |prefix: &[u8]| p.strip_prefix(prefix).and_then(|n| n.strip_suffix(b"]"));
        match p {
            b"" => MapName::Anonymous,
            b"[heap]" => MapName::Heap,
            b"[stack]" => MapName::Stack,
            b"[vdso]" => MapName::Vdso,
            b"[vvar]" => MapName::Vvar,
            b"[vvar_vclock]" => MapName::VvarVclock,
            b"[vsyscall]" => MapName::Vsyscall,
            b"[uprobes]" => MapName::Uprobes,
            [b'[', ..] => match (inner(b"[anon:"), inner(b"[anon_shmem:")) {
                (Some(n), _) => MapName::AnonNamed(n),
                (_, Some(n)) => MapName::ShmemNamed(n),
                _ => MapName::Other(p),
            },
            _ => MapName::File(p),
        }
    }
}

/// The line as maps would show it, for messages.
impl fmt::Display for MapsLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |b: u32, c: char| if self.prot & b != 0 { c } else { '-' };
        write!(
            f,
            "{:x}-{:x} {}{}{}{}",
            self.start,
            self.end,
            bit(libc::PROT_READ as u32, 'r'),
            bit(libc::PROT_WRITE as u32, 'w'),
            bit(libc::PROT_EXEC as u32, 'x'),
            if self.shared { 's' } else { 'p' }
        )?;
        if !self.path.is_empty() {
            write!(f, " {}", self.path.escape_ascii())?;
        }
        if self.deleted {
            f.write_str(" (deleted)")
        } else {
            Ok(())
        }
    }
}

/// Parses one line of maps (or the first line of an smaps entry), without its newline.
pub(super) fn maps_line(line: &[u8]) -> Result<MapsLine, Why> {
    let mut c = Cur(line);
    let start =
        number(c.until(b'-', "no '-' between the addresses")?, 16).ok_or("bad start address")?;
    let end = c.num(16, "bad end address")?;
    if start >= end {
        return Err("mapping ends before it starts");
    }
    let perms: [u8; 4] = c
        .word()
        .try_into()
        .map_err(|_| "permissions are not four characters")?;
    let mut prot = 0;
    for (have, letter, bit) in [
        (perms[0], b'r', libc::PROT_READ),
        (perms[1], b'w', libc::PROT_WRITE),
        (perms[2], b'x', libc::PROT_EXEC),
    ] {
        match have {
            b'-' => {}
            l if l == letter => prot |= bit as u32,
            _ => return Err("unknown permission letter"),
        }
    }
    let shared = match perms[3] {
        b's' => true,
        b'p' => false,
        _ => return Err("neither shared nor private"),
    };
    let offset = c.num(16, "bad offset")?;
    let mut d = Cur(c.word());
    let major = number(d.until(b':', "no ':' in the device")?, 16).ok_or("bad device major")?;
    let minor = number(d.0, 16).ok_or("bad device minor")?;
    let ino = c.num(10, "bad inode number")?;
    let path = c.skip().0;
    let (path, deleted) = match path.strip_suffix(b" (deleted)") {
        Some(p) => (p, true),
        None => (path, false),
    };
    Ok(MapsLine {
        start,
        end,
        prot,
        shared,
        offset,
        dev: (major, minor),
        ino,
        path: unescape(path, b"\n"),
        deleted,
    })
}

/// Parses the whole text of `/proc/PID/maps`. `file` names it in errors.
pub fn parse_maps(file: &str, text: &[u8]) -> Result<Vec<MapsLine>> {
    super::text::each(file, text, maps_line)
}

macro_rules! vm_flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $mnemonic:literal;)*) => {
        impl VmFlags {
            $($(#[$doc])* pub const $name: VmFlags = VmFlags(1 << $bit);)*
        }
        /// Mnemonic and flag.
        static VM_FLAGS: &[(&[u8; 2], VmFlags)] = &[$(($mnemonic, VmFlags::$name),)*];
    };
}

/// The VmFlags line of smaps (Documentation/filesystems/proc.rst). The bit numbers are ours: the kernel's differ
/// between versions, the mnemonics do not.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct VmFlags(pub u64);

vm_flags! {
    /// `rd` readable
    READ = 0, b"rd";
    /// `wr` writable
    WRITE = 1, b"wr";
    /// `ex` executable
    EXEC = 2, b"ex";
    /// `sh` shared
    SHARED = 3, b"sh";
    /// `mr` may be made readable
    MAY_READ = 4, b"mr";
    /// `mw` may be made writable
    MAY_WRITE = 5, b"mw";
    /// `me` may be made executable
    MAY_EXEC = 6, b"me";
    /// `ms` may be shared: MAP_SHARED, also of a file opened for reading
    MAY_SHARE = 7, b"ms";
    /// `gd` grows down (MAP_GROWSDOWN)
    GROWS_DOWN = 8, b"gd";
    /// `pf` pure page frames, no struct page
    PFN_MAP = 9, b"pf";
    /// `lo` locked (mlock)
    LOCKED = 10, b"lo";
    /// `io` device memory
    IO = 11, b"io";
    /// `sr` MADV_SEQUENTIAL
    SEQ_READ = 12, b"sr";
    /// `rr` MADV_RANDOM
    RAND_READ = 13, b"rr";
    /// `dc` MADV_DONTFORK
    DONT_COPY = 14, b"dc";
    /// `de` mremap may not grow it
    DONT_EXPAND = 15, b"de";
    /// `lf` mlock2(MLOCK_ONFAULT)
    LOCK_ON_FAULT = 16, b"lf";
    /// `ac` accounted
    ACCOUNT = 17, b"ac";
    /// `nr` MAP_NORESERVE
    NO_RESERVE = 18, b"nr";
    /// `ht` hugetlb
    HUGETLB = 19, b"ht";
    /// `sf` MAP_SYNC
    SYNC = 20, b"sf";
    /// `ar` architecture specific
    ARCH_1 = 21, b"ar";
    /// `wf` MADV_WIPEONFORK
    WIPE_ON_FORK = 22, b"wf";
    /// `dd` MADV_DONTDUMP
    DONT_DUMP = 23, b"dd";
    /// `sd` soft-dirty
    SOFT_DIRTY = 24, b"sd";
    /// `mm` mixed map
    MIXED_MAP = 25, b"mm";
    /// `hg` MADV_HUGEPAGE
    HUGE_PAGE = 26, b"hg";
    /// `nh` MADV_NOHUGEPAGE
    NO_HUGE_PAGE = 27, b"nh";
    /// `mg` MADV_MERGEABLE
    MERGEABLE = 28, b"mg";
    /// `um` userfaultfd, missing pages
    UFFD_MISSING = 29, b"um";
    /// `uw` userfaultfd, write protection
    UFFD_WP = 30, b"uw";
    /// `ui` userfaultfd, minor faults
    UFFD_MINOR = 31, b"ui";
    /// `ss` shadow stack
    SHADOW_STACK = 32, b"ss";
    /// `sl` sealed (mseal)
    SEALED = 33, b"sl";
    /// `dp` MAP_DROPPABLE
    DROPPABLE = 34, b"dp";
    /// `gu` may hold guard pages; KERNEL(>=6.19)
    MAYBE_GUARD = 35, b"gu";
    /// `bt` arm64 branch target identification
    ARM64_BTI = 36, b"bt";
    /// `mt` arm64 memory tagging
    ARM64_MTE = 37, b"mt";
    /// `nl` non-linear; KERNEL(<4.0)
    NON_LINEAR = 38, b"nl";
    /// `dw` MAP_DENYWRITE; KERNEL(<5.15)
    DENY_WRITE = 39, b"dw";
}

impl VmFlags {
    /// Set when the line held a mnemonic this program does not know (also the kernel's own `??`).
    pub const UNKNOWN: VmFlags = VmFlags(1 << 63);

    /// Whether all of `other` are set.
    pub fn contains(self, other: VmFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is set.
    pub fn intersects(self, other: VmFlags) -> bool {
        self.0 & other.0 != 0
    }

    /// Parses `rd wr mr`.
    pub fn parse(line: &[u8]) -> VmFlags {
        words(line).fold(VmFlags(0), |all, w| {
            all | VM_FLAGS
                .iter()
                .find(|(m, _)| &m[..] == w)
                .map_or(VmFlags::UNKNOWN, |(_, flag)| *flag)
        })
    }
}

impl std::ops::BitOr for VmFlags {
    type Output = VmFlags;
    fn bitor(self, o: VmFlags) -> VmFlags {
        VmFlags(self.0 | o.0)
    }
}

impl std::ops::BitAnd for VmFlags {
    type Output = VmFlags;
    fn bitand(self, o: VmFlags) -> VmFlags {
        VmFlags(self.0 & o.0)
    }
}

/// The mnemonics with blanks between, as smaps shows them (in our order); `??` for unknown ones.
impl fmt::Display for VmFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sep = "";
        for (m, flag) in VM_FLAGS.iter().filter(|(_, flag)| self.contains(*flag)) {
            write!(f, "{sep}{}", m.escape_ascii())?;
            debug_assert!(flag.0.count_ones() == 1);
            sep = " ";
        }
        if self.contains(VmFlags::UNKNOWN) {
            write!(f, "{sep}??")
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for VmFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmFlags({self})")
    }
}

/// One mapping, as smaps shows it. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmapsEntry {
    /// The line that maps has too.
    pub map: MapsLine,
    /// VmFlags.
    pub flags: VmFlags,
    /// Resident.
    pub rss: u64,
    /// Resident and mapped elsewhere too, clean and dirty.
    pub shared: u64,
    /// Resident and not from a file.
    pub anonymous: u64,
    /// Swapped out.
    pub swap: u64,
    /// Resident and locked (a share of it when shared).
    pub locked: u64,
    /// In anonymous transparent huge pages.
    pub anon_huge_pages: u64,
    /// In huge pages of shmem, mapped as such.
    pub shmem_pmd_mapped: u64,
    /// Page size the kernel uses for it: 4096, or 2 MiB and 1 GiB for hugetlb.
    pub kernel_page_size: u64,
    /// Memory protection key, where the machine has them.
    pub protection_key: u32,
}

/// Parses smaps line by line, so that a reader needs no more memory than the result.
#[derive(Debug, Default)]
pub(super) struct SmapsBuilder {
    done: Vec<SmapsEntry>,
}

impl SmapsBuilder {
    pub fn line(&mut self, line: &[u8]) -> Result<(), Why> {
        // A header begins with a hex digit in lower case, a field with an upper-case letter.
        if line
            .first()
            .is_some_and(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            self.done.push(SmapsEntry {
                map: maps_line(line)?,
                flags: VmFlags(0),
                rss: 0,
                shared: 0,
                anonymous: 0,
                swap: 0,
                locked: 0,
                anon_huge_pages: 0,
                shmem_pmd_mapped: 0,
                kernel_page_size: 4096,
                protection_key: 0,
            });
            return Ok(());
        }
        let e = self
            .done
            .last_mut()
            .ok_or("a field before the first mapping")?;
        let mut c = Cur(line);
        let slot = match c.until(b':', "no ':' behind the field name")? {
            b"Rss" => &mut e.rss,
            b"Anonymous" => &mut e.anonymous,
            b"Swap" => &mut e.swap,
            b"Locked" => &mut e.locked,
            b"AnonHugePages" => &mut e.anon_huge_pages,
            b"ShmemPmdMapped" => &mut e.shmem_pmd_mapped,
            b"KernelPageSize" => &mut e.kernel_page_size,
            b"Shared_Clean" | b"Shared_Dirty" => {
                let kb: u64 = c.num(10, "bad size")?;
                e.shared = e.shared.saturating_add(kb.saturating_mul(1024));
                return c.lit(b"kB", "size without kB");
            }
            b"ProtectionKey" => {
                e.protection_key = c.num(10, "bad protection key")?;
                return Ok(());
            }
            b"VmFlags" => {
                e.flags = VmFlags::parse(c.0);
                return Ok(());
            }
            _ => return Ok(()),
        };
        *slot = c
            .num::<u64>(10, "bad size")?
            .checked_mul(1024)
            .ok_or("size too large")?;
        c.lit(b"kB", "size without kB")
    }

    /// The entries; every one has its flags.
    pub fn finish(self) -> Result<Vec<SmapsEntry>, Why> {
        // VmFlags is the last line of an entry, and no mapping is without flags.
        match self.done.iter().all(|e| e.flags != VmFlags(0)) {
            true => Ok(self.done),
            false => Err("an entry without VmFlags"),
        }
    }
}

/// Parses the whole text of `/proc/PID/smaps`. `file` names it in errors.
pub fn parse_smaps(file: &str, text: &[u8]) -> Result<Vec<SmapsEntry>> {
    let mut b = SmapsBuilder::default();
    let mut last = 0;
    for (n, l) in super::text::lines(text) {
        b.line(l).map_err(|why| ParseError::new(file, n, why))?;
        last = n;
    }
    b.finish()
        .map_err(|why| ParseError::new(file, last, why).into())
}

#[cfg(test)]
#[path = "maps_tests.rs"]
mod tests;
