//! Numbers that must not be mixed up.
//!
//! A pid means something only inside one pid namespace, an address only inside one address space, a descriptor
//! only inside one table. Each foreign number has its own type, so the compiler refuses to use it as one of ours.

use std::fmt;

/// A process or thread id as the engine's own pid namespace sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPid(pub i32);

/// A process or thread id as the process itself sees it (the innermost pid namespace).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NsPid(pub i32);

/// An address in another process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RemotePtr(pub u64);

/// A descriptor number in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteFd(pub i32);

impl HostPid {
    /// The id of the calling process.
    pub fn own() -> Self {
        HostPid(std::process::id() as i32)
    }
}

impl RemotePtr {
    /// The null pointer.
    pub const NULL: RemotePtr = RemotePtr(0);

    /// The address `bytes` further on; `None` where that would leave the 64-bit range.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(RemotePtr)
    }

    /// Whether this is the null pointer.
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::Add<u64> for RemotePtr {
    type Output = RemotePtr;
    /// Wraps as the machine does; use [`RemotePtr::checked_add`] for numbers that were not checked before.
    fn add(self, bytes: u64) -> RemotePtr {
        RemotePtr(self.0.wrapping_add(bytes))
    }
}

impl fmt::Debug for RemotePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for RemotePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for RemotePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

macro_rules! plain_number {
    ($($t:ident),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
plain_number!(HostPid, NsPid, RemoteFd);

impl From<HostPid> for nix::unistd::Pid {
    fn from(p: HostPid) -> Self {
        nix::unistd::Pid::from_raw(p.0)
    }
}

impl From<nix::unistd::Pid> for HostPid {
    fn from(p: nix::unistd::Pid) -> Self {
        HostPid(p.as_raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_in_hex() {
        assert_eq!(
            format!("{} {:?}", RemotePtr(0x7fff0000), RemotePtr(16)),
            "0x7fff0000 0x10"
        );
        assert_eq!(format!("{:016x}", RemotePtr(0x1000)), "0000000000001000");
        assert_eq!(RemotePtr(u64::MAX).checked_add(1), None);
    }
}
