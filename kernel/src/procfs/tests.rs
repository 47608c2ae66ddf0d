//! The parsers on the real /proc of this test process and of children made for it.

use std::ffi::CString;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::*;
use crate::ids::RemoteFd;

fn me() -> ProcDir {
    ProcDir::open(HostPid::own()).unwrap()
}

/// A thread with a hostile name, waiting until told to end.
struct NamedThread {
    tid: HostPid,
    stop: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NamedThread {
    fn new(name: &'static std::ffi::CStr) -> Self {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: PR_SET_NAME reads at most 16 bytes of a NUL-terminated string.
            unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
            tell.send(HostPid(nix::unistd::gettid().as_raw())).unwrap();
            let _ = wait.recv();
        });
        NamedThread {
            tid: told.recv().unwrap(),
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for NamedThread {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn hostile_thread_names() {
    for name in [c"a) R 1", c"x\ny\\n z", c") S 7 (\n", c" lead "] {
        let t = NamedThread::new(name);
        let dir = me().task(t.tid).unwrap();
        let stat = dir.stat().unwrap();
        assert_eq!(stat.comm, name.to_bytes());
        assert_eq!(stat.pid, t.tid);
        assert_eq!(dir.comm().unwrap(), name.to_bytes());
        assert_eq!(me().task_comm(t.tid).unwrap(), name.to_bytes());
        assert_eq!(me().task_stat(t.tid).unwrap().pid, t.tid);
        assert_eq!(me().task_status(t.tid).unwrap().pid, t.tid);
        let status = dir.status().unwrap();
        assert_eq!(status.name, name.to_bytes());
        assert_eq!((status.pid, status.tgid), (t.tid, HostPid::own()));
        assert!(me().tasks().unwrap().contains(&t.tid));
    }
}

#[test]
fn stat_and_status_of_this_process() {
    let (s, t) = (me().stat().unwrap(), me().status().unwrap());
    assert_eq!(s.pid, HostPid::own());
    assert_eq!(s.ppid.0, nix::unistd::getppid().as_raw());
    assert_eq!(s.session.0, nix::unistd::getsid(None).unwrap().as_raw());
    assert_eq!(s.pgrp.0, nix::unistd::getpgrp().as_raw());
    assert_eq!(s.exit_signal, libc::SIGCHLD);
    assert!(!s.is_kernel_thread());
    assert_eq!((t.ppid, t.pid), (s.ppid, s.pid));
    assert_eq!(t.uid.effective, nix::unistd::geteuid().as_raw());
    assert_eq!(*t.ns_pid.first().unwrap(), s.pid.0);
    assert!(t.umask.is_some());
    // The initial stack holds the arguments, and maps agrees with stat.
    let maps = me().maps().unwrap();
    let stack = maps.iter().find(|m| m.name() == MapName::Stack).unwrap();
    assert!((stack.start..stack.end).contains(&s.start_stack));
    assert!((stack.start..stack.end).contains(&s.arg_start));
}

#[test]
fn maps_with_odd_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new\nline \\012 (deleted)");
    let mut f = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    f.write_all(&[7; 8192]).unwrap();
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_SHARED,
            f.as_raw_fd(),
            4096,
        )
    };
    assert_ne!(p, libc::MAP_FAILED);
    let find = || {
        me().maps()
            .unwrap()
            .into_iter()
            .find(|m| m.start == p as u64)
            .unwrap()
    };
    let m = find();
    // The two ambiguities the module comment names: the link tells both.
    assert!(m.deleted);
    assert!(m.path.ends_with(b"/new\nline \n"));
    assert_eq!(
        me().map_file_link(&m).unwrap(),
        path.as_os_str().as_encoded_bytes()
    );
    assert_eq!((m.offset, m.shared, m.prot, m.len()), (4096, true, 1, 4096));
    assert_eq!(
        m.ino,
        std::os::unix::fs::MetadataExt::ino(&f.metadata().unwrap())
    );
    std::fs::remove_file(&path).unwrap();
    let m = find();
    assert!(
        m.deleted && m.path.ends_with(b"line \n (deleted)"),
        "{}",
        m.path.escape_ascii()
    );
    // SAFETY: our own mapping, never turned into a reference.
    unsafe { libc::munmap(p, 4096) };
}

#[test]
fn smaps_flags_and_names() {
    let len = 4 * 4096;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(p, libc::MAP_FAILED);
    // SAFETY: advice on our own fresh mapping; the write goes to its first page.
    unsafe {
        assert_eq!(libc::madvise(p, len, libc::MADV_DONTFORK), 0);
        assert_eq!(libc::madvise(p, len, libc::MADV_DONTDUMP), 0);
        *p.cast::<u8>() = 1;
        libc::prctl(
            libc::PR_SET_VMA,
            libc::PR_SET_VMA_ANON_NAME,
            p,
            len,
            c"a b (deleted)".as_ptr(),
        );
    }
    let all = me().smaps().unwrap();
    let e = all.iter().find(|e| e.map.start == p as u64).unwrap();
    assert!(
        e.flags
            .contains(VmFlags::DONT_COPY | VmFlags::DONT_DUMP | VmFlags::READ | VmFlags::WRITE)
    );
    assert!(
        !e.flags
            .intersects(VmFlags::EXEC | VmFlags::UNKNOWN | VmFlags::MAY_SHARE)
    );
    assert!(e.rss >= 4096 && e.anonymous >= 4096 && e.kernel_page_size == 4096);
    // Without CONFIG_ANON_VMA_NAME the name is not there, with it the " (deleted)" must survive.
    assert!(
        matches!(
            e.map.name(),
            MapName::AnonNamed(b"a b (deleted)") | MapName::Anonymous
        ),
        "{:?}",
        e.map
    );
    assert!(
        all.iter().all(|e| !e.flags.contains(VmFlags::UNKNOWN)),
        "a mnemonic is missing from the table: {all:?}"
    );
    // SAFETY: our own mapping, no references into it remain.
    unsafe { libc::munmap(p, len) };
}

#[test]
fn descriptors() {
    let mut f = tempfile::tempfile().unwrap();
    f.write_all(b"hello").unwrap();
    f.seek(std::io::SeekFrom::Start(3)).unwrap();
    let fd = RemoteFd(f.as_raw_fd());
    assert!(me().fds().unwrap().contains(&fd));
    let i = me().fdinfo(fd).unwrap();
    assert_eq!((i.pos, i.cloexec()), (3, true));
    assert!(crate::names::open_flags(i.flags.into()).starts_with("O_RDWR|"));
    assert!(me().fd_link(fd).unwrap().ends_with(b" (deleted)"));
    let gone = me().fdinfo(RemoteFd(99999)).unwrap_err();
    assert_eq!(
        gone.to_string(),
        format!(
            "openat /proc/{}/fdinfo/99999: ENOENT (No such file or directory)",
            HostPid::own()
        )
    );
}

fn owned(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{}", Errno::last());
    // SAFETY: callers pass a descriptor they just made.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn typed_fdinfo_of_real_files() {
    let look = |fd: &OwnedFd| me().fdinfo(RemoteFd(fd.as_raw_fd())).unwrap();
    // SAFETY: these calls make descriptors and touch no memory of ours.
    let (ep, ev, tfd) = unsafe {
        (
            owned(libc::epoll_create1(0)),
            owned(libc::eventfd(0x1f, libc::EFD_SEMAPHORE)),
            owned(libc::timerfd_create(libc::CLOCK_BOOTTIME, 0)),
        )
    };
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: u64::MAX - 1,
    };
    // SAFETY: `event` lives through the call.
    let ret = unsafe {
        libc::epoll_ctl(
            ep.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            ev.as_raw_fd(),
            &mut event,
        )
    };
    assert_eq!(ret, 0);
    let t = look(&ep).epoll().unwrap();
    assert_eq!(
        (t.len(), t[0].tfd, t[0].data, t[0].events & 1),
        (1, ev.as_raw_fd(), u64::MAX - 1, 1)
    );
    let e = look(&ev).eventfd().unwrap();
    assert_eq!((e.count, e.semaphore.unwrap_or(true)), (0x1f, true));
    let spec = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 7,
            tv_nsec: 5,
        },
        it_value: libc::timespec {
            tv_sec: 5000,
            tv_nsec: 0,
        },
    };
    // SAFETY: `spec` lives through the call; no old value is asked for.
    let ret = unsafe { libc::timerfd_settime(tfd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
    assert_eq!(ret, 0);
    let t = look(&tfd).timerfd().unwrap();
    assert_eq!(
        (t.clock, t.ticks, t.interval),
        (libc::CLOCK_BOOTTIME, 0, (7, 5))
    );
    assert!((4990..=5000).contains(&t.value.0));
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGUSR1);
    let sfd = nix::sys::signalfd::SignalFd::new(&set).unwrap();
    let i = me().fdinfo(RemoteFd(sfd.as_raw_fd())).unwrap();
    assert_eq!(i.signalfd().unwrap(), 1 << (libc::SIGUSR1 - 1));
    // SAFETY: makes a descriptor.
    let ino = owned(unsafe { libc::inotify_init1(0) });
    let dir = tempfile::tempdir().unwrap();
    let path = CString::new(dir.path().as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: `path` is NUL-terminated.
    let ret = unsafe { libc::inotify_add_watch(ino.as_raw_fd(), path.as_ptr(), libc::IN_CREATE) };
    assert_eq!(ret, 1);
    let w = look(&ino).inotify().unwrap();
    assert_eq!(
        (w[0].wd, w[0].ino),
        (
            1,
            std::os::unix::fs::MetadataExt::ino(&dir.path().metadata().unwrap())
        )
    );
    assert_eq!(w[0].mask & libc::IN_CREATE, libc::IN_CREATE);
    let pidfd = crate::fds::pidfd_open(HostPid::own(), 0).unwrap();
    assert_eq!(look(&pidfd).pidfd().unwrap().pid, HostPid::own().0);
    let f = tempfile::tempfile().unwrap();
    // SAFETY: flock touches no memory.
    assert_eq!(unsafe { libc::flock(f.as_raw_fd(), libc::LOCK_EX) }, 0);
    let l = me()
        .fdinfo(RemoteFd(f.as_raw_fd()))
        .unwrap()
        .locks()
        .unwrap();
    assert_eq!(
        (l[0].kind, l[0].mode, l[0].pid),
        (LockKind::Flock, LockMode::Write, HostPid::own().0)
    );
    assert!(system_locks().unwrap().iter().any(|s| s.ino == l[0].ino));
}

#[test]
fn children_both_ways() {
    let mut child = std::process::Command::new("/bin/sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let pid = HostPid(child.id() as i32);
    let by_file = me().children();
    let by_scan = me().children_by_scan();
    let dir = ProcDir::open(pid).unwrap();
    let exe = dir.exe();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(by_file.unwrap().contains(&pid));
    assert!(by_scan.unwrap().contains(&pid));
    assert!(exe.unwrap().starts_with(b"/"));
    // The directory outlives its process and does not turn into another's.
    assert!(dir.stat().unwrap_err().is_gone());
    assert!(dir.fds().unwrap_err().is_gone());
    assert!(dir.maps().unwrap_err().is_gone());
    assert!(ProcDir::open(HostPid(0x3fffff)).unwrap_err().is_gone());
}

#[test]
fn zombies_have_stat_and_status() {
    let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
    let dir = ProcDir::open(HostPid(child.id() as i32)).unwrap();
    let mut tries = 0;
    while dir.stat().unwrap().state != TaskState::Zombie {
        tries += 1;
        assert!(tries < 5000, "never became a zombie");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let (s, t) = (dir.stat().unwrap(), dir.status().unwrap());
    assert!(s.state.is_exited() && t.state.is_exited());
    assert_eq!(s.exit_code, 0);
    // Without memory the files are empty, or cannot be opened, depending on the kernel; and a task without memory
    // counts as not dumpable, so only CAP_SYS_PTRACE may try.
    let fine = |e: crate::error::Error| e.is_gone() || e.is_denied();
    assert!(dir.auxv().map_or_else(fine, |a| a.is_empty()));
    assert!(dir.maps().map_or_else(fine, |m| m.is_empty()));
    child.wait().unwrap();
}

#[test]
fn small_files() {
    let d = me();
    let auxv = d.auxv().unwrap();
    assert!(auxv.contains(&(libc::AT_PAGESZ, 4096)));
    assert!(
        auxv.iter()
            .all(|(k, _)| crate::names::auxv(*k).starts_with("AT_")),
        "{auxv:?}"
    );
    assert_eq!(d.timers().unwrap(), []);
    let nofile =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!(
        d.limits().unwrap()[libc::RLIMIT_NOFILE as usize],
        Limit {
            soft: Some(nofile.0),
            hard: Some(nofile.1)
        }
    );
    assert!((-1000..=1000).contains(&d.oom_score_adj().unwrap()));
    // SAFETY: PR_GET_TIMERSLACK takes no pointers.
    let slack = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) };
    assert_eq!(
        ProcDir::open(HostPid(nix::unistd::gettid().as_raw()))
            .unwrap()
            .timerslack_ns()
            .unwrap(),
        slack as u64
    );
    assert_eq!(
        d.personality().unwrap(),
        // SAFETY: asks only; no pointers.
        unsafe { libc::personality(0xffff_ffff) } as u32
    );
    assert!(d.cgroup().unwrap().iter().any(|c| c.path.starts_with(b"/")));
    assert!(
        d.mountinfo()
            .unwrap()
            .iter()
            .any(|m| m.mountpoint == b"/" || m.mountpoint == b"/proc")
    );
    let ns = d.ns_links().unwrap();
    assert!(ns.iter().any(|(n, i)| *n == "mnt" && *i > 0));
    assert_eq!(
        d.cwd().unwrap(),
        std::env::current_dir()
            .unwrap()
            .as_os_str()
            .as_encoded_bytes()
    );
    assert_eq!(
        d.exe().unwrap(),
        std::env::current_exe()
            .unwrap()
            .as_os_str()
            .as_encoded_bytes()
    );
    assert_eq!(d.root().unwrap(), b"/");
    d.open_root().unwrap();
    d.open_cwd().unwrap();
    d.open_exe().unwrap();
    d.loginuid().unwrap();
    d.coredump_filter().unwrap();
    // The reader of its own file is running by definition.
    let own = ProcDir::open(HostPid(nix::unistd::gettid().as_raw())).unwrap();
    assert!(own.syscall().is_ok());
    assert!(all_pids().unwrap().contains(&HostPid::own()));
}

#[test]
fn a_real_posix_timer() {
    let mut id: libc::timer_t = std::ptr::null_mut();
    // SAFETY: a zeroed sigevent is valid (integers and a union of them).
    let mut ev: libc::sigevent = unsafe { std::mem::zeroed() };
    ev.sigev_notify = libc::SIGEV_NONE;
    let before = me().timers().unwrap().len();
    // SAFETY: both pointers live through the call.
    let ret = unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &mut ev, &mut id) };
    assert_eq!(ret, 0);
    let t = me().timers();
    // SAFETY: the timer was just made and is used by nobody.
    unsafe { libc::timer_delete(id) };
    let t = t.unwrap();
    assert_eq!(t.len(), before + 1);
    let mine = t.iter().find(|t| t.clock == libc::CLOCK_BOOTTIME).unwrap();
    assert_eq!(
        (mine.notify, mine.to_thread, mine.target),
        (TimerNotify::None, false, HostPid::own().0)
    );
}

#[test]
fn many_mappings_read_in_pieces() {
    // Alternating protections keep neighbours from merging: more text than the buffer takes at once.
    let n = 600;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            n * 4096,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(p, libc::MAP_FAILED);
    for i in (0..n).step_by(2) {
        // SAFETY: inside our own mapping, to which there are no references.
        let ret = unsafe { libc::mprotect(p.byte_add(i * 4096), 4096, libc::PROT_READ) };
        assert_eq!(ret, 0);
    }
    let d = me();
    let inside = |m: &MapsLine| m.start >= p as u64 && m.end <= p as u64 + n as u64 * 4096;
    let maps = d.maps().unwrap();
    let smaps = d.smaps().unwrap();
    // SAFETY: our own mapping, no references into it remain.
    unsafe { libc::munmap(p, n * 4096) };
    assert!(maps.iter().filter(|m| inside(m)).count() >= n - 2);
    assert!(smaps.iter().filter(|e| inside(&e.map)).count() >= n - 2);
    assert!(maps.windows(2).all(|w| w[0].end <= w[1].start));
}

#[test]
fn pressure_is_a_percentage() {
    let text =
        "some avg10=12.56 avg60=1.85 avg300=7.26 total=17048772284\nfull avg10=0.00 avg60=0.00\n";
    assert_eq!(parse_pressure(text), Some(13));
    assert_eq!(parse_pressure(""), None);
}
