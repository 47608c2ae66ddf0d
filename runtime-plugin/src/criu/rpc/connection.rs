//! The socket between a runtime and us: one message of the schema `rpc` per packet, in each direction.
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockaddrLike, getsockname, getsockopt, recv, sendmsg,
    sockopt,
};
use nix::sys::stat::fstat;
use stasis_proto::pb::{CriuReq, CriuReqType, CriuResp};
use stasis_proto::prost::Message;
use stasis_proto::wire;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// No request is larger: they hold names and paths.
const LARGEST: usize = 16 << 20;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    /// Who is at the other end.
    pub peer: Peer,
}

/// Who made the other end of the socket (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process, as this pid namespace sees it; 0 if it does not.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What is wrong with a connection, in words.
pub type Result<T> = std::result::Result<T, String>;

impl Connection {
    /// Takes over a socket that has the number `fd` in this process.
    ///
    /// # Errors
    /// It is not open, or not a unix socket.
    pub fn take(fd: RawFd) -> Result<Self> {
        let not = |e: &dyn std::fmt::Display| {
            format!("descriptor {fd} is not a socket to a runtime: {e}")
        };
        let fd = stasis_engine::inherited::descriptor(fd).map_err(|e| not(&e.what))?;
        Self::new(fd)
    }
    /// A connection over this socket.
    ///
    /// # Errors
    /// It is not a unix socket.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let not = |e: &dyn std::fmt::Display| {
            format!(
                "descriptor {} is not a socket to a runtime: {e}",
                fd.as_raw_fd()
            )
        };
        let name: nix::sys::socket::SockaddrStorage =
            getsockname(fd.as_raw_fd()).map_err(|e| not(&e))?;
        if name.family() != Some(AddressFamily::Unix) {
            return Err(not(&"it is not a unix socket"));
        }
        let cred = getsockopt(&fd, sockopt::PeerCredentials).map_err(|e| not(&e))?;
        let peer = Peer {
            pid: cred.pid(),
            uid: cred.uid(),
            gid: cred.gid(),
        };
        Ok(Self { fd, peer })
    }
    /// The inode number of our end.
    ///
    /// # Errors
    /// The socket cannot be looked at.
    pub fn inode(&self) -> Result<u32> {
        let st = fstat(&self.fd).map_err(|e| format!("the socket to the caller: {e}"))?;
        u32::try_from(st.st_ino).map_err(|e| format!("the socket to the caller: {e}"))
    }
    /// The next request; `None` when the other end was closed.
    ///
    /// # Errors
    /// The socket failed, or what came is no request.
    pub fn request(&self) -> Result<Option<CriuReq>> {
        let raw = self.fd.as_raw_fd();
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let size = loop {
            match recv(raw, &mut [], peek) {
                Err(Errno::EINTR) => {}
                // the other end is gone with something of ours unread: nobody asks any more
                Err(Errno::ECONNRESET) => return Ok(None),
                r => break r.map_err(|e| format!("cannot read from the runtime: {e}"))?,
            }
        };
        if size == 0 {
            return Ok(None);
        }
        if size > LARGEST {
            return Err(format!("a request of {size} bytes is too large"));
        }
        let mut bytes = vec![0; size];
        let got = recv(raw, &mut bytes, MsgFlags::empty())
            .map_err(|e| format!("cannot read from the runtime: {e}"))?;
        wire::decode(&bytes[..got])
            .map(Some)
            .map_err(|e| format!("what the runtime sent is no request: {e}"))
    }
    /// Sends a response, and a descriptor with it.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn respond(&self, response: &CriuResp, with: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = response.encode_to_vec();
        let fds = with.map(|fd| [fd.as_raw_fd()]);
        let rights: Vec<ControlMessage> =
            fds.iter().map(|f| ControlMessage::ScmRights(f)).collect();
        loop {
            let sent = sendmsg::<()>(
                self.fd.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                &rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Err(Errno::EINTR) => {}
                r => {
                    return r
                        .map(drop)
                        .map_err(|e| format!("the runtime cannot be told: {e}"));
                }
            }
        }
    }
    /// Tells something, and waits until the other end has dealt with it.
    ///
    /// # Errors
    /// The other end is gone, refused, or answered something else.
    pub fn tell(&self, notice: &CriuResp, with: Option<BorrowedFd<'_>>) -> Result<CriuReq> {
        self.respond(notice, with)?;
        let answer = self
            .request()?
            .ok_or("the runtime closed the connection instead of answering")?;
        if answer.r#type() != CriuReqType::Notify {
            return Err(format!(
                "the runtime answered a notification with a request of type {}",
                answer.r#type().as_str_name()
            ));
        }
        match answer.notify_success() {
            true => Ok(answer),
            false => Err("the runtime reported a failure of its own".into()),
        }
    }
}
