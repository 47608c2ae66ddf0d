//! Programs on devices through the queueing discipline `clsact` (tc-bpf(8)): nothing waits for a grace period of RCU, as attaching
//! without it (tcx) does, under the lock of all devices.
//!
//! The discipline is made by us and goes with the last of our programs. A device that has one already is somebody's, with an order of
//! programs that is not ours to change: it is left alone.
use stasis_kernel::bpf::Side;
use stasis_kernel::error::SysError;
use stasis_kernel::netlink::{Body, Messages, NLM_F_CREATE, NLM_F_EXCL, Netlink};
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// TC_H_CLSACT: where the discipline hangs (linux/pkt_sched.h).
const CLSACT: u32 = 0xffff_fff1;
/// Its own number, of which the programs' places are made.
const HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// What the program returns is what happens to the packet.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// Length of `struct tcmsg`.
const TCMSG: usize = 20;
/// First among filters, and for packets of every protocol: priority << 16, ETH_P_ALL in network order.
const INFO: u32 = 1 << 16 | (3u16.to_be() as u32);

/// `struct tcmsg`: family, device, number, parent, info.
fn tcmsg(device: u32, handle: u32, parent: u32, info: u32) -> Body {
    let mut b = vec![0; 4];
    for word in [device, handle, parent, info] {
        b.extend_from_slice(&word.to_ne_bytes());
    }
    Body::new(&b)
}

/// The place of programs of one side (TC_H_MIN_INGRESS, TC_H_MIN_EGRESS).
fn place(side: Side) -> u32 {
    match side {
        Side::Ingress => HANDLE | 0xfff2,
        Side::Egress => HANDLE | 0xfff3,
    }
}

/// Puts programs upon a device of the socket's network namespace.
///
/// # Errors
/// EEXIST: the device has such a discipline already. ENODEV: it is gone. EOPNOTSUPP, ENOENT: the kernel was built without.
pub fn attach(
    route: &mut Netlink,
    device: u32,
    programs: &[(BorrowedFd<'_>, Side, &str)],
) -> Result<(), SysError> {
    let mut b = tcmsg(device, HANDLE, CLSACT, 0);
    b.text(TCA_KIND, "clsact");
    let new = NLM_F_CREATE | NLM_F_EXCL;
    route.act("rtnetlink(RTM_NEWQDISC)", RTM_NEWQDISC, new, &b.0)?;
    for (program, side, name) in programs {
        let mut b = tcmsg(device, 1, place(*side), INFO);
        b.text(TCA_KIND, "bpf").nest(TCA_OPTIONS, |o| {
            o.u32(TCA_BPF_FD, program.as_raw_fd() as u32)
                .text(TCA_BPF_NAME, name)
                .u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
        let r = route.act("rtnetlink(RTM_NEWTFILTER)", RTM_NEWTFILTER, new, &b.0);
        if let Err(e) = r {
            let _ = remove(route, device);
            return Err(e);
        }
    }
    Ok(())
}

/// What filters packets of one side of a device: numbers of programs, `None` for what is none.
///
/// # Errors
/// ENODEV: it is gone.
fn filters(route: &mut Netlink, device: u32, side: Side) -> Result<Vec<Option<u32>>, SysError> {
    /// Where `tcm_handle` lies; 0: the message is about the place, not about a filter.
    const NUMBER: usize = 8;
    let b = tcmsg(device, 0, place(side), 0);
    let all = route.dump("rtnetlink(RTM_GETTFILTER)", RTM_GETTFILTER, &b.0)?;
    let filters = Messages(&all)
        .flatten()
        .filter(|m| m.u32(NUMBER).is_some_and(|n| n != 0));
    Ok(filters
        .map(|m| m.attrs(TCMSG).nest(TCA_OPTIONS).u32(TCA_BPF_ID))
        .collect())
}

/// Is one of these programs on a device?
pub fn attached(route: &mut Netlink, device: u32, programs: &[u32]) -> bool {
    [Side::Ingress, Side::Egress].into_iter().any(|side| {
        let all = filters(route, device, side).unwrap_or_default();
        all.iter().flatten().any(|id| programs.contains(id))
    })
}

/// Takes programs with these numbers away from a device, and the discipline unless somebody else uses it by now. False: they are
/// not there.
///
/// # Errors
/// The kernel refuses.
pub fn detach(route: &mut Netlink, device: u32, programs: &[u32]) -> Result<bool, SysError> {
    let mine = |id: &Option<u32>| id.is_some_and(|id| programs.contains(&id));
    let (mut ours, mut others) = (Vec::new(), false);
    for side in [Side::Ingress, Side::Egress] {
        let all = filters(route, device, side)?;
        if all.iter().any(mine) {
            ours.push(side);
        }
        others |= !all.iter().all(mine);
    }
    if ours.is_empty() {
        return Ok(false);
    }
    if !others {
        return remove(route, device).map(|()| true);
    }
    for side in ours {
        let mut b = tcmsg(device, 1, place(side), INFO);
        b.text(TCA_KIND, "bpf");
        route.act("rtnetlink(RTM_DELTFILTER)", RTM_DELTFILTER, 0, &b.0)?;
    }
    Ok(true)
}

/// Takes the discipline away, with all that hangs on it.
fn remove(route: &mut Netlink, device: u32) -> Result<(), SysError> {
    let mut b = tcmsg(device, HANDLE, CLSACT, 0);
    b.text(TCA_KIND, "clsact");
    route.act("rtnetlink(RTM_DELQDISC)", RTM_DELQDISC, 0, &b.0)
}
