//! Dump tapes: asking a stopped task what only the task itself can be asked, without a byte of code in it.
//!
//! Problem: sigactions, timers, the alternate stack, the exact brk... have no outside view. Somebody must make the task
//! itself call the kernel, and if the engine is killed at any instruction of that, the task must go on as if nothing
//! had happened.
//!
//! Choice: the task's registers are pointed at a `syscall; ret` sequence that is already in its own text, and its stack
//! pointer at a signal frame which holds its original registers, behind the address of its own `rt_sigreturn`
//! trampoline. If the engine is gone before, between or after calls, the task runs into `ret`, into the trampoline, and
//! the kernel puts everything back: general registers, XSAVE state and signal mask. No mapping, no code, no descriptor
//! is ever added. The frame lies in dead stack: the lowest pages of the `[stack]` mapping, far under any stack pointer.
//!
//! Rows whose answer lies in memory are played by the kernel itself: a chain of signal frames, each `rt_sigreturn` loading
//! the registers of the next call. The chain ends by unblocking a signal the engine queued, which stops the task
//! for its tracer; without a tracer that signal is one that is ignored by default. Rows whose answer is only the return value are taken
//! with syscall stops.
//!
//! KERNEL: single steps are not used. `exit_ptrace()` does not call `ptrace_disable()`, so a task whose tracer dies
//! between PTRACE_SINGLESTEP and the next stop is killed by SIGTRAP. A syscall stop under PTRACE_O_TRACESYSGOOD is
//! harmless: the exit code 0x85 is no valid signal (`ptrace_report_syscall()`).
//!
//! Long because the mechanism is one: frame, chain, stops and the way home rest on each other.
//!
//! Gave up: a player page as in restore (mmap + write + munmap are three more calls, each with its own narrow spot, and
//! are refused by PR_SET_MDWE or SELinux execmem).
use crate::call::{Answer, Arg, Call, Layout};
use crate::error::SysError;
use crate::ids::{HostPid, RemotePtr};
use crate::ptrace::{Event, Regs, Tracee};
use crate::vm;
use nix::errno::Errno;
use std::sync::Arc;

/// `syscall; ret`
const CALL_RET: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov $15,%rax; syscall` as glibc, musl and Go write it
const SIGRETURN: [&[u8]; 2] = [
    &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05],
    &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05],
];
/// `mov %rax,(%rbx); pop %rbx; ret`
const STORE: &[u8] = &[0x48, 0x89, 0x03, 0x5b, 0xc3];
/// All three, for a text that has them not.
const ALL: [u8; 17] = [
    0x0f, 0x05, 0xc3, 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0x03, 0x5b, 0xc3,
];

/// Instruction sequences found in a task's own text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gadgets {
    /// Address of `syscall; ret`; 0 not found.
    pub call_ret: u64,
    /// Address of the `rt_sigreturn` trampoline; 0 not found.
    pub sigreturn: u64,
    /// Address of `mov %rax,(%rbx); pop %rbx; ret`; 0 not found, then answers that are return values cost two stops each.
    pub store: u64,
}

impl Gadgets {
    /// What is indispensable is there.
    pub fn enough(&self) -> bool {
        self.call_ret != 0 && self.sigreturn != 0
    }
    /// All are there.
    pub fn complete(&self) -> bool {
        self.enough() && self.store != 0
    }
    /// Looks through `text`, which lies at `base`, for what is still missing.
    pub fn search(&mut self, base: u64, text: &[u8]) {
        let find = |n: &[u8]| memchr::memmem::find(text, n).map(|o| base + o as u64);
        if self.call_ret == 0 {
            self.call_ret = find(CALL_RET).unwrap_or(0);
        }
        if self.sigreturn == 0 {
            self.sigreturn = SIGRETURN.iter().find_map(|n| find(n)).unwrap_or(0);
        }
        if self.store == 0 {
            self.store = find(STORE).unwrap_or(0);
        }
    }
    /// Are the sequences that were found (still) there in this task? The target may change its text at any time.
    pub fn verify(&self, pid: i32) -> bool {
        const LEN: usize = 9;
        let wanted: [(u64, &[&[u8]]); 3] = [
            (self.call_ret, &[CALL_RET]),
            (self.sigreturn, &SIGRETURN),
            (self.store, &[STORE]),
        ];
        let found: Vec<_> = wanted.iter().filter(|w| w.0 != 0).collect();
        let ranges: Vec<_> = found
            .iter()
            .map(|w| vm::RemoteRange {
                addr: RemotePtr(w.0),
                len: LEN,
            })
            .collect();
        let mut b = vec![0u8; ranges.len() * LEN];
        vm::readv(HostPid(pid), &ranges, &mut b).is_ok()
            && found
                .iter()
                .zip(b.chunks(LEN))
                .all(|(w, b)| w.1.iter().any(|s| b.starts_with(s)))
    }
    /// Writes all sequences into 17 unused bytes of executable text (the zero padding behind the vDSO image).
    /// The caller puts the old bytes back with [`Gadgets::unplant`].
    pub fn plant(mem: &vm::Mem, at: u64) -> Result<Self, SysError> {
        mem.write(RemotePtr(at), &ALL)?;
        Ok(Self {
            call_ret: at,
            sigreturn: at + 3,
            store: at + 12,
        })
    }
    /// Zeroes what [`Gadgets::plant`] wrote.
    pub fn unplant(mem: &vm::Mem, at: u64) -> Result<(), SysError> {
        mem.write(RemotePtr(at), &[0; ALL.len()])
    }
    /// How many bytes [`Gadgets::plant`] needs.
    pub const PLANT_LEN: usize = ALL.len();
}

/// Dead stack memory that an excursion may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadStack {
    /// Lowest address, 64-byte aligned.
    pub start: u64,
    /// Length in bytes.
    pub len: usize,
}

/// Space for answers and arguments of one tape.
pub const DATA_LEN: usize = 8192;
/// Space for the signal frame: ucontext and the XSAVE area (AMX included).
pub const FRAME_LEN: usize = 16384;
/// The least that [`DeadStack`] must offer; what is beyond it holds chains.
pub const NEED: usize = DATA_LEN + FRAME_LEN;
/// Bytes of one link of a chain: two addresses, a word for `pop`, and a ucontext.
pub(crate) const LINK_LEN: usize = 24 + 304;

/// The answers of a tape: return value and out arguments of every row.
#[derive(Debug)]
pub struct Answers {
    pub(crate) rets: Vec<u64>,
    pub(crate) outs: Vec<Answer>,
    pub(crate) data: Vec<u8>,
}

impl Answers {
    /// Return value of row `i`.
    pub fn ret(&self, i: usize) -> u64 {
        self.rets[i]
    }
    /// Bytes of the out argument `arg` of row `i`.
    pub fn out(&self, i: usize, arg: usize) -> &[u8] {
        let a = self
            .outs
            .iter()
            .find(|a| a.row == i && a.arg == arg)
            .expect("row and argument of the same tape");
        &self.data[a.offset..a.offset + a.len]
    }
    /// The little-endian words of an out argument.
    pub fn words(&self, i: usize, arg: usize) -> Vec<u64> {
        self.out(i, arg)
            .chunks_exact(8)
            .map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")))
            .collect()
    }
}

/// A stopped thread away on an excursion. End it with [`Excursion::finish`]; if it is dropped instead (engine error or
/// death), the frame leads the thread back as soon as it is detached.
pub struct Excursion<'a> {
    t: &'a Tracee,
    tgid: i32,
    away: Away,
    dead: DeadStack,
    saved: Vec<(u64, Vec<u8>)>,
    ret_slot: u64,
    chained: bool,
}

/// What a thread is to be when it is back, and how it gets there.
#[derive(Clone)]
pub struct Away {
    /// General registers at the stop.
    pub regs: Regs,
    /// Blocked signals.
    pub mask: u64,
    /// XSAVE area.
    pub xstate: Arc<[u8]>,
    /// The task's own instruction sequences.
    pub gadgets: Gadgets,
    /// A signal that is neither caught nor pending in the task, or at least harmless (SIGURG, SIGWINCH); `None`: no chains.
    pub end_signal: Option<i32>,
    /// That signal has no handler, so delivering it once more is not seen.
    pub end_is_silent: bool,
    /// Its own seccomp rules would harm the thread for a call of the tape, were they not suspended: no chains, and each call
    /// is made out of an `rt_sigreturn`.
    pub guarded: bool,
}

/// What a syscall that was interrupted needs so that it restarts when `rt_sigreturn` brings the thread back.
///
/// KERNEL: `arch_do_signal_or_restart()` (arch/x86/kernel/signal.c) turns -ERESTART* into a restart only while
/// `orig_rax` still names the call; `rt_sigreturn` wipes that and the restart block, so the frame repeats the call.
///
/// Story of a sleeper in `restart_syscall`: 1. nanosleep is interrupted by a stop and goes on as `restart_syscall`; 2. it is
/// interrupted again, on an excursion, and the engine dies there; 3. the frame brings it back, but the restart block is gone and
/// nothing tells which call it was: it ends with EINTR, its remaining time written, as after a signal.
pub fn restartable(mut r: Regs) -> Regs {
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOINTR: i64 = -513;
    const ERESTARTNOHAND: i64 = -514;
    if (r.orig_rax as i64) >= 0
        && matches!(
            r.rax as i64,
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK
        )
    {
        r.rax = r.orig_rax;
        r.rip -= 2;
    }
    r.orig_rax = u64::MAX;
    r
}

/// `-ERESTART_RESTARTBLOCK`: the call goes on from a restart block (nanosleep, poll, futex with a timeout), which
/// `rt_sigreturn` would throw away.
pub const ERESTART_RESTARTBLOCK: i64 = -516;

/// Where a signal frame has its XSAVE area.
#[derive(Clone, Copy)]
pub enum Fp<'a> {
    /// It has none: the kernel resets the state.
    None,
    /// Behind it, at the next 64-byte boundary.
    Here(&'a [u8]),
    /// In another frame, at this address.
    At(u64),
}

/// Builds `struct rt_sigframe` from its ucontext on (arch/x86/include/asm/sigframe.h) for address `at`.
pub fn signal_frame(at: u64, r: &Regs, mask: u64, xstate: Fp) -> Vec<u8> {
    const UC_FP_XSTATE: u64 = 1;
    const UC_SIGCONTEXT_SS: u64 = 2;
    const UC_STRICT_RESTORE_SS: u64 = 4;
    const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
    const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
    let fp = match xstate {
        Fp::None => 0,
        Fp::Here(_) => (at + 304).next_multiple_of(64),
        Fp::At(a) => a,
    };
    let mut b = Vec::with_capacity(304);
    let w = |b: &mut Vec<u8>, v: u64| b.extend_from_slice(&v.to_le_bytes());
    w(
        &mut b,
        if fp != 0 { UC_FP_XSTATE } else { 0 } | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
    );
    w(&mut b, 0);
    // uc_stack with flags the kernel refuses, so that it keeps the alternate stack as it is
    // KERNEL: restore_altstack() squashes EINVAL (kernel/signal.c)
    w(&mut b, 0);
    w(&mut b, 0x7fff_ffff);
    w(&mut b, 0);
    for v in [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx,
        r.rax, r.rcx, r.rsp, r.rip, r.eflags,
    ] {
        w(&mut b, v);
    }
    w(
        &mut b,
        (r.cs & 0xffff) | (r.gs & 0xffff) << 16 | (r.fs & 0xffff) << 32 | (r.ss & 0xffff) << 48,
    );
    w(&mut b, 0); // err
    w(&mut b, 0); // trapno
    w(&mut b, 0); // oldmask
    w(&mut b, 0); // cr2
    // without an XSAVE area the kernel resets the state, which the last frame brings back
    w(&mut b, fp);
    for _ in 0..8 {
        w(&mut b, 0);
    }
    w(&mut b, mask);
    debug_assert_eq!(b.len(), 304);
    let Fp::Here(xstate) = xstate else { return b };
    b.resize((fp - at) as usize, 0);
    let x0 = b.len();
    let (len, features) = crate::xstate::in_frame(xstate);
    b.extend_from_slice(&xstate[..len]);
    if xstate.len() >= 576 {
        // KERNEL: sw_reserved of struct fxregs_state tells that an XSAVE area follows
        let n = len as u32;
        let s = x0 + 464;
        b[s..s + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
        b[s + 4..s + 8].copy_from_slice(&(n + 4).to_le_bytes());
        b[s + 8..s + 16].copy_from_slice(&features.to_le_bytes());
        b[s + 16..s + 20].copy_from_slice(&n.to_le_bytes());
        b.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    }
    b
}

impl<'a> Excursion<'a> {
    /// Takes a stopped thread out.
    ///
    /// Order matters, see the module text: the frame is written first, then registers lead to it, then signals are blocked.
    pub fn begin(t: &'a Tracee, tgid: i32, away: Away, dead: DeadStack) -> Result<Self, SysError> {
        if dead.len < NEED {
            return Err(SysError::new(
                "excursion",
                Errno::ENOSPC,
                format!(
                    "task {tgid}: {} bytes of dead stack, {NEED} needed",
                    dead.len
                ),
            ));
        }
        let ret_slot = dead.start + DATA_LEN as u64 + 56;
        let frame_at = ret_slot + 8;
        let mut b = away.gadgets.sigreturn.to_le_bytes().to_vec();
        b.extend_from_slice(&signal_frame(
            frame_at,
            &restartable(away.regs),
            away.mask,
            Fp::Here(&away.xstate),
        ));
        if b.len() > FRAME_LEN - 64 {
            return Err(SysError::new(
                "excursion",
                Errno::E2BIG,
                format!("task {tgid}: XSAVE area of {} bytes", away.xstate.len()),
            ));
        }
        let mut e = Self {
            t,
            tgid,
            away,
            dead,
            saved: Vec::new(),
            ret_slot,
            chained: false,
        };
        e.write(ret_slot, &b)?;
        e.hold()?;
        t.set_sigmask(u64::MAX)?;
        Ok(e)
    }
    /// Writes to dead stack; what was there comes back at the end.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), SysError> {
        let end = at + bytes.len() as u64;
        let known = |(a, b): &(u64, Vec<u8>)| *a <= at && end <= *a + b.len() as u64;
        if !self.saved.iter().any(known) {
            let mut old = vec![0u8; bytes.len()];
            vm::read(HostPid(self.tgid), RemotePtr(at), &mut old)?;
            self.saved.push((at, old));
        }
        vm::write(HostPid(self.tgid), RemotePtr(at), bytes)
    }
    /// Registers that lead straight back.
    fn hold(&self) -> Result<(), SysError> {
        let mut r = self.base_regs();
        r.rip = self.away.gadgets.sigreturn;
        r.rsp = self.ret_slot + 8;
        self.t.set_regs(&r)
    }
    fn base_regs(&self) -> Regs {
        let mut r = self.away.regs;
        r.orig_rax = u64::MAX;
        // the trap and direction flags must not disturb the way back
        r.eflags &= !0x500;
        r
    }
    /// Plays a tape that may not be left in the middle: it is one chain, which goes through to its end with or without the
    /// engine. `None`, and nothing is played, where that cannot be.
    pub fn play_unbroken(&mut self, tape: &[Call]) -> Result<Option<Answers>, SysError> {
        let restart_block = self.away.regs.orig_rax as i64 >= 0
            && self.away.regs.rax as i64 == ERESTART_RESTARTBLOCK;
        let links = (self.dead.len - NEED) / LINK_LEN;
        let can = !restart_block
            && !self.away.guarded
            && self.away.end_signal.is_some()
            && self.away.gadgets.store != 0
            && tape.len() < links
            && !tape
                .iter()
                .any(|c| c.args.iter().any(|a| matches!(a, Arg::Ret(_))));
        match can {
            true => self.play(tape).map(Some),
            false => Ok(None),
        }
    }
    /// Plays a tape: as a chain of frames where that is possible, else call by call. The answers are the same.
    pub fn play(&mut self, tape: &[Call]) -> Result<Answers, SysError> {
        let mut lay = Layout::new(self.dead.start);
        let (rows, outs) = lay.dump_tape(tape);
        let rets_at = lay.put(&vec![0xee; tape.len() * 8]);
        if lay.data.len() > DATA_LEN {
            return Err(SysError::new(
                "excursion",
                Errno::E2BIG,
                format!("a tape with {} bytes of data", lay.data.len()),
            ));
        }
        let data = std::mem::take(&mut lay.data);
        self.write(self.dead.start, &data)?;
        let restart_block = self.away.regs.orig_rax as i64 >= 0
            && self.away.regs.rax as i64 == ERESTART_RESTARTBLOCK;
        let links = (self.dead.len - NEED) / LINK_LEN;
        let chains =
            !restart_block && !self.away.guarded && self.away.end_signal.is_some() && links >= 2;
        let store = self.away.gadgets.store != 0;
        let refers = |c: &Call| c.args.iter().any(|a| matches!(a, Arg::Ret(_)));
        let in_memory = |c: &Call| c.args.iter().any(|a| matches!(a, Arg::Out(_)));
        let (chained, stepped): (Vec<usize>, Vec<usize>) = (0..tape.len())
            .partition(|i| chains && (store || in_memory(&tape[*i])) && !refers(&tape[*i]));
        for part in chained.chunks(links.max(2) - 1) {
            let part: Vec<_> = part
                .iter()
                .map(|i| {
                    (
                        tape[*i].nr,
                        rows[*i],
                        store.then_some(rets_at + *i as u64 * 8),
                    )
                })
                .collect();
            self.chain(&part)?;
        }
        let mut rets = vec![0u64; tape.len()];
        let mut data = data;
        let rets_from = lay.offset(rets_at);
        let word = |d: &[u8], i: usize| {
            let at = rets_from + i * 8;
            u64::from_le_bytes(d[at..at + 8].try_into().expect("eight bytes"))
        };
        if !chained.is_empty() {
            vm::read(HostPid(self.tgid), RemotePtr(self.dead.start), &mut data)?;
            if store {
                chained.iter().for_each(|i| rets[*i] = word(&data, *i));
            }
        }
        for i in &stepped {
            let mut w = rows[*i];
            for (k, a) in tape[*i].args.iter().enumerate() {
                if let Arg::Ret(j) = a {
                    w[k] = rets[*j];
                }
            }
            rets[*i] = self.one(tape[*i].nr, w)?;
        }
        if let Some(i) = (0..tape.len()).find(|i| !tape[*i].accepts(rets[*i])) {
            return Err(refused(self.t.tid, &tape[i], rets[i]));
        }
        if !stepped.is_empty() {
            vm::read(HostPid(self.tgid), RemotePtr(self.dead.start), &mut data)?;
        }
        Ok(Answers { rets, outs, data })
    }
    /// Lets the kernel play calls from a chain of signal frames. Each has the address its return value is stored at.
    fn chain(&mut self, calls: &[(i64, [u64; 6], Option<u64>)]) -> Result<(), SysError> {
        const SYS_GETPID: i64 = 39;
        let sig = self.away.end_signal.expect("checked by play");
        let base = self.dead.start + NEED as u64;
        let g = self.away.gadgets;
        let mut b = Vec::with_capacity((calls.len() + 1) * LINK_LEN);
        let mut stores = false;
        let mut link = |nr: i64, w: [u64; 6], mask: u64, store: Option<u64>, last: bool| {
            // a link begins with what the `ret` of the call before finds: the storing sequence and a word for its `pop`, if
            // that call's answer is kept; then the trampoline, which loads the frame behind it
            if stores {
                b.extend_from_slice(&g.store.to_le_bytes());
                b.extend_from_slice(&[0; 8]);
            }
            b.extend_from_slice(&g.sigreturn.to_le_bytes());
            let at = base + b.len() as u64;
            let mut r = self.base_regs();
            (r.rax, r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9) =
                (nr as u64, w[0], w[1], w[2], w[3], w[4], w[5]);
            if let Some(s) = store {
                r.rbx = s;
            }
            stores = store.is_some();
            r.rip = g.call_ret;
            r.rsp = if last { self.ret_slot } else { at + 304 };
            b.extend_from_slice(&signal_frame(at, &r, mask, Fp::None));
            r.rsp
        };
        for (nr, w, store) in calls {
            link(*nr, *w, u64::MAX, *store, false);
        }
        let end = link(SYS_GETPID, [0; 6], !(1u64 << (sig - 1)), None, true);
        self.write(base, &b)?;
        let mut r = self.base_regs();
        r.rip = g.sigreturn;
        r.rsp = base + 8;
        self.chained = true;
        self.t.set_regs(&r)?;
        self.run_to(sig, end)?;
        self.t.set_sigmask(u64::MAX)
    }
    /// Plays `before`, lets `during` look at the task as it is then, and plays `after`, which takes back what `before` did.
    /// Answers are not kept.
    ///
    /// Where that can be it is one chain with a halt in the middle: an engine lost at the halt, or anywhere, leaves a task that
    /// goes on through `after` by itself. Where it cannot be (a guarded thread, no free signal) the rows are played one by one,
    /// and an engine lost between them leaves what `before` did.
    pub fn around<R>(
        &mut self,
        before: &[Call],
        during: impl FnOnce() -> R,
        after: &[Call],
    ) -> Result<R, SysError> {
        let mut lay = Layout::new(self.dead.start);
        let mut words = |calls: &[Call]| -> Vec<(i64, [u64; 6])> {
            let row = |c: &Call| {
                let mut w = [0u64; 6];
                for (k, a) in c.args.iter().enumerate() {
                    w[k] = lay.arg(a, &|f| unreachable!("file#{} in a dump tape", f.0));
                }
                (c.nr, w)
            };
            calls.iter().map(row).collect()
        };
        let (before, after) = (words(before), words(after));
        if lay.data.len() > DATA_LEN {
            return Err(SysError::new("tape", Errno::E2BIG, "data of its rows"));
        }
        if !lay.data.is_empty() {
            self.write(self.dead.start, &lay.data)?;
        }
        let restart_block = self.away.regs.orig_rax as i64 >= 0
            && self.away.regs.rax as i64 == ERESTART_RESTARTBLOCK;
        let links = (self.dead.len - NEED) / LINK_LEN;
        let sig = match self.away.end_signal {
            Some(s)
                if !restart_block
                    && !self.away.guarded
                    && links >= before.len() + after.len() + 2 =>
            {
                s
            }
            _ => {
                for (nr, w) in &before {
                    self.one(*nr, *w)?;
                }
                let r = during();
                for (nr, w) in &after {
                    self.one(*nr, *w)?;
                }
                return Ok(r);
            }
        };
        const SYS_GETPID: i64 = 39;
        let base = self.dead.start + NEED as u64;
        let open = !(1u64 << (sig - 1));
        let mut chain: Vec<(i64, [u64; 6], u64)> = Vec::new();
        chain.extend(before.iter().map(|(nr, w)| (*nr, *w, u64::MAX)));
        let halt = chain.len();
        chain.push((SYS_GETPID, [0; 6], open));
        chain.extend(after.iter().map(|(nr, w)| (*nr, *w, u64::MAX)));
        chain.push((SYS_GETPID, [0; 6], open));
        let mut b = Vec::with_capacity(chain.len() * LINK_LEN);
        let mut stacks = Vec::new();
        for (i, (nr, w, mask)) in chain.iter().enumerate() {
            b.extend_from_slice(&self.away.gadgets.sigreturn.to_le_bytes());
            let at = base + b.len() as u64;
            let mut r = self.base_regs();
            (r.rax, r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9) =
                (*nr as u64, w[0], w[1], w[2], w[3], w[4], w[5]);
            r.rip = self.away.gadgets.call_ret;
            r.rsp = match i + 1 == chain.len() {
                true => self.ret_slot,
                false => at + 304,
            };
            b.extend_from_slice(&signal_frame(at, &r, *mask, Fp::None));
            stacks.push(r.rsp);
        }
        self.write(base, &b)?;
        let mut r = self.base_regs();
        r.rip = self.away.gadgets.sigreturn;
        r.rsp = base + 8;
        self.chained = true;
        self.t.set_regs(&r)?;
        self.run_to(sig, stacks[halt])?;
        let r = during();
        self.t.set_sigmask(u64::MAX)?;
        self.run_to(sig, stacks[chain.len() - 1])?;
        self.t.set_sigmask(u64::MAX)?;
        Ok(r)
    }
    /// Lets a chain go on until the signal that ends it (or its first half) stops the task.
    fn run_to(&self, sig: i32, stack: u64) -> Result<(), SysError> {
        crate::ptrace::tgkill(self.tgid, self.t.tid, sig)?;
        self.t.cont(0)?;
        loop {
            match self.t.wait(true)? {
                Event::Signal(s) if s == sig => break,
                Event::Interrupted | Event::GroupStop(_) | Event::Other(_) | Event::Syscall => {
                    self.t.cont(0)?
                }
                e => return Err(astray(self.t.tid, e)),
            }
        }
        let r = self.t.regs()?;
        if r.rip != self.away.gadgets.call_ret || r.rsp != stack {
            return Err(off_track(self.t.tid, r.rip));
        }
        // KERNEL: a signal stop whose tracer dies delivers the signal, requeued if it is blocked. Where that would be seen, this
        // stop is left at once: the call of the last link runs with syscall stops
        if !self.away.end_is_silent || self.away.mask & 1 << (sig - 1) != 0 {
            self.stops(None)?;
        }
        Ok(())
    }
    /// From a stop before a `syscall` instruction to the stop after it.
    fn stops(&self, regs: Option<&Regs>) -> Result<(), SysError> {
        if let Some(r) = regs {
            self.t.set_regs(r)?;
        }
        stop(self.t)?;
        stop(self.t)
    }
    /// The way of a guarded thread. Numbered story of what a lost engine leaves:
    /// 1. The thread is sent into `rt_sigreturn` itself, with its own frame: lost here, it is back, and every seccomp mode lets
    ///    it (strict mode, too).
    /// 2. At the entry stop the call's number is exchanged for the wanted one, and the thread goes on: two ptrace calls, about
    ///    one microsecond. Lost exactly here, the thread meets its rules with a call they punish. This is the one place of a
    ///    dump that is not safe; the kernel has no way to make a call exempt from seccomp other than by a living tracer.
    /// 3. At the exit stop the rules are behind it; lost here, it returns through its frame.
    fn guarded(&self, nr: i64, w: [u64; 6]) -> Result<(), SysError> {
        let mut home = self.base_regs();
        home.rax = libc::SYS_rt_sigreturn as u64;
        home.rip = self.away.gadgets.call_ret;
        home.rsp = self.ret_slot + 8;
        self.t.set_regs(&home)?;
        stop(self.t)?;
        let mut r = self.t.regs()?;
        r.orig_rax = nr as u64;
        (r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9) = (w[0], w[1], w[2], w[3], w[4], w[5]);
        r.rsp = self.ret_slot;
        self.t.set_regs(&r)?;
        stop(self.t)
    }
    fn one(&self, nr: i64, w: [u64; 6]) -> Result<u64, SysError> {
        if self.away.guarded {
            self.guarded(nr, w)?;
            return self.returned();
        }
        let mut r = self.base_regs();
        (r.rax, r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9) =
            (nr as u64, w[0], w[1], w[2], w[3], w[4], w[5]);
        r.rip = self.away.gadgets.call_ret;
        r.rsp = self.ret_slot;
        self.stops(Some(&r))?;
        self.returned()
    }
    /// The answer of the call just made.
    fn returned(&self) -> Result<u64, SysError> {
        let r = self.t.regs()?;
        if r.rip != self.away.gadgets.call_ret + 2 {
            return Err(off_track(self.t.tid, r.rip));
        }
        Ok(r.rax)
    }
    /// Brings the thread back: XSAVE state, signal mask, registers, and the bytes of dead stack.
    ///
    /// KERNEL: a detached or orphaned tracee passes through `get_signal()` (`__ptrace_unlink()` wakes it with
    /// TIF_SIGPENDING), where an interrupted call restarts by `orig_rax`.
    pub fn finish(self) -> Result<(), SysError> {
        let mut regs = self.away.regs;
        if self.chained {
            self.t.set_xstate(&self.away.xstate)?;
            if regs.orig_rax as i64 >= 0 && regs.rax as i64 == ERESTART_RESTARTBLOCK {
                regs = restartable(regs);
            }
        }
        self.t.set_sigmask(self.away.mask)?;
        self.t.set_regs(&regs)?;
        // the oldest copy of a byte is the original
        for (at, old) in self.saved.iter().rev() {
            vm::write(HostPid(self.tgid), RemotePtr(*at), old)?;
        }
        Ok(())
    }
}

/// To the next entry or exit of a call.
pub(crate) fn stop(t: &Tracee) -> Result<(), SysError> {
    t.syscall()?;
    loop {
        match t.wait(true)? {
            Event::Syscall => return Ok(()),
            // a group stop or interrupt that was under way
            Event::Interrupted | Event::GroupStop(_) | Event::Other(_) => t.syscall()?,
            e => return Err(astray(t.tid, e)),
        }
    }
}

/// A row was not answered as it must be.
pub(crate) fn refused(tid: i32, c: &Call, ret: u64) -> SysError {
    SysError::new(
        "excursion",
        Errno::from_raw(-(ret as i64) as i32),
        format!("task {tid}: {}", c.with_answer(ret)),
    )
}

pub(crate) fn off_track(tid: i32, rip: u64) -> SysError {
    SysError::new(
        "excursion",
        Errno::EFAULT,
        format!("task {tid} left its track: instruction pointer {rip:#x}"),
    )
}

pub(crate) fn astray(tid: i32, e: Event) -> SysError {
    match e {
        Event::Gone(_) => {
            SysError::new("excursion", Errno::ESRCH, format!("task {tid} was killed"))
        }
        Event::Signal(s) => SysError::new(
            "excursion",
            Errno::EINTR,
            format!(
                "task {tid}: {} while all signals are blocked",
                crate::names::signal(s)
            ),
        ),
        e => SysError::new(
            "excursion",
            Errno::EPROTO,
            format!("task {tid}: unexpected {e:?}"),
        ),
    }
}
