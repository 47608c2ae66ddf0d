//! Maps of eBPF programs, as descriptors (bpf(2), BPF_MAP_CREATE).
//!
//! **Dump.** The kernel tells type, sizes, flags and name; the elements are read by BPF_MAP_LOOKUP_BATCH into
//! bpfmap-data.img, once per map. Hashes, arrays, hashes that forget (LRU) and tries (LPM) are carried. Other types are
//! refused by name: their elements are not read, or not without being taken out, or mean something to one kernel only.
//!
//! **Restore.** The map is made and filled, and frozen if it was. Open files of the same map are one map again.
//!
//! **What does not come back.** A map that a program uses is refused: programs are not loaded again, and a copy of the map
//! would be another one than theirs. The order in which an LRU hash forgets, and the descriptions of keys and values (BTF).
//!
//! Guests: bpfmap.
use super::common::{body, is_anon, settle};
use super::{Act, DumpCx, FileKind, PlanCx, Seen, Stage, malformed};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::bpf::{self, MapShape};
use stasis_kernel::call::FdRef;
use stasis_kernel::error::SysError;
use stasis_kernel::host::Host;
use stasis_kernel::{bpf_maps, fds, names};
use stasis_proto::{ImageDir, pb};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

/// The kind.
pub struct BpfMap;

/// Types whose elements are carried (linux/bpf.h).
static CARRIED: &[u32] = &[1, 2, 9, 11];
/// Flags of a map that an image may ask for: no preallocation, own lists of free elements, a node of memory, no seed, how programs
/// and mappings may use it.
const FLAGS: u32 = 0x1 | 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x400;
const DATA: &str = "bpfmap-data.img";

impl FileKind for BpfMap {
    fn name(&self) -> &'static str {
        "bpfmap"
    }
    fn about(&self) -> &'static str {
        "maps of eBPF programs that no program uses: hashes, arrays, LRU hashes, tries, with their elements"
    }
    fn fd_type(&self) -> pb::FdTypes {
        pb::FdTypes::Bpfmap
    }
    fn claims(&self, seen: &Seen) -> bool {
        is_anon(seen.link, "bpf-map")
    }
    fn late(&self) -> bool {
        false
    }
    fn dump(&self, seen: &Seen, id: u32, cx: &mut DumpCx) -> Result<pb::FileEntry> {
        const CLOSE: &str = "close it before the dump";
        let info = bpf::map_info(seen.fd)?;
        let s = info.shape;
        if !CARRIED.contains(&s.kind) {
            let kind = names::bpf_map(s.kind.into());
            return Err(seen.unsupported(format!("a map of type {kind} cannot be read"), CLOSE));
        }
        if s.flags & !FLAGS != 0 || info.device != 0 {
            let why = format!("a map with flags {:#x} on device {}", s.flags, info.device);
            return Err(seen.unsupported(why, CLOSE));
        }
        // who may not ask sees no programs
        if let Ok(Some(program)) = bpf_maps::user(info.id) {
            let why = format!("the eBPF program {program:?} uses it, and programs are not carried");
            return Err(seen.unsupported(why, "unload the program before the dump"));
        }
        if info.typed {
            cx.warn(format!(
                "{}: its keys and values will not be described (BTF)",
                seen.place()
            ));
        }
        if cx.first("bpfmap", info.id.into()) {
            contents(seen, &info, cx)?;
        }
        let number = |key: &str| {
            let text = seen.info.get(key).and_then(|v| std::str::from_utf8(v).ok());
            text.and_then(|t| t.parse::<u64>().ok())
        };
        let bpf = pb::BpfmapFileEntry {
            id,
            flags: seen.flags,
            pos: seen.info.pos as u64,
            fown: seen.fown,
            map_type: s.kind,
            key_size: s.key_size,
            value_size: s.value_size,
            map_id: info.id,
            max_entries: s.entries,
            map_flags: s.flags,
            memlock: number("memlock").unwrap_or(0),
            frozen: number("frozen") == Some(1),
            map_name: info.name,
            ifindex: 0,
            ..Default::default()
        };
        Ok(pb::FileEntry {
            r#type: self.fd_type() as i32,
            id,
            bpf: Some(Box::new(bpf)),
            ..Default::default()
        })
    }
    fn stage(&self) -> Stage {
        Stage::First
    }
    fn plan(&self, entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
        let e = body(entry, &entry.bpf, "bpf")?;
        if !CARRIED.contains(&e.map_type) || e.map_flags & !FLAGS != 0 || e.ifindex != 0 {
            return Err(malformed(
                entry,
                &format!(
                    "a map of type {} with flags {:#x} on device {} is not made from an image",
                    names::bpf_map(e.map_type.into()),
                    e.map_flags,
                    e.ifindex
                ),
            ));
        }
        let shape = MapShape {
            kind: e.map_type,
            key_size: e.key_size,
            value_size: e.value_size,
            entries: e.max_entries,
            flags: e.map_flags,
        };
        let key = ("bpfmap", u64::from(e.map_id));
        let known = cx.made.get(&key).map(|f| f[0]);
        let made = known.unwrap_or_else(|| cx.temp());
        cx.made.insert(key, vec![made]);
        let new = known.is_none().then(|| New {
            shape,
            name: e.map_name.clone(),
            id: e.map_id,
            frozen: e.frozen,
        });
        let file = cx.file(entry.id);
        let open = Open {
            new,
            made,
            access: e.flags as i32 & libc::O_ACCMODE,
            file,
        };
        cx.act_at(
            Stage::First,
            Act::BpfMap(Box::new(open)),
            "a map of eBPF programs",
        );
        settle(cx, file, e.flags, &e.fown);
        Ok(())
    }
}

/// Puts the elements of a map into the image.
fn contents(seen: &Seen, info: &bpf::MapInfo, cx: &mut DumpCx) -> Result<()> {
    let all = match bpf_maps::read(seen.fd) {
        // a descriptor for writing only
        Err(e) if e.errno == Errno::EPERM => bpf_maps::read(bpf::map(info.id)?.as_fd())?,
        all => all?,
    };
    let sizes = (all.keys.len().try_into(), all.values.len().try_into());
    let (Ok(keys_bytes), Ok(values_bytes)) = sizes else {
        return Err(seen.unsupported(
            "its elements are more than 4 GiB, which the image format has no place for",
            "empty it before the dump",
        ));
    };
    let record = pb::BpfmapDataEntry {
        map_id: info.id,
        keys_bytes,
        values_bytes,
        count: all.count,
    };
    let mut bytes = all.keys;
    bytes.extend(all.values);
    cx.put(DATA, &record, &bytes)
}

/// A map that is to be made.
#[derive(Debug, Clone)]
struct New {
    shape: MapShape,
    name: String,
    /// Its number in the image.
    id: u32,
    frozen: bool,
}

/// Opens a map.
#[derive(Debug, Clone)]
pub struct Open {
    /// What it is, if nobody has opened it before.
    new: Option<New>,
    /// The map, for whoever opens it again.
    made: FdRef,
    /// Access mode of open(2).
    access: i32,
    file: FdRef,
}

impl Open {
    /// Does nothing if the file is open already: the engine opens it where the worker in the tree's namespaces may not.
    ///
    /// # Errors
    /// E5101: elements that do not fit the map; E6133: the map cannot be made.
    pub fn perform(&self, host: &mut Host, dir: &ImageDir) -> Result<()> {
        if host.fd(self.file).is_some() {
            return Ok(());
        }
        if let Some(new) = &self.new {
            let map = new.make(dir)?;
            // opened again only where that is needed: it takes more rights
            if self.access == libc::O_RDWR {
                host.insert(self.file, fds::dup(map.as_fd())?);
            }
            host.insert(self.made, map);
        }
        if host.fd(self.file).is_none() {
            let map = host.fd(self.made);
            let map = map.ok_or_else(|| Error::bug("a map that nobody has made"))?;
            let file = bpf_maps::reopen(map.as_fd(), self.access).map_err(|e| refused(&e))?;
            host.insert(self.file, file);
        }
        Ok(())
    }
}

impl New {
    fn make(&self, dir: &ImageDir) -> Result<OwnedFd> {
        let map = bpf::create_map(&self.name, self.shape).map_err(|e| refused(&e))?;
        if !dir.exists(DATA)? {
            return Err(self.damaged("there is no image with its elements".into()));
        }
        let mut r = dir.reader(DATA)?;
        while let Some(e) = r.read::<pb::BpfmapDataEntry>()? {
            let bytes = u64::from(e.keys_bytes) + u64::from(e.values_bytes);
            if e.map_id != self.id {
                r.skip(bytes)?;
                continue;
            }
            let fits =
                |bytes: u32, size: u32| u64::from(bytes) == u64::from(e.count) * u64::from(size);
            if !fits(e.keys_bytes, self.shape.key_size)
                || !fits(e.values_bytes, self.shape.value_size)
                || e.count > self.shape.entries
            {
                return Err(self.damaged(format!(
                    "{} elements with {} bytes of keys and {} of values",
                    e.count, e.keys_bytes, e.values_bytes
                )));
            }
            let keys = r.payload(e.keys_bytes.into())?;
            let values = r.payload(e.values_bytes.into())?;
            bpf::update(map.as_fd(), &keys, &values).map_err(|e| refused(&e))?;
            break;
        }
        if self.frozen {
            bpf_maps::freeze(map.as_fd()).map_err(|e| refused(&e))?;
        }
        Ok(map)
    }
    fn damaged(&self, why: String) -> Error {
        let what = format!("eBPF map {} ({:?}) of the image", self.id, self.name);
        Error::new("E5101", Blame::Image, what)
            .why(why)
            .advice("dump again: these are not the elements of such a map")
    }
}

fn refused(e: &SysError) -> Error {
    Error::new("E6133", Blame::Host, "cannot make a map of eBPF programs")
        .why(e)
        .advice("restore as root of the first user namespace (CAP_BPF, CAP_SYS_ADMIN)")
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(n) = &self.new {
            let (s, frozen) = (n.shape, if n.frozen { ", frozen" } else { "" });
            write!(
                f,
                "bpf_map({}, {:?}, {} of {}+{} bytes{frozen}) -> file#{}, ",
                names::bpf_map(s.kind.into()),
                n.name,
                s.entries,
                s.key_size,
                s.value_size,
                self.made.0
            )?;
        }
        write!(
            f,
            "open(file#{}, {:#o}) -> file#{}",
            self.made.0, self.access, self.file.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing;

    fn map(kind: u32, flags: u32, entries: u32) -> Option<OwnedFd> {
        let shape = MapShape {
            kind,
            key_size: if kind == 11 { 8 } else { 4 },
            value_size: 12,
            entries,
            flags,
        };
        bpf::create_map("stasis_test", shape).ok()
    }

    #[test]
    fn elements_come_back_once_for_all_open_files() {
        let Some(hash) = map(1, 0, 5000) else {
            return;
        };
        let array = map(2, 0, 3).expect("an array");
        let lru = map(9, 0, 64).expect("an LRU hash");
        let trie = map(11, 1, 9).expect("a trie");
        let keys: Vec<u8> = (0..4000u32).flat_map(u32::to_ne_bytes).collect();
        let values: Vec<u8> = (0..4000u32 * 3).flat_map(u32::to_ne_bytes).collect();
        bpf::update(hash.as_fd(), &keys, &values).expect("update");
        bpf::update(array.as_fd(), &1u32.to_ne_bytes(), &[7; 12]).expect("update");
        bpf::update(lru.as_fd(), &9u32.to_ne_bytes(), &[8; 12]).expect("update");
        bpf::update(trie.as_fd(), &[8, 0, 0, 0, 10, 0, 0, 0], &[9; 12]).expect("update");
        bpf_maps::freeze(array.as_fd()).expect("freeze");
        let again = bpf_maps::reopen(hash.as_fd(), libc::O_RDONLY).expect("another open file");
        let writing = bpf_maps::reopen(trie.as_fd(), libc::O_WRONLY).expect("another open file");
        let all = [
            writing.as_fd(),
            hash.as_fd(),
            array.as_fd(),
            lru.as_fd(),
            trie.as_fd(),
            again.as_fd(),
        ];
        let d = testing::dump(&BpfMap, &all).expect("a dump");
        let now = d.files(&BpfMap);
        let info = |f: &OwnedFd| bpf::map_info(f.as_fd()).expect("info");
        for (was, now) in all.iter().zip(&now) {
            let (old, new) = (bpf::map_info(*was).expect("info"), info(now));
            assert_eq!((old.shape, &old.name), (new.shape, &new.name));
            assert_ne!(old.id, new.id);
            assert_eq!(testing::flags(was), testing::flags(now));
            assert_eq!(
                testing::info(was).get("frozen"),
                testing::info(now).get("frozen")
            );
            if testing::flags(now) & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32 {
                continue;
            }
            let sorted = |f| {
                let c = bpf_maps::read(f).expect("elements");
                let size = old.key_size as usize;
                let mut all: Vec<(Vec<u8>, Vec<u8>)> = c
                    .keys
                    .chunks(size)
                    .map(<[u8]>::to_vec)
                    .zip(c.values.chunks(12).map(<[u8]>::to_vec))
                    .collect();
                all.sort();
                all
            };
            assert_eq!(sorted(*was), sorted(now.as_fd()));
        }
        assert_eq!(info(&now[0]).id, info(&now[4]).id);
        assert_eq!(info(&now[1]).id, info(&now[5]).id);
        assert_ne!(info(&now[1]).id, info(&now[2]).id);
    }

    #[test]
    fn other_types_and_damaged_elements_are_refused() {
        // a queue, whose elements are read by being taken out
        let shape = MapShape {
            kind: 22,
            key_size: 0,
            value_size: 4,
            entries: 4,
            flags: 0,
        };
        let Ok(queue) = bpf::create_map("", shape) else {
            return;
        };
        let e = testing::see(queue.as_fd(), |s| {
            let e = testing::dump(&BpfMap, &[queue.as_fd()])
                .err()
                .expect("refused");
            assert!(BpfMap.claims(s));
            e
        });
        assert_eq!(e.code, "E4100");
        assert!(e.why.contains("BPF_MAP_TYPE_QUEUE"), "{e}");
        let hash = map(1, 0, 4).expect("a hash");
        let spoiled = |f: &dyn Fn(&mut pb::BpfmapFileEntry)| {
            let mut d = testing::dump(&BpfMap, &[hash.as_fd()]).expect("a dump");
            f(d.files.get_mut(&1).unwrap().bpf.as_mut().unwrap());
            d.restore(&BpfMap).err().map(|e| e.code)
        };
        bpf::update(hash.as_fd(), &1u32.to_ne_bytes(), &[7; 12]).expect("update");
        assert_eq!(spoiled(&|_| {}), None);
        assert_eq!(spoiled(&|e| e.map_type = 3), Some("E5100"));
        assert_eq!(spoiled(&|e| e.map_flags = 1 << 17), Some("E5100"));
        assert_eq!(spoiled(&|e| e.ifindex = 1), Some("E5100"));
        assert_eq!(spoiled(&|e| e.value_size = 8), Some("E5101"));
        assert_eq!(spoiled(&|e| e.map_type = 11), Some("E6133"));
    }
}
