//! Maps of eBPF programs as somebody else's property: what one is, what is in it, who uses it, and making it again.
use crate::bpf::{self, Attr, Command};
use crate::error::SysError;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Elements that are asked for at once; more if a bucket of a hash has more.
const CHUNK: u32 = 1024;
/// `BPF_F_RDONLY` and `BPF_F_WRONLY`: how a descriptor may be used.
const RDONLY: u32 = 1 << 3;
const WRONLY: u32 = 1 << 4;

/// What is in a map: as many keys as values, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// How many.
    pub count: u32,
    /// Keys.
    pub keys: Vec<u8>,
    /// Values, in the same order.
    pub values: Vec<u8>,
}

/// Reads all elements of a map; of a hash, in the order the kernel has them.
///
/// # Errors
/// EPERM: the descriptor is for writing only; ENOTSUPP: maps of this type are not read so; E2BIG: elements are added
/// without end; as bpf(2).
pub fn read(map: BorrowedFd<'_>) -> Result<Contents, SysError> {
    const NAME: &str = "bpf(MAP_LOOKUP_BATCH)";
    let info = bpf::map_info(map)?;
    let (key, value) = (info.key_size as usize, info.value_size as usize);
    let mut all = Contents::default();
    let mut chunk = info.shape.entries.clamp(1, CHUNK);
    // where to go on: a key for some types, a number for others (kernel/bpf/hashtab.c)
    let mut place = vec![0u8; key.max(8)];
    let mut begun = false;
    loop {
        let (mut keys, mut values) = (
            vec![0u8; chunk as usize * key],
            vec![0u8; chunk as usize * value],
        );
        let mut next = vec![0u8; place.len()];
        let mut a = Attr::new()
            .ptr(8, next.as_mut_ptr())
            .ptr(16, keys.as_mut_ptr())
            .ptr(24, values.as_mut_ptr())
            .u32(32, chunk)
            .u32(36, map.as_raw_fd() as u32);
        if begun {
            a = a.ptr(0, place.as_ptr());
        }
        // SAFETY: all blocks have room for as many elements of the map's sizes as is told, and live through the call.
        #[allow(unsafe_code)]
        let got = unsafe { a.call(NAME, Command::MapLookupBatch) };
        let last = match got {
            Ok(_) => false,
            Err(e) if e.errno == Errno::ENOENT => true,
            Err(e) if e.errno == Errno::ENOSPC && chunk <= info.shape.entries => {
                chunk = chunk.saturating_mul(2);
                continue;
            }
            Err(e) => return Err(e),
        };
        let n = a.get(32).min(chunk);
        all.count += n;
        all.keys.extend_from_slice(&keys[..n as usize * key]);
        all.values.extend_from_slice(&values[..n as usize * value]);
        if last {
            return Ok(all);
        }
        if all.count > info.shape.entries {
            return Err(SysError::new(
                NAME,
                Errno::E2BIG,
                "it grows while it is read",
            ));
        }
        (place, begun) = (next, true);
    }
}

/// From now on nobody changes the map by bpf(2).
///
/// # Errors
/// As bpf(2).
pub fn freeze(map: BorrowedFd<'_>) -> Result<(), SysError> {
    let mut a = Attr::new().u32(0, map.as_raw_fd() as u32);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(MAP_FREEZE)", Command::MapFreeze) }.map(drop)
}

/// Another open file of the same map, with an access mode of open(2). Needs CAP_SYS_ADMIN.
///
/// # Errors
/// As bpf(2).
pub fn reopen(map: BorrowedFd<'_>, access: i32) -> Result<OwnedFd, SysError> {
    let flags = match access {
        libc::O_RDONLY => RDONLY,
        libc::O_WRONLY => WRONLY,
        _ => 0,
    };
    let mut a = Attr::new().u32(0, bpf::map_info(map)?.id).u32(8, flags);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe { a.call("bpf(MAP_GET_FD_BY_ID)", Command::MapById) }.map(bpf::fd)
}

/// A program of the system that uses the map of this id, by its name. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// As bpf(2).
pub fn user(map: u32) -> Result<Option<String>, SysError> {
    let mut id = 0;
    while let Some(next) = bpf::next_program(id)? {
        id = next;
        // it may have gone meanwhile
        let Ok(program) = bpf::program(id) else {
            continue;
        };
        let info = bpf::program_info(std::os::fd::AsFd::as_fd(&program))?;
        if info.maps.contains(&map) {
            return Ok(Some(info.name));
        }
    }
    Ok(None)
}
