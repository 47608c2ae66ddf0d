//! What the caller says of sockets and networks.

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
    /// Local addresses that changed: what sockets had, and what they get.
    pub addresses: Vec<(std::net::IpAddr, std::net::IpAddr)>,
}
