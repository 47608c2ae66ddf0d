//! Names for numbers: no message shows a bare one.
//!
//! Two shapes only. A value (`signal`, `syscall`, `prctl`, ...) gives a `Cow`: the name, or something like
//! `syscall 999` that still says what kind of number it is. A bit set (`open_flags`, `clone_flags`, ...) gives a
//! `String` with `|` between names, and unknown bits in hex at the end.

mod ioctls;
mod syscalls;
mod tables;

use std::borrow::Cow;

use tables::*;

/// Looks `n` up in a table; `kind N` when it is not there.
fn value(table: &[(u64, &'static str)], n: u64, kind: &str) -> Cow<'static, str> {
    match table.iter().find(|(v, _)| *v == n) {
        Some((_, name)) => Cow::Borrowed(name),
        None if n > 0xffff => Cow::Owned(format!("{kind} {n:#x}")),
        None => Cow::Owned(format!("{kind} {n}")),
    }
}

/// Names the bits of `n`, in table order; a table lists combined flags before their parts. `zero` names 0.
fn bits(table: &[(u64, &'static str)], n: u64, zero: &str) -> String {
    let mut rest = n;
    let mut out = String::new();
    for (bit, name) in table {
        if *bit != 0 && rest & bit == *bit {
            rest &= !bit;
            push(&mut out, name);
        }
    }
    if rest != 0 {
        push(&mut out, &format!("{rest:#x}"));
    }
    if out.is_empty() { zero.to_owned() } else { out }
}

fn push(out: &mut String, name: &str) {
    if !out.is_empty() {
        out.push('|');
    }
    out.push_str(name);
}

/// Name of an x86-64 system call: `openat`; the table reaches `listns` (470).
pub fn syscall(nr: u64) -> Cow<'static, str> {
    let table = syscalls::SYSCALLS;
    match table.binary_search_by_key(&nr, |(n, _)| u64::from(*n)) {
        Ok(at) => Cow::Borrowed(table[at].1),
        // -1 is what the kernel shows for "not in a system call", and what a tracer writes to skip one.
        Err(_) if nr as i64 == -1 => Cow::Borrowed("no syscall"),
        Err(_) => Cow::Owned(format!("syscall {nr}")),
    }
}

/// Number of an x86-64 system call, by name.
pub fn syscall_nr(name: &str) -> Option<u64> {
    syscalls::SYSCALLS
        .iter()
        .find(|(_, n)| *n == name)
        .map(|(nr, _)| u64::from(*nr))
}

/// Name of a positive errno: `ENOENT`. Knows the restart codes that only a tracer sees (`ERESTARTSYS`).
pub fn errno(n: i32) -> Cow<'static, str> {
    if let Some((_, name)) = KERNEL_ERRNOS.iter().find(|(v, _)| *v == n as u64) {
        return Cow::Borrowed(name);
    }
    match nix::errno::Errno::from_raw(n) {
        nix::errno::Errno::UnknownErrno => Cow::Owned(format!("errno {n}")),
        e => Cow::Owned(format!("{e:?}")),
    }
}

/// Name of a system call's raw result: `-ENOENT` for -4095..=-1, else the number (hex above 64 Ki).
pub fn syscall_result(ret: i64) -> String {
    if (-4095..0).contains(&ret) {
        return format!("-{}", errno(-ret as i32));
    }
    if (0..0x10000).contains(&ret) {
        ret.to_string()
    } else {
        format!("{ret:#x}")
    }
}

/// Name of a signal: `SIGTERM`, `SIGRTMIN+3` (from the kernel's 32, not the C library's 34).
pub fn signal(n: i32) -> Cow<'static, str> {
    match n {
        0 => Cow::Borrowed("no signal"),
        32 => Cow::Borrowed("SIGRTMIN"),
        64 => Cow::Borrowed("SIGRTMAX"),
        33..=63 => Cow::Owned(format!("SIGRTMIN+{}", n - 32)),
        _ => value(SIGNALS, n as u64, "signal"),
    }
}

/// Names in a signal mask, bit 0 being signal 1: `SIGHUP|SIGINT`.
pub fn signal_set(mask: u64) -> String {
    let mut out = String::new();
    for n in (1..=64).filter(|n| mask >> (n - 1) & 1 == 1) {
        push(&mut out, &signal(n));
    }
    if out.is_empty() {
        "none".to_owned()
    } else {
        out
    }
}

/// Flags of open(2), F_GETFL and fdinfo: `O_RDWR|O_CLOEXEC`. Access mode 3 is `O_ACCMODE` (ioctl only).
pub fn open_flags(flags: u64) -> String {
    let mut out = match flags & 3 {
        // O_PATH has no access mode: the kernel clears it.
        0 if flags & 0o10000000 != 0 => String::new(),
        0 => "O_RDONLY".to_owned(),
        1 => "O_WRONLY".to_owned(),
        2 => "O_RDWR".to_owned(),
        _ => "O_ACCMODE".to_owned(),
    };
    if flags & !3 != 0 {
        push(&mut out, &bits(OPEN_FLAGS, flags & !3, ""));
    }
    out
}

/// Protection bits of mmap(2): `PROT_READ|PROT_WRITE`, `PROT_NONE`.
pub fn mmap_prot(prot: u64) -> String {
    bits(PROTS, prot, "PROT_NONE")
}

/// Flags of mmap(2): `MAP_PRIVATE|MAP_ANONYMOUS`; a huge page size is shown as `MAP_HUGE_2MB`.
pub fn mmap_flags(flags: u64) -> String {
    let mut out = match flags & 0xf {
        1 => "MAP_SHARED".to_owned(),
        2 => "MAP_PRIVATE".to_owned(),
        3 => "MAP_SHARED_VALIDATE".to_owned(),
        8 => "MAP_DROPPABLE".to_owned(),
        n => format!("map type {n}"),
    };
    // The size field shares its bits with MAP_UNINITIALIZED, so it means a size only beside MAP_HUGETLB.
    let size = if flags & 0x40000 != 0 {
        flags >> 26 & 0x3f
    } else {
        0
    };
    let rest = flags & !0xf & !(size << 26);
    if rest != 0 {
        push(&mut out, &bits(MAP_FLAGS, rest, ""));
    }
    match size {
        0 => {}
        s @ 10..20 => push(&mut out, &format!("MAP_HUGE_{}KB", 1u64 << (s - 10))),
        s @ 20..30 => push(&mut out, &format!("MAP_HUGE_{}MB", 1u64 << (s - 20))),
        s @ 30..40 => push(&mut out, &format!("MAP_HUGE_{}GB", 1u64 << (s - 30))),
        s => push(&mut out, &format!("huge page shift {s}")),
    }
    out
}

/// Flags of clone(2) and clone3(2), without the exit signal in the low byte of clone(2): `CLONE_VM|CLONE_FILES`.
/// CLONE_NEWTIME (0x80) sits in that byte, so pass the flags word of clone3.
pub fn clone_flags(flags: u64) -> String {
    bits(CLONE_FLAGS, flags, "0")
}

/// Attributes of a mount, of mount_setattr(2) and fsmount(2): `MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID`.
pub fn mount_attrs(attrs: u64) -> String {
    bits(MOUNT_ATTRS, attrs, "0")
}

/// Name of an ioctl: `TCGETS`; unknown ones are shown with their fields: `ioctl 0x80045430 (read, type 'T', nr 48, 4 bytes)`.
pub fn ioctl(cmd: u64) -> Cow<'static, str> {
    if let Some((_, name)) = ioctls::IOCTLS.iter().find(|(v, _)| *v == cmd) {
        return Cow::Borrowed(name);
    }
    let dir = ["none", "write", "read", "read and write"][(cmd >> 30 & 3) as usize];
    let ty = (cmd >> 8 & 0xff) as u8 as char;
    Cow::Owned(format!(
        "ioctl {cmd:#x} ({dir}, type {ty:?}, nr {}, {} bytes)",
        cmd & 0xff,
        cmd >> 16 & 0x3fff
    ))
}

/// Name of a type of eBPF maps: `BPF_MAP_TYPE_HASH`.
pub fn bpf_map(kind: u64) -> Cow<'static, str> {
    value(BPF_MAPS, kind, "BPF map type")
}

/// Name of a fcntl(2) command: `F_DUPFD_QUERY`.
pub fn fcntl(cmd: u64) -> Cow<'static, str> {
    value(FCNTLS, cmd, "fcntl")
}

/// Name of a prctl(2) option: `PR_SET_MM`.
pub fn prctl(option: u64) -> Cow<'static, str> {
    value(PRCTLS, option, "prctl option")
}

/// Name of a PR_SET_MM operation: `PR_SET_MM_MAP`.
pub fn prctl_mm(op: u64) -> Cow<'static, str> {
    value(PRCTL_MMS, op, "PR_SET_MM operation")
}

/// Name of an arch_prctl(2) option: `ARCH_SET_FS`.
pub fn arch_prctl(option: u64) -> Cow<'static, str> {
    value(ARCH_PRCTLS, option, "arch_prctl option")
}

/// Name of a ptrace(2) request: `PTRACE_SEIZE`.
pub fn ptrace(request: u64) -> Cow<'static, str> {
    value(PTRACES, request, "ptrace request")
}

/// Name of a socket family: `AF_UNIX`.
pub fn socket_family(af: u64) -> Cow<'static, str> {
    value(FAMILIES, af, "address family")
}

/// Name of a socket type, without SOCK_CLOEXEC and SOCK_NONBLOCK: `SOCK_STREAM`.
pub fn socket_type(ty: u64) -> Cow<'static, str> {
    value(SOCK_TYPES, ty & 0xf, "socket type")
}

/// Name of a madvise(2) advice: `MADV_DONTFORK`.
pub fn madvise(advice: u64) -> Cow<'static, str> {
    value(MADVISES, advice, "madvise advice")
}

/// Names of memfd seals: `F_SEAL_SEAL|F_SEAL_WRITE`.
pub fn seals(seals: u64) -> String {
    bits(SEALS, seals, "no seals")
}

/// Flags of memfd_create(2): `MFD_CLOEXEC|MFD_ALLOW_SEALING`.
pub fn memfd_flags(flags: u64) -> String {
    bits(MFD_FLAGS, flags, "0")
}

/// Name of a resource limit: `RLIMIT_NOFILE`.
pub fn rlimit(resource: u64) -> Cow<'static, str> {
    value(RLIMITS, resource, "rlimit")
}

/// Name of a clock: `CLOCK_MONOTONIC`; a negative id is a CPU clock of some task or a clock device.
pub fn clock(id: i32) -> Cow<'static, str> {
    if id < 0 {
        // KERNEL: include/linux/posix-timers_types.h: low 3 bits 3 = clock device, else bits 0-1 = which, bit 2 = per thread.
        return match id & 7 {
            3 => Cow::Borrowed("clock of a device"),
            k if k & 4 != 0 => Cow::Owned(format!("CPU clock of thread {}", !(id >> 3))),
            _ => Cow::Owned(format!("CPU clock of process {}", !(id >> 3))),
        };
    }
    value(CLOCKS, id as u64, "clock")
}

/// Name of a capability: `CAP_SYS_ADMIN`.
pub fn capability(n: u32) -> Cow<'static, str> {
    value(CAPS, u64::from(n), "capability")
}

/// Names of a capability set: `CAP_KILL|CAP_SETUID`.
pub fn capability_set(mask: u64) -> String {
    let mut out = String::new();
    for n in (0..64u32).filter(|n| mask >> n & 1 == 1) {
        push(&mut out, &capability(n));
    }
    if out.is_empty() {
        "none".to_owned()
    } else {
        out
    }
}

/// Name of a scheduling policy: `SCHED_FIFO`.
pub fn sched_policy(policy: u64) -> Cow<'static, str> {
    value(SCHEDS, policy, "scheduling policy")
}

/// Name of an auxv entry: `AT_SYSINFO_EHDR`.
pub fn auxv(key: u64) -> Cow<'static, str> {
    value(AUXVS, key, "auxv entry")
}

/// Name of a file type from `st_mode`: `directory`.
pub fn file_type(mode: u32) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFREG => "regular file",
        libc::S_IFDIR => "directory",
        libc::S_IFLNK => "symbolic link",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        _ => "anonymous file",
    }
}

#[cfg(test)]
mod tests;
