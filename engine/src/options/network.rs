//! What the caller says of sockets and networks.
use crate::netlock::Lock;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// How packets of frozen connections are held (`--network-lock`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkLock {
    /// The best this host allows: eBPF, else nftables.
    #[default]
    Auto,
    /// tcx programs.
    Ebpf,
    /// nftables over netlink (`nftables`, and for drop-in callers `iptables`).
    Nftables,
    /// None (`skip`).
    Skip,
}

/// A network lock made ahead of time, for whoever takes it first.
#[derive(Clone, Default)]
pub struct ReadyLock(pub Arc<Mutex<Option<Lock>>>);

impl ReadyLock {
    /// It, if it is still there.
    pub fn take(&self) -> Option<Lock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for ReadyLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadyLock")
    }
}

/// Sockets and networks.
#[derive(Debug, Clone, Default)]
pub struct NetworkOptions {
    /// `--tcp-established`: connections are kept.
    pub tcp_established: bool,
    /// `--tcp-close`: connections are closed at restore.
    pub tcp_close: bool,
    /// `--skip-in-flight`: connections not accepted yet are left behind.
    pub skip_in_flight: bool,
    /// `--ext-unix-sk` without a list: unix sockets may have peers outside.
    pub external_unix: bool,
    /// `--ext-unix-sk INO`, `--external unix[INO]`: these may.
    pub external_unix_inodes: Vec<u64>,
    /// Inode number of the engine's socket to a task of the tree, which asked for its own dump: restored, that task finds an
    /// answer there.
    pub service_socket: Option<u32>,
    /// `--network-lock`.
    pub lock: NetworkLock,
    /// `--external veth[IN]:OUT@BRIDGE`, `--veth-pair IN=OUT`, RPC `veths`: name inside, name outside, bridge.
    pub veths: Vec<(String, String, Option<String>)>,
    /// `--external macvlan[IFNAME]:OUTNAME`: name inside, device outside.
    pub macvlans: Vec<(String, String)>,
    /// `--external netdev[IFNAME]:ORIGNAME`: a device that is moved in.
    pub netdevs: Vec<(String, String)>,
    /// `--weak-sysctls`: sysctls that are missing or refused are no error.
    pub weak_sysctls: bool,
    /// A lock that is ready already, which holds nothing yet: making one takes some milliseconds.
    pub ready: ReadyLock,
    /// Local addresses that changed: what sockets had, and what they get.
    pub addresses: Vec<(std::net::IpAddr, std::net::IpAddr)>,
}
