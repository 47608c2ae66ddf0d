//! Excursions of many threads at once, as one chain of signal frames each (see [`crate::excursion`]).
//!
//! An [`Excursion`](crate::excursion::Excursion) goes out and comes back before the next begins; every one of them costs the engine
//! two waits for another processor. A flight sends several threads out and looks only at the end who is back: the kernel plays the
//! chains meanwhile, on whatever processor is free. It is for tapes that fit one chain; whoever cannot fly walks.
//!
//! Life and death are those of an excursion: memory is written first, then registers lead into the chain, then signals are
//! blocked, then the signal that ends it is queued. Each chain ends before the call whose `ret` leads home, so a lost engine
//! leaves threads that come home by themselves.
use crate::call::{Answer, Arg, Call, Layout};
use crate::error::SysError;
use crate::excursion::{Answers, Away, Fp, restartable, signal_frame};
use crate::excursion::{DeadStack, ERESTART_RESTARTBLOCK, Gadgets};
use crate::ids::{HostPid, RemotePtr};
use crate::ptrace::{Event, Regs, Tracee};
use crate::vm;
use nix::errno::Errno;
use std::iter::Peekable;
use std::rc::Rc;

/// A thread, what it is to be when it is back, and its tape.
pub type Traveller<'a> = (&'a Tracee, Away, Rc<[Call]>);

/// One thread of a flight.
struct Leg<'a> {
    t: &'a Tracee,
    away: Away,
    tape: Rc<[Call]>,
    outs: Vec<Answer>,
    /// Offset of the return values in the data.
    rets: usize,
    /// Where its data lie in the flight's memory, and how long they are.
    data: (usize, usize),
    /// First stack pointer, and the one at the end.
    stack: (u64, u64),
}

/// Threads of one process that are out, each with a tape of its own. End it with [`Flight::land`].
pub struct Flight<'a> {
    tgid: i32,
    /// First address of the dead stack in use.
    at: u64,
    /// What was there before.
    old: Vec<u8>,
    legs: Vec<Leg<'a>>,
}

/// Whether a thread can fly: it has all sequences, a signal to end with, no rules of its own that would harm it, and no
/// restart block, which an `rt_sigreturn` throws away.
pub fn can(
    regs: &Regs,
    gadgets: Gadgets,
    end_signal: Option<i32>,
    guarded: bool,
    tape: &[Call],
) -> bool {
    let restart_block = regs.orig_rax as i64 >= 0 && regs.rax as i64 == ERESTART_RESTARTBLOCK;
    let refers = |c: &Call| c.args.iter().any(|a| matches!(a, Arg::Ret(_)));
    gadgets.complete()
        && end_signal.is_some()
        && !guarded
        && !restart_block
        && !tape.iter().any(refers)
}

impl<'a> Flight<'a> {
    /// Makes ready as many of these threads as the dead stack has room for, at least one; gives how many. All must be able to
    /// ([`can`]).
    fn pack(
        tgid: i32,
        threads: &mut Peekable<impl Iterator<Item = Traveller<'a>>>,
        dead: DeadStack,
    ) -> Result<(Self, Vec<u8>), SysError> {
        let mut image = Vec::new();
        let mut legs = Vec::new();
        while let Some((_, away, tape)) = threads.peek() {
            let before = image.len();
            let leg = compose(dead.start, &mut image, away, tape);
            if image.len() > dead.len {
                image.truncate(before);
                if legs.is_empty() {
                    return Err(SysError::new(
                        "flight",
                        Errno::E2BIG,
                        format!("task {tgid}: {} bytes of dead stack", dead.len),
                    ));
                }
                break;
            }
            if let Some((t, away, tape)) = threads.next() {
                let (outs, rets, data, stack) = leg;
                legs.push(Leg {
                    t,
                    away,
                    tape,
                    outs,
                    rets,
                    data,
                    stack,
                });
            }
        }
        let flight = Self {
            tgid,
            at: dead.start,
            old: Vec::new(),
            legs,
        };
        Ok((flight, image))
    }
    /// Sends threads out, as many as the dead stack has room for at once; the rest stay in `threads`. All must be able to
    /// ([`can`]), and must stand still.
    ///
    /// # Errors
    /// E2BIG: not even one has room. What the kernel refused: those that are out come home by themselves when they are let go.
    pub fn start(
        tgid: i32,
        threads: &mut Peekable<impl Iterator<Item = Traveller<'a>>>,
        dead: DeadStack,
    ) -> Result<Self, SysError> {
        let (mut f, image) = Self::pack(tgid, threads, dead)?;
        f.old = vec![0; image.len()];
        vm::read(HostPid(tgid), RemotePtr(f.at), &mut f.old)?;
        vm::write(HostPid(tgid), RemotePtr(f.at), &image)?;
        for l in &f.legs {
            let sig = l.away.end_signal.unwrap_or(libc::SIGURG);
            let mut r = base(&l.away);
            r.rip = l.away.gadgets.sigreturn;
            r.rsp = l.stack.0;
            l.t.set_regs(&r)?;
            l.t.set_sigmask(u64::MAX)?;
            crate::ptrace::tgkill(tgid, l.t.tid, sig)?;
            l.t.cont(0)?;
        }
        Ok(f)
    }
    /// Waits for all, brings them back, and gives their answers in the order they were sent.
    ///
    /// # Errors
    /// A thread that left its track or was killed; a row whose answer is not accepted (all threads are back then).
    pub fn land(self) -> Result<Vec<Answers>, SysError> {
        for l in &self.legs {
            let sig = l.away.end_signal.unwrap_or(libc::SIGURG);
            loop {
                match l.t.wait(true)? {
                    Event::Signal(s) if s == sig => break,
                    Event::Interrupted | Event::GroupStop(_) | Event::Other(_) | Event::Syscall => {
                        l.t.cont(0)?
                    }
                    e => return Err(crate::excursion::astray(l.t.tid, e)),
                }
            }
            let r = l.t.regs()?;
            if r.rip != l.away.gadgets.call_ret || r.rsp != l.stack.1 {
                return Err(crate::excursion::off_track(l.t.tid, r.rip));
            }
            // KERNEL: a signal stop whose tracer dies delivers the signal, requeued if it is blocked. Where that would be seen,
            // this stop is left at once: the call of the last link runs with syscall stops
            if !l.away.end_is_silent || l.away.mask & 1 << (sig - 1) != 0 {
                crate::excursion::stop(l.t)?;
                crate::excursion::stop(l.t)?;
            }
        }
        let mut memory = vec![0; self.old.len()];
        vm::read(HostPid(self.tgid), RemotePtr(self.at), &mut memory)?;
        for l in &self.legs {
            // the last frame has brought the XSAVE area back already
            l.t.set_sigmask(l.away.mask)?;
            l.t.set_regs(&l.away.regs)?;
        }
        vm::write(HostPid(self.tgid), RemotePtr(self.at), &self.old)?;
        let mut all = Vec::with_capacity(self.legs.len());
        for l in self.legs {
            let data = memory[l.data.0..l.data.0 + l.data.1].to_vec();
            let word = |i: usize| {
                let at = l.rets + i * 8;
                u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"))
            };
            let rets: Vec<u64> = (0..l.tape.len()).map(word).collect();
            if let Some(i) = (0..rets.len()).find(|i| !l.tape[*i].accepts(rets[*i])) {
                return Err(crate::excursion::refused(l.t.tid, &l.tape[i], rets[i]));
            }
            all.push(Answers {
                rets,
                outs: l.outs,
                data,
            });
        }
        Ok(all)
    }
}

/// Registers that disturb nothing on the way.
fn base(away: &Away) -> Regs {
    let mut r = away.regs;
    r.orig_rax = u64::MAX;
    // the trap and direction flags must not disturb the way back
    r.eflags &= !0x500;
    r
}

type Composed = (Vec<Answer>, usize, (usize, usize), (u64, u64));

/// Appends what one thread needs to the flight's memory: data, the frame that leads home, and the chain.
fn compose(start: u64, image: &mut Vec<u8>, away: &Away, tape: &[Call]) -> Composed {
    const SYS_GETPID: i64 = 39;
    let sig = away.end_signal.unwrap_or(libc::SIGURG);
    let g = away.gadgets;
    image.resize(image.len().next_multiple_of(64), 0);
    let from = image.len();
    let mut lay = Layout::new(start + from as u64);
    let (rows, outs) = lay.dump_tape(tape);
    let rets_at = lay.put(&vec![0xee; tape.len() * 8]);
    let rets = lay.offset(rets_at);
    let data = (from, lay.data.len());
    image.append(&mut lay.data);
    // the way home: what the last `ret` finds, and the frame behind it
    image.resize((image.len() + 8).next_multiple_of(64) - 8, 0);
    let ret_slot = start + image.len() as u64;
    image.extend_from_slice(&g.sigreturn.to_le_bytes());
    let home = signal_frame(
        ret_slot + 8,
        &restartable(away.regs),
        away.mask,
        Fp::Here(&away.xstate),
    );
    image.extend_from_slice(&home);
    let xstate_at = (ret_slot + 8 + 304).next_multiple_of(64);
    image.resize(image.len().next_multiple_of(16), 0);
    let first = start + image.len() as u64 + 8;
    let mut stores = false;
    let mut last = 0;
    let calls = tape.iter().zip(&rows).map(Some).chain([None]);
    for (i, call) in calls.enumerate() {
        // a link begins with what the `ret` of the call before finds: the storing sequence and a word for its `pop`; then the
        // trampoline, which loads the frame behind it
        if stores {
            image.extend_from_slice(&g.store.to_le_bytes());
            image.extend_from_slice(&[0; 8]);
        }
        image.extend_from_slice(&g.sigreturn.to_le_bytes());
        let at = start + image.len() as u64;
        let mut r = base(away);
        r.rip = g.call_ret;
        let frame = match call {
            Some((c, w)) => {
                (r.rax, r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9) =
                    (c.nr as u64, w[0], w[1], w[2], w[3], w[4], w[5]);
                r.rbx = rets_at + i as u64 * 8;
                r.rsp = at + 304;
                stores = true;
                signal_frame(at, &r, u64::MAX, Fp::None)
            }
            None => {
                r.rax = SYS_GETPID as u64;
                r.rsp = ret_slot;
                last = ret_slot;
                signal_frame(at, &r, !(1u64 << (sig - 1)), Fp::At(xstate_at))
            }
        };
        image.extend_from_slice(&frame);
    }
    (outs, rets, data, (first, last))
}
