//! All open files of a task in one read: what `/proc/PID/fd` and `/proc/PID/fdinfo` tell, without a row of system calls for each.
//!
//! A program that the kernel runs for every file of a task (BPF_PROG_TYPE_TRACING, iterator `task_file`, KERNEL(>=5.8); for one task
//! KERNEL(>=6.1)) writes down slot, flags, position, mount, inode and path; of a socket also the fields out of which
//! getsockopt(2) answers, so that sockets with the same options need be asked only once. Where fields lie the kernel's own list of
//! types tells ([`crate::btf`]).
//!
//! What a kind of file tells of itself in fdinfo, and locks, are not in it: such files say so, and are asked through /proc.
//!
//! Needs CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN in the first user namespace.
//!
//! Long because the program stands beside the list of what it reads.
use crate::bpf::{self, Attr, Command, Insn};
use crate::btf;
use crate::error::{SysError, SysResult};
use crate::ids::HostPid;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// One open file of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its slot.
    pub slot: i32,
    /// The slot is closed by execve(2).
    pub cloexec: bool,
    /// O_* of the open file.
    pub flags: u32,
    /// File position.
    pub pos: i64,
    /// Id of the mount in mountinfo.
    pub mnt_id: i32,
    /// Inode number.
    pub ino: u64,
    /// What `/proc/PID/fd/SLOT` shows to the caller.
    pub link: Vec<u8>,
    /// Nobody was ever told to be its owner (fcntl(2), F_SETOWN, F_SETSIG, F_NOTIFY, F_SETLEASE).
    pub unowned: bool,
    /// fdinfo tells more: its kind has something to say, or there are locks on the inode.
    pub more: bool,
    /// Of a unix socket, and of a TCP one that neither listens nor is closed: two sockets for which these bytes are the same answer
    /// the same to every question of getsockopt(2), but for those that [`Census`] names. `None`: not known.
    pub options: Option<Vec<u8>>,
}

/// A way to ask for the files of tasks.
///
/// [`Entry::options`] do not decide the sizes of buffers (SO_SNDBUF, SO_RCVBUF) and IPV6_UNICAST_HOPS, nor what is no option: errors,
/// addresses, TCP_INFO.
#[derive(Debug)]
pub struct Census {
    program: OwnedFd,
    /// Who owns a file is a structure of its own, which most files do not have. KERNEL(>=6.12)
    owners: bool,
    /// Bytes of [`Fields`] that are read of each sort of socket.
    sizes: Sizes,
    /// The program's notebook lives as long as this.
    _notebook: OwnedFd,
}

/// Where the fields of a record lie; all are words.
mod rec {
    pub const SLOT: i16 = 0;
    pub const POS: i16 = 8;
    pub const FLAGS: i16 = 16;
    pub const TELLS: i16 = 24;
    pub const INO: i16 = 32;
    pub const LOCKS: i16 = 40;
    pub const MODE: i16 = 48;
    pub const MOUNT: i16 = 56;
    pub const CLOEXEC: i16 = 64;
    pub const LINK: i16 = 72;
    pub const SOCK: i16 = 80;
    pub const OWNER: i16 = 88;
    /// Family (2 bytes), type (2 bytes), protocol (2 bytes).
    pub const SORT: i16 = 96;
    /// Options of sockets.
    pub const OPTIONS: i16 = 104;
}

/// The longest path, with its end.
const PATH: i32 = libc::PATH_MAX;
/// Room for options of sockets.
const ROOM: usize = 320;
const HEAD: usize = rec::OPTIONS as usize + ROOM;

/// Fields, and how many bytes of each.
type Fields = &'static [(&'static str, &'static str, usize)];

/// Out of which getsockopt(2) answers at SOL_SOCKET, but for SO_SNDBUF and SO_RCVBUF, which the kernel tunes (net/core/sock.c,
/// sk_getsockopt()).
const SOCKET: Fields = &[
    ("sock", "sk_peek_off", 4),
    ("sock", "sk_ll_usec", 4),
    ("sock", "sk_prefer_busy_poll", 1),
    ("sock", "sk_busy_poll_budget", 2),
    ("sock", "sk_userlocks", 1),
    ("sock", "sk_filter", 8),
    ("sock", "sk_rcvtimeo", 8),
    ("sock", "sk_rcvlowat", 4),
    ("sock", "sk_reserved_mem", 4),
    ("sock", "sk_tsflags", 4),
    ("sock", "sk_max_pacing_rate", 8),
    ("sock", "sk_sndtimeo", 8),
    ("sock", "sk_priority", 4),
    ("sock", "sk_mark", 4),
    // bits have the byte they lie in
    ("sock", "sk_no_check_tx", 1),
    ("sock", "sk_no_check_rx", 1),
    ("sock", "sk_lingertime", 8),
    ("sock", "sk_bind_phc", 4),
    ("sock", "sk_txrehash", 1),
    ("sock", "sk_scm_recv_flags", 1),
    ("sock", "sk_clockid", 1),
    ("sock", "sk_txtime_deadline_mode", 1),
    ("sock_common", "skc_flags", 8),
    ("sock_common", "skc_reuse", 1),
    ("sock_common", "skc_reuseport", 1),
    ("sock_common", "skc_ipv6only", 1),
    ("sock_common", "skc_bound_dev_if", 4),
    // its defaults, and what devices are called
    ("sock_common", "skc_net", 8),
];

/// AF_UNIX (net/unix/af_unix.c).
const UNIX: Fields = &[("unix_sock", "recvmsg_inq", 1)];

/// SOL_IP and SOL_TCP of TCP sockets (net/ipv4/ip_sockglue.c, do_ip_getsockopt(); net/ipv4/tcp.c, do_tcp_getsockopt()).
const TCP: Fields = &[
    ("inet_sock", "inet_flags", 8),
    ("inet_sock", "uc_ttl", 2),
    ("inet_sock", "inet_opt", 8),
    ("inet_sock", "tos", 1),
    ("inet_sock", "min_ttl", 1),
    ("inet_sock", "mc_ttl", 1),
    ("inet_sock", "pmtudisc", 1),
    ("inet_sock", "uc_index", 4),
    ("inet_sock", "mc_index", 4),
    ("inet_sock", "mc_addr", 4),
    ("inet_sock", "local_port_range", 4),
    ("inet_connection_sock", "icsk_ca_ops", 8),
    ("inet_connection_sock", "icsk_ulp_ops", 8),
    ("inet_connection_sock", "icsk_syn_retries", 1),
    ("inet_connection_sock", "icsk_user_timeout", 4),
    ("inet_connection_sock", "icsk_rto_max", 4),
    ("request_sock_queue", "rskq_defer_accept", 1),
    ("tcp_sock", "notsent_lowat", 4),
    ("tcp_sock", "recvmsg_inq", 1),
    ("tcp_sock", "nonagle", 1),
    ("tcp_sock", "thin_lto", 1),
    ("tcp_sock", "fastopen_connect", 1),
    ("tcp_sock", "fastopen_no_cookie", 1),
    ("tcp_sock", "save_syn", 1),
    ("tcp_sock", "keepalive_probes", 1),
    ("tcp_sock", "tcp_tx_delay", 4),
    ("tcp_sock", "keepalive_time", 4),
    ("tcp_sock", "keepalive_intvl", 4),
    ("tcp_sock", "linger2", 4),
];

/// SOL_IPV6, but for IPV6_UNICAST_HOPS, whose default is the route's (net/ipv6/ipv6_sockglue.c, do_ipv6_getsockopt()).
const IPV6: Fields = &[
    ("ipv6_pinfo", "flow_label", 4),
    ("ipv6_pinfo", "opt", 8),
    ("ipv6_pinfo", "hop_limit", 2),
    ("ipv6_pinfo", "pmtudisc", 1),
    ("ipv6_pinfo", "tclass", 1),
    ("ipv6_pinfo", "mcast_hops", 1),
    ("ipv6_pinfo", "frag_size", 4),
    ("ipv6_pinfo", "ucast_oif", 4),
    ("ipv6_pinfo", "mcast_oif", 4),
    ("ipv6_pinfo", "rxopt", 2),
    ("ipv6_pinfo", "srcprefs", 1),
    ("ipv6_pinfo", "min_hopcount", 1),
    ("ipv6_pinfo", "rcv_flowinfo", 4),
    ("ipv6_pinfo", "sticky_pktinfo", 20),
];

/// Structures that lie inside of another one, at the start if nothing else is said.
const INSIDE: [(&str, (&str, &str)); 2] = [
    ("sock_common", ("sock", "__sk_common")),
    (
        "request_sock_queue",
        ("inet_connection_sock", "icsk_accept_queue"),
    ),
];

/// Bytes of options of each sort of socket; `None`: the kernel has not all of the fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sizes {
    socket: Option<usize>,
    unix: Option<usize>,
    tcp: Option<usize>,
    ipv6: Option<usize>,
}

/// What is read of a socket: place in the kernel's structure, place in the record, bytes.
type Reads = Vec<(u64, usize, usize)>;

const FILE: [(&str, &str); 18] = [
    ("file", "f_pos"),
    ("file", "f_flags"),
    ("file", "f_op"),
    ("file_operations", "show_fdinfo"),
    ("file", "f_inode"),
    ("inode", "i_ino"),
    ("inode", "i_flctx"),
    ("inode", "i_mode"),
    ("file", "f_path"),
    ("mount", "mnt"),
    ("mount", "mnt_id"),
    ("task_struct", "files"),
    ("files_struct", "fdt"),
    ("fdtable", "close_on_exec"),
    ("file", "private_data"),
    ("socket", "sk"),
    ("inet_sock", "pinet6"),
    ("file", "f_owner"),
];
/// A field of owners since they are structures of their own.
const OWN: (&str, &str) = ("fown_struct", "file");
const SORT: [(&str, &str); 3] = [
    ("sock_common", "skc_family"),
    ("sock", "sk_type"),
    ("sock", "sk_protocol"),
];

/// The program: instructions, one after the other, with jumps to the end.
struct Program {
    all: Vec<Insn>,
    /// Jumps to the end.
    ends: Vec<usize>,
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
/// What the program is called with; later the socket.
const CTX: u8 = 6;
const OPEN: u8 = 7;
const TO: u8 = 8;
const NOTE: u8 = 9;

impl Program {
    fn push(&mut self, code: u8, to: u8, from: u8, off: i16, imm: i32) {
        self.all.push(Insn {
            code,
            to,
            from,
            off,
            imm,
        });
    }
    /// `to = *(word *)(from + off)`
    fn load(&mut self, to: u8, from: u8, off: u64) {
        self.push(0x79, to, from, off as i16, 0);
    }
    /// The same with 4 bytes.
    fn load_int(&mut self, to: u8, from: u8, off: u64) {
        self.push(0x61, to, from, off as i16, 0);
    }
    /// The same with 2 bytes.
    fn load_half(&mut self, to: u8, from: u8, off: u64) {
        self.push(0x69, to, from, off as i16, 0);
    }
    /// Notes a word.
    fn note(&mut self, at: i16, from: u8) {
        self.push(0x7b, NOTE, from, at, 0);
    }
    /// `to = from`
    fn mov(&mut self, to: u8, from: u8) {
        self.push(0xbf, to, from, 0, 0);
    }
    /// `to = number`
    fn set(&mut self, to: u8, number: i32) {
        self.push(0xb7, to, 0, 0, number);
    }
    /// `to += number`
    fn add(&mut self, to: u8, number: i32) {
        self.push(0x07, to, 0, 0, number);
    }
    fn call(&mut self, function: i32) {
        self.push(0x85, 0, 0, 0, function);
    }
    /// Jumps to the end if the register is 0.
    fn end_if_none(&mut self, register: u8) {
        self.ends.push(self.all.len());
        self.push(0x15, register, 0, 0, 0);
    }
    /// Notes so many bytes of the kernel's memory at what R3 tells.
    fn copy(&mut self, at: usize, len: usize) {
        const PROBE_READ_KERNEL: i32 = 113;
        self.mov(R1, NOTE);
        self.add(R1, at as i32);
        self.set(R2, len as i32);
        self.call(PROBE_READ_KERNEL);
    }
    /// Jumps over what `f` adds unless the word that is noted at `at` is `value`.
    fn only_if(&mut self, at: i16, mask: i32, value: i32, f: impl FnOnce(&mut Self)) {
        self.load(R1, NOTE, at as u64);
        self.push(0x57, R1, 0, 0, mask);
        let jump = self.all.len();
        self.push(0x55, R1, 0, 0, value);
        f(self);
        self.all[jump].off = (self.all.len() - jump - 1) as i16;
    }
}

/// Fields that the kernel has, as reads from the start of the structure that others lie in; `None` if one is missing.
fn reads(
    fields: Fields,
    find: &impl Fn(&str, &str) -> Option<u64>,
    at: &mut usize,
) -> Option<Reads> {
    let mut all = Vec::new();
    let mut next = *at;
    for (of, field, len) in fields {
        let mut place = find(of, field)?;
        let mut inner = *of;
        while let Some((_, (outer, name))) = INSIDE.iter().find(|(i, _)| *i == inner) {
            place += find(outer, name)?;
            inner = outer;
        }
        all.push((place, next, *len));
        next += len;
    }
    (next <= ROOM).then(|| {
        *at = next;
        all
    })
}

impl Census {
    /// One for many tasks: to find out where the kernel's fields lie takes milliseconds.
    ///
    /// # Errors
    /// EPERM without the rights; others if the kernel has not what is needed (before 6.1).
    pub fn new() -> SysResult<Self> {
        let sockets = [SOCKET, UNIX, TCP, IPV6];
        let mut wanted: Vec<(&str, &str)> = FILE.iter().chain(&SORT).copied().collect();
        wanted.push(OWN);
        wanted.extend(INSIDE.map(|(_, place)| place));
        wanted.extend(sockets.iter().copied().flatten().map(|f| (f.0, f.1)));
        let (found, function) =
            btf::look(&bpf::kernel_types()?, &wanted, Some("bpf_iter_task_file"))?;
        let known = wanted.iter().zip(&found);
        let find = |of: &str, field: &str| {
            let mut known = known.clone();
            known
                .find(|(w, _)| **w == (of, field))
                .and_then(|(_, at)| *at)
        };
        let need = |what: (&'static str, &'static str)| {
            find(what.0, what.1).ok_or_else(|| btf::no_field(what))
        };
        let function = function.ok_or_else(|| btf::no_field(("bpf_iter_task_file", "")))?;
        let mut file = [0; FILE.len()];
        for (at, what) in file.iter_mut().zip(FILE) {
            *at = need(what)?;
        }
        let mut sort = [0; SORT.len()];
        for (at, what) in sort.iter_mut().zip(SORT) {
            *at = need(what)?;
        }
        let mut room = 0;
        let socket = reads(SOCKET, &find, &mut room);
        let end = room;
        let unix = reads(UNIX, &find, &mut room);
        room = end;
        let tcp = reads(TCP, &find, &mut room);
        let tcp_end = room;
        let ipv6 = reads(IPV6, &find, &mut room);
        let sizes = Sizes {
            socket: socket.as_ref().map(|_| end),
            unix: unix
                .as_ref()
                .map(|u| end + u.iter().map(|r| r.2).sum::<usize>()),
            tcp: tcp.as_ref().map(|_| tcp_end),
            ipv6: ipv6.as_ref().map(|_| room),
        };
        let parts = [socket, unix, tcp, ipv6].map(Option::unwrap_or_default);
        let notebook = bpf::word_map((HEAD + PATH as usize) as u32)?;
        let program = instructions(notebook.as_raw_fd(), &file, &sort, &parts);
        let census = Census {
            program: bpf::load_iterator("stasis_census", &program, function)?,
            owners: find(OWN.0, OWN.1).is_some(),
            sizes,
            _notebook: notebook,
        };
        // KERNEL(<6.1): it cannot be asked of one task, and tells of all
        match census.of(HostPid(i32::MAX))?.is_empty() {
            true => Ok(census),
            false => Err(btf::no_field(("bpf_iter_link_info", "task"))),
        }
    }
    /// The open files of a task, in the order of their slots.
    ///
    /// Nothing if there is no such task.
    ///
    /// # Errors
    /// EBADMSG: the kernel tells what cannot be.
    pub fn of(&self, task: HostPid) -> SysResult<Vec<Entry>> {
        // union bpf_iter_link_info: tid
        let info = [task.0 as u32, 0, 0, 0];
        let mut a = Attr::new()
            .u32(0, self.program.as_raw_fd() as u32)
            .u32(8, bpf::ITERATOR)
            .ptr(16, info.as_ptr())
            .u32(24, size_of_val(&info) as u32);
        // SAFETY: the block that is pointed to is as large as is told, and lives through the call.
        #[allow(unsafe_code)]
        let link = unsafe { a.call("bpf(LINK_CREATE)", Command::LinkCreate) }.map(bpf::fd)?;
        let mut a = Attr::new().u32(0, link.as_raw_fd() as u32);
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        let iterator = unsafe { a.call("bpf(ITER_CREATE)", Command::IterCreate) }.map(bpf::fd)?;
        let broken = |e| SysError::new("read", e, "an iterator of files");
        let (mut all, mut bytes, mut piece) = (Vec::new(), Vec::new(), vec![0; PIECE]);
        loop {
            let n = nix::unistd::read(&iterator, &mut piece).map_err(broken)?;
            if n == 0 {
                break;
            }
            bytes.extend_from_slice(&piece[..n]);
            let used = self.entries(&bytes, &mut all)?;
            bytes.drain(..used);
        }
        match bytes.is_empty() {
            true => Ok(all),
            false => Err(strange()),
        }
    }
    /// Adds the records that are whole; gives their length.
    fn entries(&self, bytes: &[u8], all: &mut Vec<Entry>) -> SysResult<usize> {
        let mut used = 0;
        while let Some(head) = bytes.get(used..used + HEAD) {
            let word = |at: i16| {
                let b = &head[at as usize..at as usize + 8];
                u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
            };
            let len = word(rec::LINK) as usize;
            let Some(path) = bytes.get(used + HEAD..used + HEAD + len) else {
                break;
            };
            let slot = word(rec::SLOT);
            // a path that is too long is too long for /proc as well; there the error has its name
            let link = path.strip_suffix(&[0]).unwrap_or_default().to_vec();
            let socket = word(rec::MODE) as u32 & libc::S_IFMT == libc::S_IFSOCK;
            let tells = word(rec::TELLS) != 0 && !socket;
            all.push(Entry {
                slot: slot as i32,
                cloexec: word(rec::CLOEXEC) >> (slot % 64) & 1 == 1,
                // it may have that of the slot it was opened in
                flags: word(rec::FLAGS) as u32 & !(libc::O_CLOEXEC as u32),
                pos: word(rec::POS) as i64,
                mnt_id: word(rec::MOUNT) as i32,
                ino: word(rec::INO),
                link,
                unowned: self.owners && word(rec::OWNER) == 0,
                more: tells || len == 0 || word(rec::LOCKS) != 0,
                options: match socket {
                    true => self.options(head, word(rec::SORT)),
                    false => None,
                },
            });
            used += HEAD + len;
        }
        Ok(used)
    }
    fn options(&self, head: &[u8], sort: u64) -> Option<Vec<u8>> {
        let [family, kind, protocol] = [0, 16, 32].map(|bit| (sort >> bit & 0xffff) as i32);
        let s = &self.sizes;
        s.socket?;
        let len = match (family, kind, protocol) {
            (libc::AF_UNIX, ..) => s.unix?,
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP) => s.tcp?,
            (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => s.tcp.and(s.ipv6)?,
            _ => return None,
        };
        // the sort is part of it
        let from = rec::SORT as usize;
        Some(head[from..rec::OPTIONS as usize + len].to_vec())
    }
}

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

fn strange() -> SysError {
    SysError::new("read", Errno::EBADMSG, "a record of an open file")
}

/// The whole program. `parts`: of all sockets, of unix ones, of TCP ones, of those of IPv6.
fn instructions(notebook: i32, file: &[u64; 18], sort: &[u64; 3], parts: &[Reads; 4]) -> Vec<Insn> {
    const SEQ_WRITE: i32 = 127;
    const D_PATH: i32 = 147;
    let [
        pos,
        flags,
        ops,
        tells,
        inode,
        ino,
        locks,
        mode,
        path,
        mnt,
        mnt_id,
        files,
        table,
        cloexec,
        private,
        sk,
        pinet6,
        owner,
    ] = *file;
    let mut p = Program {
        all: Vec::new(),
        ends: Vec::new(),
    };
    p.mov(CTX, R1);
    // struct bpf_iter__task_file: what to write to, the task, the slot, the file
    p.load(OPEN, CTX, 24);
    p.end_if_none(OPEN);
    p.load(R2, CTX, 8);
    p.end_if_none(R2);
    p.load(TO, CTX, 0);
    p.load(TO, TO, 0);
    for i in bpf::map_value(notebook, NOTE) {
        p.all.push(i);
    }
    p.load(R3, R2, files);
    p.load(R3, R3, table);
    p.load(R3, R3, cloexec);
    p.load_int(R1, CTX, 16);
    p.note(rec::SLOT, R1);
    // the word that has the slot's bit
    p.push(0x77, R1, 0, 0, 6);
    p.push(0x67, R1, 0, 0, 3);
    p.push(0x0f, R3, R1, 0, 0);
    p.copy(rec::CLOEXEC as usize, 8);
    p.load(R1, OPEN, pos);
    p.note(rec::POS, R1);
    p.load_int(R1, OPEN, flags);
    p.note(rec::FLAGS, R1);
    p.load(R1, OPEN, ops);
    p.load(R1, R1, tells);
    p.note(rec::TELLS, R1);
    // a pointer, or the beginning of a lock
    p.mov(R3, OPEN);
    p.add(R3, owner as i32);
    p.copy(rec::OWNER as usize, 8);
    p.load(R2, OPEN, inode);
    p.load(R1, R2, ino);
    p.note(rec::INO, R1);
    p.load(R1, R2, locks);
    p.note(rec::LOCKS, R1);
    p.load_half(R1, R2, mode);
    p.note(rec::MODE, R1);
    // struct path begins with the mount, as others see it: inside of the kernel's own
    p.load(R1, OPEN, path);
    p.note(rec::MOUNT, R1);
    p.load(R3, NOTE, rec::MOUNT as u64);
    p.add(R3, mnt_id as i32 - mnt as i32);
    p.set(R1, 0);
    p.note(rec::MOUNT, R1);
    p.copy(rec::MOUNT as usize, 4);
    p.set(R1, 0);
    p.note(rec::SORT, R1);
    p.only_if(rec::MODE, libc::S_IFMT as i32, libc::S_IFSOCK as i32, |p| {
        p.load(R3, OPEN, private);
        p.add(R3, sk as i32);
        p.copy(rec::SOCK as usize, 8);
        p.load(CTX, NOTE, rec::SOCK as u64);
        for (i, at) in sort.iter().enumerate() {
            p.mov(R3, CTX);
            p.add(R3, *at as i32);
            p.copy(rec::SORT as usize + 2 * i, 2);
        }
        let copy = |p: &mut Program, part: &Reads| {
            for (from, at, len) in part {
                p.mov(R3, CTX);
                p.add(R3, *from as i32);
                p.copy(rec::OPTIONS as usize + at, *len);
            }
        };
        let [all, unix, tcp, ipv6] = parts;
        copy(p, all);
        p.only_if(rec::SORT, 0xffff, libc::AF_UNIX, |p| copy(p, unix));
        for family in [libc::AF_INET, libc::AF_INET6] {
            let sort = family | libc::SOCK_STREAM << 16;
            p.only_if(rec::SORT, i32::MAX, sort, |p| {
                p.only_if(rec::SORT + 4, 0xffff, libc::IPPROTO_TCP, |p| {
                    copy(p, tcp);
                    if family == libc::AF_INET {
                        return;
                    }
                    p.mov(R3, CTX);
                    p.add(R3, pinet6 as i32);
                    p.copy(rec::SOCK as usize, 8);
                    for (from, at, len) in ipv6 {
                        p.load(R3, NOTE, rec::SOCK as u64);
                        p.add(R3, *from as i32);
                        p.copy(rec::OPTIONS as usize + at, *len);
                    }
                });
            });
        }
    });
    p.mov(R1, OPEN);
    p.add(R1, path as i32);
    p.mov(R2, NOTE);
    p.add(R2, HEAD as i32);
    p.set(R3, PATH);
    p.call(D_PATH);
    // errors are huge numbers
    p.push(0x25, R0, 0, 1, PATH);
    p.push(0x05, 0, 0, 1, 0);
    p.set(R0, 0);
    p.note(rec::LINK, R0);
    p.mov(R3, R0);
    p.add(R3, HEAD as i32);
    p.mov(R1, TO);
    p.mov(R2, NOTE);
    p.call(SEQ_WRITE);
    let end = p.all.len();
    for jump in std::mem::take(&mut p.ends) {
        p.all[jump].off = (end - jump - 1) as i16;
    }
    p.set(R0, 0);
    p.push(0x95, 0, 0, 0, 0);
    p.all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RemoteFd;
    use crate::procfs::ProcDir;

    /// `None` where the rights are missing.
    fn census() -> Option<Census> {
        match Census::new() {
            Ok(c) => Some(c),
            Err(e) if e.errno == Errno::EPERM => {
                eprintln!("skipped: {e}");
                None
            }
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn what_proc_tells_is_told() {
        let Some(census) = census() else { return };
        let own = HostPid::own();
        let kept = std::fs::File::open("/proc/self/maps").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let all = census.of(own).unwrap();
        let proc = ProcDir::open(own).unwrap();
        for fd in [kept.as_raw_fd(), listener.as_raw_fd(), 0, 1, 2] {
            let e = all.iter().find(|e| e.slot == fd).unwrap();
            let info = proc.fdinfo(RemoteFd(fd)).unwrap();
            assert_eq!(e.link, proc.fd_link(RemoteFd(fd)).unwrap());
            assert_eq!((e.cloexec, e.mnt_id), (info.cloexec(), info.mnt_id));
            // others of this process write to theirs
            let stands = fd != kept.as_raw_fd() || e.pos == info.pos;
            assert!(stands && Some(e.ino) == info.ino);
            assert_eq!(e.flags, info.flags & !(libc::O_CLOEXEC as u32));
        }
        assert_eq!(census.of(HostPid(i32::MAX)).unwrap(), []);
    }
}
