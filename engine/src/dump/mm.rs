//! Address spaces: every mapping gets an entry, every page that the image must hold is listed.
use super::Dumping;
use super::facts::Facts;
use super::once::Same;
use super::task::Task;
use super::tracking::Watch;
use crate::error::{Blame, Error, Result};
use stasis_kernel::ids::RemotePtr;
use stasis_kernel::pagemap::{Categories, PageRange, Query, Scanner};
use stasis_kernel::procfs::{MapName, MapsLine, SmapsEntry, Stat, VmFlags};
use stasis_proto::pb;

/// `vma_entry.status` bits of the format.
pub mod status {
    /// An ordinary mapping.
    pub const REGULAR: u32 = 1;
    /// The vsyscall page.
    pub const VSYSCALL: u32 = 1 << 2;
    /// vDSO text.
    pub const VDSO: u32 = 1 << 3;
    /// brk area.
    pub const HEAP: u32 = 1 << 5;
    /// Private mapping of a file.
    pub const FILE_PRIVATE: u32 = 1 << 6;
    /// Shared mapping of a file.
    pub const FILE_SHARED: u32 = 1 << 7;
    /// Shared anonymous memory.
    pub const ANON_SHARED: u32 = 1 << 8;
    /// Private anonymous memory.
    pub const ANON_PRIVATE: u32 = 1 << 9;
    /// SysV shared memory.
    pub const SYSVIPC: u32 = 1 << 10;
    /// A mapped socket.
    pub const SOCKET: u32 = 1 << 11;
    /// vDSO data.
    pub const VVAR: u32 = 1 << 12;
    /// AIO ring.
    pub const AIORING: u32 = 1 << 13;
    /// memfd.
    pub const MEMFD: u32 = 1 << 14;
    /// Guard pages (MADV_GUARD_INSTALL): not a mapping, but a range within one.
    pub const GUARD: u32 = 1 << 16;
    /// Probes' page.
    pub const UPROBES: u32 = 1 << 17;
    /// A plugin carries it (CRIU's VMA_EXT_PLUGIN).
    pub const EXT_PLUGIN: u32 = 1 << 27;
}

/// Pages that go into the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// May be filled lazily.
    pub lazy: bool,
    /// Some of them are shared with a relative, copy-on-write.
    pub shared: bool,
    /// Not written since the dump before.
    pub unwritten: bool,
    /// Saved when the tree runs again.
    pub late: bool,
    /// Another task has the same pages, and they are written there.
    pub same: Option<Same>,
}

impl Run {
    /// Pages of which nothing special is known.
    pub fn at(start: u64, len: u64) -> Self {
        Self {
            start,
            len,
            lazy: false,
            shared: false,
            unwritten: false,
            late: false,
            same: None,
        }
    }
    /// Appends it, joined with its neighbour if the same is said of both.
    pub fn join(self, runs: &mut Vec<Run>) {
        match runs.last_mut() {
            Some(l)
                if l.start + l.len == self.start
                    && (l.lazy, l.shared, l.unwritten, l.late)
                        == (self.lazy, self.shared, self.unwritten, self.late)
                    && l.same.map(|s| s.behind(l.len)) == self.same =>
            {
                l.len += self.len
            }
            _ => runs.push(self),
        }
    }
}

/// Describes the address space of a task; gives its entry (without what only the task can tell) and the pages to save.
pub fn describe(
    d: &mut Dumping,
    task: &Task,
    f: &Facts,
    watch: &Watch,
) -> Result<(pb::MmEntry, Vec<Run>)> {
    let (stat, st, smaps) = (&f.stat, &f.leader, &f.smaps);
    let mut scanner = Scanner::of(&task.proc)?;
    let mut vmas: Vec<pb::VmaEntry> = Vec::with_capacity(smaps.len());
    let mut runs = Vec::new();
    let mut aios = Vec::new();
    for s in smaps {
        let m = &s.map;
        let mut v = entry(d, task, s, stat)?;
        if v.status & status::VVAR != 0
            && let Some(last) = vmas.last_mut()
            && last.status & status::VVAR != 0
            && last.end == v.start
        {
            // KERNEL(>=6.13): [vvar] and [vvar_vclock] are two mappings of one area
            last.end = v.end;
            continue;
        }
        let private = v.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0
            && v.status & status::EXT_PLUGIN == 0;
        if v.status & status::AIORING != 0 {
            aios.push(aio(task, m)?);
            runs.push(Run::at(m.start, m.len()));
        } else if v.status & status::VDSO != 0 {
            runs.push(Run::at(m.start, m.len()));
        } else if private && v.status & (status::VVAR | status::VSYSCALL) == 0 {
            let protected = match d.snapshot {
                Some(snap) => snap.protect(&mut scanner, task.pid, s, &mut runs)?,
                None => None,
            };
            let guards = match protected {
                Some(guards) => guards,
                None => pages(&mut scanner, s, watch, &mut runs)?,
            };
            let guard = |g: &PageRange| pb::VmaEntry {
                start: g.start,
                end: g.end,
                flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
                status: status::GUARD,
                fd: -1,
                ..Default::default()
            };
            vmas.extend(guards.iter().map(guard));
            watch.protect(&mut scanner, s)?;
        }
        if v.madv == Some(0) {
            v.madv = None;
        }
        vmas.push(v);
    }
    watch.begin()?;
    vmas.sort_by_key(|v| v.start);
    let exe_file_id = d.exe(task)?;
    Ok((
        pb::MmEntry {
            mm_start_code: stat.start_code,
            mm_end_code: stat.end_code,
            mm_start_data: stat.start_data,
            mm_end_data: stat.end_data,
            mm_start_stack: stat.start_stack,
            mm_start_brk: stat.start_brk,
            mm_brk: 0,
            mm_arg_start: stat.arg_start,
            mm_arg_end: stat.arg_end,
            mm_env_start: stat.env_start,
            mm_env_end: stat.env_end,
            exe_file_id,
            mm_saved_auxv: f.auxv.iter().flat_map(|(k, v)| [*k, *v]).collect(),
            vmas,
            dumpable: None,
            aios,
            thp_disabled: Some(st.thp_enabled == Some(false)),
        },
        runs,
    ))
}

/// MAP_* and MADV_* that VmFlags stand for.
fn flags(f: VmFlags) -> (u32, u64) {
    let maps = [
        (VmFlags::GROWS_DOWN, libc::MAP_GROWSDOWN),
        (VmFlags::LOCKED, libc::MAP_LOCKED),
        (VmFlags::NO_RESERVE, libc::MAP_NORESERVE),
        (VmFlags::HUGETLB, libc::MAP_HUGETLB),
        (VmFlags::DROPPABLE, 0x08),
    ];
    let advice = [
        (VmFlags::SEQ_READ, libc::MADV_SEQUENTIAL),
        (VmFlags::RAND_READ, libc::MADV_RANDOM),
        (VmFlags::DONT_COPY, libc::MADV_DONTFORK),
        (VmFlags::DONT_DUMP, libc::MADV_DONTDUMP),
        (VmFlags::MERGEABLE, libc::MADV_MERGEABLE),
        (VmFlags::HUGE_PAGE, libc::MADV_HUGEPAGE),
        (VmFlags::NO_HUGE_PAGE, libc::MADV_NOHUGEPAGE),
        (VmFlags::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
    ];
    (
        maps.iter()
            .filter(|(b, _)| f.contains(*b))
            .fold(0, |a, (_, m)| a | *m as u32),
        advice
            .iter()
            .filter(|(b, _)| f.contains(*b))
            .fold(0, |a, (_, m)| a | 1 << m),
    )
}

/// E4200: a mapping that cannot be carried.
pub(super) fn refuse(task: &Task, m: &MapsLine, why: &str, advice: &str) -> Error {
    let what = format!("cannot dump mapping {m} of task {}", task.pid.0);
    Error::new("E4200", Blame::Container, what)
        .why(why)
        .advice(advice)
}

/// Describes one mapping.
///
/// # Errors
/// E4200 and those of the kind of its file, for a mapping that cannot be carried.
pub fn entry(d: &mut Dumping, task: &Task, s: &SmapsEntry, stat: &Stat) -> Result<pb::VmaEntry> {
    let m = &s.map;
    let (extra, madv) = flags(s.flags);
    let mut v = pb::VmaEntry {
        start: m.start,
        end: m.end,
        pgoff: m.offset,
        shmid: 0,
        prot: m.prot,
        flags: extra
            | if m.shared {
                libc::MAP_SHARED
            } else if s.flags.contains(VmFlags::DROPPABLE) {
                0 // a type of its own, in place of MAP_PRIVATE
            } else {
                libc::MAP_PRIVATE
            } as u32,
        status: status::REGULAR,
        fd: -1,
        madv: Some(madv),
        fdflags: None,
        stasis: None,
    };
    if let Some(id) = crate::plugins::mapping(&mut d.cx, &task.proc, m)? {
        v.status = crate::plugins::mapping_status(m.shared);
        v.shmid = id.into();
        v.fdflags = Some(super::open_flags_of(m, s.flags));
        return Ok(v);
    }
    let on_fault = s.flags.contains(VmFlags::LOCK_ON_FAULT);
    let sealed = s.flags.contains(VmFlags::SEALED);
    if on_fault || sealed {
        v.stasis = Some(pb::StasisVmaEntry {
            lock_on_fault: on_fault.then_some(true),
            sealed: sealed.then_some(true),
        });
    }
    let unsupported = |why: &str, advice: &str| Err(refuse(task, m, why, advice));
    let foreign = VmFlags::UFFD_MISSING | VmFlags::UFFD_MINOR;
    if s.flags.intersects(foreign)
        || s.flags.contains(VmFlags::UFFD_WP) && !d.tracking.is_ours(task, s)
    {
        return unsupported(
            "it is registered with a userfaultfd",
            "userfaultfd state cannot be read; let the program unregister first (or the tool that tracks its memory)",
        );
    }
    if s.flags.intersects(VmFlags::SHADOW_STACK) {
        return unsupported(
            "it is a shadow stack",
            "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        );
    }
    let anon = libc::MAP_ANONYMOUS as u32;
    match m.name() {
        MapName::Vsyscall => {
            v.status = status::VSYSCALL | status::ANON_PRIVATE;
            v.flags |= anon;
        }
        MapName::Vdso => {
            v.status |= status::VDSO | status::ANON_PRIVATE;
            v.flags |= anon;
        }
        MapName::Vvar | MapName::VvarVclock => {
            v.status |= status::VVAR | status::ANON_PRIVATE;
            v.flags |= anon;
            v.pgoff = 0;
        }
        MapName::Uprobes => {
            return unsupported(
                "it is a page of uprobes",
                "remove the uprobe (perf, bpftrace) and try again",
            );
        }
        MapName::Other(_) => {
            return unsupported(
                "stasis does not know this special mapping",
                "please report it with the output of `stasis check --pid`",
            );
        }
        MapName::File(path) => file(d, task, s, path, &mut v)?,
        MapName::Anonymous
        | MapName::Heap
        | MapName::Stack
        | MapName::AnonNamed(_)
        | MapName::ShmemNamed(_)
            if m.ino == 0 =>
        {
            v.status |= if m.shared {
                status::ANON_SHARED
            } else {
                status::ANON_PRIVATE
            };
            v.flags |= anon;
            v.pgoff = 0;
        }
        // named shared anonymous memory shows its name instead of /dev/zero
        MapName::ShmemNamed(_)
        | MapName::Anonymous
        | MapName::AnonNamed(_)
        | MapName::Heap
        | MapName::Stack => file(d, task, s, b"/dev/zero", &mut v)?,
    }
    if v.status & status::ANON_PRIVATE != 0
        && m.start < stat.start_brk.max(1) + 0x2000_0000
        && m.name() == MapName::Heap
    {
        v.status |= status::HEAP;
    }
    if s.flags.intersects(VmFlags::IO | VmFlags::PFN_MAP)
        && v.status & (status::VVAR | status::VDSO | status::FILE_SHARED) == 0
    {
        return unsupported(
            "it is memory of a device",
            "only the device's driver could save it",
        );
    }
    Ok(v)
}

/// Mappings with an inode: files, shared anonymous memory (which is a deleted tmpfs file), SysV memory, memfds, AIO rings.
fn file(
    d: &mut Dumping,
    task: &Task,
    s: &SmapsEntry,
    path: &[u8],
    v: &mut pb::VmaEntry,
) -> Result<()> {
    let m = &s.map;
    if path == b"/[aio]" {
        v.status |= status::AIORING | status::ANON_PRIVATE;
        v.flags |= libc::MAP_ANONYMOUS as u32;
        v.pgoff = 0;
        return Ok(());
    }
    if m.shared && path == b"/dev/zero" && m.deleted {
        v.status |= status::ANON_SHARED;
        v.flags |= libc::MAP_ANONYMOUS as u32;
        v.shmid = d.shared_memory(task, m)?;
        return Ok(());
    }
    if path == b"/anon_hugepage" && m.deleted {
        // as mmap(2) takes the size: its logarithm
        v.flags |= libc::MAP_ANONYMOUS as u32;
        v.flags |= s.kernel_page_size.trailing_zeros() << libc::MAP_HUGE_SHIFT;
        if m.shared {
            v.status |= status::ANON_SHARED;
            v.shmid = d.shared_memory(task, m)?;
        } else {
            v.status |= status::ANON_PRIVATE;
            v.pgoff = 0;
        }
        return Ok(());
    }
    if path.starts_with(b"/SYSV") && m.deleted {
        v.status |= status::SYSVIPC | status::ANON_SHARED;
        v.flags |= libc::MAP_ANONYMOUS as u32;
        v.shmid = d.sysv_memory(task, m)?;
        return Ok(());
    }
    if path.starts_with(b"socket:[") {
        v.status |= status::SOCKET;
        v.shmid = d.mapped_socket(task, m)?.into();
        return Ok(());
    }
    let Some((id, memfd, fdflags)) = d.mapped_file(task, m, s.flags)? else {
        // a memfd that nobody has open is shared memory that only shows another name: this is also how a rootless restore
        // makes shared memory
        if m.shared && m.deleted && path.starts_with(b"/memfd:") {
            v.status |= status::ANON_SHARED;
            v.flags |= libc::MAP_ANONYMOUS as u32;
            v.shmid = d.shared_memory(task, m)?;
            return Ok(());
        }
        return Err(super::mapped::nowhere(task, m));
    };
    if memfd {
        v.status |= status::MEMFD;
    }
    v.status |= if m.shared {
        status::FILE_SHARED
    } else {
        status::FILE_PRIVATE
    };
    v.shmid = u64::from(id);
    v.fdflags = Some(fdflags);
    Ok(())
}

/// A ring of io_setup(2). Its pages are saved too: finished requests nobody has read wait there.
///
/// Requests under way are not seen: they finish into the ring of the frozen task, and are lost for the restored one.
fn aio(task: &Task, m: &MapsLine) -> Result<pb::AioRingEntry> {
    let mut b = [0u8; 32];
    stasis_kernel::vm::read(task.pid, RemotePtr(m.start), &mut b)?;
    // KERNEL: struct aio_ring (fs/aio.c): id, nr, head, tail, magic, ... The kernel doubles the number asked for, adds two,
    // and rounds up to whole pages: this one leads to a ring of the same length
    let nr = u32::from_le_bytes(b[4..8].try_into().expect("four bytes"));
    Ok(pb::AioRingEntry {
        id: m.start,
        nr_req: (nr.saturating_sub(2) / 2).max(1),
        ring_len: m.len() as u32,
    })
}

/// Lists the pages of a private mapping that are not what a fresh mapping would show; gives guard ranges within it.
pub fn pages(
    scanner: &mut Scanner,
    s: &SmapsEntry,
    watch: &Watch,
    runs: &mut Vec<Run>,
) -> Result<Vec<PageRange>> {
    let of_file = matches!(s.map.name(), MapName::File(_)) || s.map.ino != 0;
    let believed = watch.believes(scanner, s);
    let mut report =
        Categories::PRESENT | Categories::SWAPPED | Categories::PFN_ZERO | Categories::GUARD;
    if of_file {
        report = report | Categories::FILE;
    }
    if let Some(written) = believed {
        report = report | written;
    }
    let mut any = Categories::PRESENT | Categories::SWAPPED;
    // KERNEL(>=6.15): earlier ones have no guard pages, and refuse to be asked for them
    if scanner.supported().contains(Categories::GUARD) {
        any = any | Categories::GUARD;
    }
    let query = Query {
        all: Categories::NONE,
        any,
        inverted: Categories::NONE,
        report,
    };
    let kept = VmFlags::LOCKED | VmFlags::HUGETLB;
    let lazy = !of_file && !s.flags.intersects(kept);
    let (mut found, mut guards) = (Vec::new(), Vec::new());
    let (start, end) = (RemotePtr(s.map.start), RemotePtr(s.map.end));
    scanner.scan(start, end, &query, &mut found)?;
    for r in found {
        if r.categories.contains(Categories::GUARD) {
            guards.push(r);
            continue;
        }
        if r.categories.contains(Categories::PFN_ZERO)
            || r.categories.contains(Categories::FILE) && r.categories.contains(Categories::PRESENT)
        {
            continue;
        }
        Run {
            lazy,
            shared: s.shared > 0,
            unwritten: believed.is_some_and(|written| !r.categories.contains(written)),
            ..Run::at(r.start, r.end - r.start)
        }
        .join(runs);
    }
    Ok(guards)
}
