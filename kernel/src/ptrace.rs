//! Seizing tasks: ptrace(2) with `PTRACE_SEIZE` only, so a lost tracer never leaves a stopped task behind.
//!
//! KERNEL: when a tracer dies, `exit_ptrace()` (kernel/ptrace.c) detaches every tracee; a tracee in a stop runs on with the
//! registers it has at that moment. Everything here and in [`crate::excursion`] is arranged around that fact.
//!
//! Long because it has one wrapper per request of ptrace(2).
use crate::error::SysError;
use nix::errno::Errno;
use std::ffi::c_void;

/// General registers as `PTRACE_GETREGSET(NT_PRSTATUS)` gives them (struct user_regs_struct, x86-64).
pub type Regs = libc::user_regs_struct;

const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_PEEKSIGINFO: u32 = 0x4209;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;

/// Mark syscall stops with 0x80 (`PTRACE_O_TRACESYSGOOD`).
pub const TRACESYSGOOD: usize = 1;
/// Kill the tracee when the tracer dies (`PTRACE_O_EXITKILL`).
pub const EXITKILL: usize = 1 << 20;
/// Suspend seccomp while traced (`PTRACE_O_SUSPEND_SECCOMP`, needs CAP_SYS_ADMIN).
pub const SUSPEND_SECCOMP: usize = 1 << 21;

fn ptrace(
    op: u32,
    name: &'static str,
    tid: i32,
    addr: usize,
    data: usize,
) -> Result<i64, SysError> {
    // SAFETY: callers pass pointers to live buffers of the size the operation uses; the kernel checks the rest.
    let r = unsafe { libc::ptrace(op as _, tid, addr as *mut c_void, data as *mut c_void) };
    if r == -1 {
        Err(SysError::last(name, format!("task {tid}")))
    } else {
        Ok(r)
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Stopped by our interrupt (`PTRACE_EVENT_STOP` with SIGTRAP).
    Interrupted,
    /// In a group stop with this signal.
    GroupStop(i32),
    /// About to receive this signal.
    Signal(i32),
    /// Entering or leaving a system call (with `PTRACE_O_TRACESYSGOOD`).
    Syscall,
    /// Another ptrace event (fork, clone, exec, exit...).
    Other(i32),
    /// Exited with this wait status.
    Gone(i32),
    /// Nothing to report (only without blocking).
    Nothing,
}

/// A seized task. Detached by [`Tracee::detach`]; forgetting it leaves the kernel to detach at our exit.
#[derive(Debug)]
pub struct Tracee {
    /// Thread id in our pid namespace.
    pub tid: i32,
}

/// Where the kernel keeps restartable-sequence state of a thread (`PTRACE_GET_RSEQ_CONFIGURATION`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RseqConfig {
    /// Address of struct rseq; 0 when not registered.
    pub abi_pointer: u64,
    /// Its size in bytes.
    pub abi_size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    flags: u32,
    pad: u32,
}

/// Syscall user dispatch settings (`PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG`, kernel >= 6.4).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SudConfig {
    /// 0 off, 1 on.
    pub mode: u64,
    /// Address of the selector byte.
    pub selector: u64,
    /// Start of the range that is not dispatched.
    pub offset: u64,
    /// Length of that range.
    pub len: u64,
}

impl Tracee {
    /// Seizes a thread without stopping it. `options` are `PTRACE_O_*` bits.
    pub fn seize(tid: i32, options: usize) -> Result<Self, SysError> {
        ptrace(libc::PTRACE_SEIZE, "PTRACE_SEIZE", tid, 0, options)?;
        Ok(Self { tid })
    }
    /// Asks the thread to stop; [`Tracee::wait`] tells when it has.
    pub fn interrupt(&self) -> Result<(), SysError> {
        ptrace(libc::PTRACE_INTERRUPT, "PTRACE_INTERRUPT", self.tid, 0, 0).map(|_| ())
    }
    /// Waits for the next event. With `block` false gives [`Event::Nothing`] when there is none.
    pub fn wait(&self, block: bool) -> Result<Event, SysError> {
        let mut st = 0;
        let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
        loop {
            // SAFETY: `st` outlives the call.
            let r = unsafe { libc::waitpid(self.tid, &mut st, flags) };
            if r == self.tid {
                return Ok(decode(st));
            }
            if r == 0 {
                return Ok(Event::Nothing);
            }
            let e = SysError::last("waitpid", format!("task {}", self.tid));
            if e.errno != Errno::EINTR {
                return Err(e);
            }
        }
    }
    /// Waits until the thread is gone; other events are passed on.
    pub fn wait_gone(&self) -> Result<(), SysError> {
        loop {
            match self.wait(true) {
                Ok(Event::Gone(_)) => return Ok(()),
                Ok(_) => {}
                Err(e) if matches!(e.errno, Errno::ECHILD | Errno::ESRCH) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }
    /// Is the thread gone by now? Other events are passed on.
    fn is_gone(&self) -> bool {
        loop {
            match self.wait(false) {
                Ok(Event::Gone(_)) => return true,
                Ok(Event::Nothing) => return false,
                Ok(_) => {}
                // it is no tracee or child any more
                Err(_) => return true,
            }
        }
    }
    /// Waits until the thread is in our stop or a group stop; signals that come first are let through.
    /// `None`: it exited.
    pub fn wait_stop(&self) -> Result<Option<Event>, SysError> {
        loop {
            match self.wait(true)? {
                e @ (Event::Interrupted | Event::GroupStop(_)) => return Ok(Some(e)),
                Event::Signal(s) => self.cont(s)?,
                Event::Other(_) | Event::Syscall => self.cont(0)?,
                Event::Gone(_) => return Ok(None),
                Event::Nothing => {}
            }
        }
    }
    /// Resumes, delivering `sig` if not 0.
    pub fn cont(&self, sig: i32) -> Result<(), SysError> {
        ptrace(libc::PTRACE_CONT, "PTRACE_CONT", self.tid, 0, sig as usize).map(|_| ())
    }
    /// Resumes until the next entry to or exit from a system call.
    pub fn syscall(&self) -> Result<(), SysError> {
        ptrace(libc::PTRACE_SYSCALL, "PTRACE_SYSCALL", self.tid, 0, 0).map(|_| ())
    }
    /// Lets go of the thread, delivering `sig` if not 0. A task that is gone is no error.
    pub fn detach(self, sig: i32) -> Result<(), SysError> {
        match ptrace(
            libc::PTRACE_DETACH,
            "PTRACE_DETACH",
            self.tid,
            0,
            sig as usize,
        ) {
            Err(e) if e.errno == Errno::ESRCH => Ok(()),
            r => r.map(|_| ()),
        }
    }
    /// Changes `PTRACE_O_*` options; the thread must be stopped.
    pub fn set_options(&self, options: usize) -> Result<(), SysError> {
        ptrace(
            libc::PTRACE_SETOPTIONS,
            "PTRACE_SETOPTIONS",
            self.tid,
            0,
            options,
        )
        .map(|_| ())
    }
    /// General registers.
    pub fn regs(&self) -> Result<Regs, SysError> {
        // SAFETY: user_regs_struct is plain integers.
        let mut r: Regs = unsafe { std::mem::zeroed() };
        let mut iov = libc::iovec {
            iov_base: (&raw mut r).cast(),
            iov_len: size_of::<Regs>(),
        };
        ptrace(
            libc::PTRACE_GETREGSET,
            "PTRACE_GETREGSET(NT_PRSTATUS)",
            self.tid,
            NT_PRSTATUS,
            &raw mut iov as usize,
        )?;
        if iov.iov_len != size_of::<Regs>() {
            return Err(SysError::new(
                "PTRACE_GETREGSET(NT_PRSTATUS)",
                Errno::EPROTO,
                format!("task {} is a 32-bit task", self.tid),
            ));
        }
        Ok(r)
    }
    /// Size in bytes of the general register set: 216 for a 64-bit task, 68 for a 32-bit one.
    pub fn regs_size(&self) -> Result<usize, SysError> {
        let mut b = [0u8; 512];
        let mut iov = libc::iovec {
            iov_base: b.as_mut_ptr().cast(),
            iov_len: b.len(),
        };
        ptrace(
            libc::PTRACE_GETREGSET,
            "PTRACE_GETREGSET(NT_PRSTATUS)",
            self.tid,
            NT_PRSTATUS,
            &raw mut iov as usize,
        )?;
        Ok(iov.iov_len)
    }
    /// Sets the general registers.
    pub fn set_regs(&self, r: &Regs) -> Result<(), SysError> {
        let mut iov = libc::iovec {
            iov_base: std::ptr::from_ref(r).cast_mut().cast(),
            iov_len: size_of::<Regs>(),
        };
        ptrace(
            libc::PTRACE_SETREGSET,
            "PTRACE_SETREGSET(NT_PRSTATUS)",
            self.tid,
            NT_PRSTATUS,
            &raw mut iov as usize,
        )
        .map(|_| ())
    }
    /// The whole XSAVE area in the standard (uncompacted) form, as long as this kernel and CPU have it.
    pub fn xstate(&self) -> Result<Vec<u8>, SysError> {
        let mut b = [0u8; 16384];
        let mut iov = libc::iovec {
            iov_base: b.as_mut_ptr().cast(),
            iov_len: b.len(),
        };
        ptrace(
            libc::PTRACE_GETREGSET,
            "PTRACE_GETREGSET(NT_X86_XSTATE)",
            self.tid,
            NT_X86_XSTATE,
            &raw mut iov as usize,
        )?;
        Ok(b[..iov.iov_len].to_vec())
    }
    /// Sets the XSAVE area.
    pub fn set_xstate(&self, x: &[u8]) -> Result<(), SysError> {
        let mut iov = libc::iovec {
            iov_base: x.as_ptr().cast_mut().cast(),
            iov_len: x.len(),
        };
        ptrace(
            libc::PTRACE_SETREGSET,
            "PTRACE_SETREGSET(NT_X86_XSTATE)",
            self.tid,
            NT_X86_XSTATE,
            &raw mut iov as usize,
        )
        .map(|_| ())
    }
    /// Blocked signals: bit n-1 is signal n.
    pub fn sigmask(&self) -> Result<u64, SysError> {
        let mut m = 0u64;
        ptrace(
            PTRACE_GETSIGMASK,
            "PTRACE_GETSIGMASK",
            self.tid,
            8,
            &raw mut m as usize,
        )?;
        Ok(m)
    }
    /// Sets the blocked signals.
    pub fn set_sigmask(&self, m: u64) -> Result<(), SysError> {
        ptrace(
            PTRACE_SETSIGMASK,
            "PTRACE_SETSIGMASK",
            self.tid,
            8,
            &raw const m as usize,
        )
        .map(|_| ())
    }
    /// Queued signals, oldest first: of the whole process (`shared`) or of this thread; each a 128-byte siginfo_t.
    pub fn pending(&self, shared: bool) -> Result<Vec<[u8; 128]>, SysError> {
        #[repr(C)]
        struct Args {
            off: u64,
            flags: u32,
            nr: i32,
        }
        let mut all = Vec::new();
        loop {
            let mut buf = [[0u8; 128]; 32];
            let a = Args {
                off: all.len() as u64,
                flags: shared as u32,
                nr: 32,
            };
            let n = ptrace(
                PTRACE_PEEKSIGINFO,
                "PTRACE_PEEKSIGINFO",
                self.tid,
                &raw const a as usize,
                buf.as_mut_ptr() as usize,
            )?;
            all.extend_from_slice(&buf[..n as usize]);
            if n < 32 {
                return Ok(all);
            }
        }
    }
    /// Restartable sequence registration.
    pub fn rseq(&self) -> Result<RseqConfig, SysError> {
        let mut c = RseqConfig::default();
        ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            "PTRACE_GET_RSEQ_CONFIGURATION",
            self.tid,
            size_of::<RseqConfig>(),
            &raw mut c as usize,
        )?;
        Ok(c)
    }
    /// Syscall user dispatch settings; `None` where the kernel has no such request.
    pub fn sud(&self) -> Result<Option<SudConfig>, SysError> {
        let mut c = SudConfig::default();
        match ptrace(
            PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
            "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG",
            self.tid,
            size_of::<SudConfig>(),
            &raw mut c as usize,
        ) {
            Ok(_) => Ok(Some(c)),
            // KERNEL(<6.4): no such request
            Err(e) if e.errno == Errno::EIO => Ok(None),
            Err(e) => Err(e),
        }
    }
    /// Sets syscall user dispatch.
    pub fn set_sud(&self, c: &SudConfig) -> Result<(), SysError> {
        ptrace(
            PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG,
            "PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG",
            self.tid,
            size_of::<SudConfig>(),
            std::ptr::from_ref(c) as usize,
        )
        .map(|_| ())
    }
    /// The siginfo of a signal stop.
    pub fn siginfo(&self) -> Result<[u8; 128], SysError> {
        let mut b = [0u8; 128];
        ptrace(
            libc::PTRACE_GETSIGINFO,
            "PTRACE_GETSIGINFO",
            self.tid,
            0,
            b.as_mut_ptr() as usize,
        )?;
        Ok(b)
    }
    /// The `index`-th seccomp filter (0 is the oldest) as raw `struct sock_filter` (8 bytes each) and its flags
    /// (`SECCOMP_FILTER_FLAG_LOG`); `None` past the last. Needs CAP_SYS_ADMIN.
    pub fn seccomp_filter(&self, index: usize) -> Result<Option<(Vec<u8>, u64)>, SysError> {
        let n = match ptrace(
            PTRACE_SECCOMP_GET_FILTER,
            "PTRACE_SECCOMP_GET_FILTER",
            self.tid,
            index,
            0,
        ) {
            Ok(n) => n as usize,
            Err(e) if e.errno == Errno::ENOENT => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut b = vec![0u8; n * 8];
        ptrace(
            PTRACE_SECCOMP_GET_FILTER,
            "PTRACE_SECCOMP_GET_FILTER",
            self.tid,
            index,
            b.as_mut_ptr() as usize,
        )?;
        let mut meta = [index as u64, 0];
        ptrace(
            PTRACE_SECCOMP_GET_METADATA,
            "PTRACE_SECCOMP_GET_METADATA",
            self.tid,
            16,
            meta.as_mut_ptr() as usize,
        )?;
        Ok(Some((b, meta[1])))
    }
}

/// Sends a signal to one thread (tgkill(2)).
pub fn tgkill(tgid: i32, tid: i32, sig: i32) -> Result<(), SysError> {
    // SAFETY: no memory is involved.
    let r = unsafe { libc::syscall(libc::SYS_tgkill, tgid, tid, sig) };
    if r == 0 {
        Ok(())
    } else {
        Err(SysError::last("tgkill", format!("task {tid}")))
    }
}

fn decode(st: i32) -> Event {
    if libc::WIFSTOPPED(st) {
        let sig = libc::WSTOPSIG(st);
        match st >> 16 {
            0 if sig == libc::SIGTRAP | 0x80 => Event::Syscall,
            0 => Event::Signal(sig),
            libc::PTRACE_EVENT_STOP if sig == libc::SIGTRAP => Event::Interrupted,
            libc::PTRACE_EVENT_STOP => Event::GroupStop(sig),
            e => Event::Other(e),
        }
    } else {
        Event::Gone(st)
    }
}

/// Registers that are all zero.
pub fn no_regs() -> Regs {
    // SAFETY: user_regs_struct is plain integers.
    unsafe { std::mem::zeroed() }
}

/// Registers of 64-bit user mode, all others zero.
pub fn user_regs() -> Regs {
    Regs {
        cs: 0x33,
        ss: 0x2b,
        eflags: 0x202,
        ..no_regs()
    }
}

/// Waits until all of these killed threads are gone, in whatever order they go.
///
/// KERNEL: a tracer can wait for a leader only when it has waited for all other threads (delay_group_leader()); and the last
/// living thread of the first process of a pid namespace does not end before all other numbers there are free, also those of its
/// fellow threads (kernel/pid_namespace.c, zap_pid_ns_processes()). So no order is right for all.
pub fn wait_all_gone(threads: impl IntoIterator<Item = i32>) {
    let mut left: Vec<i32> = threads.into_iter().collect();
    let mut pause = std::time::Duration::from_micros(20);
    loop {
        left.retain(|tid| !Tracee { tid: *tid }.is_gone());
        if left.is_empty() {
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(std::time::Duration::from_millis(2));
    }
}

/// Sends a signal to a process (kill(2)).
pub fn kill(pid: i32, sig: i32) -> Result<(), SysError> {
    // SAFETY: no memory is involved.
    let r = unsafe { libc::kill(pid, sig) };
    if r == 0 {
        Ok(())
    } else {
        Err(SysError::last("kill", format!("process {pid}")))
    }
}

/// Kills the calling process at once: fault injection of tests.
pub fn die() -> ! {
    // SAFETY: SIGKILL to ourselves; nothing runs after it.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
        libc::_exit(137)
    }
}

/// Waits for a child to end; gives its status as waitpid(2) does.
pub fn wait_exit(pid: i32) -> Result<i32, SysError> {
    let mut st = 0;
    loop {
        // SAFETY: `st` outlives the call.
        let r = unsafe { libc::waitpid(pid, &mut st, libc::__WALL) };
        if r == pid && (libc::WIFEXITED(st) || libc::WIFSIGNALED(st)) {
            return Ok(st);
        }
        if r < 0 {
            let e = SysError::last("waitpid", format!("task {pid}"));
            if e.errno != Errno::EINTR {
                return Err(e);
            }
        }
    }
}
