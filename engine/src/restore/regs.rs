//! The last act: registers, XSAVE state, signal mask, and the reel goes.
use super::plan::TaskPlan;
use crate::error::{Blame, Error, Result};
use stasis_kernel::ptrace::{Event, Regs, SudConfig, Tracee};
use stasis_kernel::reel::Reel;
use stasis_kernel::xstate::{self, Component};
use stasis_proto::pb;

/// Sets everything of a stopped thread.
///
/// `area` is what an XSAVE area of this machine looks like, once one was read: a task that was just born has no components of its
/// own, so one serves for all.
pub fn set(th: &Tracee, core: &pb::CoreEntry, area: &mut Vec<u8>) -> Result<()> {
    let (Some(info), Some(tc)) = (&core.thread_info, &core.thread_core) else {
        return Err(Error::bug("a thread without registers passed the checks"));
    };
    let g = &info.gpregs;
    if area.is_empty() {
        *area = th.xstate()?;
    }
    th.set_xstate(xsave(area, &info.fpregs, tc.stasis.as_ref())?)?;
    th.set_sigmask(tc.blk_sigset.unwrap_or(0))?;
    if let Some(s) = tc.stasis.as_ref().filter(|s| s.sud_mode.unwrap_or(0) != 0) {
        let w = |v: Option<u64>| v.unwrap_or(0);
        th.set_sud(&SudConfig {
            mode: w(s.sud_mode),
            selector: w(s.sud_selector),
            offset: w(s.sud_offset),
            len: w(s.sud_len),
        })?;
    }
    th.set_regs(&regs(g))?;
    if let Some(r) = &tc.rseq_entry {
        sequence(th, r)?;
    }
    Ok(())
}

/// A thread that was dumped inside a restartable sequence which must not be restarted goes on inside of it.
///
/// KERNEL: registration clears the field (kernel/rseq.c, `rseq_register()`), so this comes after it.
fn sequence(th: &Tracee, r: &pb::RseqEntry) -> Result<()> {
    use stasis_kernel::ids::{HostPid, RemotePtr};
    let cs = r.rseq_cs_pointer.unwrap_or(0);
    let Some(field) = r
        .rseq_abi_pointer
        .checked_add(8)
        .filter(|_| r.rseq_abi_pointer != 0)
    else {
        return Ok(());
    };
    if cs != 0 {
        stasis_kernel::vm::write(HostPid(th.tid), RemotePtr(field), &cs.to_le_bytes())?;
    }
    Ok(())
}

fn regs(g: &pb::UserX86RegsEntry) -> Regs {
    let mut r = stasis_kernel::ptrace::no_regs();
    (
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8,
    ) = (
        g.r15, g.r14, g.r13, g.r12, g.bp, g.bx, g.r11, g.r10, g.r9, g.r8,
    );
    (
        r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.orig_rax, r.rip, r.eflags, r.rsp,
    ) = (g.ax, g.cx, g.dx, g.si, g.di, g.orig_ax, g.ip, g.flags, g.sp);
    (r.cs, r.ss, r.ds, r.es, r.fs, r.gs, r.fs_base, r.gs_base) =
        (g.cs, g.ss, g.ds, g.es, g.fs, g.gs, g.fs_base, g.gs_base);
    // an image of another engine may hold a call that was interrupted: it is made again
    let mut r = stasis_kernel::excursion::restartable(r);
    r.orig_rax = u64::MAX;
    r
}

/// Unmaps the reel from the address spaces of these stopped leaders, with a `syscall` instruction of their own vDSO: all enter
/// the call, then all leave it, so one wakeup does not wait for another.
pub fn drop_reel(leaders: &[(&Tracee, &TaskPlan)], reel: &Reel) -> Result<()> {
    let mut at = None;
    for (th, t) in leaders {
        let mut r = stasis_kernel::ptrace::user_regs();
        (r.rax, r.rdi, r.rsi, r.rip, r.orig_rax) = (
            libc::SYS_munmap as u64,
            reel.addr(),
            reel.len() as u64,
            syscall_instruction(t, stasis_kernel::ids::HostPid(th.tid), &mut at)?,
            u64::MAX,
        );
        th.set_regs(&r)?;
        th.syscall()?;
    }
    for last in [false, true] {
        for (th, t) in leaders {
            loop {
                match th.wait(true)? {
                    Event::Syscall => break,
                    Event::Interrupted | Event::GroupStop(_) | Event::Other(_) => th.syscall()?,
                    e => {
                        return Err(Error::new(
                            "E6104",
                            Blame::Host,
                            format!("the last call of task {} did not come back", t.pid),
                        )
                        .why(format!("{e:?}"))
                        .advice("the kernel log may say who killed it"));
                    }
                }
            }
            if !last {
                th.syscall()?;
                continue;
            }
            let r = th.regs()?;
            if r.rax != 0 {
                return Err(Error::new(
                    "E3103",
                    Blame::Kernel,
                    format!("munmap of the reel in task {}", t.pid),
                )
                .why(stasis_kernel::call::answer(r.rax))
                .advice("please report it with the log"));
            }
        }
    }
    Ok(())
}

/// Where a `syscall` instruction lies in the restored address space. `known`: its offset in the vDSO, once one was found: all have
/// the same.
fn syscall_instruction(
    t: &TaskPlan,
    pid: stasis_kernel::ids::HostPid,
    known: &mut Option<u64>,
) -> Result<u64> {
    use stasis_kernel::ids::RemotePtr;
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let find = |b: &[u8]| memchr::memmem::find(b, &SYSCALL).map(|o| o as u64);
    let vdso = t
        .memory
        .iter()
        .flat_map(|m| &m.vdso)
        .find(|v| v.0 == crate::dump::mm::status::VDSO);
    if let Some((_, start, len)) = vdso {
        let mut two = [0; 2];
        if let Some(o) = known.filter(|o| o + 2 <= *len)
            && stasis_kernel::vm::read(pid, RemotePtr(start + o), &mut two).is_ok()
            && two == SYSCALL
        {
            return Ok(start + o);
        }
        let mut b = vec![0u8; (*len).min(1 << 16) as usize];
        if stasis_kernel::vm::read(pid, RemotePtr(*start), &mut b).is_ok()
            && let Some(o) = find(&b)
        {
            *known = Some(o);
            return Ok(start + o);
        }
    }
    let maps = stasis_kernel::procfs::ProcDir::open(pid)?.maps()?;
    let mut text: Vec<_> = maps
        .iter()
        .filter(|m| {
            m.prot & libc::PROT_EXEC as u32 != 0
                && m.prot & libc::PROT_READ as u32 != 0
                && m.start < super::images::TASK_SIZE
        })
        .collect();
    text.sort_by_key(|m| m.name() != stasis_kernel::procfs::MapName::Vdso);
    for m in text {
        let mut b = vec![0u8; m.len().min(1 << 20) as usize];
        if stasis_kernel::vm::read(pid, RemotePtr(m.start), &mut b).is_ok()
            && let Some(o) = find(&b)
        {
            return Ok(m.start + o);
        }
    }
    Err(Error::new(
        "E5031",
        Blame::Image,
        format!("task {} has no text to leave from", t.pid),
    )
    .why("no mapping of it holds a syscall instruction"))
}

/// Makes an XSAVE area of this CPU hold what the image has.
fn xsave<'a>(
    b: &'a mut [u8],
    f: &pb::UserX86FpregsEntry,
    ext: Option<&'a pb::StasisThreadEntry>,
) -> Result<&'a [u8]> {
    if let Some(x) = ext.and_then(|e| e.xstate.as_ref()) {
        if x.len() != b.len() {
            return Err(Error::new("E5030", Blame::Image, "extended registers")
                .why(format!(
                    "{} bytes on the dumping CPU, {} here",
                    x.len(),
                    b.len()
                ))
                .advice("restore on a CPU of the same family"));
        }
        return Ok(x);
    }
    // KERNEL: bytes 464.. of the legacy part hold the mask of features the kernel manages; it stays
    let len = b.len();
    let mut put = |at: usize, v: &[u8]| {
        if at + v.len() <= len {
            b[at..at + v.len()].copy_from_slice(v);
        }
    };
    put(0, &(f.cwd as u16).to_le_bytes());
    put(2, &(f.swd as u16).to_le_bytes());
    put(4, &(f.twd as u16).to_le_bytes());
    put(6, &(f.fop as u16).to_le_bytes());
    put(8, &f.rip.to_le_bytes());
    put(16, &f.rdp.to_le_bytes());
    put(24, &f.mxcsr.to_le_bytes());
    let mut words = |at: usize, v: &[u32], n: usize| {
        for i in 0..n {
            put(at + 4 * i, &v.get(i).unwrap_or(&0).to_le_bytes());
        }
    };
    words(32, &f.st_space, 32);
    words(160, &f.xmm_space, 64);
    let mut bv = 3u64;
    if let Some(x) = &f.xsave {
        bv = x.xstate_bv;
        let halves = |v: &[u64]| -> Vec<u32> {
            let both = |x: &u64| [*x as u32, (*x >> 32) as u32];
            v.iter().flat_map(both).collect()
        };
        let (opmask, hi256, hi16) = (
            halves(&x.opmask_reg),
            halves(&x.zmm_upper),
            halves(&x.hi16_zmm),
        );
        for (c, v) in [
            (Component::Ymm, &x.ymmh_space),
            (Component::Opmask, &opmask),
            (Component::ZmmHi256, &hi256),
            (Component::Hi16Zmm, &hi16),
            (Component::Pkru, &x.pkru),
        ] {
            let place = xstate::place(c).filter(|(o, n)| o + n <= len && v.len() * 4 <= *n);
            match place {
                // what another thread had in the rest of it goes
                Some((o, n)) => words(o, v, n / 4),
                None if bv & 1 << c as u32 != 0 => {
                    return Err(Error::new("E5030", Blame::Image, "extended registers")
                        .why(format!("this CPU has no {c:?} state"))
                        .advice("restore on a CPU that has what the dumping one had"));
                }
                None => {}
            }
        }
    }
    // what the image does not name is in its initial state
    if len >= xstate::HEADER + 16 {
        b[xstate::HEADER..xstate::HEADER + 8].copy_from_slice(&bv.to_le_bytes());
    }
    Ok(b)
}
