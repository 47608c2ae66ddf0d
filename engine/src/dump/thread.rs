//! What a stopped thread is, told from outside: registers, signals, scheduling, credentials.
use super::facts::{Creds, OfThread};
use super::task::Thread;
use crate::error::{Blame, Error, Result};
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::ptrace::{Regs, RseqConfig, SudConfig};
use stasis_kernel::{vm, xstate};
use stasis_proto::pb;

/// Reads registers, signal mask, rseq and syscall user dispatch of the threads of a process that has just stopped. XSAVE areas,
/// 11 KiB each, are read when a thread is asked.
pub fn look(threads: &mut [Thread], pid: HostPid) -> Result<()> {
    for th in threads.iter_mut() {
        registers(th)?;
    }
    let all = sequences(threads, pid);
    for (th, cs) in threads.iter_mut().zip(all).filter(|(_, cs)| *cs != 0) {
        settle_rseq(th, pid, cs)?;
    }
    Ok(())
}

fn registers(th: &mut Thread) -> Result<()> {
    let t = &th.tracee;
    th.regs = t.regs().map_err(|e| match e.errno {
        nix::errno::Errno::EPROTO => compat(th.tid),
        _ => e.into(),
    })?;
    if th.regs.cs != 0x33 {
        return Err(compat(th.tid));
    }
    th.mask = t.sigmask()?;
    th.rseq = t.rseq()?;
    th.sud = t.sud()?;
    Ok(())
}

/// The address of the restartable sequence each thread is in; 0 where there is none, or nothing that can be read.
fn sequences(threads: &[Thread], pid: HostPid) -> Vec<u64> {
    let field = |th: &Thread| vm::RemoteRange {
        addr: RemotePtr(th.rseq.abi_pointer.saturating_add(8)),
        len: 8,
    };
    let registered = |th: &&Thread| th.rseq.abi_pointer != 0;
    let fields: Vec<_> = threads.iter().filter(registered).map(field).collect();
    let mut words = vec![0; fields.len() * 8];
    if vm::readv(pid, &fields, &mut words).is_err() {
        for (f, word) in fields.iter().zip(words.chunks_exact_mut(8)) {
            if vm::read(pid, f.addr, word).is_err() {
                word.fill(0);
            }
        }
    }
    let mut words = words
        .chunks_exact(8)
        .map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
    let mut of = |th: &Thread| match th.rseq.abi_pointer {
        0 => 0,
        _ => words.next().unwrap_or(0),
    };
    threads.iter().map(&mut of).collect()
}

/// The error for a task of the i386 ABI.
pub fn compat(tid: HostPid) -> Error {
    Error::new(
        "E4006",
        Blame::Container,
        format!("task {} is a 32-bit task", tid.0),
    )
    .why("its registers are those of the i386 ABI")
    .advice("32-bit tasks are not supported; run the 64-bit build of the program")
}

/// A thread stopped inside a restartable sequence must go on at the abort handler.
///
/// KERNEL: `rseq_ip_fixup()` (kernel/rseq.c) would do the same at the return to user mode, but only while the instruction pointer
/// is the one it was stopped at. Clearing the pointer also keeps a hostile sequence from catching an excursion.
fn settle_rseq(th: &mut Thread, pid: HostPid, cs: u64) -> Result<()> {
    let mut b = [0u8; 32];
    if vm::read(pid, RemotePtr(cs), &mut b).is_ok() {
        let at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("eight bytes"));
        let (start, len, abort) = (at(8), at(16), at(24));
        if th.regs.rip.wrapping_sub(start) < len {
            th.regs.rip = abort;
            th.tracee.set_regs(&th.regs)?;
        }
    }
    vm::write(pid, RemotePtr(th.rseq.abi_pointer + 8), &[0; 8])?;
    Ok(())
}

/// What only the thread itself could tell.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// sigaltstack: address, flags, size.
    pub sas: (u64, u32, u64),
    /// set_tid_address.
    pub clear_tid: u64,
    /// PR_GET_PDEATHSIG.
    pub pdeath_sig: u32,
    /// PR_GET_SECUREBITS.
    pub secbits: u32,
    /// PR_GET_TIMERSLACK, in nanoseconds.
    pub slack: Option<u64>,
    /// Where request_key(2) puts keys (KEYCTL_SET_REQKEY_KEYRING).
    pub reqkey: Option<u32>,
}

/// All that is known of a thread, for whoever writes it down: no longer bound to the tracer.
pub struct Portrait {
    tid: HostPid,
    regs: Regs,
    /// As much of the XSAVE area as is in use.
    xstate: Box<[u8]>,
    mask: u64,
    rseq: RseqConfig,
    sud: Option<SudConfig>,
    pending: Vec<[u8; 128]>,
    status: OfThread,
    told: Told,
}

impl Portrait {
    /// Of a stopped thread that was asked.
    pub fn of(th: &Thread, st: &OfThread, told: &Told, xstate: &[u8]) -> Result<Self> {
        Ok(Self {
            tid: th.tid,
            regs: th.regs,
            xstate: match more_than_format(xstate) {
                // is carried as it is
                true => xstate.into(),
                false => xstate[..xstate::in_frame(xstate).0].into(),
            },
            mask: th.mask,
            rseq: th.rseq,
            sud: th.sud,
            pending: match st.sig_pnd {
                0 => Vec::new(),
                _ => th.tracee.pending(false)?,
            },
            status: st.clone(),
            told: told.clone(),
        })
    }
    /// Not less than its bytes in memory.
    pub fn weight(&self) -> usize {
        const NAMES_AND_NUMBERS: usize = 512;
        size_of::<Self>() + self.xstate.len() + 128 * self.pending.len() + NAMES_AND_NUMBERS
    }
    /// The core entry of the thread, without the parts a leader has for its process, and without seccomp filters.
    pub fn core(self) -> Result<pb::CoreEntry> {
        let (st, told) = (&self.status, &self.told);
        let (rla, rla_len) = stasis_kernel::sched::robust_list(self.tid)?;
        let sched = stasis_kernel::sched::attr(self.tid)?;
        let tc = pb::ThreadCoreEntry {
            futex_rla: rla,
            futex_rla_len: rla_len as u32,
            sched_nice: Some(stasis_kernel::sched::nice(self.tid)?),
            sched_policy: Some(sched.policy),
            sched_prio: (sched.priority != 0).then_some(sched.priority),
            blk_sigset: Some(self.mask),
            sas: Some(pb::ThreadSasEntry {
                ss_sp: told.sas.0,
                ss_size: told.sas.2,
                ss_flags: told.sas.1,
            }),
            pdeath_sig: (told.pdeath_sig != 0).then_some(told.pdeath_sig),
            creds: Some(creds(&st.creds, told.secbits)),
            seccomp_mode: (st.seccomp.mode != 0).then_some(st.seccomp.mode as i32),
            seccomp_filter: None,
            comm: Some(st.name.to_vec()),
            rseq_entry: (self.rseq.abi_pointer != 0).then_some(pb::RseqEntry {
                rseq_abi_pointer: self.rseq.abi_pointer,
                rseq_abi_size: self.rseq.abi_size,
                signature: self.rseq.signature,
                rseq_cs_pointer: None,
            }),
            cg_set: Some(1),
            stasis: Some(self.extension(&sched)?),
            signals_p: Some(queue(self.pending)),
            ..Default::default()
        };
        Ok(pb::CoreEntry {
            mtype: pb::core_entry::March::X8664 as i32,
            thread_info: Some(pb::ThreadInfoX86 {
                clear_tid_addr: told.clear_tid,
                gpregs: gpregs(&self.regs),
                fpregs: fpregs(&self.xstate),
                tls: Vec::new(),
            }),
            thread_core: Some(tc),
            ..Default::default()
        })
    }
    /// What the CRIU format has no field for.
    fn extension(&self, sched: &stasis_kernel::sched::Attr) -> Result<pb::StasisThreadEntry> {
        let sud = self.sud.filter(|s| s.mode != 0);
        Ok(pb::StasisThreadEntry {
            timerslack_ns: self.told.slack,
            reqkey_keyring: self.told.reqkey.filter(|r| *r != 0),
            ioprio: Some(stasis_kernel::sched::ioprio(self.tid)?),
            affinity: Some(stasis_kernel::sched::affinity(self.tid)?),
            sched_flags: (sched.flags != 0).then_some(sched.flags),
            sched_runtime: (sched.runtime != 0).then_some(sched.runtime),
            sched_deadline: (sched.deadline != 0).then_some(sched.deadline),
            sched_period: (sched.period != 0).then_some(sched.period),
            sud_mode: sud.map(|s| s.mode),
            sud_selector: sud.map(|s| s.selector),
            sud_offset: sud.map(|s| s.offset),
            sud_len: sud.map(|s| s.len),
            xstate: more_than_format(&self.xstate).then(|| self.xstate.to_vec()),
        })
    }
}

/// Queued signals as an image has them.
pub fn queue(infos: Vec<[u8; 128]>) -> pb::SignalQueueEntry {
    pb::SignalQueueEntry {
        signals: infos
            .into_iter()
            .map(|i| pb::SiginfoEntry {
                siginfo: i.to_vec(),
            })
            .collect(),
    }
}

/// Users, groups and capabilities, as the engine sees them.
pub(super) fn creds(c: &Creds, secbits: u32) -> pb::CredsEntry {
    let set = |i: usize| vec![c.caps[i] as u32, (c.caps[i] >> 32) as u32];
    pb::CredsEntry {
        uid: c.uid.real,
        euid: c.uid.effective,
        suid: c.uid.saved,
        fsuid: c.uid.fs,
        gid: c.gid.real,
        egid: c.gid.effective,
        sgid: c.gid.saved,
        fsgid: c.gid.fs,
        cap_inh: set(0),
        cap_prm: set(1),
        cap_eff: set(2),
        cap_bnd: set(3),
        cap_amb: set(4),
        secbits,
        groups: c.groups.clone(),
        no_new_privs: c.no_new_privs.then_some(1),
        ..Default::default()
    }
}

fn gpregs(r: &stasis_kernel::ptrace::Regs) -> pb::UserX86RegsEntry {
    // what a restored thread does next: an interrupted call is made again
    let r = stasis_kernel::excursion::restartable(*r);
    pb::UserX86RegsEntry {
        r15: r.r15,
        r14: r.r14,
        r13: r.r13,
        r12: r.r12,
        bp: r.rbp,
        bx: r.rbx,
        r11: r.r11,
        r10: r.r10,
        r9: r.r9,
        r8: r.r8,
        ax: r.rax,
        cx: r.rcx,
        dx: r.rdx,
        si: r.rsi,
        di: r.rdi,
        orig_ax: r.orig_rax,
        ip: r.rip,
        cs: r.cs,
        flags: r.eflags,
        sp: r.rsp,
        ss: r.ss,
        fs_base: r.fs_base,
        gs_base: r.gs_base,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
        mode: Some(pb::UserX86RegsMode::Native as i32),
    }
}

fn u32s(b: &[u8]) -> Vec<u32> {
    b.chunks_exact(4)
        .map(|c| u32::from_le_bytes(c.try_into().expect("four bytes")))
        .collect()
}

fn u64s(b: &[u8]) -> Vec<u64> {
    b.chunks_exact(8)
        .map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")))
        .collect()
}

/// State components the format has fields for: x87, SSE, AVX, AVX-512 (three), PKRU.
const IN_FORMAT: u64 = 0x2e7;

fn more_than_format(x: &[u8]) -> bool {
    x.len() >= 576
        && u64::from_le_bytes(x[512..520].try_into().expect("eight bytes")) & !IN_FORMAT != 0
}

fn fpregs(x: &[u8]) -> pb::UserX86FpregsEntry {
    let h = |i: usize| u32::from(u16::from_le_bytes([x[i], x[i + 1]]));
    let part = |c| {
        xstate::place(c)
            .filter(|(o, n)| o + n <= x.len())
            .map_or(&[][..], |(o, n)| &x[o..o + n])
    };
    let xsave = (x.len() >= 576).then(|| pb::UserX86XsaveEntry {
        xstate_bv: u64::from_le_bytes(x[512..520].try_into().expect("eight bytes")) & IN_FORMAT,
        ymmh_space: u32s(part(xstate::Component::Ymm)),
        opmask_reg: u64s(part(xstate::Component::Opmask)),
        zmm_upper: u64s(part(xstate::Component::ZmmHi256)),
        hi16_zmm: u64s(part(xstate::Component::Hi16Zmm)),
        pkru: u32s(part(xstate::Component::Pkru)),
        ..Default::default()
    });
    pb::UserX86FpregsEntry {
        cwd: h(0),
        swd: h(2),
        twd: h(4),
        fop: h(6),
        rip: u64::from_le_bytes(x[8..16].try_into().expect("eight bytes")),
        rdp: u64::from_le_bytes(x[16..24].try_into().expect("eight bytes")),
        mxcsr: u32::from_le_bytes(x[24..28].try_into().expect("four bytes")),
        mxcsr_mask: u32::from_le_bytes(x[28..32].try_into().expect("four bytes")),
        st_space: u32s(&x[32..160]),
        xmm_space: u32s(&x[160..416]),
        padding: Vec::new(),
        xsave,
    }
}
