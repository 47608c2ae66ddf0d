//! What is in an IPC namespace: its limits (`ipcns-var-N.img`), System V shared memory (`ipcns-shm-N.img`), semaphores
//! (`ipcns-sem-N.img`) and message queues with their messages (`ipcns-msg-N.img`); POSIX message queues ([`super::mqueues`]).
//!
//! **Dump.** From a visit: nothing is taken out of a queue or waits at a semaphore. All objects of the namespace are described,
//! also such as no task of the tree uses at the moment.
//!
//! **Restore.** By a process in the fresh namespace: limits first, then objects under their ids. Tasks attach segments by id; what
//! was removed is removed again when they have ([`crate::kinds::sysv`]).
//!
//! **What does not come back.** Creators, times, and the last who used a semaphore; SHM_LOCK.
use super::user::Ids;
use crate::error::{Blame, Error, Result};
use crate::kinds::{DumpCx, shmem, sysv as sysv_kind};
use stasis_kernel::call::FdRef;
use stasis_kernel::error::SysError;
use stasis_kernel::ids::HostPid;
use stasis_kernel::ipc::{self, Perm, Sort};
use stasis_kernel::ns::{self, Ns};
use stasis_kernel::sysv;
use stasis_proto::{ImageDir, Kind, pb};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// Most semaphores of a set (SEMMSL can be raised to this, linux/sem.h and `ipc_mni`).
const MOST_SEMAPHORES: u32 = 1 << 24;
/// Longest message an image may hold: kernel.msgmax is an int.
const LONGEST_MESSAGE: u32 = i32::MAX as u32;

const MESSAGES: &str = "/proc/sys/kernel/";
const QUEUES: &str = "/proc/sys/fs/mqueue/";

/// Type and bytes of a message.
type Letter = (i64, Vec<u8>);

/// All there is in the namespace.
struct Contents {
    vars: pb::IpcVarEntry,
    segments: Vec<(pb::IpcShmEntry, OwnedFd)>,
    sets: Vec<(pb::IpcSemEntry, Vec<u16>)>,
    queues: Vec<(pb::IpcMsgEntry, Vec<Letter>)>,
    /// Name and open file of each POSIX message queue.
    named: Vec<(Vec<u8>, OwnedFd)>,
}

/// Describes the IPC namespace of a task under this number.
///
/// # Errors
/// Failures to enter the namespace, to look, or to write.
pub fn dump(cx: &mut DumpCx, id: u32, task: HostPid) -> Result<()> {
    let ids = cx.ids.clone();
    let seen = ns::visit_task(task, &[Ns::Ipc], || look(&ids))??;
    cx.dir.write_one(&Kind::IpcVar.file_of(id), &seen.vars)?;
    let image = Kind::IpcnsShm.file_of(id);
    for (e, file) in &seen.segments {
        let as_ = contents_id(cx, id, e.desc.id)?;
        shmem::dump_contents(cx, file.as_fd(), as_, e.size, None)?;
        cx.put(&image, e, &[])?;
    }
    let image = Kind::IpcnsSem.file_of(id);
    for (e, values) in &seen.sets {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        cx.put(&image, e, &padded(bytes))?;
    }
    super::mqueues::of_namespace(cx, id, &seen.named)?;
    let image = Kind::IpcnsMsg.file_of(id);
    for (e, messages) in seen.queues {
        cx.put(&image, &e, &[])?;
        for (mtype, text) in messages {
            let m = pb::IpcMsg {
                mtype: mtype as u64,
                msize: text.len() as u32,
            };
            cx.put(&image, &m, &padded(text))?;
        }
    }
    Ok(())
}

/// Under which number the contents of a segment are kept: its id, unless other shared memory has that; in a namespace that only
/// tasks below the root have, always with the number of the namespace.
fn contents_id(cx: &DumpCx, space: u32, id: u32) -> Result<u64> {
    if crate::dump::is_nested(space) {
        return Ok(nested_id(space, id));
    }
    match cx.dir.exists(&Kind::ShmemPagemap.file_of(id))? {
        true => Ok(sysv_kind::contents_id(id)),
        false => Ok(id.into()),
    }
}

fn nested_id(space: u32, id: u32) -> u64 {
    u64::from(space) << 32 | u64::from(id)
}

/// Payloads stand in whole words of 8 bytes.
fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn desc(id: i32, p: &Perm, ids: &Ids) -> pb::IpcDescEntry {
    pb::IpcDescEntry {
        key: p.key as u32,
        uid: ids.uid(p.uid),
        gid: ids.gid(p.gid),
        cuid: ids.uid(p.cuid),
        cgid: ids.gid(p.cgid),
        mode: p.mode,
        id: id as u32,
    }
}

/// Looks at the namespace the caller is in.
fn look(ids: &Ids) -> Result<Contents> {
    let mut all = Contents {
        vars: variables()?,
        segments: Vec::new(),
        sets: Vec::new(),
        queues: Vec::new(),
        // a kernel without them, or a user who may not mount: none can be seen, and none of the tree's files is one either
        named: ipc::posix_queues().unwrap_or_default(),
    };
    for id in ipc::list(Sort::Memory)? {
        let s = sysv::stat(id)?;
        let p = Perm {
            key: s.key,
            uid: s.uid,
            gid: s.gid,
            cuid: s.cuid,
            cgid: s.cgid,
            mode: s.mode,
        };
        let file = sysv::open(id, s.size).map_err(|e| opened(id, e))?;
        if huge(&file)? {
            return Err(Error::new(
                "E4461",
                Blame::Container,
                format!("shared memory segment {id} of the tree's IPC namespace"),
            )
            .why("it is in huge pages (SHM_HUGETLB), which this version does not carry")
            .advice("remove it (ipcrm -m), or make it without SHM_HUGETLB"));
        }
        let e = pb::IpcShmEntry {
            desc: desc(id, &p, ids),
            size: s.size,
            in_pagemaps: Some(true),
            hugetlb_flag: None,
        };
        all.segments.push((e, file));
    }
    for id in ipc::list(Sort::Semaphores)? {
        let (p, values) = ipc::semaphores(id)?;
        let e = pb::IpcSemEntry {
            desc: desc(id, &p, ids),
            nsems: values.len() as u32,
        };
        all.sets.push((e, values));
    }
    for id in ipc::list(Sort::Messages)? {
        let q = ipc::queue(id)?;
        let copy = |n| ipc::message(id, n, q.bytes as usize);
        let messages: Vec<_> = (0..q.messages).map(copy).collect::<Result<_, SysError>>()?;
        let e = pb::IpcMsgEntry {
            desc: desc(id, &q.perm, ids),
            qbytes: q.limit.min(u32::MAX.into()) as u32,
            qnum: messages.len() as u32,
        };
        all.queues.push((e, messages));
    }
    Ok(all)
}

/// A segment that nobody in the tree has attached can only be read through a file of ours.
fn opened(id: i32, e: SysError) -> Error {
    Error::from(e).on(format!(
        "shared memory segment {id} of the tree's IPC namespace"
    ))
}

fn huge(file: &OwnedFd) -> Result<bool> {
    const HUGETLBFS: i64 = 0x9584_58f6;
    let s = nix::sys::statfs::fstatfs(file)
        .map_err(|e| SysError::new("fstatfs", e, "a segment of shared memory"))?;
    Ok(s.filesystem_type().0 == HUGETLBFS)
}

fn read(path: &str, name: &str) -> Result<Vec<u64>> {
    let path = format!("{path}{name}");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
        SysError::new("openat", errno, path.clone())
    })?;
    let number = |w: &str| {
        w.parse::<u64>()
            .ok()
            .or(w.parse::<i64>().ok().map(|n| n as u64))
    };
    let all: Option<Vec<u64>> = text.split_whitespace().map(number).collect();
    all.filter(|a| !a.is_empty()).ok_or_else(|| {
        Error::new("E3061", Blame::Kernel, path)
            .why(format!("it says {text:?}, which is no number"))
            .advice("this kernel writes /proc/sys in a form stasis does not know: please report it")
    })
}

fn variables() -> Result<pb::IpcVarEntry> {
    let one = |path, name| read(path, name).map(|v| v[0]);
    let small = |path, name| one(path, name).map(|v| v as u32);
    Ok(pb::IpcVarEntry {
        sem_ctls: read(MESSAGES, "sem")?
            .into_iter()
            .map(|v| v as u32)
            .collect(),
        msg_ctlmax: small(MESSAGES, "msgmax")?,
        msg_ctlmnb: small(MESSAGES, "msgmnb")?,
        msg_ctlmni: small(MESSAGES, "msgmni")?,
        auto_msgmni: small(MESSAGES, "auto_msgmni").unwrap_or(0),
        shm_ctlmax: one(MESSAGES, "shmmax")?,
        shm_ctlall: one(MESSAGES, "shmall")?,
        shm_ctlmni: small(MESSAGES, "shmmni")?,
        shm_rmid_forced: small(MESSAGES, "shm_rmid_forced")?,
        mq_queues_max: small(QUEUES, "queues_max").unwrap_or(0),
        mq_msg_max: small(QUEUES, "msg_max").unwrap_or(0),
        mq_msgsize_max: small(QUEUES, "msgsize_max").unwrap_or(0),
        mq_msg_default: small(QUEUES, "msg_default").ok(),
        mq_msgsize_default: small(QUEUES, "msgsize_default").ok(),
        // wishes of somebody who is about to make an object: only asked for, never left
        msg_next_id: None,
        sem_next_id: None,
        shm_next_id: None,
    })
}

/// Writes a limit, unless it is so already. One that this machine refuses is an error, for programs rely on it.
fn set(path: &str, name: &str, values: &[u64]) -> Result<()> {
    if read(path, name)? == values {
        return Ok(());
    }
    let text: Vec<String> = values.iter().map(u64::to_string).collect();
    let text = text.join(" ");
    std::fs::write(format!("{path}{name}"), &text).map_err(|e| {
        Error::new("E6460", Blame::Host, format!("cannot set {path}{name} to {text}"))
            .why(e)
            .advice("the container's IPC limits are set by this machine's privileges: restore with more rights, or raise what it allows")
    })
}

fn set_variables(v: &pb::IpcVarEntry) -> Result<()> {
    if v.sem_ctls.len() != 4 {
        return Err(damaged("ipcns-var", "there are four limits of semaphores"));
    }
    let sem: Vec<u64> = v.sem_ctls.iter().map(|v| u64::from(*v)).collect();
    set(MESSAGES, "sem", &sem)?;
    set(MESSAGES, "msgmax", &[v.msg_ctlmax.into()])?;
    set(MESSAGES, "msgmnb", &[v.msg_ctlmnb.into()])?;
    set(MESSAGES, "msgmni", &[v.msg_ctlmni.into()])?;
    set(MESSAGES, "shmmax", &[v.shm_ctlmax])?;
    set(MESSAGES, "shmall", &[v.shm_ctlall])?;
    set(MESSAGES, "shmmni", &[v.shm_ctlmni.into()])?;
    set(MESSAGES, "shm_rmid_forced", &[v.shm_rmid_forced.into()])?;
    let mq = [
        ("queues_max", Some(v.mq_queues_max)),
        ("msg_max", Some(v.mq_msg_max)),
        ("msgsize_max", Some(v.mq_msgsize_max)),
        ("msg_default", v.mq_msg_default),
        ("msgsize_default", v.mq_msgsize_default),
    ];
    for (name, value) in mq {
        // 0: the kernel that dumped had none
        if let Some(n) = value.filter(|n| *n != 0) {
            set(QUEUES, name, &[n.into()])?;
        }
    }
    Ok(())
}

fn damaged(image: &str, why: &str) -> Error {
    Error::new("E5461", Blame::Image, image)
        .why(why)
        .advice("dump again")
}

fn perm(d: &pb::IpcDescEntry) -> Perm {
    Perm {
        key: d.key as i32,
        uid: d.uid,
        gid: d.gid,
        cuid: d.cuid,
        cgid: d.cgid,
        mode: d.mode,
    }
}

fn making(what: &str, id: u32, e: SysError) -> Error {
    Error::new("E6461", Blame::Host, format!("cannot make {what} {id} of the tree's IPC namespace"))
        .why(e)
        .advice("an id that is taken or a limit that is too low: restore in a fresh IPC namespace, with the rights the container had")
}

/// The sets of semaphores of a namespace, and their values.
fn sets(dir: &ImageDir, id: u32) -> Result<Vec<(pb::IpcSemEntry, Vec<u16>)>> {
    let name = Kind::IpcnsSem.file_of(id);
    let mut all = Vec::new();
    if !dir.exists(&name)? {
        return Ok(all);
    }
    let mut image = dir.reader(&name)?;
    while let Some(e) = image.read::<pb::IpcSemEntry>()? {
        if e.nsems > MOST_SEMAPHORES {
            return Err(damaged(
                &name,
                "a set with more semaphores than any kernel allows",
            ));
        }
        let bytes = image.payload(u64::from(e.nsems * 2).next_multiple_of(8))?;
        let values = bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]));
        let values = values.take(e.nsems as usize).collect();
        all.push((e, values));
    }
    Ok(all)
}

/// Values of semaphores as a namespace that is made anew has them, by the ids of their sets.
///
/// # Errors
/// E5461.
pub fn semaphores(dir: &ImageDir, id: u32) -> Result<BTreeMap<i32, Vec<u16>>> {
    let all = sets(dir, id)?.into_iter();
    Ok(all.map(|(e, v)| (e.desc.id as i32, v)).collect())
}

/// Fills the fresh IPC namespace the caller is in; /proc is still that of the host.
///
/// # Errors
/// E5461: a damaged image. E6460, E6461: the kernel refuses a limit or an object.
pub fn restore(dir: &ImageDir, id: u32) -> Result<()> {
    let name = Kind::IpcVar.file_of(id);
    if dir.exists(&name)? {
        set_variables(&dir.read_one(&name)?)?;
    }
    let name = Kind::IpcnsShm.file_of(id);
    if dir.exists(&name)? {
        for e in dir.reader(&name)?.read_rest::<pb::IpcShmEntry>()? {
            let d = &e.desc;
            let made = sysv::make(d.id as i32, d.key as i32, e.size, d.mode, (d.uid, d.gid));
            let failed = |why| making("shared memory segment", d.id, why);
            // it goes with its namespace
            made.map_err(failed)?.keep();
            let mut under = u64::from(d.id);
            for name in [nested_id(id, d.id), sysv_kind::contents_id(d.id)] {
                if dir.exists(&Kind::ShmemPagemap.file_of(name))? {
                    under = name;
                    break;
                }
            }
            // no file of it: /proc/self/map_files is not for the root of a user namespace
            if let Some(fill) = shmem::fill(dir, FdRef(0), under, e.size, None)? {
                let mut memory = sysv::attach(d.id as i32, e.size).map_err(failed)?;
                fill.copy(dir, |at, piece| Ok(memory.write(at, piece)?))?;
            }
        }
    }
    for (e, values) in sets(dir, id)? {
        ipc::make_semaphores(e.desc.id as i32, &perm(&e.desc), &values)
            .map_err(|why| making("semaphore set", e.desc.id, why))?;
    }
    let name = Kind::IpcnsMsg.file_of(id);
    if dir.exists(&name)? {
        let mut image = dir.reader(&name)?;
        while let Some(e) = image.read::<pb::IpcMsgEntry>()? {
            let at = e.desc.id;
            let failed = |why| making("message queue", at, why);
            ipc::make_queue(at as i32, &perm(&e.desc), e.qbytes.into()).map_err(failed)?;
            for _ in 0..e.qnum {
                let m: pb::IpcMsg = image
                    .read()?
                    .ok_or_else(|| damaged(&name, "a queue has less messages than it says"))?;
                if m.msize > LONGEST_MESSAGE {
                    return Err(damaged(&name, "a message longer than any kernel allows"));
                }
                let mut text = image.payload(u64::from(m.msize).next_multiple_of(8))?;
                text.truncate(m.msize as usize);
                ipc::send(at as i32, m.mtype as i64, &text).map_err(failed)?;
            }
        }
    }
    super::mqueues::restore(dir, id)
}
