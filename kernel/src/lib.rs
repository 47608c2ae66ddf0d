//! Everything stasis asks the kernel: system calls, /proc, ptrace, tapes, feature probes.
//!
//! This is the only crate of the workspace that may say `unsafe`. It knows nothing of images or plans.
#![allow(unsafe_code)]

/// The device of autofs.
pub mod autofs;
/// bpf(2) for programs that are loaded already.
pub mod bpf;
/// Maps of eBPF programs that belong to a tree.
pub mod bpf_maps;
/// The list of the kernel's own types.
pub mod btf;
/// A system call as data: the row of every tape.
pub mod call;
pub mod census;
/// What went wrong: a failed system call, or kernel text that could not be understood.
pub mod datagram;
pub mod error;
/// Dump tapes: asking a stopped task what only it can be asked.
pub mod excursion;
/// System calls on descriptors and pidfds: getfd, kcmp, SCM_RIGHTS, memfd, statx, file handles.
pub mod fds;
pub mod flight;
/// Host tapes: rows the engine plays itself.
pub mod host;
/// Numbers that must not be mixed up: pids, addresses and descriptors of other processes.
pub mod ids;
/// The engine's own memory.
#[cfg(target_env = "gnu")]
pub mod memory;
/// Mounts: rows of the mount API.
pub mod mnt;
/// Names for numbers, for every message a person reads.
pub mod names;
/// Namespaces, and visits to foreign ones.
pub mod netlink;
pub mod ns;
/// Which pages of an address space exist, and which were written.
pub mod pagemap;
/// What this kernel can do for this user, found out by doing it.
pub mod probe;
/// Reading /proc/PID: one open directory per process, parsers that are pure functions of bytes.
pub mod procfs;
/// Seizing tasks: ptrace(2).
pub mod ptrace;
/// Restore tapes: the shared memory that all tasks play from.
pub mod reel;
/// Reading TCP connections in repair mode.
pub mod repair;
/// What a seccomp filter would say to a call.
pub mod seccomp;
/// userfaultfd: what change tracking and the probes need.
pub mod uffd;
/// Unix sockets: messages, queues, names, and calls under another process's number.
pub mod unix;
pub mod usher;

/// What UDP sockets hold back.
pub mod cork;
/// Packets in queues, read out of the kernel's memory.
mod skb;

/// A small process that puts something back if the engine ends before it could.
pub mod guardian;
/// A process of the engine's inside the namespaces of a restored tree.
pub mod inner;
/// The kernel's own memory, read.
pub mod inside;
/// System V semaphores and message queues.
pub mod ipc;
/// A process that holds descriptors between two runs of the engine.
pub mod keeper;
/// The engine's own limits.
pub mod limits;
/// POSIX message queues.
pub mod mqueue;
/// A copy of the engine that serves restored tasks by itself.
pub mod offspring;
/// Scheduling and futex facts of other threads.
pub mod sched;
/// System V shared memory.
pub mod sysv;
/// What SEM_UNDO would undo.
pub mod undo;
/// What unix sockets hold, read out of the kernel's memory.
pub mod unix_inside;
pub mod users;
/// Reading and writing another process's memory.
pub mod vm;
/// Where the parts of an XSAVE area lie.
pub mod xstate;
pub mod zero;
