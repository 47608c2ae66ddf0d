//! What the kernel lists of internet sockets that no task has open (sock_diag(7)). Not a kind: part of [`super::inet`].
use super::inet_options::state;
use crate::error::Result;
use stasis_kernel::netlink::{Messages, Netlink};

/// linux/sock_diag.h, linux/inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `inet_diag_req_v2`.
const REQUEST: usize = 56;
/// Places in `inet_diag_msg`.
const PORT: usize = 4;
const RECEIVED: usize = 56;
const INODE: usize = 68;

/// Of the connections to this port that nobody has accepted: the most bytes that one has received. In the namespace the caller is in.
///
/// # Errors
/// The kernel does not list them.
pub(super) fn unaccepted(port: u16) -> Result<u32> {
    let mut most = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = vec![0; REQUEST];
        request[0] = family as u8;
        request[1] = libc::IPPROTO_TCP as u8;
        let states = 1u32 << state::ESTABLISHED | 1 << state::CLOSE_WAIT;
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        let list = Netlink::sock_diag()?.dump("sock_diag(TCP)", SOCK_DIAG_BY_FAMILY, &request)?;
        for m in Messages(&list).flatten() {
            let own = m.body().get(PORT..PORT + 2);
            if own == Some(&port.to_be_bytes()) && m.u32(INODE) == Some(0) {
                most = most.max(m.u32(RECEIVED).unwrap_or(0));
            }
        }
    }
    Ok(most)
}
