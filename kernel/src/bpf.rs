//! bpf(2): where programs are attached, whose they are, and the words in their maps.
//!
//! Loading an object file is a library's business. What is here is what must also work from another process than the one that
//! loaded, and what a library does not have: programs of a few instructions that call functions of the kernel.
//!
//! Long because every command has its own piece of one union.
use crate::error::SysError;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Commands of bpf(2) (linux/bpf.h).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    ProgLoad = 5,
    ProgAttach = 8,
    ProgDetach = 9,
    ProgRun = 10,
    ProgNextId = 11,
    ProgById = 13,
    MapById = 14,
    Info = 15,
    ProgQuery = 16,
    BtfById = 19,
    MapFreeze = 22,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    IterCreate = 33,
}

/// Where in a device's path a program stands (tcx).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Packets that arrive.
    Ingress = 46,
    /// Packets that leave.
    Egress = 47,
}

/// Before all that are there.
const BPF_F_BEFORE: u32 = 1 << 3;
/// More programs than this on one side of a device are not looked at.
const MOST_PROGRAMS: usize = 64;
/// The most maps a program has (`MAX_USED_MAPS` of linux/bpf_verifier.h).
const MOST_MAPS: usize = 64;

/// The attribute block of bpf(2), as bytes: what a command does not name is zero.
pub(crate) struct Attr([u64; 16]);

impl Attr {
    pub(crate) fn new() -> Self {
        Attr([0; 16])
    }
    pub(crate) fn u32(mut self, at: usize, value: u32) -> Self {
        let shift = (at % 8) * 8;
        self.0[at / 8] = (self.0[at / 8] & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
        self
    }
    pub(crate) fn ptr<T>(mut self, at: usize, value: *const T) -> Self {
        self.0[at / 8] = value as u64;
        self
    }
    /// Text with at least one NUL behind it.
    fn name(mut self, at: usize, name: &str) -> Self {
        for (i, b) in name.bytes().take(NAME - 1).enumerate() {
            self.0[(at + i) / 8] |= u64::from(b) << ((at + i) % 8 * 8);
        }
        self
    }
    pub(crate) fn get(&self, at: usize) -> u32 {
        (self.0[at / 8] >> ((at % 8) * 8)) as u32
    }
    /// # Safety
    /// Pointers in the block must be good for what the command reads and writes there.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn call(
        &mut self,
        name: &'static str,
        command: Command,
    ) -> Result<i32, SysError> {
        // SAFETY: the block is 128 bytes, which is told; what it points to is the caller's promise.
        let r = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as libc::c_int,
                self.0.as_mut_ptr(),
                size_of_val(&self.0),
            )
        };
        match r {
            -1 => Err(SysError::last(name, "")),
            r => Ok(r as i32),
        }
    }
}

pub(crate) fn fd(r: i32) -> OwnedFd {
    // SAFETY: the call has just made this descriptor; nobody else knows it.
    #[allow(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(r as RawFd)
    }
}

/// Puts a program before all others on one side of a device of the caller's network namespace, where it stays until it is taken
/// away or the device goes. Takes a grace period of the kernel (about 10 ms).
///
/// # Errors
/// EEXIST: it is there; EINVAL: the kernel is older than 6.6.
pub fn attach(program: BorrowedFd<'_>, device: u32, side: Side) -> Result<(), SysError> {
    let mut a = Attr::new()
        .u32(0, device)
        .u32(4, program.as_raw_fd() as u32)
        .u32(8, side as u32)
        .u32(12, BPF_F_BEFORE);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(PROG_ATTACH)", Command::ProgAttach) }.map(drop)
}

/// Takes a program away from a device of the caller's network namespace.
///
/// # Errors
/// ENOENT: it is not there; ENODEV: the device is gone.
pub fn detach(program: BorrowedFd<'_>, device: u32, side: Side) -> Result<(), SysError> {
    let mut a = Attr::new()
        .u32(0, device)
        .u32(4, program.as_raw_fd() as u32)
        .u32(8, side as u32);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(PROG_DETACH)", Command::ProgDetach) }.map(drop)
}

/// Ids of the programs on one side of a device of the caller's network namespace.
///
/// # Errors
/// As bpf(2).
pub fn attached(device: u32, side: Side) -> Result<Vec<u32>, SysError> {
    let mut ids = vec![0u32; MOST_PROGRAMS];
    let mut a = Attr::new()
        .u32(0, device)
        .u32(4, side as u32)
        .ptr(16, ids.as_mut_ptr())
        .u32(24, MOST_PROGRAMS as u32);
    // SAFETY: the pointer has room for as many ids as is told, and lives through the call.
    #[allow(unsafe_code)]
    let r = unsafe { a.call("bpf(PROG_QUERY)", Command::ProgQuery) };
    match r {
        Ok(_) => {
            ids.truncate((a.get(24) as usize).min(MOST_PROGRAMS));
            Ok(ids)
        }
        Err(e) if e.errno == Errno::ENOENT => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The next program of the system after an id; `None` after the last. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// As bpf(2).
pub fn next_program(after: u32) -> Result<Option<u32>, SysError> {
    let mut a = Attr::new().u32(0, after);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    match unsafe { a.call("bpf(PROG_GET_NEXT_ID)", Command::ProgNextId) } {
        Ok(_) => Ok(Some(a.get(4))),
        Err(e) if e.errno == Errno::ENOENT => Ok(None),
        Err(e) => Err(e),
    }
}

/// A program by its id.
///
/// # Errors
/// ENOENT: it is gone.
pub fn program(id: u32) -> Result<OwnedFd, SysError> {
    let mut a = Attr::new().u32(0, id);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(PROG_GET_FD_BY_ID)", Command::ProgById) }.map(fd)
}

/// A map by its id.
///
/// # Errors
/// ENOENT: it is gone.
pub fn map(id: u32) -> Result<OwnedFd, SysError> {
    let mut a = Attr::new().u32(0, id);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(MAP_GET_FD_BY_ID)", Command::MapById) }.map(fd)
}

/// What the kernel tells about a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its id.
    pub id: u32,
    /// Its name, of at most 15 bytes.
    pub name: String,
    /// Ids of the maps it uses.
    pub maps: Vec<u32>,
}

/// `struct bpf_prog_info`: offsets of fields.
const INFO_SIZE: usize = 232;

/// What the kernel tells about a program.
///
/// # Errors
/// As bpf(2).
pub fn program_info(program: BorrowedFd<'_>) -> Result<ProgramInfo, SysError> {
    let mut ids = [0u32; MOST_MAPS];
    // id at 4, nr_map_ids at 52, map_ids at 56, name at 64
    let mut info = [0u64; INFO_SIZE / 8];
    info[6] = (MOST_MAPS as u64) << 32;
    info[7] = ids.as_mut_ptr() as u64;
    let mut a = Attr::new()
        .u32(0, program.as_raw_fd() as u32)
        .u32(4, INFO_SIZE as u32)
        .ptr(8, info.as_mut_ptr());
    // SAFETY: both blocks are as large as is told and live through the call; the other pointers of `info` are null.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(OBJ_GET_INFO_BY_FD)", Command::Info) }?;
    let name: Vec<u8> = info[8..10].iter().flat_map(|w| w.to_ne_bytes()).collect();
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    let n = ((info[6] >> 32) as usize).min(MOST_MAPS);
    Ok(ProgramInfo {
        id: (info[0] >> 32) as u32,
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        maps: ids[..n].to_vec(),
    })
}

/// `struct bpf_map_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapInfo {
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Its name, of at most 15 bytes.
    pub name: String,
    /// Its number among all maps.
    pub id: u32,
    /// What it is made of.
    pub shape: MapShape,
    /// The device it is offloaded to, by its index; 0: none.
    pub device: u32,
    /// Its keys and values are described (BTF).
    pub typed: bool,
}

/// What the kernel tells about a map.
///
/// # Errors
/// As bpf(2).
pub fn map_info(map: BorrowedFd<'_>) -> Result<MapInfo, SysError> {
    let mut info = [0u64; 11];
    let mut a = Attr::new()
        .u32(0, map.as_raw_fd() as u32)
        .u32(4, size_of_val(&info) as u32)
        .ptr(8, info.as_mut_ptr());
    // SAFETY: the block is as large as is told and lives through the call.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(OBJ_GET_INFO_BY_FD)", Command::Info) }?;
    let name: Vec<u8> = info[3..5].iter().flat_map(|w| w.to_ne_bytes()).collect();
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    let (key_size, value_size) = (info[1] as u32, (info[1] >> 32) as u32);
    Ok(MapInfo {
        key_size,
        value_size,
        id: (info[0] >> 32) as u32,
        shape: MapShape {
            kind: info[0] as u32,
            key_size,
            value_size,
            entries: info[2] as u32,
            flags: (info[2] >> 32) as u32,
        },
        device: info[5] as u32,
        typed: info[8] as u32 != 0,
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
    })
}

/// The value under index 0 of an array map whose values have this size.
///
/// # Errors
/// EINVAL if its values have another size.
pub fn read_word<const N: usize>(map: BorrowedFd<'_>) -> Result<[u8; N], SysError> {
    if map_info(map)?.value_size as usize != N {
        return Err(SysError::new(
            "bpf(MAP_LOOKUP_ELEM)",
            Errno::EINVAL,
            "another size",
        ));
    }
    let (key, mut value) = (0u32, [0u8; N]);
    let mut a = Attr::new()
        .u32(0, map.as_raw_fd() as u32)
        .ptr(8, &raw const key)
        .ptr(16, value.as_mut_ptr());
    // SAFETY: the key is an index, the value has the map's size; both live through the call.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(MAP_LOOKUP_ELEM)", Command::MapLookup) }?;
    Ok(value)
}

/// Replaces the value under index 0 of an array map whose values have this size.
///
/// # Errors
/// EINVAL if its values have another size.
pub fn write_word<const N: usize>(map: BorrowedFd<'_>, value: &[u8; N]) -> Result<(), SysError> {
    if map_info(map)?.value_size as usize != N {
        return Err(SysError::new(
            "bpf(MAP_UPDATE_ELEM)",
            Errno::EINVAL,
            "another size",
        ));
    }
    set_word(map, value)
}

/// What a map is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    /// BPF_MAP_TYPE_*.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many there may be.
    pub entries: u32,
    /// BPF_F_*.
    pub flags: u32,
}

/// Names of programs and maps have so many bytes, with a NUL.
const NAME: usize = 16;

/// A map. Only the first 15 bytes of its name count.
///
/// # Errors
/// EPERM without CAP_BPF; as bpf(2).
pub fn create_map(name: &str, s: MapShape) -> Result<OwnedFd, SysError> {
    let mut a = Attr::new()
        .u32(0, s.kind)
        .u32(4, s.key_size)
        .u32(8, s.value_size)
        .u32(12, s.entries)
        .u32(16, s.flags)
        .name(28, name);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(MAP_CREATE)", Command::MapCreate) }.map(fd)
}

/// An array map with one value of so many bytes.
///
/// # Errors
/// As for [`create_map`].
pub fn word_map(bytes: u32) -> Result<OwnedFd, SysError> {
    array_map(bytes, 0)
}

/// An array map with one value, with flags (`BPF_F_...`).
pub(crate) fn array_map(bytes: u32, flags: u32) -> Result<OwnedFd, SysError> {
    const ARRAY: u32 = 2;
    let shape = MapShape {
        kind: ARRAY,
        key_size: 4,
        value_size: bytes,
        entries: 1,
        flags,
    };
    create_map("", shape)
}

/// Puts values under keys of a map, all by one system call if it is of a kind that takes them so (hashes and arrays do, those
/// of programs do not).
///
/// # Errors
/// EINVAL: keys and values do not have the map's sizes, or are not as many; as bpf(2).
pub fn update(map: BorrowedFd<'_>, keys: &[u8], values: &[u8]) -> Result<(), SysError> {
    let info = map_info(map)?;
    let (key, value) = (info.key_size as usize, info.value_size as usize);
    let n = keys.len().checked_div(key).unwrap_or(0);
    if n * key != keys.len() || n * value != values.len() {
        let e = Errno::EINVAL;
        return Err(SysError::new("bpf(MAP_UPDATE_BATCH)", e, "another size"));
    }
    if n > 1 {
        let mut a = Attr::new()
            .ptr(16, keys.as_ptr())
            .ptr(24, values.as_ptr())
            .u32(32, n as u32)
            .u32(36, map.as_raw_fd() as u32);
        // SAFETY: both hold as many elements of the map's sizes as is told, and live through the call.
        #[allow(unsafe_code)]
        let all = unsafe { a.call("bpf(MAP_UPDATE_BATCH)", Command::MapUpdateBatch) };
        match all {
            Ok(_) => return Ok(()),
            // ENOTSUPP, which has no name here: one by one
            Err(e) if e.errno == Errno::UnknownErrno || e.errno == Errno::EINVAL => {}
            Err(e) => return Err(e),
        }
    }
    for (k, v) in keys
        .chunks_exact(key.max(1))
        .zip(values.chunks_exact(value.max(1)))
    {
        let mut a = Attr::new()
            .u32(0, map.as_raw_fd() as u32)
            .ptr(8, k.as_ptr())
            .ptr(16, v.as_ptr());
        // SAFETY: key and value have the map's sizes, and live through the call.
        #[allow(unsafe_code)]
        unsafe { a.call("bpf(MAP_UPDATE_ELEM)", Command::MapUpdate) }?;
    }
    Ok(())
}

/// [`write_word`] for a map that is known to have values of this size: one system call, no memory.
///
/// # Errors
/// As bpf(2).
pub(crate) fn set_word(map: BorrowedFd<'_>, value: &[u8]) -> Result<(), SysError> {
    let key = 0u32;
    let mut a = Attr::new()
        .u32(0, map.as_raw_fd() as u32)
        .ptr(8, &raw const key)
        .ptr(16, value.as_ptr());
    // SAFETY: the key is an index, the caller made the map for values of this size; both live through the call.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(MAP_UPDATE_ELEM)", Command::MapUpdate) }.map(drop)
}

/// One instruction of a program (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// What it does (linux/bpf_common.h).
    pub code: u8,
    /// Register that is changed.
    pub to: u8,
    /// Register that is read.
    pub from: u8,
    /// Distance of a jump, or place in memory.
    pub off: i16,
    /// A number.
    pub imm: i32,
}

impl Insn {
    fn word(self) -> u64 {
        let regs = self.to & 15 | self.from << 4;
        let low = [self.code, regs];
        u64::from(u16::from_le_bytes(low))
            | u64::from(self.off as u16) << 16
            | u64::from(self.imm as u32) << 32
    }
}

/// Loads a program that judges packets of a device (BPF_PROG_TYPE_SCHED_CLS).
///
/// # Errors
/// EPERM without CAP_BPF and CAP_NET_ADMIN; EINVAL, EACCES: the kernel refuses the program, and the error says why.
pub fn load_classifier(name: &str, program: &[Insn]) -> Result<OwnedFd, SysError> {
    const SCHED_CLS: u32 = 3;
    let a = Attr::new().u32(0, SCHED_CLS).u32(68, Side::Ingress as u32);
    load(a, name, program)
}

/// Loads a program that runs when it is called ([`call`]) and at no other time (BPF_PROG_TYPE_SYSCALL). KERNEL(>=5.14)
///
/// # Errors
/// EPERM without CAP_BPF and CAP_PERFMON; EINVAL, EACCES: the kernel refuses the program, and the error says why.
pub fn load_callable(name: &str, program: &[Insn]) -> Result<OwnedFd, SysError> {
    const SYSCALL: u32 = 31;
    const BPF_F_SLEEPABLE: u32 = 1 << 4;
    load(
        Attr::new().u32(0, SYSCALL).u32(44, BPF_F_SLEEPABLE),
        name,
        program,
    )
}

/// BPF_TRACE_ITER.
pub(crate) const ITERATOR: u32 = 28;

/// Loads a program that runs for everything that an iterator of the kernel meets (BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER); `function`
/// is the iterator's number in the list of types. KERNEL(>=5.8)
///
/// # Errors
/// EPERM without CAP_BPF and CAP_PERFMON; EINVAL, EACCES: the kernel refuses the program, and the error says why.
pub(crate) fn load_iterator(
    name: &str,
    program: &[Insn],
    function: u32,
) -> Result<OwnedFd, SysError> {
    const TRACING: u32 = 26;
    load(
        Attr::new()
            .u32(0, TRACING)
            .u32(68, ITERATOR)
            .u32(108, function),
        name,
        program,
    )
}

/// Two instructions that put the address of an array map's first value into a register.
pub(crate) fn map_value(map: RawFd, register: u8) -> [Insn; 2] {
    const LOAD: u8 = 0x18;
    const MAP_VALUE: u8 = 2;
    let half = |code, to, from, imm| Insn {
        code,
        to,
        from,
        off: 0,
        imm,
    };
    [half(LOAD, register, MAP_VALUE, map), half(0, 0, 0, 0)]
}

/// Runs a program of [`load_callable`]; gives what it returns.
///
/// # Errors
/// As bpf(2).
pub fn call(program: BorrowedFd<'_>) -> Result<i32, SysError> {
    let mut a = Attr::new().u32(0, program.as_raw_fd() as u32);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(PROG_TEST_RUN)", Command::ProgRun) }?;
    Ok(a.get(4) as i32)
}

fn load(attr: Attr, name: &str, program: &[Insn]) -> Result<OwnedFd, SysError> {
    const LOG: usize = 64 << 10;
    let words: Vec<u64> = program.iter().map(|i| i.word()).collect();
    let license = c"Dual MIT/GPL";
    let load = |log: &mut Vec<u8>| {
        let mut a = Attr(attr.0)
            .u32(4, words.len() as u32)
            .ptr(8, words.as_ptr())
            .ptr(16, license.as_ptr())
            .name(48, name);
        if !log.is_empty() {
            a = a
                .u32(24, 1)
                .u32(28, log.len() as u32)
                .ptr(32, log.as_mut_ptr());
        }
        // SAFETY: instructions and licence are read, as many as is told; the log has the room that is told; all live through
        // the call.
        #[allow(unsafe_code)]
        unsafe { a.call("bpf(PROG_LOAD)", Command::ProgLoad) }.map(fd)
    };
    load(&mut Vec::new()).or_else(|e| {
        if e.errno == Errno::EPERM {
            return Err(e);
        }
        let mut log = vec![0u8; LOG];
        load(&mut log).map_err(|e| {
            let text = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = text.trim_end_matches('\0').lines().collect();
            let last = lines.len().saturating_sub(4);
            SysError::new(e.call, e.errno, lines[last..].join("; "))
        })
    })
}

/// Puts a program before all others on one side of a device of the caller's network namespace, for as long as somebody has the
/// returned descriptor open. KERNEL(>=6.6)
///
/// # Errors
/// As bpf(2).
pub fn link(program: BorrowedFd<'_>, device: u32, side: Side) -> Result<OwnedFd, SysError> {
    let mut a = Attr::new()
        .u32(0, program.as_raw_fd() as u32)
        .u32(4, device)
        .u32(8, side as u32)
        .u32(12, BPF_F_BEFORE);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(LINK_CREATE)", Command::LinkCreate) }.map(fd)
}

/// The list of the kernel's own types. Asked by its number, not by its file: containers hide the file.
pub(crate) fn kernel_types() -> Result<Vec<u8>, SysError> {
    /// It is there before all others.
    const VMLINUX: u32 = 1;
    let mut a = Attr::new().u32(0, VMLINUX);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let types = unsafe { a.call("bpf(BTF_GET_FD_BY_ID)", Command::BtfById) }.map(fd)?;
    let ask = |into: &mut Vec<u8>| -> Result<usize, SysError> {
        // struct bpf_btf_info: place, length, id; name and its length; whether it is the kernel's
        let mut info = [0u64; 4];
        if !into.is_empty() {
            info[0] = into.as_mut_ptr() as u64;
            info[1] = into.len() as u64;
        }
        let mut a = Attr::new()
            .u32(0, types.as_raw_fd() as u32)
            .u32(4, size_of_val(&info) as u32)
            .ptr(8, info.as_mut_ptr());
        // SAFETY: the block is as large as is told, the place it names has the length it names; both live through the call.
        #[allow(unsafe_code)]
        unsafe { a.call("bpf(OBJ_GET_INFO_BY_FD)", Command::Info) }?;
        Ok(info[1] as u32 as usize)
    };
    let mut all = vec![0; ask(&mut Vec::new())?];
    ask(&mut all)?;
    Ok(all)
}
