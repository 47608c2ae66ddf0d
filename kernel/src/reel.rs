//! Restore tapes: one shared memory that all tasks of the tree and the engine see, with a tiny player in its first page.
//!
//! A restored task begins as a *stub*: an address space that holds nothing but this memory, mapped at the same address
//! everywhere, in a hole no task of the tree uses. Each thread waits at a futex in its *slot*. The engine writes a
//! tape (rows of system calls) behind the slots, sets the slot going, and waits for all players at once. There is no
//! engine code in the tasks and no barrier between them: a phase is a `for` loop in the engine.
//!
//! Layout: page 0 player text (read, execute); page 1 the counter of players at work; from page 2 the slots, 64 bytes each;
//! behind them tapes, from the start again in every [`Reel::play`].
//!
//! Long because player, layout and engine side must agree byte for byte.
//!
//! Life and death: the first task is seized with `PTRACE_O_EXITKILL`. Every child sets `PR_SET_PDEATHSIG` first of
//! all and checks that its parent is still there, so a lost engine takes the whole unfinished tree with it.
use crate::call::{Answer, Arg, Call, FdRef, Layout};
use crate::error::SysError;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const SLOT_LEN: usize = 64;
const ROW_LEN: usize = 80;
const IDLE: u32 = 0;
const GO: u32 = 1;
const DONE: u32 = 2;
const FAILED: u32 = 3;
const ROW_CLONE: u64 = 0x100;
const ROW_OK: u64 = 0x200;
const ROW_VALUE: u64 = 0x400;

// Slot: 0 u32 state, 4 u32 expected parent pid (-1: not asked for, 0: outside of its pid namespace), 8 u64 rows, 16 u64 first row, 24 u64 address of the counter.
// Row: 0 number, 8..56 arguments, 56 answer, 64 flags (bit k: argument k is the address of its value), 72 child slot or value.
// The player uses no stack. System calls keep rbx, rbp, r12-r15.
std::arch::global_asm!(
    ".pushsection .rodata.stasis_player, \"a\"",
    ".balign 16",
    ".global stasis_player_start",
    ".global stasis_player_end",
    "stasis_player_start:",
    "40: mov eax, [rbx]",
    "cmp eax, 1",
    "je 41f",
    "mov edx, eax",
    "mov rdi, rbx",
    "xor esi, esi",
    "xor r10d, r10d",
    "mov eax, 202",
    "syscall",
    "jmp 40b",
    "41: mov r12, [rbx+16]",
    "mov r13, [rbx+8]",
    "42: test r13, r13",
    "jz 70f",
    "mov r14, [r12+64]",
    "mov rdi, [r12+8]",
    "test r14b, 1",
    "jz 51f",
    "mov rdi, [rdi]",
    "51: mov rsi, [r12+16]",
    "test r14b, 2",
    "jz 52f",
    "mov rsi, [rsi]",
    "52: mov rdx, [r12+24]",
    "test r14b, 4",
    "jz 53f",
    "mov rdx, [rdx]",
    "53: mov r10, [r12+32]",
    "test r14b, 8",
    "jz 54f",
    "mov r10, [r10]",
    "54: mov r8, [r12+40]",
    "test r14b, 16",
    "jz 55f",
    "mov r8, [r8]",
    "55: mov r9, [r12+48]",
    "test r14b, 32",
    "jz 56f",
    "mov r9, [r9]",
    // read before the call: once the parent goes on, the tape is overwritten by the next one
    "56: mov r15, [r12+72]",
    "mov rax, [r12]",
    "syscall",
    "test r14d, 0x100",
    "jz 57f",
    "test rax, rax",
    "jz 60f",
    "57: mov [r12+56], rax",
    "test r14d, 0x200",
    "jz 58f",
    "cmp rax, -4095",
    "jae 71f",
    "58: test r14d, 0x400",
    "jz 59f",
    "cmp rax, [r12+72]",
    "jne 71f",
    "59: add r12, 80",
    "dec r13",
    "jmp 42b",
    // a new thread or process: its own slot
    "60: mov rbx, r15",
    "cmp dword ptr [rbx+4], -1",
    "je 40b",
    "mov edi, 1",
    "mov esi, 9",
    "mov eax, 157",
    "syscall",
    "mov eax, 110",
    "syscall",
    "cmp eax, [rbx+4]",
    "je 40b",
    "mov edi, 1",
    "mov eax, 231",
    "syscall",
    "70: mov dword ptr [rbx], 2",
    "jmp 72f",
    "71: mov dword ptr [rbx], 3",
    "72: mov rdi, [rbx+24]",
    "lock dec dword ptr [rdi]",
    "jnz 40b",
    "mov esi, 1",
    "mov edx, 1",
    "mov eax, 202",
    "syscall",
    "jmp 40b",
    "stasis_player_end:",
    ".popsection",
);

unsafe extern "C" {
    static stasis_player_start: u8;
    static stasis_player_end: u8;
}

fn player() -> &'static [u8] {
    // SAFETY: the two symbols bound the bytes assembled above, in read-only data of this program.
    unsafe {
        let s = &raw const stasis_player_start;
        std::slice::from_raw_parts(s, (&raw const stasis_player_end).offset_from(s) as usize)
    }
}

/// The shared memory, seen from the engine.
pub struct Reel {
    fd: OwnedFd,
    map: *mut u8,
    len: usize,
    addr: u64,
    slots: usize,
}

/// What one tape brought.
#[derive(Debug)]
pub struct Played {
    /// Return value of each row.
    pub rets: Vec<u64>,
    outs: Vec<(Answer, Vec<u8>)>,
}

impl Played {
    /// Bytes of an out argument.
    pub fn out(&self, row: usize, arg: usize) -> &[u8] {
        self.outs
            .iter()
            .find(|(a, _)| a.row == row && a.arg == arg)
            .map_or(&[], |(_, b)| b)
    }
}

/// A tape that failed: which player, which row, and what it answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlayError {
    /// A row was not answered as it must be.
    #[error("row {row} of {rows}: {shown}")]
    Row {
        /// Slot of the player.
        slot: usize,
        /// Index of the row.
        row: usize,
        /// Length of the tape.
        rows: usize,
        /// The call with its answer.
        shown: String,
        /// errno of the answer, 0 if it was no errno.
        errno: i32,
    },
    /// The tapes of one phase need more room than the reel has.
    #[error("tapes of one phase need more than {0} bytes")]
    Full(usize),
    /// A player did not come back.
    #[error("slot {slot} did not answer: {why}")]
    Lost {
        /// Slot of the player.
        slot: usize,
        /// What is known.
        why: String,
    },
}

impl Reel {
    /// A reel for `slots` players which tasks will map at `addr`, with `tape_bytes` of room for tapes. Memory is used only
    /// where it is touched.
    pub fn create(addr: u64, slots: usize, tape_bytes: usize) -> Result<Self, SysError> {
        let len = (2 * PAGE + slots * SLOT_LEN + tape_bytes).next_multiple_of(PAGE);
        // KERNEL(>=6.3): MFD_EXEC 0x10 keeps the memory executable whatever vm.memfd_noexec says; older kernels refuse the flag
        let mut r = -1;
        for flags in [libc::MFD_CLOEXEC | 0x10, libc::MFD_CLOEXEC] {
            // SAFETY: a static string.
            r = unsafe { libc::memfd_create(c"stasis-reel".as_ptr(), flags) };
            if r >= 0 || Errno::last() != Errno::EINVAL {
                break;
            }
        }
        if r < 0 {
            return Err(SysError::last("memfd_create", "stasis-reel"));
        }
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(r) };
        // SAFETY: the descriptor is ours.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), len as i64) } != 0 {
            return Err(SysError::last("ftruncate", "stasis-reel"));
        }
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; freed in Drop.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(SysError::last("mmap", "stasis-reel"));
        }
        let mut reel = Self {
            fd,
            map: map.cast(),
            len,
            addr,
            slots,
        };
        reel.bytes(0, player().len()).copy_from_slice(player());
        for s in 0..slots {
            let counter = addr + PAGE as u64;
            reel.put(reel.slot_at(s) + 24, counter);
            reel.expect_parent(s, None);
        }
        Ok(reel)
    }
    /// The memory's descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
    /// Address of the reel in the tasks.
    pub fn addr(&self) -> u64 {
        self.addr
    }
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Never: a reel has at least its two first pages.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Address of a slot in the tasks.
    pub fn slot_addr(&self, s: usize) -> u64 {
        self.addr + self.slot_at(s) as u64
    }
    fn slot_at(&self, s: usize) -> usize {
        assert!(s < self.slots, "slot {s} of {}", self.slots);
        2 * PAGE + s * SLOT_LEN
    }
    fn bytes(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= self.len);
        // SAFETY: inside our mapping; players write only to tapes in play, which the engine does not borrow meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.map.add(at), len) }
    }
    fn put(&mut self, at: usize, v: u64) {
        self.bytes(at, 8).copy_from_slice(&v.to_le_bytes());
    }
    fn get(&self, at: usize) -> u64 {
        assert!(at + 8 <= self.len && at.is_multiple_of(8));
        // SAFETY: inside our mapping, aligned; another process may write it, so the read is volatile.
        unsafe { self.map.add(at).cast::<u64>().read_volatile() }
    }
    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at + 4 <= self.len && at.is_multiple_of(4));
        // SAFETY: inside our mapping, aligned; shared with players, hence atomic.
        unsafe { &*self.map.add(at).cast::<AtomicU32>() }
    }
    /// Says whose child the player of this slot must be, and die with: a pid in its namespace, 0 for one outside of that. `None`: it
    /// is not asked, as for threads and siblings.
    pub fn expect_parent(&mut self, slot: usize, ppid: Option<i32>) {
        let at = self.slot_at(slot) + 4;
        self.word(at)
            .store(ppid.unwrap_or(-1) as u32, Ordering::Release);
    }
    /// Plays one tape in each of the named slots, all at once, and waits for all of them.
    ///
    /// A tape whose last row is exit_group(2) brings nothing and is not waited for: another tape of the same play must
    /// wait for the end of its task.
    ///
    /// A slot may be that of a thread which a tape of the same play bears: it begins with its tape.
    ///
    /// `alive` is asked every 100 ms; its error ends the wait.
    pub fn play(
        &mut self,
        tapes: &[(usize, &[Call])],
        alive: &mut dyn FnMut() -> Option<String>,
    ) -> Result<Vec<Played>, PlayError> {
        let mut at = 2 * PAGE + self.slots * SLOT_LEN;
        let mut placed = Vec::with_capacity(tapes.len());
        for (slot, tape) in tapes {
            let p = self.load(*slot, tape, &mut at)?;
            placed.push(p);
        }
        if tapes.is_empty() {
            return Ok(Vec::new());
        }
        let ends = |t: &[Call]| t.last().is_some_and(|c| c.nr == libc::SYS_exit_group);
        let stay = tapes.iter().filter(|t| !ends(t.1)).count();
        self.word(PAGE).store(stay as u32, Ordering::SeqCst);
        for (slot, _) in tapes {
            let at = self.slot_at(*slot);
            self.word(at).store(GO, Ordering::SeqCst);
            futex(self.word(at), libc::FUTEX_WAKE, 1, None);
        }
        let begun = Instant::now();
        loop {
            let left = self.word(PAGE).load(Ordering::SeqCst);
            if left == 0 {
                break;
            }
            // most tapes are over sooner than a sleep and a wakeup on another processor take
            if begun.elapsed() < Duration::from_micros(30) {
                std::hint::spin_loop();
                continue;
            }
            futex(
                self.word(PAGE),
                libc::FUTEX_WAIT,
                left,
                Some(Duration::from_millis(100)),
            );
            if begun.elapsed() < Duration::from_millis(100) {
                continue;
            }
            // who failed may have been to bear others that are waited for
            let failed = |(s, _): &(usize, &[Call])| {
                self.word(self.slot_at(*s)).load(Ordering::SeqCst) == FAILED
            };
            if tapes.iter().any(failed) {
                break;
            }
            if let Some(why) = alive() {
                let slot = tapes
                    .iter()
                    .find(|(s, _)| self.word(self.slot_at(*s)).load(Ordering::SeqCst) == GO);
                return Err(PlayError::Lost {
                    slot: slot.map_or(0, |s| s.0),
                    why,
                });
            }
        }
        let mut all = Vec::with_capacity(tapes.len());
        for ((slot, tape), (rows_at, outs, data_at)) in tapes.iter().zip(placed) {
            if ends(tape) {
                all.push(Played {
                    rets: Vec::new(),
                    outs: Vec::new(),
                });
                continue;
            }
            let slot_at = self.slot_at(*slot);
            let state = self.word(slot_at).swap(IDLE, Ordering::SeqCst);
            if !matches!(state, DONE | FAILED) {
                continue;
            }
            let rets: Vec<u64> = (0..tape.len())
                .map(|i| self.get(rows_at + i * ROW_LEN + 56))
                .collect();
            if state == FAILED || tape.iter().zip(&rets).any(|(c, r)| !c.accepts(*r)) {
                let row = tape.len() - self.rows_not_accepted(tape, &rets);
                let ret = rets[row];
                let errno = if crate::call::is_errno(ret) {
                    -(ret as i64) as i32
                } else {
                    0
                };
                return Err(PlayError::Row {
                    slot: *slot,
                    row,
                    rows: tape.len(),
                    shown: tape[row].with_answer(ret),
                    errno,
                });
            }
            let outs = outs
                .into_iter()
                .map(|a: Answer| (a, self.bytes(data_at + a.offset, a.len).to_vec()))
                .collect();
            all.push(Played { rets, outs });
        }
        Ok(all)
    }
    /// Plays tapes that end their tasks, all at once: `gone` is asked by index, five times a millisecond, for at most ten
    /// seconds.
    pub fn play_last(
        &mut self,
        tapes: &[(usize, &[Call])],
        gone: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), PlayError> {
        let mut at = 2 * PAGE + self.slots * SLOT_LEN;
        for (slot, tape) in tapes {
            self.load(*slot, tape, &mut at)?;
        }
        // none of them comes to the end of its tape
        self.word(PAGE).store(tapes.len() as u32, Ordering::SeqCst);
        for (slot, _) in tapes {
            let w = self.slot_at(*slot);
            self.word(w).store(GO, Ordering::SeqCst);
            futex(self.word(w), libc::FUTEX_WAKE, 1, None);
        }
        let begun = Instant::now();
        for (i, (slot, _)) in tapes.iter().enumerate() {
            while !gone(i) {
                if begun.elapsed() > Duration::from_secs(10) {
                    return Err(PlayError::Lost {
                        slot: *slot,
                        why: "it did not end".into(),
                    });
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(())
    }
    /// How many rows from the first unaccepted answer to the end.
    fn rows_not_accepted(&self, tape: &[Call], rets: &[u64]) -> usize {
        let first = tape
            .iter()
            .zip(rets)
            .position(|(c, r)| !c.accepts(*r))
            .unwrap_or(0);
        tape.len() - first
    }
    fn load(
        &mut self,
        slot: usize,
        tape: &[Call],
        at: &mut usize,
    ) -> Result<(usize, Vec<Answer>, usize), PlayError> {
        let rows_at = at.next_multiple_of(64);
        let data_at = (rows_at + tape.len() * ROW_LEN).next_multiple_of(64);
        if data_at > self.len {
            return Err(PlayError::Full(self.len));
        }
        let mut lay = Layout::new(self.addr + data_at as u64);
        let mut outs = Vec::new();
        let mut rows = Vec::with_capacity(tape.len() * ROW_LEN);
        let no_file = |f: FdRef| unreachable!("file#{} in a task's tape", f.0);
        for (i, c) in tape.iter().enumerate() {
            let mut flags = match c.expect {
                // the word that would hold the value holds the child's slot; the engine compares afterwards
                crate::call::Expect::Value(_) if c.child_slot.is_none() => ROW_VALUE,
                crate::call::Expect::Any => 0,
                _ => ROW_OK,
            };
            let mut words = lay.row(i, c, &no_file, &mut outs);
            for (k, a) in c.args.iter().enumerate() {
                if let Arg::Ret(j) = a {
                    flags |= 1 << k;
                    words[k] = self.addr + (rows_at + j * ROW_LEN + 56) as u64;
                }
            }
            let last = match (c.child_slot, c.expect) {
                (Some(s), _) => {
                    flags |= ROW_CLONE;
                    self.slot_addr(s)
                }
                (None, crate::call::Expect::Value(v)) => v,
                _ => 0,
            };
            rows.extend_from_slice(&(c.nr as u64).to_le_bytes());
            for w in words {
                rows.extend_from_slice(&w.to_le_bytes());
            }
            // an answer that never came is told from any that did
            rows.extend_from_slice(&(-(libc::ECANCELED as i64)).to_le_bytes());
            rows.extend_from_slice(&flags.to_le_bytes());
            rows.extend_from_slice(&last.to_le_bytes());
        }
        if data_at + lay.data.len() > self.len {
            return Err(PlayError::Full(self.len));
        }
        self.bytes(rows_at, rows.len()).copy_from_slice(&rows);
        self.bytes(data_at, lay.data.len())
            .copy_from_slice(&lay.data);
        *at = data_at + lay.data.len();
        let s = self.slot_at(slot);
        self.put(s + 8, tape.len() as u64);
        let first = self.addr + rows_at as u64;
        self.put(s + 16, first);
        Ok((rows_at, outs, data_at))
    }
}

impl Drop for Reel {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used after.
        unsafe { libc::munmap(self.map.cast(), self.len) };
    }
}

fn futex(w: &AtomicU32, op: i32, val: u32, timeout: Option<Duration>) {
    let ts = timeout.map(|d| libc::timespec {
        tv_sec: d.as_secs() as i64,
        tv_nsec: d.subsec_nanos() as i64,
    });
    let p = ts.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the timeout outlive the call. The answer does not matter: callers loop on the word.
    unsafe { libc::syscall(libc::SYS_futex, w.as_ptr(), op, val, p) };
}

/// File number of the engine's socket in every stub.
pub const STUB_SOCKET: i32 = 4;
const STUB_REEL: i32 = 3;

/// Builds the stub: an ELF program of one page at `base` that maps the reel and plays slot 0.
fn stub_elf(base: u64, reel: &Reel) -> Vec<u8> {
    let mut e = Vec::new();
    e.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let code_at = 64 + 56;
    let put = |e: &mut Vec<u8>, v: u64, n: usize| e.extend_from_slice(&v.to_le_bytes()[..n]);
    for (v, n) in [
        (2, 2),
        (62, 2),
        (1, 4),
        (base + code_at, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (0, 2),
        (0, 2),
        (0, 2),
    ] {
        put(&mut e, v, n);
    }
    // PT_LOAD r-x
    for (v, n) in [
        (1, 4),
        (5, 4),
        (0, 8),
        (base, 8),
        (base, 8),
        (4096, 8),
        (4096, 8),
        (4096, 8),
    ] {
        put(&mut e, v, n);
    }
    debug_assert_eq!(e.len() as u64, code_at);
    let mov = |e: &mut Vec<u8>, op: [u8; 2], v: u64| {
        e.extend_from_slice(&op);
        e.extend_from_slice(&v.to_le_bytes());
    };
    let mut mmap = |addr: u64, len: u64, prot: u64, flags: u64| {
        mov(&mut e, [0x48, 0xb8], 9); // mov rax
        mov(&mut e, [0x48, 0xbf], addr); // rdi
        mov(&mut e, [0x48, 0xbe], len); // rsi
        mov(&mut e, [0x48, 0xba], prot); // rdx
        mov(&mut e, [0x49, 0xba], flags); // r10
        mov(&mut e, [0x49, 0xb8], STUB_REEL as u64); // r8
        mov(&mut e, [0x49, 0xb9], 0); // r9
        e.extend_from_slice(&[0x0f, 0x05]);
    };
    mmap(
        reel.addr,
        reel.len as u64,
        3,
        (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE) as u64,
    );
    mmap(
        reel.addr,
        PAGE as u64,
        5,
        (libc::MAP_SHARED | libc::MAP_FIXED) as u64,
    );
    mov(&mut e, [0x48, 0xbb], reel.slot_addr(0)); // rbx
    mov(&mut e, [0x48, 0xb8], reel.addr); // rax
    e.extend_from_slice(&[0xff, 0xe0]); // jmp rax
    e.resize(4096, 0);
    e
}

/// Starts the first stub as a child of the calling thread: it maps the reel and waits in slot 0, with all signals blocked, the reel as
/// descriptor 3 and `socket` as [`STUB_SOCKET`], and nothing else open. It dies with the calling thread. `base` is a free page for
/// its program, in the same hole as the reel. Gives its pid.
///
/// With `sibling` it is a child of the engine's parent, and does not die with the engine until the engine has seized it.
pub fn spawn_stub(
    reel: &Reel,
    base: u64,
    socket: &OwnedFd,
    sibling: bool,
) -> Result<i32, SysError> {
    let image = stub_elf(base, reel);
    // SAFETY: a static string.
    let mut r = unsafe { libc::memfd_create(c"stasis-stub".as_ptr(), libc::MFD_CLOEXEC | 0x10) };
    if r < 0 {
        // SAFETY: as above.
        r = unsafe { libc::memfd_create(c"stasis-stub".as_ptr(), libc::MFD_CLOEXEC) };
    }
    if r < 0 {
        return Err(SysError::last("memfd_create", "stasis-stub"));
    }
    // SAFETY: a new descriptor that nobody else owns.
    let exe = unsafe { OwnedFd::from_raw_fd(r) };
    nix::unistd::write(&exe, &image).map_err(|e| SysError::new("write", e, "stasis-stub"))?;

    struct Birth {
        exe: i32,
        reel: i32,
        socket: i32,
        parent: i32,
        errno: i32,
    }
    extern "C" fn child(p: *mut libc::c_void) -> i32 {
        // SAFETY: CLONE_VFORK: the parent's frame with `Birth` lives until we exec or exit. Only async-signal-safe calls.
        unsafe {
            let b = &mut *p.cast::<Birth>();
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != b.parent {
                libc::_exit(1);
            }
            // high copies first, so that none of the three is overwritten by another
            let exe = libc::fcntl(b.exe, libc::F_DUPFD_CLOEXEC, 100);
            let reel = libc::fcntl(b.reel, libc::F_DUPFD_CLOEXEC, 100);
            let sock = libc::fcntl(b.socket, libc::F_DUPFD_CLOEXEC, 100);
            if exe >= 0 && libc::dup2(reel, STUB_REEL) >= 0 && libc::dup2(sock, STUB_SOCKET) >= 0 {
                libc::close_range(0, 2, 0);
                libc::close_range(5, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32);
                let argv: [*const libc::c_char; 2] = [c"stasis-stub".as_ptr(), std::ptr::null()];
                let env: [*const libc::c_char; 1] = [std::ptr::null()];
                libc::syscall(
                    libc::SYS_execveat,
                    exe,
                    c"".as_ptr(),
                    argv.as_ptr(),
                    env.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
            }
            b.errno = *libc::__errno_location();
            libc::_exit(1);
        }
    }
    let mut birth = Birth {
        exe: exe.as_raw_fd(),
        reel: reel.fd.as_raw_fd(),
        socket: socket.as_raw_fd(),
        parent: if sibling {
            std::os::unix::process::parent_id() as i32
        } else {
            std::process::id() as i32
        },
        errno: 0,
    };
    let mut stack = vec![0u8; 64 * 1024];
    // SAFETY: sigset_t is plain data.
    let (mut all, mut old): (libc::sigset_t, libc::sigset_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: the stack outlives the child's use of it (CLONE_VFORK); signals are blocked so that no handler runs on it.
    let pid = unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        let top = stack.as_mut_ptr().add(stack.len() & !15);
        let pid = libc::clone(
            child,
            top.cast(),
            libc::CLONE_VM
                | libc::CLONE_VFORK
                | if sibling {
                    libc::CLONE_PARENT
                } else {
                    libc::SIGCHLD
                },
            (&raw mut birth).cast(),
        );
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
        pid
    };
    if pid < 0 {
        return Err(SysError::last("clone", "the first stub"));
    }
    if birth.errno != 0 {
        let mut st = 0;
        // SAFETY: our own child.
        unsafe { libc::waitpid(pid, &mut st, libc::__WALL) };
        return Err(SysError::new(
            "execveat",
            Errno::from_raw(birth.errno),
            "the first stub",
        ));
    }
    Ok(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_plays_and_forks() {
        let reel_addr = 0x10_0000_0000;
        let mut reel = Reel::create(reel_addr, 4, 1 << 20).unwrap();
        let (a, _b) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            None,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let pid = spawn_stub(&reel, reel_addr - 0x10000, &a, false).unwrap();
        let mut alive = || Some("test".to_string());
        let tape = [
            Call::new(libc::SYS_getpid, vec![]),
            Call::new(libc::SYS_uname, vec![Arg::Out(390)]),
            Call::new(libc::SYS_dup, vec![Arg::Int(4)]),
            Call::new(libc::SYS_close, vec![Arg::Ret(2)]),
        ];
        let r = reel.play(&[(0, &tape)], &mut alive).unwrap();
        assert_eq!(r[0].rets[0], pid as u64);
        assert!(r[0].out(1, 0).starts_with(b"Linux"));
        assert_eq!(r[0].rets[3], 0);
        let bad = [
            Call::new(libc::SYS_getpid, vec![]),
            Call::new(libc::SYS_close, vec![Arg::Int(99)]),
            Call::new(libc::SYS_getpid, vec![]),
        ];
        match reel.play(&[(0, &bad)], &mut alive) {
            Err(PlayError::Row {
                row: 1,
                errno: libc::EBADF,
                ..
            }) => {}
            r => panic!("{r:?}"),
        }
        reel.expect_parent(1, Some(pid));
        let mut fork = Call::new(libc::SYS_clone, vec![Arg::Int(libc::SIGCHLD as u64)]);
        fork.child_slot = Some(1);
        let child = reel.play(&[(0, &[fork])], &mut alive).unwrap()[0].rets[0];
        let who = [Call::new(libc::SYS_getpid, vec![])];
        let both = reel.play(&[(0, &who), (1, &who)], &mut alive).unwrap();
        assert_eq!((both[0].rets[0], both[1].rets[0]), (pid as u64, child));
        // SAFETY: our own children; the second dies with the first.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
}
