//! A system call as data: the row of a tape.
//!
//! One type serves three players: the kernel's own `rt_sigreturn` (dump tapes, [`crate::frames`]), the player page of a
//! restored task ([`crate::reel`]) and the engine itself ([`crate::host`]). What encodes a row also prints it, so every
//! tape can be shown before and after it ran.
use crate::names;
use std::borrow::Cow;
use std::fmt;

/// A file the engine holds or will hold; the number it has is known only when the plan is performed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FdRef(pub u32);

/// One argument of a [`Call`].
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    /// An integer, printed in decimal.
    Int(u64),
    /// A set of bits or an address in the playing task, printed in hexadecimal.
    Hex(u64),
    /// An integer that has a symbolic form for people.
    Named(u64, Cow<'static, str>),
    /// PROT_* flags of mmap(2), which get their names when they are shown.
    Prot(u64),
    /// MAP_* flags of mmap(2), likewise.
    MapFlags(u64),
    /// Flags of open(2), which get their names when they are shown.
    OpenFlags(u64),
    /// Bytes the call reads.
    In(Vec<u8>),
    /// A NUL-terminated string the call reads (given without the NUL).
    Str(Vec<u8>),
    /// So many bytes that the call writes: an answer.
    Out(usize),
    /// Bytes the call reads and writes.
    InOut(Vec<u8>),
    /// A structure with pointers in it.
    Struct(Vec<Part>),
    /// The return value of an earlier row of the same tape.
    Ret(usize),
    /// The number of a file the engine holds (host tapes only).
    Fd(FdRef),
    /// The string `/proc/self/fd/N` of a file the engine holds: opens the same inode once more (host tapes only).
    FdPath(FdRef),
    /// A null pointer.
    Null,
}

impl Arg {
    /// The machine word of an argument that needs no memory and names nothing.
    pub fn word(&self) -> Option<u64> {
        match self {
            Arg::Int(v)
            | Arg::Hex(v)
            | Arg::Named(v, _)
            | Arg::OpenFlags(v)
            | Arg::Prot(v)
            | Arg::MapFlags(v) => Some(*v),
            Arg::Null => Some(0),
            _ => None,
        }
    }
}

/// A piece of an [`Arg::Struct`].
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Literal bytes.
    Bytes(Vec<u8>),
    /// An 8-byte pointer to what the argument holds.
    Ptr(Arg),
    /// A 4-byte file number, known when played (host tapes only).
    Fd(FdRef),
}

/// Which answers count as success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything but an errno.
    Ok,
    /// Exactly this value.
    Value(u64),
    /// Any answer; the reader of the tape judges.
    Any,
}

/// One system call: number, up to six arguments, and what is expected of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// x86-64 system call number.
    pub nr: i64,
    /// At most six.
    pub args: Vec<Arg>,
    /// Which answers count as success.
    pub expect: Expect,
    /// Bytes that an out argument (by index) must begin with afterwards (host tapes only).
    pub expect_out: Vec<(usize, Vec<u8>)>,
    /// Files that the call's answer gives (host tapes): from the return value or from an out argument.
    pub binds: Vec<(FdRef, Bind)>,
    /// For clone3 rows of a reel: the slot the child plays on.
    pub child_slot: Option<usize>,
}

/// Where a new file's number is found after the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// The return value.
    Ret,
    /// An `int` at this byte offset of this (out) argument.
    Out {
        /// Index of the argument.
        arg: usize,
        /// Byte offset in it.
        offset: usize,
    },
}

impl Call {
    /// A call that must not fail.
    pub fn new(nr: i64, args: Vec<Arg>) -> Self {
        assert!(args.len() <= 6, "a system call has six arguments");
        Self {
            nr,
            args,
            expect: Expect::Ok,
            expect_out: Vec::new(),
            binds: Vec::new(),
            child_slot: None,
        }
    }
    /// The same, any answer is welcome.
    pub fn any(mut self) -> Self {
        self.expect = Expect::Any;
        self
    }
    /// The same, exactly this answer is expected.
    pub fn must_be(mut self, v: u64) -> Self {
        self.expect = Expect::Value(v);
        self
    }
    /// The same, and this out argument must begin with these bytes afterwards (host tapes only).
    pub fn must_give(mut self, arg: usize, bytes: Vec<u8>) -> Self {
        self.expect_out.push((arg, bytes));
        self
    }
    /// The return value is a new file.
    pub fn binds(mut self, f: FdRef) -> Self {
        // one is the rule, and there may be tens of thousands of such rows
        self.binds.reserve_exact(1);
        self.binds.push((f, Bind::Ret));
        self
    }
    /// An out argument holds a new file's number.
    pub fn binds_out(mut self, f: FdRef, arg: usize, offset: usize) -> Self {
        self.binds.push((f, Bind::Out { arg, offset }));
        self
    }
    /// Not less than the bytes its arguments' memory takes in a [`Layout`].
    pub fn room(&self) -> usize {
        self.args.iter().map(Arg::room).sum()
    }
    /// Is this answer a success?
    pub fn accepts(&self, ret: u64) -> bool {
        match self.expect {
            Expect::Ok => !is_errno(ret),
            Expect::Value(v) => ret == v,
            Expect::Any => true,
        }
    }
    /// Name of the system call.
    pub fn name(&self) -> String {
        names::syscall(self.nr as u64).into_owned()
    }
    /// `name(args) = answer`, for messages.
    pub fn with_answer(&self, ret: u64) -> String {
        format!("{self} = {}", answer(ret))
    }
}

/// Is this return value an errno (`-4095..=-1`, x86-64 ABI)?
pub fn is_errno(ret: u64) -> bool {
    ret > (-4096i64) as u64
}

/// A return value for a person.
pub fn answer(ret: u64) -> String {
    if is_errno(ret) {
        names::errno(-(ret as i64) as i32).to_string()
    } else if ret > 0xffff {
        format!("{ret:#x}")
    } else {
        ret.to_string()
    }
}

impl Arg {
    /// Not less than the bytes this takes in a [`Layout`].
    fn room(&self) -> usize {
        const ALIGN: usize = 16;
        ALIGN
            + match self {
                Arg::In(b) | Arg::InOut(b) | Arg::Str(b) => b.len() + 1,
                Arg::Out(n) => *n,
                Arg::Struct(parts) => parts
                    .iter()
                    .map(|p| match p {
                        Part::Bytes(b) => b.len(),
                        Part::Ptr(a) => 8 + a.room(),
                        Part::Fd(_) => 4,
                    })
                    .sum(),
                Arg::FdPath(_) => "/proc/self/fd/-2147483648".len() + 1,
                _ => 0,
            }
    }
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arg::Int(v) => write!(f, "{}", *v as i64),
            Arg::Hex(v) => write!(f, "{v:#x}"),
            Arg::Named(_, s) => f.write_str(s),
            Arg::OpenFlags(v) => f.write_str(&names::open_flags(*v)),
            Arg::Prot(v) => f.write_str(&names::mmap_prot(*v)),
            Arg::MapFlags(v) => f.write_str(&names::mmap_flags(*v)),
            Arg::In(b) => write!(f, "&{}", bytes(b)),
            Arg::InOut(b) => write!(f, "&mut {}", bytes(b)),
            Arg::Str(s) => write!(f, "{:?}", String::from_utf8_lossy(s)),
            Arg::Out(n) => write!(f, "&mut [{n} bytes]"),
            Arg::Struct(p) => {
                f.write_str("&{")?;
                for (i, p) in p.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    match p {
                        Part::Bytes(b) => f.write_str(&bytes(b))?,
                        Part::Ptr(a) => write!(f, "{a}")?,
                        Part::Fd(r) => write!(f, "file#{}", r.0)?,
                    }
                }
                f.write_str("}")
            }
            Arg::Ret(i) => write!(f, "<answer of row {i}>"),
            Arg::Fd(r) => write!(f, "file#{}", r.0),
            Arg::FdPath(r) => write!(f, "\"/proc/self/fd/<file#{}>\"", r.0),
            Arg::Null => f.write_str("NULL"),
        }
    }
}

fn bytes(b: &[u8]) -> String {
    use std::fmt::Write;
    let mut s = String::from("[");
    for (i, w) in b.chunks(8).take(8).enumerate() {
        if i > 0 {
            s.push(' ');
        }
        let mut v = [0u8; 8];
        v[..w.len()].copy_from_slice(w);
        let _ = write!(s, "{:x}", u64::from_le_bytes(v));
    }
    if b.len() > 64 {
        let _ = write!(s, " ... {} bytes", b.len());
    }
    s.push(']');
    s
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", names::syscall(self.nr as u64))?;
        for (i, a) in self.args.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{a}")?;
        }
        f.write_str(")")?;
        for (r, b) in &self.binds {
            match b {
                Bind::Ret => write!(f, " -> file#{}", r.0)?,
                Bind::Out { arg, offset } => {
                    write!(f, " -> file#{} (argument {arg} at {offset})", r.0)?
                }
            }
        }
        if let Some(s) = self.child_slot {
            write!(f, " -> child plays slot {s}")?;
        }
        Ok(())
    }
}

/// Puts the memory of arguments one behind another, from a base address on, 16-byte aligned.
pub struct Layout {
    base: u64,
    /// The bytes laid out so far.
    pub data: Vec<u8>,
}

/// Where an out argument's answer lies in [`Layout::data`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Row of the tape.
    pub row: usize,
    /// Index of the argument.
    pub arg: usize,
    /// Byte offset in the data.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

impl Layout {
    /// Data that will lie at `base` in the playing task.
    pub fn new(base: u64) -> Self {
        Self {
            base,
            data: Vec::new(),
        }
    }
    /// Reserves `bytes` and gives their address.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let pad = self.data.len().next_multiple_of(16);
        self.data.resize(pad, 0);
        let at = self.base + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        at
    }
    fn put_zero(&mut self, n: usize) -> u64 {
        let pad = self.data.len().next_multiple_of(16);
        self.data.resize(pad + n, 0);
        self.base + pad as u64
    }
    /// The words of a row, whose memory is laid out; where its answers will lie is added to `outs`. Of `Ret` see [`Self::arg`].
    pub(crate) fn row(
        &mut self,
        row: usize,
        c: &Call,
        fd: &dyn Fn(FdRef) -> i32,
        outs: &mut Vec<Answer>,
    ) -> [u64; 6] {
        let mut words = [0u64; 6];
        for (arg, a) in c.args.iter().enumerate() {
            words[arg] = self.arg(a, fd);
            let len = match a {
                Arg::Out(n) => *n,
                Arg::InOut(b) => b.len(),
                _ => continue,
            };
            let offset = self.offset(words[arg]);
            outs.push(Answer {
                row,
                arg,
                offset,
                len,
            });
        }
        words
    }
    /// The rows of a tape that names no files, and where its answers will lie.
    pub(crate) fn dump_tape(&mut self, tape: &[Call]) -> (Vec<[u64; 6]>, Vec<Answer>) {
        let no_file = |f: FdRef| unreachable!("file#{} in a dump tape", f.0);
        let mut outs = Vec::new();
        let rows = tape.iter().enumerate();
        let rows = rows
            .map(|(i, c)| self.row(i, c, &no_file, &mut outs))
            .collect();
        (rows, outs)
    }
    /// The machine word of an argument; its memory is laid out. `Ret` gives the row's number, resolved by the player.
    pub fn arg(&mut self, a: &Arg, fd: &dyn Fn(FdRef) -> i32) -> u64 {
        match a {
            Arg::In(b) | Arg::InOut(b) => self.put(b),
            Arg::Str(s) => {
                let at = self.put(s);
                self.data.push(0);
                at
            }
            Arg::Out(n) => self.put_zero(*n),
            Arg::Struct(parts) => {
                let mut b = Vec::new();
                for p in parts {
                    match p {
                        Part::Bytes(x) => b.extend_from_slice(x),
                        Part::Ptr(a) => {
                            let v = self.arg(a, fd);
                            b.extend_from_slice(&v.to_le_bytes());
                        }
                        Part::Fd(r) => b.extend_from_slice(&fd(*r).to_le_bytes()),
                    }
                }
                self.put(&b)
            }
            Arg::Ret(i) => *i as u64,
            Arg::Fd(r) => fd(*r) as u64,
            Arg::FdPath(r) => self.put(format!("/proc/self/fd/{}\0", fd(*r)).as_bytes()),
            plain => plain.word().unwrap_or(0),
        }
    }
    /// Offset in [`Layout::data`] of an address given out by this layout.
    pub fn offset(&self, addr: u64) -> usize {
        (addr - self.base) as usize
    }
}
