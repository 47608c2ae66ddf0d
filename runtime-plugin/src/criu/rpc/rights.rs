//! What a worker of a service may do for its caller: what the caller itself may do.
use super::connection::Peer;
use nix::unistd::{Gid, Uid, getpid, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::os::unix::fs::MetadataExt;

/// Namespaces a caller must share with the service: paths and numbers of its request are looked up here.
const SHARED: [&str; 3] = ["user", "mnt", "pid"];

/// Gives up everything the peer does not have: user, groups, capabilities. It cannot be undone.
///
/// # Errors
/// The peer lives in other namespaces or under another root, or is another user whom this process cannot become.
pub fn become_peer(peer: Peer) -> Result<(), String> {
    let link = |pid: &str, ns: &str| std::fs::read_link(format!("/proc/{pid}/ns/{ns}"));
    for ns in SHARED {
        let theirs = link(&peer.pid.to_string(), ns)
            .map_err(|e| format!("cannot look at the caller, process {}: {e}", peer.pid))?;
        if Some(&theirs) != link("self", ns).ok().as_ref() {
            return Err(format!(
                "process {} lives in another {ns} namespace: ask a service inside of that, or use swrk",
                peer.pid
            ));
        }
    }
    let root = |of: &str| {
        std::fs::metadata(format!("/proc/{of}/root/."))
            .map(|m| (m.dev(), m.ino()))
            .ok()
    };
    if root(&peer.pid.to_string()) != root("self") {
        return Err(format!(
            "process {} has another root directory: ask a service inside of that, or use swrk",
            peer.pid
        ));
    }
    let failed =
        |what: &str, e: nix::Error| format!("cannot become user {}: {what}: {e}", peer.uid);
    let own = Uid::effective();
    if peer.uid != own.as_raw() {
        // the caller's further groups cannot be told for certain: it may have ended, and its number may be another's
        setgroups(&[Gid::from_raw(peer.gid)]).map_err(|e| failed("setgroups", e))?;
        let gid = Gid::from_raw(peer.gid);
        setresgid(gid, gid, gid).map_err(|e| failed("setresgid", e))?;
        let uid = Uid::from_raw(peer.uid);
        setresuid(uid, uid, uid).map_err(|e| failed("setresuid", e))?;
        // KERNEL: a change of user closes /proc/self to oneself (fs/exec.c, would-be dumpable); this process was started
        // for this caller and holds nothing of anybody else's
        nix::sys::prctl::set_dumpable(true).map_err(|e| failed("prctl", e))?;
        return lose_all_but(CapabilitySet::empty());
    }
    lose_all_but(effective(peer.pid)?)
}

/// The capabilities a process has in effect.
fn effective(pid: i32) -> Result<CapabilitySet, String> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    text.lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|h| u64::from_str_radix(h.trim(), 16).ok())
        .map(CapabilitySet::from_bits_retain)
        .ok_or_else(|| format!("{path} tells no capabilities"))
}

fn lose_all_but(these: CapabilitySet) -> Result<(), String> {
    let fail = |e: rustix::io::Errno| format!("cannot give up capabilities: {e}");
    let own = capabilities(None).map_err(fail)?;
    let less = CapabilitySets {
        effective: own.effective & these,
        permitted: own.permitted & these,
        inheritable: own.inheritable & these,
    };
    set_capabilities(None, less).map_err(fail)?;
    tracing::debug!("process {} has the rights of its caller", getpid());
    Ok(())
}
