//! The files of an image folder: names, magics, framing, messages. One table, [`IMAGES`]; everything else asks it.
//!
//! The file is long because it is a table: one line per kind of file and one line of documentation for each.

/// First word of an image file.
pub const IMG_COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of a service file (statistics and caches beside the images).
pub const IMG_SERVICE_MAGIC: u32 = 0x5510_5940;

/// Which file of the folder. `N` in a name is a decimal id, `HEX` one in lower-case hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// `inventory.img`: `inventory_entry`.
    Inventory,
    /// `fdinfo-N.img`: `fdinfo_entry`.
    Fdinfo,
    /// `pagemap-N.img`: `pagemap_head`, then `pagemap_entry`.
    Pagemap,
    /// `pagemap-shmem-N.img`: `pagemap_head`, then `pagemap_entry`.
    ShmemPagemap,
    /// `reg-files.img`: `reg_file_entry`.
    RegFiles,
    /// `ext-files.img`: `ext_file_entry`.
    ExtFiles,
    /// `ns-files.img`: `ns_file_entry`.
    NsFiles,
    /// `eventfd.img`: `eventfd_file_entry`.
    EventfdFile,
    /// `eventpoll.img`: `eventpoll_file_entry`.
    EventpollFile,
    /// `eventpoll-tfd.img`: `eventpoll_tfd_entry`.
    EventpollTfd,
    /// `signalfd.img`: `signalfd_entry`.
    Signalfd,
    /// `inotify.img`: `inotify_file_entry`.
    InotifyFile,
    /// `inotify-wd.img`: `inotify_wd_entry`.
    InotifyWd,
    /// `fanotify.img`: `fanotify_file_entry`.
    FanotifyFile,
    /// `fanotify-mark.img`: `fanotify_mark_entry`.
    FanotifyMark,
    /// `core-N.img`: `core_entry`.
    Core,
    /// `ids-N.img`: `task_kobj_ids_entry`.
    Ids,
    /// `mm-N.img`: `mm_entry`.
    Mm,
    /// `vmas-N.img`: `vma_entry`.
    Vmas,
    /// `pipes.img`: `pipe_entry`.
    Pipes,
    /// `pipes-data.img`: `pipe_data_entry`.
    PipesData,
    /// `fifo.img`: `fifo_entry`.
    Fifo,
    /// `fifo-data.img`: `pipe_data_entry`.
    FifoData,
    /// `pstree.img`: `pstree_entry`.
    Pstree,
    /// `sigacts-N.img`: `sa_entry`.
    Sigact,
    /// `unixsk.img`: `unix_sk_entry`.
    Unixsk,
    /// `inetsk.img`: `inet_sk_entry`.
    Inetsk,
    /// `packetsk.img`: `packet_sock_entry`.
    Packetsk,
    /// `netlinksk.img`: `netlink_sk_entry`.
    NetlinkSk,
    /// `sk-queues.img`: `sk_packet_entry`.
    SkQueues,
    /// `itimers-N.img`: `itimer_entry`.
    Itimers,
    /// `posix-timers-N.img`: `posix_timer_entry`.
    PosixTimers,
    /// `creds-N.img`: `creds_entry`.
    Creds,
    /// `utsns-N.img`: `utsns_entry`.
    Utsns,
    /// `ipcns-var-N.img`: `ipc_var_entry`.
    IpcVar,
    /// `ipcns-shm-N.img`: `ipc_shm_entry`.
    IpcnsShm,
    /// `ipcns-msg-N.img`: `ipc_msg_entry`, then `ipc_msg`.
    IpcnsMsg,
    /// `ipcns-sem-N.img`: `ipc_sem_entry`.
    IpcnsSem,
    /// `fs-N.img`: `fs_entry`.
    Fs,
    /// `remap-fpath.img`: `remap_file_path_entry`.
    RemapFpath,
    /// `ghost-file-HEX.img`: `ghost_file_entry`, then `ghost_chunk_entry`.
    GhostFile,
    /// `memfd.img`: `memfd_inode_entry`.
    MemfdInode,
    /// `tcp-stream-HEX.img`: `tcp_stream_entry`.
    TcpStream,
    /// `mountpoints-N.img`: `mnt_entry`.
    Mnts,
    /// `netdev-N.img`: `net_device_entry`.
    Netdev,
    /// `netns-N.img`: `netns_entry`.
    Netns,
    /// `ifaddr-N.img`: rtnetlink dump (as from `ip addr save`).
    Ifaddr,
    /// `route-N.img`: rtnetlink dump (`ip route save`).
    Route,
    /// `route6-N.img`: rtnetlink dump.
    Route6,
    /// `rule-N.img`: rtnetlink dump (`ip rule save`).
    Rule,
    /// `iptables-N.img`: text (`iptables-save`).
    Iptables,
    /// `ip6tables-N.img`: text (`ip6tables-save`).
    Ip6tables,
    /// `nftables-N.img`: text (`nft list ruleset`).
    Nftables,
    /// `tmpfs-N.tar.gz.img`: gzip tar.
    TmpfsImg,
    /// `tmpfs-dev-N.tar.gz.img`: gzip tar.
    TmpfsDev,
    /// `autofs-N.img`: `autofs_entry`.
    Autofs,
    /// `binfmt-misc.img`: `binfmt_misc_entry`.
    BinfmtMisc,
    /// `tty.img`: `tty_file_entry`.
    TtyFiles,
    /// `tty-info.img`: `tty_info_entry`.
    TtyInfo,
    /// `tty-data.img`: `tty_data_entry`.
    TtyData,
    /// `filelocks.img`: `file_lock_entry`.
    FileLocks,
    /// `rlimit-N.img`: `rlimit_entry`.
    Rlimit,
    /// `pages-N.img`: raw page contents, in the order of the pagemap that names it.
    Pages,
    /// `signal-s-N.img`: `siginfo_entry`.
    Signal,
    /// `signal-p-N.img`: `siginfo_entry`.
    Psignal,
    /// `tunfile.img`: `tunfile_entry`.
    Tunfile,
    /// `cgroup.img`: `cgroup_entry`.
    Cgroup,
    /// `timerfd.img`: `timerfd_entry`.
    Timerfd,
    /// `cpuinfo.img`: `cpuinfo_entry`.
    Cpuinfo,
    /// `seccomp.img`: `seccomp_entry`.
    Seccomp,
    /// `userns-N.img`: `userns_entry`.
    Userns,
    /// `netns-ct-N.img`: ctnetlink dump.
    NetnfCt,
    /// `netns-exp-N.img`: ctnetlink dump.
    NetnfExp,
    /// `files.img`: `file_entry`.
    Files,
    /// `timens-N.img`: `timens_entry`.
    Timens,
    /// `pidns-N.img`: `pidns_entry`.
    Pidns,
    /// `bpfmap-file.img`: `bpfmap_file_entry`.
    BpfmapFile,
    /// `bpfmap-data.img`: `bpfmap_data_entry`.
    BpfmapData,
    /// `apparmor.img`: `apparmor_entry`.
    Apparmor,
    /// `pidfd.img`: `pidfd_entry`.
    Pidfd,
    /// `packed-N.img`: compressed pages, an extension.
    Packed,
    /// `packed-index-N.img`: `stasis_packed_entry`, an extension.
    PackedIndex,
    /// `key.age`: the key of an encrypted folder, an extension.
    Key,
    /// `tracking.img`: `stasis_tracking_entry`, an extension.
    Tracking,
    /// `marks-shmem-N.img`: `stasis_marks_head`, then `stasis_marks_entry`, an extension.
    Marks,
    /// `plugins.img`: `stasis_plugin_entry`, an extension.
    Plugins,
    /// `mqueues.img`: `stasis_mqueue_entry`, an extension.
    Mqueues,
    /// `namespaces.img`: `stasis_namespace_entry`, an extension.
    Namespaces,
    /// `stats-dump`: `stats_entry`.
    StatsDump,
    /// `stats-restore`: `stats_entry`.
    StatsRestore,
    /// `irmap-cache`: `irmap_cache_entry`.
    IrmapCache,
}

/// How the id in a file's name is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    /// The name has no id: one such file per folder.
    None,
    /// Decimal, 32 bits (pids, namespace ids, pages ids).
    Dec32,
    /// Decimal, 64 bits (shared memory ids).
    Dec64,
    /// Lower-case hexadecimal, 32 bits.
    Hex32,
}

/// What stands before the first record. All words are little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The file's own magic only (the inventory).
    Own,
    /// [`IMG_COMMON_MAGIC`], then the file's own magic.
    Common,
    /// [`IMG_SERVICE_MAGIC`], then the file's own magic.
    Service,
    /// No magic and no records: bytes of another format.
    Raw,
}

/// Bytes that follow records outside of any message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Records only.
    None,
    /// Behind each record as many bytes as these fields of it say together.
    Bytes(&'static [&'static str]),
    /// The content of the file up to the end; or, when `chunks` is true, `ghost_chunk_entry` records each followed by
    /// `len` bytes.
    Ghost,
    /// `size` bytes, padded to a multiple of 4, unless `in_pagemaps` is true (then the content is in
    /// `pagemap-shmem-N.img`).
    IpcShm,
    /// `nsems` values of 16 bits, padded to a multiple of 8 bytes.
    IpcSem,
    /// `qnum` times: an `ipc_msg` record, then its `msize` bytes padded to a multiple of 8.
    IpcMsg,
}

/// One kind of file.
#[derive(Debug, PartialEq, Eq)]
pub struct ImageType {
    /// Which one.
    pub kind: Kind,
    /// The name of its magic, as people and `crit` know it ("CORE").
    pub label: &'static str,
    /// The file name up to the id, or the whole name.
    pub prefix: &'static str,
    /// How the id is written.
    pub id: Id,
    /// The file name after the id.
    pub suffix: &'static str,
    /// Its own magic; 0 for [`Framing::Raw`].
    pub magic: u32,
    /// What stands before the first record.
    pub framing: Framing,
    /// Schema name of the records' message (of the first record when `then` is set). `None` for raw files.
    pub message: Option<&'static str>,
    /// Schema name of the message in the records after the first, or inside the payload.
    pub then: Option<&'static str>,
    /// What follows records.
    pub payload: Payload,
}

impl ImageType {
    /// The name of the file with this id; `id` is ignored where names have none.
    pub fn file_name(&self, id: u64) -> String {
        match self.id {
            Id::None => self.prefix.to_owned(),
            Id::Dec32 | Id::Dec64 => format!("{}{id}{}", self.prefix, self.suffix),
            Id::Hex32 => format!("{}{id:x}{}", self.prefix, self.suffix),
        }
    }

    /// Whether records of this file may be messages called `message` in the schema.
    pub fn holds(&self, message: &str) -> bool {
        self.message == Some(message) || self.then == Some(message)
    }

    /// The id in `name` when `name` is a file of this kind.
    fn match_name(&self, name: &str) -> Option<Option<u64>> {
        if self.id == Id::None {
            return (name == self.prefix).then_some(None);
        }
        let digits = name.strip_prefix(self.prefix)?.strip_suffix(self.suffix)?;
        let id = match self.id {
            Id::Hex32 => u64::from_str_radix(digits, 16).ok()?,
            _ => digits.parse().ok()?,
        };
        if self.id != Id::Dec64 && id > u64::from(u32::MAX) {
            return None;
        }
        // Only the one spelling that writers use: no sign, no leading zero, no capital digit. Otherwise two names
        // could mean the same object.
        (self.file_name(id) == name).then_some(Some(id))
    }
}

impl Kind {
    /// The row of the table.
    pub fn image_type(self) -> &'static ImageType {
        &IMAGES[self as usize]
    }

    /// The name of a file of this kind that has no id in its name ("pstree.img"). For kinds with an id: that of id 0.
    pub fn file(self) -> String {
        self.image_type().file_name(0)
    }

    /// The name of the file with this id: `Kind::Core.file_of(42)` is "core-42.img".
    pub fn file_of(self, id: impl Into<u64>) -> String {
        self.image_type().file_name(id.into())
    }
}

/// The kind of a file by its name, and the id in the name: `core-42.img` is Core with 42.
pub fn lookup(name: &str) -> Option<(&'static ImageType, Option<u64>)> {
    IMAGES
        .iter()
        .find_map(|row| row.match_name(name).map(|id| (row, id)))
}

/// The kind of a file by its own magic. Pagemaps and signal queues share a magic with a twin; the first row wins.
pub fn by_magic(magic: u32) -> Option<&'static ImageType> {
    IMAGES
        .iter()
        .find(|row| row.framing != Framing::Raw && row.magic == magic)
}

/// The name of any magic word, the two first words included.
pub(crate) fn magic_name(magic: u32) -> Option<&'static str> {
    match magic {
        IMG_COMMON_MAGIC => Some("IMG_COMMON"),
        IMG_SERVICE_MAGIC => Some("IMG_SERVICE"),
        own => by_magic(own).map(|row| row.label),
    }
}

#[allow(clippy::too_many_arguments)] // a table row; named fields would make it ten lines per file
const fn row(
    kind: Kind,
    label: &'static str,
    prefix: &'static str,
    id: Id,
    suffix: &'static str,
    magic: u32,
    framing: Framing,
    message: Option<&'static str>,
    then: Option<&'static str>,
    payload: Payload,
) -> ImageType {
    ImageType {
        kind,
        label,
        prefix,
        id,
        suffix,
        magic,
        framing,
        message,
        then,
        payload,
    }
}

/// Every file of the format, in the order of [`Kind`].
#[rustfmt::skip] // one line per file
pub const IMAGES: &[ImageType] = &[
    row(Kind::Inventory, "INVENTORY", "inventory.img", Id::None, "", 0x5831_3116, Framing::Own, Some("inventory_entry"), None, Payload::None),
    row(Kind::Fdinfo, "FDINFO", "fdinfo-", Id::Dec32, ".img", 0x5621_3732, Framing::Common, Some("fdinfo_entry"), None, Payload::None),
    row(Kind::Pagemap, "PAGEMAP", "pagemap-", Id::Dec64, ".img", 0x5608_4025, Framing::Common, Some("pagemap_head"), Some("pagemap_entry"), Payload::None),
    row(Kind::ShmemPagemap, "SHMEM_PAGEMAP", "pagemap-shmem-", Id::Dec64, ".img", 0x5608_4025, Framing::Common, Some("pagemap_head"), Some("pagemap_entry"), Payload::None),
    row(Kind::RegFiles, "REG_FILES", "reg-files.img", Id::None, "", 0x5036_3636, Framing::Common, Some("reg_file_entry"), None, Payload::None),
    row(Kind::ExtFiles, "EXT_FILES", "ext-files.img", Id::None, "", 0x5925_5641, Framing::Common, Some("ext_file_entry"), None, Payload::None),
    row(Kind::NsFiles, "NS_FILES", "ns-files.img", Id::None, "", 0x6139_4011, Framing::Common, Some("ns_file_entry"), None, Payload::None),
    row(Kind::EventfdFile, "EVENTFD_FILE", "eventfd.img", Id::None, "", 0x4452_3722, Framing::Common, Some("eventfd_file_entry"), None, Payload::None),
    row(Kind::EventpollFile, "EVENTPOLL_FILE", "eventpoll.img", Id::None, "", 0x4502_3858, Framing::Common, Some("eventpoll_file_entry"), None, Payload::None),
    row(Kind::EventpollTfd, "EVENTPOLL_TFD", "eventpoll-tfd.img", Id::None, "", 0x4443_3746, Framing::Common, Some("eventpoll_tfd_entry"), None, Payload::None),
    row(Kind::Signalfd, "SIGNALFD", "signalfd.img", Id::None, "", 0x5732_3820, Framing::Common, Some("signalfd_entry"), None, Payload::None),
    row(Kind::InotifyFile, "INOTIFY_FILE", "inotify.img", Id::None, "", 0x4842_4431, Framing::Common, Some("inotify_file_entry"), None, Payload::None),
    row(Kind::InotifyWd, "INOTIFY_WD", "inotify-wd.img", Id::None, "", 0x5456_2009, Framing::Common, Some("inotify_wd_entry"), None, Payload::None),
    row(Kind::FanotifyFile, "FANOTIFY_FILE", "fanotify.img", Id::None, "", 0x5509_6122, Framing::Common, Some("fanotify_file_entry"), None, Payload::None),
    row(Kind::FanotifyMark, "FANOTIFY_MARK", "fanotify-mark.img", Id::None, "", 0x5650_6035, Framing::Common, Some("fanotify_mark_entry"), None, Payload::None),
    row(Kind::Core, "CORE", "core-", Id::Dec32, ".img", 0x5505_3847, Framing::Common, Some("core_entry"), None, Payload::None),
    row(Kind::Ids, "IDS", "ids-", Id::Dec32, ".img", 0x5443_2030, Framing::Common, Some("task_kobj_ids_entry"), None, Payload::None),
    row(Kind::Mm, "MM", "mm-", Id::Dec32, ".img", 0x5749_2820, Framing::Common, Some("mm_entry"), None, Payload::None),
    row(Kind::Vmas, "VMAS", "vmas-", Id::Dec32, ".img", 0x5412_3737, Framing::Common, Some("vma_entry"), None, Payload::None),
    row(Kind::Pipes, "PIPES", "pipes.img", Id::None, "", 0x5651_3555, Framing::Common, Some("pipe_entry"), None, Payload::None),
    row(Kind::PipesData, "PIPES_DATA", "pipes-data.img", Id::None, "", 0x5645_3709, Framing::Common, Some("pipe_data_entry"), None, Payload::Bytes(&["bytes"])),
    row(Kind::Fifo, "FIFO", "fifo.img", Id::None, "", 0x5836_4939, Framing::Common, Some("fifo_entry"), None, Payload::None),
    row(Kind::FifoData, "FIFO_DATA", "fifo-data.img", Id::None, "", 0x5933_3054, Framing::Common, Some("pipe_data_entry"), None, Payload::Bytes(&["bytes"])),
    row(Kind::Pstree, "PSTREE", "pstree.img", Id::None, "", 0x5027_3030, Framing::Common, Some("pstree_entry"), None, Payload::None),
    row(Kind::Sigact, "SIGACT", "sigacts-", Id::Dec32, ".img", 0x5534_4201, Framing::Common, Some("sa_entry"), None, Payload::None),
    row(Kind::Unixsk, "UNIXSK", "unixsk.img", Id::None, "", 0x5437_3943, Framing::Common, Some("unix_sk_entry"), None, Payload::None),
    row(Kind::Inetsk, "INETSK", "inetsk.img", Id::None, "", 0x5644_3851, Framing::Common, Some("inet_sk_entry"), None, Payload::None),
    row(Kind::Packetsk, "PACKETSK", "packetsk.img", Id::None, "", 0x6045_4618, Framing::Common, Some("packet_sock_entry"), None, Payload::None),
    row(Kind::NetlinkSk, "NETLINK_SK", "netlinksk.img", Id::None, "", 0x5800_5614, Framing::Common, Some("netlink_sk_entry"), None, Payload::None),
    row(Kind::SkQueues, "SK_QUEUES", "sk-queues.img", Id::None, "", 0x5626_4026, Framing::Common, Some("sk_packet_entry"), None, Payload::Bytes(&["length"])),
    row(Kind::Itimers, "ITIMERS", "itimers-", Id::Dec32, ".img", 0x5746_4056, Framing::Common, Some("itimer_entry"), None, Payload::None),
    row(Kind::PosixTimers, "POSIX_TIMERS", "posix-timers-", Id::Dec32, ".img", 0x5260_3957, Framing::Common, Some("posix_timer_entry"), None, Payload::None),
    row(Kind::Creds, "CREDS", "creds-", Id::Dec32, ".img", 0x5402_3547, Framing::Common, Some("creds_entry"), None, Payload::None),
    row(Kind::Utsns, "UTSNS", "utsns-", Id::Dec32, ".img", 0x5447_3203, Framing::Common, Some("utsns_entry"), None, Payload::None),
    row(Kind::IpcVar, "IPC_VAR", "ipcns-var-", Id::Dec32, ".img", 0x5311_5007, Framing::Common, Some("ipc_var_entry"), None, Payload::None),
    row(Kind::IpcnsShm, "IPCNS_SHM", "ipcns-shm-", Id::Dec32, ".img", 0x4628_3044, Framing::Common, Some("ipc_shm_entry"), None, Payload::IpcShm),
    row(Kind::IpcnsMsg, "IPCNS_MSG", "ipcns-msg-", Id::Dec32, ".img", 0x5545_3737, Framing::Common, Some("ipc_msg_entry"), Some("ipc_msg"), Payload::IpcMsg),
    row(Kind::IpcnsSem, "IPCNS_SEM", "ipcns-sem-", Id::Dec32, ".img", 0x5957_3019, Framing::Common, Some("ipc_sem_entry"), None, Payload::IpcSem),
    row(Kind::Fs, "FS", "fs-", Id::Dec32, ".img", 0x5140_3912, Framing::Common, Some("fs_entry"), None, Payload::None),
    row(Kind::RemapFpath, "REMAP_FPATH", "remap-fpath.img", Id::None, "", 0x5913_3954, Framing::Common, Some("remap_file_path_entry"), None, Payload::None),
    row(Kind::GhostFile, "GHOST_FILE", "ghost-file-", Id::Hex32, ".img", 0x5258_3605, Framing::Common, Some("ghost_file_entry"), Some("ghost_chunk_entry"), Payload::Ghost),
    row(Kind::MemfdInode, "MEMFD_INODE", "memfd.img", Id::None, "", 0x4845_3499, Framing::Common, Some("memfd_inode_entry"), None, Payload::None),
    row(Kind::TcpStream, "TCP_STREAM", "tcp-stream-", Id::Hex32, ".img", 0x5146_5506, Framing::Common, Some("tcp_stream_entry"), None, Payload::Bytes(&["inq_len", "outq_len"])),
    row(Kind::Mnts, "MNTS", "mountpoints-", Id::Dec32, ".img", 0x5556_3928, Framing::Common, Some("mnt_entry"), None, Payload::None),
    row(Kind::Netdev, "NETDEV", "netdev-", Id::Dec32, ".img", 0x5737_3951, Framing::Common, Some("net_device_entry"), None, Payload::None),
    row(Kind::Netns, "NETNS", "netns-", Id::Dec32, ".img", 0x5593_3752, Framing::Common, Some("netns_entry"), None, Payload::None),
    row(Kind::Ifaddr, "IFADDR", "ifaddr-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Route, "ROUTE", "route-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Route6, "ROUTE6", "route6-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Rule, "RULE", "rule-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Iptables, "IPTABLES", "iptables-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Ip6tables, "IP6TABLES", "ip6tables-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Nftables, "NFTABLES", "nftables-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::TmpfsImg, "TMPFS_IMG", "tmpfs-", Id::Dec32, ".tar.gz.img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::TmpfsDev, "TMPFS_DEV", "tmpfs-dev-", Id::Dec32, ".tar.gz.img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Autofs, "AUTOFS", "autofs-", Id::Dec32, ".img", 0x4935_3943, Framing::Common, Some("autofs_entry"), None, Payload::None),
    row(Kind::BinfmtMisc, "BINFMT_MISC", "binfmt-misc.img", Id::None, "", 0x6734_3323, Framing::Common, Some("binfmt_misc_entry"), None, Payload::None),
    row(Kind::TtyFiles, "TTY_FILES", "tty.img", Id::None, "", 0x5943_3025, Framing::Common, Some("tty_file_entry"), None, Payload::None),
    row(Kind::TtyInfo, "TTY_INFO", "tty-info.img", Id::None, "", 0x5945_3036, Framing::Common, Some("tty_info_entry"), None, Payload::None),
    row(Kind::TtyData, "TTY_DATA", "tty-data.img", Id::None, "", 0x5941_3026, Framing::Common, Some("tty_data_entry"), None, Payload::None),
    row(Kind::FileLocks, "FILE_LOCKS", "filelocks.img", Id::None, "", 0x5432_3616, Framing::Common, Some("file_lock_entry"), None, Payload::None),
    row(Kind::Rlimit, "RLIMIT", "rlimit-", Id::Dec32, ".img", 0x5711_3925, Framing::Common, Some("rlimit_entry"), None, Payload::None),
    row(Kind::Pages, "PAGES", "pages-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Signal, "SIGNAL", "signal-s-", Id::Dec32, ".img", 0x5925_5647, Framing::Common, Some("siginfo_entry"), None, Payload::None),
    row(Kind::Psignal, "PSIGNAL", "signal-p-", Id::Dec32, ".img", 0x5925_5647, Framing::Common, Some("siginfo_entry"), None, Payload::None),
    row(Kind::Tunfile, "TUNFILE", "tunfile.img", Id::None, "", 0x5714_3751, Framing::Common, Some("tunfile_entry"), None, Payload::None),
    row(Kind::Cgroup, "CGROUP", "cgroup.img", Id::None, "", 0x5938_3330, Framing::Common, Some("cgroup_entry"), None, Payload::None),
    row(Kind::Timerfd, "TIMERFD", "timerfd.img", Id::None, "", 0x5049_3712, Framing::Common, Some("timerfd_entry"), None, Payload::None),
    row(Kind::Cpuinfo, "CPUINFO", "cpuinfo.img", Id::None, "", 0x6140_4013, Framing::Common, Some("cpuinfo_entry"), None, Payload::None),
    row(Kind::Seccomp, "SECCOMP", "seccomp.img", Id::None, "", 0x6441_3049, Framing::Common, Some("seccomp_entry"), None, Payload::None),
    row(Kind::Userns, "USERNS", "userns-", Id::Dec32, ".img", 0x5547_4906, Framing::Common, Some("userns_entry"), None, Payload::None),
    row(Kind::NetnfCt, "NETNF_CT", "netns-ct-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::NetnfExp, "NETNF_EXP", "netns-exp-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Files, "FILES", "files.img", Id::None, "", 0x5630_3138, Framing::Common, Some("file_entry"), None, Payload::None),
    row(Kind::Timens, "TIMENS", "timens-", Id::Dec32, ".img", 0x4311_4433, Framing::Common, Some("timens_entry"), None, Payload::None),
    row(Kind::Pidns, "PIDNS", "pidns-", Id::Dec32, ".img", 0x6115_7326, Framing::Common, Some("pidns_entry"), None, Payload::None),
    row(Kind::BpfmapFile, "BPFMAP_FILE", "bpfmap-file.img", Id::None, "", 0x5750_6142, Framing::Common, Some("bpfmap_file_entry"), None, Payload::None),
    row(Kind::BpfmapData, "BPFMAP_DATA", "bpfmap-data.img", Id::None, "", 0x6432_4033, Framing::Common, Some("bpfmap_data_entry"), None, Payload::Bytes(&["keys_bytes", "values_bytes"])),
    row(Kind::Apparmor, "APPARMOR", "apparmor.img", Id::None, "", 0x5942_3047, Framing::Common, Some("apparmor_entry"), None, Payload::None),
    row(Kind::Pidfd, "PIDFD", "pidfd.img", Id::None, "", 0x5443_5556, Framing::Common, Some("pidfd_entry"), None, Payload::None),
    row(Kind::Packed, "STASIS_PACKED", "packed-", Id::Dec32, ".img", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::PackedIndex, "STASIS_PACKED_INDEX", "packed-index-", Id::Dec32, ".img", 0x5374_5069, Framing::Common, Some("stasis_packed_entry"), None, Payload::None),
    row(Kind::Key, "STASIS_KEY", "key.age", Id::None, "", 0, Framing::Raw, None, None, Payload::None),
    row(Kind::Tracking, "STASIS_TRACKING", "tracking.img", Id::None, "", 0x5374_5472, Framing::Common, Some("stasis_tracking_entry"), None, Payload::None),
    row(Kind::Marks, "STASIS_MARKS", "marks-shmem-", Id::Dec64, ".img", 0x5374_4d6b, Framing::Common, Some("stasis_marks_head"), Some("stasis_marks_entry"), Payload::None),
    row(Kind::Plugins, "STASIS_PLUGINS", "plugins.img", Id::None, "", 0x5374_506c, Framing::Common, Some("stasis_plugin_entry"), None, Payload::None),
    row(Kind::Mqueues, "STASIS_MQUEUES", "mqueues.img", Id::None, "", 0x5374_4d71, Framing::Common, Some("stasis_mqueue_entry"), None, Payload::None),
    row(Kind::Namespaces, "STASIS_NAMESPACES", "namespaces.img", Id::None, "", 0x5374_6e73, Framing::Common, Some("stasis_namespace_entry"), None, Payload::None),
    row(Kind::StatsDump, "STATS", "stats-dump", Id::None, "", 0x5709_3306, Framing::Service, Some("stats_entry"), None, Payload::None),
    row(Kind::StatsRestore, "STATS", "stats-restore", Id::None, "", 0x5709_3306, Framing::Service, Some("stats_entry"), None, Payload::None),
    row(Kind::IrmapCache, "IRMAP_CACHE", "irmap-cache", Id::None, "", 0x5700_4059, Framing::Service, Some("irmap_cache_entry"), None, Payload::None),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids() {
        let of = |name| lookup(name).map(|(row, id)| (row.kind, id));
        assert_eq!(of("core-42.img"), Some((Kind::Core, Some(42))));
        assert_eq!(of("inventory.img"), Some((Kind::Inventory, None)));
        assert_eq!(of("ghost-file-1f.img"), Some((Kind::GhostFile, Some(0x1f))));
        assert_eq!(of("tcp-stream-a0.img"), Some((Kind::TcpStream, Some(0xa0))));
        assert_eq!(of("route6-3.img"), Some((Kind::Route6, Some(3))));
        assert_eq!(
            of("tmpfs-dev-3.tar.gz.img"),
            Some((Kind::TmpfsDev, Some(3)))
        );
        assert_eq!(of("stats-restore"), Some((Kind::StatsRestore, None)));
        assert_eq!(
            of("pagemap-shmem-18446744073709551615.img"),
            Some((Kind::ShmemPagemap, Some(u64::MAX)))
        );
        for bad in [
            "core-.img",
            "core-042.img",
            "core-+4.img",
            "core--4.img",
            "core-4294967296.img",
            "core-4.img.tmp",
            "ghost-file-1F.img",
            "ghost-file-0x1.img",
            "",
            ".img",
            "inventory.img ",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_row_stands_at_its_kind_and_finds_itself() {
        for (at, row) in IMAGES.iter().enumerate() {
            assert_eq!(row.kind as usize, at, "{}", row.label);
            let name = row.file_name(7);
            assert_eq!(lookup(&name).map(|(row, _)| row.kind), Some(row.kind));
            if row.framing != Framing::Raw {
                assert_eq!(by_magic(row.magic).map(|row| row.magic), Some(row.magic));
            }
            for message in row.message.iter().chain(&row.then) {
                assert!(
                    crate::wire::shape_of(message).is_some(),
                    "{message} of {} is not in the schema",
                    row.label
                );
            }
            assert_eq!(row.message.is_none(), row.framing == Framing::Raw);
        }
    }
}
