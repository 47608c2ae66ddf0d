//! What this kernel can do for this user, found out by doing it.
//!
//! A version number says little (distributions port back, sandboxes forbid, capabilities are missing), so each row of
//! [`all`](crate::probe::all) really tries its feature, on the engine itself or on a child made for it, in a way that leaves nothing behind.
//! A probe tells "not there" from "not allowed", because the advice differs.
//!
//! Long because it is one table: every probe with its purpose, and what is lost without it.

mod child;
mod files;
mod memory;
mod sockets;
mod tasks;

#[cfg(test)]
mod tests;

use nix::errno::Errno;

use crate::error::{Error, SysError};

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Works; with a detail worth knowing (a size, a list), or an empty string.
    Present(String),
    /// The kernel lacks it.
    Absent(String),
    /// The kernel may have it, but not for us.
    Denied(String),
}

impl Outcome {
    /// Works, nothing more to say.
    const OK: Outcome = Outcome::Present(String::new());

    /// Whether it works.
    pub fn is_present(&self) -> bool {
        matches!(self, Outcome::Present(_))
    }

    /// The detail or the reason.
    pub fn text(&self) -> &str {
        match self {
            Outcome::Present(s) | Outcome::Absent(s) | Outcome::Denied(s) => s,
        }
    }
}

impl From<SysError> for Outcome {
    fn from(e: SysError) -> Self {
        match e.is_denied() {
            true => Outcome::Denied(e.to_string()),
            false => Outcome::Absent(e.to_string()),
        }
    }
}

impl From<Error> for Outcome {
    fn from(e: Error) -> Self {
        match e {
            Error::Sys(e) => e.into(),
            Error::Parse(e) => Outcome::Absent(e.to_string()),
        }
    }
}

/// What most probes return inside: `?` turns a failed call into Absent or Denied.
type Tried = Result<Outcome, Outcome>;

/// One feature.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Short name, stable: `pagemap-scan`.
    pub name: &'static str,
    /// What stasis uses it for.
    pub purpose: &'static str,
    /// Without it nothing can be dumped or restored.
    pub required: bool,
    /// What is lost, or done instead, without it.
    pub without: &'static str,
    run: fn() -> Tried,
}

impl Probe {
    /// Tries it. Takes microseconds to a few milliseconds; may make a child process, which is gone on return.
    pub fn run(&self) -> Outcome {
        (self.run)().unwrap_or_else(|failed| failed)
    }
}

/// One line of [`run`].
#[derive(Debug, Clone)]
pub struct Report {
    /// The feature.
    pub probe: Probe,
    /// What was found.
    pub outcome: Outcome,
}

impl Report {
    /// Whether stasis cannot work because of this row.
    pub fn is_fatal(&self) -> bool {
        self.probe.required && !self.outcome.is_present()
    }
}

/// Runs all probes, in order.
pub fn run() -> Vec<Report> {
    let one = |p: &Probe| Report {
        probe: *p,
        outcome: p.run(),
    };
    all().iter().map(one).collect()
}

/// The probe called `name`.
pub fn find(name: &str) -> Option<&'static Probe> {
    all().iter().find(|p| p.name == name)
}

/// All probes, required ones first in each group.
pub fn all() -> &'static [Probe] {
    const fn must(name: &'static str, purpose: &'static str, run: fn() -> Tried) -> Probe {
        Probe {
            name,
            purpose,
            required: true,
            without: "nothing works",
            run,
        }
    }
    const fn may(
        name: &'static str,
        purpose: &'static str,
        without: &'static str,
        run: fn() -> Tried,
    ) -> Probe {
        Probe {
            name,
            purpose,
            required: false,
            without,
            run,
        }
    }
    const TABLE: &[Probe] = &[
        // Tasks
        must(
            "ptrace-seize",
            "stopping tasks and reading their registers",
            tasks::seize,
        ),
        must(
            "ptrace-xstate",
            "floating point and vector registers",
            tasks::xstate,
        ),
        must(
            "ptrace-signals",
            "signal masks and pending signals",
            tasks::signals,
        ),
        must(
            "ptrace-rseq",
            "restartable sequences, which every glibc program registers",
            tasks::rseq,
        ),
        must(
            "set-mm-map",
            "the addresses a program knows itself by (brk, arguments, auxv)",
            tasks::set_mm_map,
        ),
        must(
            "map-vdso",
            "putting the vDSO where the program expects it",
            tasks::map_vdso,
        ),
        must(
            "robust-list",
            "robust futexes of each thread",
            tasks::robust_list,
        ),
        may(
            "clone3-set-tid",
            "giving restored tasks their old pids",
            "restore only inside an own pid namespace",
            tasks::set_tid,
        ),
        may(
            "clone3-into-cgroup",
            "placing tasks in their cgroup at birth",
            "tasks are moved after they were made",
            tasks::into_cgroup,
        ),
        may(
            "timer-restore-ids",
            "giving POSIX timers their old ids at once",
            "timers are made and deleted until the id comes",
            tasks::timer_ids,
        ),
        may(
            "ptrace-sud",
            "syscall user dispatch (Wine, some sandboxes)",
            "tasks that use it are not noticed before 6.4",
            tasks::sud,
        ),
        may(
            "ptrace-syscall-info",
            "telling which system call a stop belongs to",
            "it is told from the registers",
            tasks::syscall_info,
        ),
        may(
            "seccomp-get-filter",
            "dumping seccomp filters",
            "tasks under a filter cannot be dumped",
            tasks::seccomp_filter,
        ),
        may(
            "suspend-seccomp",
            "asking a task under a filter about itself",
            "only what its filter allows can be asked",
            tasks::suspend_seccomp,
        ),
        may(
            "time-namespace",
            "monotonic clocks that go on where they stopped",
            "clocks jump by the uptime difference",
            tasks::time_namespace,
        ),
        may(
            "proc-children",
            "finding children without reading all of /proc",
            "all of /proc is read",
            tasks::proc_children,
        ),
        may(
            "user-namespace",
            "trees with users of their own",
            "no such tree can exist",
            tasks::user_namespace,
        ),
        may(
            "cgroup-namespace",
            "trees with a cgroup root of their own",
            "no such tree can exist",
            tasks::cgroup_namespace,
        ),
        may(
            "loginuid",
            "audit identities",
            "tasks get that of the engine",
            tasks::loginuid,
        ),
        may(
            "breakpoints",
            "nothing: stasis sets no hardware breakpoints",
            "nothing is lost",
            tasks::breakpoints,
        ),
        may(
            "apparmor-stacking",
            "AppArmor profiles on top of one another",
            "no task can have any",
            tasks::apparmor_stacking,
        ),
        // Memory
        must(
            "process-vm",
            "reading memory of other tasks",
            memory::process_vm,
        ),
        must("pagemap", "knowing which pages exist", memory::pagemap),
        may(
            "pagemap-scan",
            "the same, in milliseconds for gigabytes",
            "/proc/PID/pagemap is read, 2 to 4 times slower",
            memory::pagemap_scan,
        ),
        may(
            "guard-regions",
            "guard pages (MADV_GUARD_INSTALL)",
            "no program can have any",
            memory::guard,
        ),
        may(
            "mseal",
            "sealed mappings",
            "no program can have any",
            memory::mseal,
        ),
        may(
            "memfd-secret",
            "secret memory",
            "no program can have any",
            memory::memfd_secret,
        ),
        may(
            "map-files",
            "opening deleted files that are still mapped",
            "their content is read from the task's memory",
            memory::map_files,
        ),
        may(
            "userfaultfd",
            "restoring memory lazily",
            "memory is restored before the tasks run",
            memory::uffd_full,
        ),
        may(
            "userfaultfd-user",
            "tracking changes as an ordinary user",
            "no change tracking as an ordinary user",
            memory::uffd_user,
        ),
        may(
            "userfaultfd-device",
            "userfaultfd by right of a file's mode",
            "CAP_SYS_PTRACE is needed for it",
            memory::uffd_device,
        ),
        may(
            "userfaultfd-wp-async",
            "tracking changes",
            "soft-dirty bits, or every page counts as changed",
            memory::uffd_wp_async,
        ),
        may(
            "userfaultfd-move",
            "filling huge pages at full speed",
            "small pages are filled",
            memory::uffd_move,
        ),
        may(
            "soft-dirty",
            "tracking changes on kernels before 6.7",
            "userfaultfd, or every page counts as changed",
            memory::soft_dirty,
        ),
        may(
            "aio-remap",
            "contexts of Linux AIO at their old address",
            "tasks that use Linux AIO cannot be restored",
            memory::aio_ring,
        ),
        may(
            "userfaultfd-events",
            "lazy restore of tasks that fork or change their mappings",
            "memory is restored before such tasks run",
            memory::uffd_events,
        ),
        // Files
        must(
            "pidfd-getfd",
            "looking at open files of other tasks",
            files::pidfd_getfd,
        ),
        must(
            "kcmp",
            "telling which descriptors are the same open file",
            files::kcmp,
        ),
        may(
            "kcmp-epoll",
            "finding what an epoll instance watches after a dup or close",
            "such instances cannot be dumped",
            files::kcmp_epoll,
        ),
        may(
            "dupfd-query",
            "the same as kcmp among the engine's own descriptors",
            "kcmp is used",
            files::dupfd_query,
        ),
        may(
            "open-by-handle",
            "finding files that inotify and fanotify watch",
            "their paths are searched for",
            files::open_by_handle,
        ),
        may(
            "pidfd-info",
            "telling what a pidfd refers to (PIDFD_GET_INFO)",
            "fdinfo is read",
            files::pidfd_info,
        ),
        may(
            "statmount",
            "reading mounts as structures",
            "/proc/PID/mountinfo is read",
            files::statmount,
        ),
        may(
            "tcp-repair",
            "established TCP connections",
            "they cannot be dumped",
            files::tcp_repair,
        ),
        may(
            "cgroup2",
            "cgroup v2 is mounted",
            "the v1 freezer, or ptrace alone",
            files::cgroup2,
        ),
        may(
            "cgroup2-freeze",
            "stopping a tree before it can fork",
            "tasks are stopped one by one until no new ones appear",
            files::cgroup2_freeze,
        ),
        may(
            "bpf",
            "locking the network by BPF programs",
            "nftables over netlink",
            files::bpf,
        ),
        may(
            "fdinfo-mount",
            "telling which mount a file is on",
            "paths are looked up in the whole tree",
            files::fdinfo_mount,
        ),
        may(
            "fdinfo-lock",
            "telling which open file a lock belongs to",
            "/proc/locks is searched",
            files::fdinfo_lock,
        ),
        may(
            "timerfd-ticks",
            "expirations of a timerfd that nobody has read yet",
            "they are lost",
            files::timerfd_ticks,
        ),
        may(
            "memfd-hugetlb",
            "memfds in huge pages",
            "no program can have any",
            files::memfd_hugetlb,
        ),
        may(
            "openat2",
            "opening files that never lead out of a root",
            "paths are walked by their parts",
            files::openat2,
        ),
        may(
            "overlay-maps",
            "telling which file of an overlay is mapped",
            "the path is compared instead",
            files::overlay_maps,
        ),
        may(
            "mount-set-group",
            "mounts that share events, at once",
            "containers with shared mounts cannot be restored",
            files::set_group,
        ),
        may(
            "pid-in-namespace",
            "telling pids of other namespaces at once",
            "the status of each task is read",
            files::pid_in_namespace,
        ),
        may(
            "socket-namespace",
            "telling which network namespace a socket belongs to",
            "it is taken for its task's",
            sockets::namespace_of,
        ),
        may(
            "socket-unix-file",
            "files of unix sockets that were moved or mounted over",
            "their names are looked up",
            sockets::unix_file,
        ),
        may(
            "socket-buffer-lock",
            "sizes of socket buffers that the program chose",
            "they are set without the mark that they were chosen",
            sockets::buffer_locks,
        ),
        may(
            "socket-ipv6-freebind",
            "IPv6 sockets with addresses that are not here yet",
            "they are bound when the address is there",
            sockets::ipv6_freebind,
        ),
        may(
            "net-nsid",
            "links that lead into other network namespaces",
            "network namespaces with such links cannot be dumped",
            sockets::nsid,
        ),
        may(
            "nftables",
            "locking the network without BPF; rules of network namespaces",
            "only BPF locks, and no rules are carried",
            sockets::nftables,
        ),
        may(
            "tun",
            "tun and tap devices",
            "programs that hold one cannot be restored",
            sockets::tun,
        ),
        may(
            "tun-namespace",
            "telling which network namespace a tun device belongs to",
            "it is taken for its task's",
            sockets::tun_namespace,
        ),
        // Privileges
        may(
            "cap-sys-ptrace",
            "tasks of other users, full userfaultfd",
            "only tasks of the same user",
            || tasks::capability(19),
        ),
        may(
            "cap-checkpoint-restore",
            "pids, map_files and exe links without CAP_SYS_ADMIN",
            "CAP_SYS_ADMIN, or an own user namespace",
            || tasks::capability(40),
        ),
        may(
            "cap-sys-admin",
            "seccomp filters, mounts, foreign namespaces",
            "an own user namespace",
            || tasks::capability(21),
        ),
        may(
            "cap-sys-resource",
            "raising hard limits, pipe sizes, lowering oom scores",
            "such values stay at what is allowed, with a warning",
            || tasks::capability(24),
        ),
        may(
            "cap-net-admin",
            "TCP repair, forced buffer sizes",
            "network state cannot be dumped",
            || tasks::capability(12),
        ),
    ];
    TABLE
}

/// Turns a libc-style return value into an outcome for `?`.
fn ok(ret: libc::c_long, call: &'static str) -> Result<libc::c_long, Outcome> {
    Ok(crate::error::check(ret, call, || "")?)
}

/// The error of a call whose errno is already known.
fn failed(call: &'static str, errno: Errno) -> Outcome {
    SysError::new(call, errno, "").into()
}
