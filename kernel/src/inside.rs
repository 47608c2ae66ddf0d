//! Reading what the kernel knows and tells nobody: its own memory.
//!
//! A message of a POSIX queue can only be read by taking it out, and what SEM_UNDO would undo is told by no call at all. Both lie in
//! memory of the kernel. A program of a few instructions copies a piece of it for us (`bpf_probe_read_kernel`, which survives any
//! address); where fields lie is told by the kernel's list of its own types ([`crate::btf`]). Nothing is changed, so an engine that
//! dies meanwhile leaves nothing behind.
//!
//! Starting points are what the kernel knows of the caller: the files it has open, and the tasks it traces.
//!
//! Needs CAP_BPF and CAP_PERFMON in the first user namespace, and a kernel with CONFIG_DEBUG_INFO_BTF that is not locked down for
//! confidentiality.
use crate::bpf::{self, Insn};
use crate::btf;
use crate::error::{SysError, SysResult};
use nix::errno::Errno;
use std::cell::{OnceCell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The most bytes that are copied at once.
const PIECE: usize = 4096;
/// Words of a question: address, length; behind them the answer.
const HEAD: usize = 2;
/// A list that is longer is not the kernel's, or changes under our eyes.
pub(crate) const MOST: usize = 1 << 20;

/// A page is so many times as large as its description, as a power of two.
const PAGE_TO_BYTES: u32 = 6;

/// An address in the kernel; 0 is none.
pub(crate) type At = u64;

/// Words that a program and its caller share.
#[derive(Debug)]
struct Shared {
    map: OwnedFd,
    words: std::ptr::NonNull<u64>,
    count: usize,
}

// SAFETY: the memory is this value's alone, but for the program, which only runs when it is called.
unsafe impl Send for Shared {}

impl Shared {
    /// So many words, all 0.
    ///
    /// # Errors
    /// EPERM without CAP_BPF.
    fn new(count: usize) -> Result<Self, SysError> {
        const MMAPABLE: u32 = 1 << 10;
        let map = bpf::array_map(8 * count as u32, MMAPABLE)?;
        let how = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping, at a place the kernel chooses.
        let at = unsafe {
            let none = std::ptr::null_mut();
            libc::mmap(none, 8 * count, how, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        let failed = || SysError::last("mmap", "a map of a program");
        let words = std::ptr::NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED);
        let words = words.ok_or_else(failed)?;
        Ok(Shared { map, words, count })
    }
    /// The words.
    fn words(&mut self) -> &mut [u64] {
        // SAFETY: they are mapped as long as this value lives; the program runs only in calls of whoever borrows it no more.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_ptr(), self.count) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this value, and nobody borrows it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), 8 * self.count) };
    }
}

/// A way to read the kernel's memory.
#[derive(Debug)]
pub struct Inside {
    program: OwnedFd,
    /// Question and answer.
    words: RefCell<Shared>,
    /// The caller's thread.
    own: At,
    at: Places,
    /// See [`Inside::distance`].
    distance: OnceCell<u64>,
}

btf::places! {
    files: "task_struct" "files",
    table: "files_struct" "fdt",
    slots: "fdtable" "fd",
    thread_pid: "task_struct" "thread_pid",
    level: "pid" "level",
    numbers: "pid" "numbers",
    number: "upid" "nr",
    space: "upid" "ns",
    size: "upid" "",
    file_data: "file" "private_data",
    sk: "socket" "sk",
    buffers: "pipe_inode_info" "bufs",
    page: "pipe_buffer" "page",
    offset: "pipe_buffer" "offset",
    page_size: "page" "",
}

/// `words`: address, length, answer. With address 0 the answer is the address of the caller's `task_struct`.
fn program(words: &Shared) -> Vec<Insn> {
    const GET_CURRENT_TASK: i32 = 35;
    const PROBE_READ_KERNEL: i32 = 113;
    let i = |code, to, from, off, imm| Insn {
        code,
        to,
        from,
        off,
        imm,
    };
    let (load, store, mov, mov_imm, add_imm) = (0x79, 0x7b, 0xbf, 0xb7, 0x07);
    let (jump_if_not, jump_if_more, call, exit) = (0x55, 0x25, 0x85, 0x95);
    let mut all = bpf::map_value(words.map.as_raw_fd(), 6).to_vec();
    all.extend([
        i(load, 2, 6, 8, 0),
        i(load, 3, 6, 0, 0),
        i(jump_if_not, 3, 0, 4, 0),
        i(call, 0, 0, 0, GET_CURRENT_TASK),
        i(store, 6, 0, 8 * HEAD as i16, 0),
        i(mov_imm, 0, 0, 0, 0),
        i(exit, 0, 0, 0, 0),
        // a length that is known to be small
        i(jump_if_more, 2, 0, 4, PIECE as i32),
        i(mov, 1, 6, 0, 0),
        i(add_imm, 1, 0, 0, 8 * HEAD as i32),
        i(call, 0, 0, 0, PROBE_READ_KERNEL),
        i(exit, 0, 0, 0, 0),
        i(mov_imm, 0, 0, 0, -libc::EINVAL),
        i(exit, 0, 0, 0, 0),
    ]);
    all
}

impl Inside {
    /// A way in.
    ///
    /// # Errors
    /// EPERM without the rights; others if the kernel has not what is needed.
    pub fn open() -> SysResult<Self> {
        let words = Shared::new(HEAD + PIECE / 8)?;
        let program = bpf::load_callable("stasis_inside", &program(&words))?;
        let words = RefCell::new(words);
        let mut inside = Inside {
            program,
            words,
            own: 0,
            at: Places::new()?,
            distance: OnceCell::new(),
        };
        inside.own = inside.ask(0, 8)?[0];
        Ok(inside)
    }
    fn ask(&self, at: At, len: usize) -> SysResult<Vec<u64>> {
        let mut shared = self.words.borrow_mut();
        (shared.words()[0], shared.words()[1]) = (at, len as u64);
        match bpf::call(self.program.as_fd())? {
            0 => Ok(shared.words()[HEAD..HEAD + len.div_ceil(8)].to_vec()),
            e => Err(SysError::new(
                "bpf_probe_read_kernel",
                Errno::from_raw(-e),
                format!("{len} bytes at {at:#x}"),
            )),
        }
    }
    /// Bytes at an address.
    pub(crate) fn bytes(&self, at: At, len: usize) -> SysResult<Vec<u8>> {
        let mut all = Vec::with_capacity(len);
        while all.len() < len {
            let n = (len - all.len()).min(PIECE);
            let words = self.ask(at + all.len() as u64, n)?;
            all.extend(words.iter().flat_map(|w| w.to_ne_bytes()).take(n));
        }
        Ok(all)
    }
    /// A word: a number of 64 bits, or an address.
    pub(crate) fn word(&self, at: At) -> SysResult<u64> {
        Ok(self.ask(at, 8)?[0])
    }
    /// A number of 32 bits.
    pub(crate) fn int(&self, at: At) -> SysResult<u32> {
        Ok(self.ask(at, 4)?[0] as u32)
    }
    /// What follows a pointer, and others behind it.
    pub(crate) fn follow(&self, from: At, offsets: &[u64]) -> SysResult<At> {
        offsets.iter().try_fold(from, |at, o| self.word(at + o))
    }
    /// The members of a list (`struct list_head`) with this head, without the head.
    pub(crate) fn list(&self, head: At) -> SysResult<Vec<At>> {
        let mut all = Vec::new();
        let mut at = self.word(head)?;
        while at != head {
            if at == 0 || all.len() == MOST {
                return Err(SysError::new("bpf(BTF)", Errno::ELOOP, "a list"));
            }
            all.push(at);
            at = self.word(at)?;
        }
        Ok(all)
    }
    /// The caller's thread.
    pub(crate) fn own(&self) -> At {
        self.own
    }
    /// The `struct file` of one of the caller's descriptors.
    pub(crate) fn file(&self, fd: BorrowedFd<'_>) -> SysResult<At> {
        let at = &self.at;
        let first = self.follow(self.own, &[at.files, at.table, at.slots])?;
        self.word(first + 8 * fd.as_raw_fd() as u64)
    }
    /// The `struct sock` of one of the caller's descriptors.
    pub(crate) fn socket(&self, fd: BorrowedFd<'_>) -> SysResult<At> {
        self.follow(self.file(fd)?, &[self.at.file_data, self.at.sk])
    }
    /// Where the bytes of a page (`struct page`) lie.
    pub(crate) fn page(&self, page: At) -> SysResult<At> {
        let distance = match self.distance.get() {
            Some(d) => *d,
            None => {
                let d = self.distance()?;
                *self.distance.get_or_init(|| d)
            }
        };
        Ok((page << PAGE_TO_BYTES).wrapping_add(distance))
    }
    /// How far the bytes of a page lie from its description, times the quotient of their sizes.
    ///
    /// KERNEL: x86 maps all memory in one piece, and has one list of descriptions. Where both begin is chosen when the machine starts, in
    /// steps of 1 GiB (arch/x86/mm/kaslr.c), and told to nobody. So a page of ours is looked for, in the near and the far of other memory
    /// of the kernel's: what is in it we know.
    fn distance(&self) -> SysResult<u64> {
        const STEP: u64 = 1 << 30;
        /// More than any machine has.
        const STEPS: u64 = 1 << 14;
        let at = &self.at;
        let unknown = |e| SysError::new("bpf_probe_read_kernel", e, "pages of the kernel's");
        if at.page_size << PAGE_TO_BYTES != 4096 {
            return Err(unknown(Errno::ENOSYS));
        }
        let mut sign = [0u8; 64];
        // SAFETY: the kernel fills as many bytes as the array has.
        let n = unsafe { libc::getrandom(sign.as_mut_ptr().cast(), sign.len(), 0) };
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(unknown)?;
        let written = nix::unistd::write(&writer, &sign).map_err(unknown)?;
        if (n as usize, written) != (sign.len(), sign.len()) {
            return Err(unknown(Errno::EIO));
        }
        let buffer = self.follow(self.file(reader.as_fd())?, &[at.file_data, at.buffers])?;
        let page = self.word(buffer + at.page)?;
        let offset = u64::from(self.int(buffer + at.offset)?);
        let place = (page << PAGE_TO_BYTES) % STEP;
        let near = self.own - self.own % STEP + place;
        let candidates =
            (0..STEPS).flat_map(|n| [near.wrapping_add(n * STEP), near.wrapping_sub(n * STEP)]);
        for candidate in candidates {
            if self
                .bytes(candidate + offset, sign.len())
                .is_ok_and(|b| b == sign)
            {
                return Ok(candidate.wrapping_sub(page << PAGE_TO_BYTES));
            }
        }
        Err(unknown(Errno::EFAULT))
    }
    /// The number of a process (`struct pid`) in the caller's pid namespace; 0: it has none there.
    pub(crate) fn number(&self, pid: At) -> SysResult<i32> {
        let at = &self.at;
        let own = self.word(self.own + at.thread_pid)?;
        let depth = self.int(own + at.level)?;
        let numbers = at.numbers + u64::from(depth) * at.size;
        let same = |pid: At| self.word(pid + numbers + at.space);
        match self.int(pid + at.level)? >= depth && same(pid)? == same(own)? {
            true => Ok(self.int(pid + numbers + at.number)? as i32),
            false => Ok(0),
        }
    }
    /// The process (`struct pid`) of a thread; 0: it has ended.
    pub(crate) fn pid(&self, task: At) -> SysResult<At> {
        self.word(task + self.at.thread_pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_number_is_read_and_a_wild_address_is_an_error() {
        let inside = match Inside::open() {
            Ok(i) => i,
            Err(e) if e.errno == Errno::EPERM => return eprintln!("skipped: {e}"),
            Err(e) => panic!("{e}"),
        };
        let pid = inside.pid(inside.own()).unwrap();
        // SAFETY: no arguments.
        let own = unsafe { libc::syscall(libc::SYS_gettid) };
        assert_eq!(i64::from(inside.number(pid).unwrap()), own);
        assert!(inside.word(8).is_err());
        assert!(inside.bytes(0xffff_ffff_ffff_0000, 9000).is_err());
    }
}
