//! TCP connections: how they are made again. Not a kind of its own: part of [`super::inet`].
//! Long because it is one story, from the first call to the last.
//!
//! 1. **First** ([`Stage::First`](super::Stage)): the socket, its options.
//! 2. [`Connect`]: repair mode; bind(2), which it allows beside a listener; the sequence numbers, behind which the queues
//!    will begin; connect(2), which sends nothing and succeeds at once; what both ends had agreed on; the receive queue; what
//!    was sent and not acknowledged; the windows. A FIN that came, and the acknowledgement of one that was sent, exist only as
//!    packets: they are made and given to the socket through the loopback device, marked so that the lock lets them pass.
//! 3. [`Wake`], just before the tree runs and when packets flow again: repair mode ends; what was never sent is sent, and
//!    a FIN behind it.
//!
//! KERNEL: SO_REUSEADDR after TCP_REPAIR would take back what lets bind(2) succeed, so its real value comes with [`Wake`].
//! A send queue larger than the buffer would block, and an unset window would have the retransmit timer end the
//! connection, so buffers come first and windows before what was never sent.
use super::act::Stagehand;
use super::inet_address::{patiently, scoped, sockaddr};
use super::inet_options::state;
use super::sockopts::{Buffers, get, set_int_row, set_row};
use super::tcp::{agreed, got_fin, sent_fin};
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::call::{Arg, Call, FdRef};
use stasis_kernel::error::SysError;
use stasis_proto::{ImageDir, pb};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

const TCP: i32 = libc::SOL_TCP;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
/// Which queue is repaired.
const NO_QUEUE: i32 = 0;
const RECV_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
/// Codes of TCP options (RFC 9293, 7323, 2018).
const OPT_MSS: u32 = 2;
const OPT_WINDOW: u32 = 3;
const OPT_SACK: u32 = 4;
const OPT_TIMESTAMP: u32 = 8;
/// The kernel keeps what is put into a receive queue in one buffer per call, so calls must not be large.
const CHUNK: usize = 32 << 10;
/// What TCP_MAXSEG takes (include/net/tcp.h).
const MSS_MIN: u32 = 88;
const MSS_MAX: u32 = 32767;
/// Room for the kernel's bookkeeping of a queue.
const OVERHEAD: u32 = 1 << 20;

/// A connection out of an image.
#[derive(Debug, Clone)]
pub struct Connect {
    /// The socket, neither bound nor connected.
    pub file: FdRef,
    /// Own address.
    pub local: SocketAddr,
    /// Device of an own address of a link.
    pub device: Option<String>,
    /// The other end.
    pub peer: SocketAddr,
    /// State.
    pub state: u32,
    /// Sequence numbers, windows, options.
    pub stream: pb::TcpStreamEntry,
    /// The image with the queues.
    pub image: String,
    /// What the buffers will be.
    pub buffers: Buffers,
    /// SO_MARK.
    pub mark: u32,
}

/// The end of repair mode.
#[derive(Debug, Clone)]
pub struct Wake {
    /// What was made.
    pub of: Connect,
    /// SO_REUSEADDR as it was.
    pub reuse: bool,
}

/// A buffer in which so many bytes have room in any case.
fn room(bytes: u32) -> u32 {
    bytes.saturating_mul(4).saturating_add(OVERHEAD)
}

/// May so many bytes be too many for a buffer of this size, with the kernel's bookkeeping of them?
fn crowded(bytes: u32, buffer: u32) -> bool {
    bytes > 0 && bytes.saturating_mul(4).saturating_add(4096) > buffer
}

impl Connect {
    fn cannot(&self, why: impl fmt::Display) -> Error {
        Error::new(
            "E6552",
            Blame::Host,
            format!("cannot make the connection {self} again"),
        )
        .why(why)
    }
    /// Bytes that were never sent.
    fn unsent(&self) -> u32 {
        self.stream.unsq_len.unwrap_or(0).min(self.stream.outq_len)
    }
    /// A FIN of its own that has not been sent, because bytes before it were not.
    fn fin_waits(&self) -> bool {
        sent_fin(self.state) && self.unsent() > 0
    }
    /// How large segments may be: no larger than the other end takes, and than half of the largest window it ever offered
    /// (net/ipv4/tcp_output.c, tcp_bound_to_half_wnd()), or a small window would never be used.
    fn segments(&self) -> u32 {
        const DEFAULT: u32 = 536;
        let half = match self.stream.max_window {
            None | Some(0) => u32::MAX,
            Some(w) if w > DEFAULT => w / 2,
            Some(w) => w,
        };
        self.stream.mss_clamp.min(half).clamp(MSS_MIN, MSS_MAX)
    }
    fn room_to_send(&self) -> u32 {
        self.buffers.send.max(room(self.stream.outq_len))
    }
    /// Both queues.
    fn queues(&self, dir: &ImageDir) -> Result<(Vec<u8>, Vec<u8>)> {
        if (self.stream.inq_len, self.stream.outq_len) == (0, 0) {
            return Ok(Default::default());
        }
        let mut r = dir.reader(&self.image)?;
        let entry: Option<pb::TcpStreamEntry> = r.read()?;
        let Some(e) = entry else {
            return Err(Error::new("E5551", Blame::Image, &self.image)
                .why("it has no record")
                .advice("dump again"));
        };
        let receive = r.payload(e.inq_len.into())?;
        let send = r.payload(e.outq_len.into())?;
        Ok((receive, send))
    }
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let s = &self.stream;
        let file = self.file;
        let local = scoped(on.fd(file)?, self.local, self.device.as_deref())?;
        let (receive, send) = self.queues(on.dir)?;
        self.play(on, self.repair(true))?;
        let fin = |yes: bool| u32::from(yes);
        let inq = s
            .inq_seq
            .wrapping_sub(fin(got_fin(self.state)))
            .wrapping_sub(s.inq_len);
        let mut outq = s
            .outq_seq
            .wrapping_sub(fin(sent_fin(self.state)))
            .wrapping_sub(s.outq_len);
        if self.state == state::SYN_SENT {
            // the SYN itself
            outq = outq.wrapping_sub(1);
        }
        self.address(on, libc::SYS_bind, &local)?;
        for (queue, seq) in [(RECV_QUEUE, inq), (SEND_QUEUE, outq)] {
            self.int(on, TCP_REPAIR_QUEUE, "TCP_REPAIR_QUEUE", queue)?;
            self.int(on, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ", seq as i32)?;
        }
        if self.state == state::SYN_SENT {
            // the SYN is sent again when packets flow
            return Ok(());
        }
        // KERNEL: connect(2) computes the size of segments, and what is agreed on later does not change it
        // (net/ipv4/tcp_output.c, tcp_connect_init())
        // and what it begins with depends on the buffers
        self.buffers.perform(on)?;
        let mss = self.segments();
        self.int(on, libc::TCP_MAXSEG, "TCP_MAXSEG", mss as i32)?;
        self.address(on, libc::SYS_connect, &self.peer)?;
        self.int(on, libc::TCP_MAXSEG, "TCP_MAXSEG", 0)?;
        self.agree(on)?;
        // for the time of the filling: what is put in now is counted otherwise than what came
        let roomy = Buffers {
            send: self.room_to_send(),
            receive: self.buffers.receive.max(room(s.inq_len)),
            lock: None,
            file,
        };
        let crowded =
            crowded(s.inq_len, self.buffers.receive) || crowded(s.outq_len, self.buffers.send);
        if crowded {
            roomy.perform(on)?;
        }
        self.fill(on, RECV_QUEUE, &receive)?;
        let sent = send.len() - self.unsent() as usize;
        self.fill(on, SEND_QUEUE, &send[..sent])?;
        self.windows(on)?;
        if crowded {
            // before anything can come
            self.buffers.perform(on)?;
        }
        if sent_fin(self.state) && !self.fin_waits() && self.state != state::LAST_ACK {
            self.send_fin(on)?;
        }
        if got_fin(self.state) || self.state == state::FIN_WAIT2 {
            // the lock lets packets pass to a socket with its mark
            self.mark(on, stasis_netlock::PASS_MARK)?;
            let fin = got_fin(self.state);
            super::tcp_packets::give(on, &self.packet(fin, on)?)?;
            self.arrived(on, self.after_packet())?;
            self.mark(on, self.mark)?;
        }
        if self.state == state::LAST_ACK && !self.fin_waits() {
            self.send_fin(on)?;
        }
        self.int(on, TCP_REPAIR_QUEUE, "TCP_REPAIR_QUEUE", NO_QUEUE)?;
        self.arrived(on, self.whole())
    }
    fn mark(&self, on: &mut Stagehand<'_>, mark: u32) -> Result<()> {
        let row = set_int_row(
            self.file,
            libc::SOL_SOCKET,
            libc::SO_MARK,
            "SO_MARK",
            mark as i32,
        );
        self.play(on, row)
    }
    /// The state when the packet has come.
    fn after_packet(&self) -> u32 {
        match self.state {
            state::LAST_ACK => state::CLOSE_WAIT,
            _ => self.whole(),
        }
    }
    /// The state before it wakes.
    fn whole(&self) -> u32 {
        match (self.fin_waits(), self.state) {
            (true, state::LAST_ACK | state::CLOSING) => state::CLOSE_WAIT,
            (true, _) => state::ESTABLISHED,
            (false, s) => s,
        }
    }
    /// The socket comes into a state.
    fn arrived(&self, on: &mut Stagehand<'_>, want: u32) -> Result<()> {
        // the loopback device may need a moment
        let mut now = 0;
        for wait in 0..200 {
            let v = get(on.fd(self.file)?, TCP, libc::TCP_INFO, 8)?.unwrap_or_default();
            now = v.first().map_or(0, |s| u32::from(*s));
            if now == want {
                return Ok(());
            }
            if wait > 0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        Err(self
            .cannot(format!(
                "its state is {} and was {}",
                state_name(now),
                state_name(want)
            ))
            .advice("rules of a firewall may hold packets on the loopback device: let those from lo pass"))
    }
    fn repair(&self, on: bool) -> Call {
        set_int_row(self.file, TCP, TCP_REPAIR, "TCP_REPAIR", i32::from(on))
    }
    fn play(&self, on: &mut Stagehand<'_>, row: Call) -> Result<()> {
        on.host.play(&row).map_err(|e| self.refused(&e))?;
        Ok(())
    }
    fn refused(&self, e: &SysError) -> Error {
        let advice = match e.errno {
            Errno::EPERM => {
                "repair mode needs CAP_NET_ADMIN in the user namespace that owns the network namespace"
            }
            Errno::EADDRNOTAVAIL => {
                "give the address to a device, or say which took its place (--tcp-remap OLD=NEW); if the connection is there already, end it (ss -K)"
            }
            Errno::EADDRINUSE => {
                "the connection is there already: end it (ss -K), or restore in a network namespace of its own"
            }
            Errno::ENETUNREACH | Errno::EHOSTUNREACH => {
                "bring back the device and the route to the other end"
            }
            _ => "see the call; --tcp-close restores without connections",
        };
        self.cannot(e).advice(advice)
    }
    fn int(&self, on: &mut Stagehand<'_>, name: i32, text: &'static str, v: i32) -> Result<()> {
        self.play(on, set_int_row(self.file, TCP, name, text, v))
    }
    fn address(&self, on: &mut Stagehand<'_>, nr: i64, a: &SocketAddr) -> Result<()> {
        let b = sockaddr(a);
        let len = Arg::Int(b.len() as u64);
        let row = Call::new(nr, vec![Arg::Fd(self.file), Arg::In(b), len]);
        patiently(a, || on.host.play(&row).map(drop)).map_err(|e| self.refused(&e))
    }
    /// What both ends agreed on when the connection was made.
    fn agree(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let s = &self.stream;
        let has = |bit| s.opt_mask & bit != 0;
        // struct tcp_repair_opt: code, value
        let mut all = Vec::new();
        if has(agreed::SACK) {
            all.push((OPT_SACK, 0));
        }
        if has(agreed::WSCALE) {
            let rcv = s.rcv_wscale.unwrap_or(0);
            all.push((OPT_WINDOW, s.snd_wscale & 0xffff | rcv << 16));
        }
        if has(agreed::TIMESTAMPS) {
            all.push((OPT_TIMESTAMP, 0));
        }
        all.push((OPT_MSS, s.mss_clamp));
        let v: Vec<u8> = all
            .iter()
            .flat_map(|(c, v)| [c.to_le_bytes(), v.to_le_bytes()].concat())
            .collect();
        let row = set_row(self.file, TCP, TCP_REPAIR_OPTIONS, "TCP_REPAIR_OPTIONS", &v);
        self.play(on, row)?;
        match s.timestamp {
            Some(t) => self.int(on, TCP_TIMESTAMP, "TCP_TIMESTAMP", t as i32),
            None => Ok(()),
        }
    }
    /// Bytes into a queue, as they would lie there.
    fn fill(&self, on: &mut Stagehand<'_>, queue: i32, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.int(on, TCP_REPAIR_QUEUE, "TCP_REPAIR_QUEUE", queue)?;
        self.send(on, bytes)
    }
    fn send(&self, on: &mut Stagehand<'_>, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let part = &rest[..rest.len().min(CHUNK)];
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let row = Call::new(
                libc::SYS_sendto,
                vec![
                    Arg::Fd(self.file),
                    Arg::In(part.to_vec()),
                    Arg::Int(part.len() as u64),
                    Arg::Named(flags as u64, "MSG_DONTWAIT|MSG_NOSIGNAL".into()),
                    Arg::Null,
                    Arg::Int(0),
                ],
            );
            let n = on.host.play(&row).map_err(|e| match e.errno {
                Errno::EAGAIN | Errno::ENOMEM => self.cannot(&e).advice("raise net.core.wmem_max and rmem_max, or restore with CAP_NET_ADMIN: the buffers are too small for what is in the queues"),
                _ => self.refused(&e),
            })?;
            match n.ret as usize {
                0 => return Err(self.cannot("send(2) takes no bytes")),
                n => rest = &rest[n.min(rest.len())..],
            }
        }
        Ok(())
    }
    fn windows(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let s = &self.stream;
        let (Some(wl1), Some(wnd), Some(max), Some(rcv), Some(wup)) =
            (s.snd_wl1, s.snd_wnd, s.max_window, s.rcv_wnd, s.rcv_wup)
        else {
            return Ok(());
        };
        // counted when the FIN had come, which it has not yet
        let fin = u32::from(got_fin(self.state));
        let all = [wl1, wnd, max, rcv.wrapping_add(fin), wup.wrapping_sub(fin)];
        let v: Vec<u8> = all.iter().flat_map(|w| w.to_le_bytes()).collect();
        let row = set_row(self.file, TCP, TCP_REPAIR_WINDOW, "TCP_REPAIR_WINDOW", &v);
        self.play(on, row)
    }
    /// A FIN that was sent: in repair mode of the send queue nothing leaves the host.
    fn send_fin(&self, on: &mut Stagehand<'_>) -> Result<()> {
        self.int(on, TCP_REPAIR_QUEUE, "TCP_REPAIR_QUEUE", SEND_QUEUE)?;
        self.shut(on)
    }
    fn shut(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let how = Arg::Named(libc::SHUT_WR as u64, "SHUT_WR".into());
        let row = Call::new(libc::SYS_shutdown, vec![Arg::Fd(self.file), how]);
        self.play(on, row)
    }
    /// A packet from the other end: its FIN, or its acknowledgement of ours.
    fn packet(&self, fin: bool, on: &Stagehand<'_>) -> Result<super::tcp_packets::Packet> {
        let s = &self.stream;
        let seq = s.inq_seq.wrapping_sub(u32::from(got_fin(self.state)));
        let unacked = s
            .outq_seq
            .wrapping_sub(u32::from(sent_fin(self.state)))
            .wrapping_sub(s.outq_len);
        let ack = match self.state {
            state::FIN_WAIT2 => s.outq_seq,
            _ => unacked,
        };
        let scale = if s.opt_mask & agreed::WSCALE != 0 {
            s.snd_wscale.min(14)
        } else {
            0
        };
        let window = s.snd_wnd.unwrap_or(0) >> scale;
        let local = scoped(on.fd(self.file)?, self.local, self.device.as_deref())?;
        Ok(super::tcp_packets::Packet {
            from: self.peer,
            to: local,
            seq,
            ack,
            window: window.min(0xffff) as u16,
            fin,
        })
    }
}

impl Wake {
    pub(super) fn perform(&self, on: &mut Stagehand<'_>) -> Result<()> {
        let c = &self.of;
        if c.state == state::SYN_SENT {
            c.play(on, c.repair(false))?;
            c.buffers.perform(on)?;
            self.real_options(on)?;
            let b = sockaddr(&c.peer);
            let len = Arg::Int(b.len() as u64);
            let nonblock = |on: &mut Stagehand<'_>, flags: u64| {
                let f = Arg::Named(libc::F_SETFL as u64, "F_SETFL".into());
                let row = Call::new(libc::SYS_fcntl, vec![Arg::Fd(c.file), f, Arg::Hex(flags)]);
                c.play(on, row)
            };
            let get = Arg::Named(libc::F_GETFL as u64, "F_GETFL".into());
            let row = Call::new(libc::SYS_fcntl, vec![Arg::Fd(c.file), get, Arg::Int(0)]);
            let flags = on.host.play(&row).map_err(|e| c.refused(&e))?.ret;
            nonblock(on, flags | libc::O_NONBLOCK as u64)?;
            let row = Call::new(libc::SYS_connect, vec![Arg::Fd(c.file), Arg::In(b), len]);
            let again = match on.host.play(&row) {
                Ok(_) => Ok(()),
                Err(e) if e.errno == Errno::EINPROGRESS => Ok(()),
                Err(e) => Err(c.refused(&e)),
            };
            nonblock(on, flags)?;
            return again;
        }
        c.play(on, c.repair(false))?;
        let unsent = c.unsent() > 0;
        if unsent {
            let (_, send) = c.queues(on.dir)?;
            let sent = send.len() - c.unsent() as usize;
            let roomy = Buffers {
                send: c.room_to_send(),
                lock: None,
                ..c.buffers
            };
            roomy.perform(on)?;
            c.send(on, &send[sent..])?;
        }
        if c.fin_waits() {
            c.shut(on)?;
        }
        if unsent {
            c.buffers.perform(on)?;
        }
        self.real_options(on)
    }
    /// KERNEL: the end of repair mode takes SO_REUSEADDR away (net/ipv4/tcp.c, do_tcp_setsockopt()).
    fn real_options(&self, on: &mut Stagehand<'_>) -> Result<()> {
        if !self.reuse {
            return Ok(());
        }
        let file = self.of.file;
        let row = set_int_row(
            file,
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR,
            "SO_REUSEADDR",
            1,
        );
        self.of.play(on, row)
    }
}

/// `ESTABLISHED`, ...
pub(super) fn state_name(s: u32) -> &'static str {
    const NAMES: [&str; 12] = [
        "unknown",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
    ];
    NAMES.get(s as usize).copied().unwrap_or("unknown")
}

/// Both ends are of one version of IP.
pub(super) fn is_v4(a: &SocketAddr) -> bool {
    matches!(a.ip().to_canonical(), IpAddr::V4(_))
}

impl fmt::Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connection(file#{}, {} to {}, {}, {} bytes to read, {} to send of which {} were not sent)",
            self.file.0,
            self.local,
            self.peer,
            state_name(self.state),
            self.stream.inq_len,
            self.stream.outq_len,
            self.unsent()
        )
    }
}

impl fmt::Display for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "wake(file#{}, {} to {}, {} unsent bytes)",
            self.of.file.0,
            self.of.local,
            self.of.peer,
            self.of.unsent()
        )
    }
}
