//! The one table of guests, and what our engine is known to do with them.

/// A guest program: `guests/NAME.c`.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Name of the source file without `.c`.
    pub name: &'static str,
    /// Options of the engine without which the state cannot be frozen (`--shell-job`, `--file-locks`, ...).
    pub options: &'static [&'static str],
    /// Parameters for the guest.
    pub args: &'static [&'static str],
}

/// The table. Calls the macro `$with` with one row per guest: `name: [engine options] [parameters];`.
/// A new guest is a new C file and a new line here, nothing else.
#[macro_export]
macro_rules! with_guests {
    ($with:ident) => {
        $with! {
            // tasks
            plain: [] [];
            asleep: [] [];
            socket_inside: [] [];
            refused_inside: [] [];
            tree: [] [];
            tree_deep: [] [];
            tree_wide: [] [];
            orphans: [] [];
            zombies: [] [];
            subreaper: [] [];
            session_gone: [] [];
            kinship: [] [];
            random: [] ["p0,0 p1,1 w0,100 w1,3999 F0,0 s0,777 e3,0 f9,0 m0,4 m1,5 m2,3 m3,7 M0,2 M1,1 b0,1 q0,5 q0,6 h1,2 i0,7 T2,0 t0,0 t1,0 t2,0 (1 M0,3 M2,1 M3,2 w0,55 s0,4000 d1,0 u0,0 g0,1 E0,4 (16 l0,3 n0,1 k0,63 ) (8 (0 N0,5 ) (4 ) ) ) (4 (2 R1,0 ) ) (2 U0,1 h2,3 a0,1 C2,1 c5,0 D0,0 o0,0 ) (0 B0,0 (4 (0 S0,0 ) (2 ) (4 ) ) ) (0 ) (0 ) J0,1 (0 S0,0 )"];
            threads: [] [];
            registers: [] [];
            creds: [] [];
            sigactions: [] [];
            sigpending: [] [];
            itimers: [] [];
            posix_timers: [] [];
            rlimits: [] [];
            sched: [] [];
            ioprio: [] [];
            timerslack: [] [];
            rseq: [] [];
            robust: [] [];
            no_new_privs: [] [];
            seccomp_strict: [] [];
            seccomp_filter: [] [];
            sud: [] [];
            prctls: [] [];
            prctls_more: [] [];
            mdwe: [] [];
            stopped: [] [];
            vfork: [] [];
            forker: [] [];
            restart: [] [];
            timens: [] [];
            // namespaces
            utsns: [] [];
            netns: [] [];
            tun: [] [];
            mounts: [] [];
            overlay: [] [];
            autofs: [] [];
            binfmt: [] [];
            detached: [] [];
            late_master: [] [];
            nested_ns: [] [];
            nested_veth: [] [];
            nested_pid: [] [];
            nested_proc: [] [];
            nested_user: [] [];
            nested_userpid: [] [];
            nested_timens: [] [];
            nested_cgroup: [] [];
            nested_fs: [] [];
            ipc_sem: [] [];
            ipc_undo: [] [];
            ipc_msg: [] [];
            ipc_shm: [] [];
            mqueue: [] [];
            bpfmap: [] [];
            // memory
            map_anon: [] [];
            churn: [] [];
            instant: [] [];
            map_anon_shared: [] [];
            map_file_private: [] [];
            map_file_shared: [] [];
            shmem_family: [] [];
            shared_later: [] [];
            shared_rounds: [] [];
            memfd: [] [];
            sysv_shm: [] [];
            mm_layout: [] [];
            vdso: [] [];
            growsdown: [] [];
            mlock: [] [];
            map_special: [] [];
            mlockall: [] [];
            madvise: [] [];
            ksm: [] [];
            guard: [] [];
            prot_none: [] [];
            hugetlb: [] [];
            aio: [] [];
            cow: [] [];
            clone_vm: [] [];
            clone_files: [] [];
            clone_fs: [] [];
            // files
            file_reg: [] [];
            names: [] [];
            file_shared: [] [];
            files_many: [] [];
            fd_high: [] [];
            fd_flags: [] [];
            fs_state: [] [];
            dir: [] [];
            opath: [] [];
            devices: [] [];
            proc_files: [] [];
            ghost: [] [];
            ghost_sparse: [] [];
            link_remap: ["--link-remap"] [];
            cwd_removed: [] [];
            chroot: [] [];
            fown: [] [];
            flock: ["--file-locks"] [];
            lock_posix: ["--file-locks"] [];
            lock_ofd: ["--file-locks"] [];
            lease: ["--file-locks"] [];
            pipe: [] [];
            pipe_packets: [] [];
            fifo: [] [];
            eventfd: [] [];
            eventfd_sem: [] [];
            eventfd_full: [] [];
            epoll: [] [];
            epoll_closed: [] [];
            signalfd: [] [];
            nsfile: [] [];
            timerfd: [] [];
            inotify: [] [];
            fanotify: [] [];
            pidfd: [] [];
            // sockets
            unix_pair: [] [];
            unix_stream_listen: [] [];
            unix_dgram: [] [];
            unix_seqpacket: [] [];
            unix_queue: [] [];
            unix_scm_rights: [] [];
            unix_scm_cycle: [] [];
            unix_creds: [] [];
            unix_abstract: [] [];
            unix_path: [] [];
            unix_deleted: [] [];
            unix_halfclosed: [] [];
            unix_family: [] [];
            unix_early: [] [];
            unix_oob: [] [];
            plugged: [] [];
            netlink: [] [];
            packet: [] [];
            packet_ring: [] [];
            pty: [] [];
            pty_data: [] [];
            ctty: [] [];
            dev_tty: [] [];
            shell_job: ["--shell-job"] [];
            // internet sockets
            tcp_listen: [] [];
            tcp_loop: ["--tcp-established"] [];
            tcp_v6: ["--tcp-established"] [];
            tcp_opts: ["--tcp-established"] [];
            tcp_states: ["--tcp-established"] [];
            tcp_reuseport: ["--skip-in-flight"] [];
            tcp_queued: ["--tcp-established"] [];
            tcp_unaccepted: ["--skip-in-flight"] [];
            udp: [] [];
            udp_queue: [] [];
            udp_cork: [] [];
            udp_multicast: [] [];
            raw: [] [];
            ping: [] [];
        }
    };
}

/// What our engine promises: `guest: scenario, scenario;`. Whoever makes a kind work adds its line; the tests of this
/// list run by default, the rest of the matrix only when asked for (`--ignored`, or another engine in `STASIS_ENGINE`).
#[macro_export]
macro_rules! with_works {
    ($with:ident) => {
        $with! {
            timens: dump_restore, leave_running, generations;
            utsns: dump_restore, leave_running, generations, contained, contained_user;
            netns: dump_restore, leave_running, generations, contained, contained_user;
            tun: dump_restore, leave_running, generations, contained;
            mounts: dump_restore, leave_running, generations, contained, contained_user;
            overlay: dump_restore, leave_running, generations, contained, contained_user;
            autofs: dump_restore, leave_running, generations, contained;
            binfmt: contained_user;
            detached: dump_restore, leave_running, generations, contained, contained_user;
            late_master: dump_restore, leave_running, generations, contained, contained_user;
            nested_timens: dump_restore, leave_running, generations, contained, contained_user;
            nested_pid: dump_restore, leave_running, generations, contained, contained_user;
            nested_proc: dump_restore, leave_running, generations, contained, contained_user;
            nested_user: dump_restore, leave_running, generations, contained, contained_user;
            nested_userpid: dump_restore, leave_running, generations, contained, contained_user;
            nested_ns: dump_restore, leave_running, generations, contained, contained_user;
            nested_veth: dump_restore, leave_running, generations, contained, contained_user;
            nested_cgroup: dump_restore, leave_running, generations, contained, contained_user;
            nested_fs: dump_restore, leave_running, generations, contained, contained_user;
            ipc_sem: dump_restore, leave_running, generations, contained, contained_user;
            ipc_undo: dump_restore, leave_running, generations, contained, contained_user;
            ipc_msg: dump_restore, leave_running, generations, contained, contained_user;
            ipc_shm: dump_restore, leave_running, generations, contained, contained_user;
            bpfmap: dump_restore, leave_running, generations, contained;
            mqueue: dump_restore, leave_running, generations, contained, contained_user;
            orphans: dump_restore, leave_running, generations;
            kinship: dump_restore, leave_running, generations;
            forker: dump_restore, leave_running, generations, rounds_killed, lazy;
            session_gone: dump_restore, leave_running, generations;
            subreaper: dump_restore, leave_running, generations;
            tree: dump_restore, leave_running, generations, lazy, mapped;
            tree_deep: dump_restore, leave_running, generations;
            tree_wide: dump_restore, leave_running, generations;
            zombies: dump_restore, leave_running, generations;
            random: dump_restore, leave_running, generations, incremental, lazy;
            dir: dump_restore, leave_running, generations;
            cwd_removed: dump_restore, leave_running, generations;
            chroot: dump_restore, leave_running, generations;
            devices: dump_restore, leave_running, generations;
            fd_flags: dump_restore, leave_running, generations;
            file_reg: dump_restore, leave_running, generations;
            names: dump_restore, leave_running, generations, contained;
            file_shared: dump_restore, leave_running, generations;
            files_many: dump_restore, leave_running, generations;
            flock: dump_restore, leave_running, generations;
            fown: dump_restore, leave_running, generations, contained, contained_user;
            ghost: dump_restore, leave_running, generations, contained, contained_user;
            ghost_sparse: dump_restore, leave_running, generations;
            lease: dump_restore, leave_running, generations;
            link_remap: dump_restore, leave_running, generations;
            lock_ofd: dump_restore, leave_running, generations;
            lock_posix: dump_restore, leave_running, generations;
            memfd: dump_restore, leave_running, generations, incremental, lazy;
            opath: dump_restore, leave_running, generations;
            proc_files: dump_restore, leave_running, generations;
            pipe: dump_restore, leave_running, generations, lazy;
            pipe_packets: dump_restore, leave_running, generations;
            fifo: dump_restore, leave_running, generations;
            eventfd: dump_restore, leave_running, generations;
            eventfd_full: dump_restore, leave_running, generations;
            eventfd_sem: dump_restore, leave_running, generations;
            epoll: dump_restore, leave_running, generations;
            epoll_closed: dump_restore, leave_running, generations;
            signalfd: dump_restore, leave_running, generations;
            nsfile: dump_restore, leave_running, generations;
            timerfd: dump_restore, leave_running, generations;
            inotify: dump_restore, leave_running, generations;
            fanotify: dump_restore, leave_running, generations;
            socket_inside: dump_restore, leave_running, generations;
            unix_pair: dump_restore, leave_running, generations, contained, contained_user;
            unix_stream_listen: dump_restore, leave_running, generations;
            unix_dgram: dump_restore, leave_running, generations;
            unix_seqpacket: dump_restore, leave_running, generations;
            unix_queue: dump_restore, leave_running, generations;
            unix_scm_rights: dump_restore, leave_running, generations;
            unix_scm_cycle: dump_restore, leave_running, generations;
            unix_creds: dump_restore, leave_running, generations, contained, contained_user;
            unix_abstract: dump_restore, leave_running, generations;
            unix_path: dump_restore, leave_running, generations;
            unix_deleted: dump_restore, leave_running, generations;
            unix_halfclosed: dump_restore, leave_running, generations;
            unix_family: dump_restore, leave_running, generations;
            unix_early: dump_restore, leave_running, generations;
            unix_oob: dump_restore, leave_running, generations;
            netlink: dump_restore, leave_running, generations;
            packet: dump_restore, leave_running, generations;
            packet_ring: dump_restore, leave_running, generations;
            pidfd: dump_restore, leave_running, generations;
            pty: dump_restore, leave_running, generations, contained, contained_user;
            pty_data: dump_restore, leave_running, generations;
            ctty: dump_restore, leave_running, generations;
            dev_tty: dump_restore, leave_running, generations;
            shell_job: dump_restore, leave_running, generations;
            tcp_listen: dump_restore, leave_running, generations;
            tcp_loop: dump_restore, leave_running, generations;
            tcp_v6: dump_restore, leave_running, generations;
            tcp_opts: dump_restore, leave_running, generations;
            tcp_states: dump_restore, leave_running, generations;
            tcp_reuseport: dump_restore, leave_running, generations;
            tcp_queued: dump_restore, leave_running, generations, contained;
            tcp_unaccepted: dump_restore, leave_running, generations;
            udp_multicast: dump_restore, leave_running, generations;
            udp: dump_restore, leave_running, generations;
            udp_queue: dump_restore, leave_running, generations, contained;
            udp_cork: dump_restore, leave_running, generations;
            raw: dump_restore, leave_running, generations;
            ping: dump_restore, leave_running, generations;
            map_file_shared: dump_restore, leave_running, generations;
            cow: dump_restore, leave_running, generations, once;
            churn: dump_restore, leave_running, generations, once, incremental, rounds_killed, lazy, snapshot;
            instant: dump_restore, leave_running, generations, incremental, lazy, lz4, zstd, auto, encrypted, one_file, stream, snapshot;
            map_anon: incremental, lazy, snapshot, zstd, encrypted, one_file, sealed_file, stream, mapped;
            map_anon_shared: lazy;
            threads: incremental, lazy, snapshot, mapped;
            registers: incremental, lazy;
            map_file_private: incremental, lazy;
            shmem_family: incremental, lazy, encrypted, sealed_file, stream;
            shared_later: dump_restore, leave_running, incremental, lazy;
            shared_rounds: incremental, rounds_killed;
            seccomp_filter: incremental, lazy, snapshot;
            hugetlb: incremental, lazy, snapshot;
            madvise: incremental, lazy, snapshot;
            mlock: dump_restore, leave_running, generations, lazy;
            map_special: dump_restore, leave_running, generations;
            sysv_shm: dump_restore, leave_running, generations;
            aio: dump_restore, leave_running, generations, lazy;
            guard: dump_restore, leave_running, generations, lazy;
            growsdown: dump_restore, leave_running, generations, lazy;
            vdso: dump_restore, leave_running, generations, lazy;
            mlockall: dump_restore, leave_running, generations;
        }
    };
}

macro_rules! table {
    ($($name:ident: [$($option:literal)*] [$($arg:literal)*];)*) => {
        /// All guests, in the order of the table.
        pub const GUESTS: &[Guest] = &[
            $(Guest { name: stringify!($name), options: &[$($option),*], args: &[$($arg),*] },)*
        ];
    };
}
with_guests!(table);

/// The guest of that name.
pub fn find(name: &str) -> Option<&'static Guest> {
    GUESTS.iter().find(|g| g.name == name)
}
