//! Pages on their way to another host, over several connections at once.
use super::pool::Pool;
use super::wire::{self, Frame, Link, lost};
use crate::error::{Blame, Error, Result};
use std::fmt;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Connections for pages. Whoever has pages takes one that is free.
pub struct Stream {
    links: Pool,
    /// All sockets, to cut them.
    sockets: Vec<TcpStream>,
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections", self.sockets.len())
    }
}

impl Stream {
    /// Of connections that are made; `words` is cut with them.
    ///
    /// # Errors
    /// E6720.
    pub fn new(links: Vec<Box<dyn Link>>, words: &TcpStream) -> Result<Self> {
        let all = links.iter().map(|l| l.socket()).chain([words]);
        let sockets = all
            .map(TcpStream::try_clone)
            .collect::<std::io::Result<_>>()
            .map_err(lost)?;
        Ok(Self {
            links: Pool::new(links),
            sockets,
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        })
    }
    /// Cuts all connections: whoever uses one fails.
    pub fn cut(&self) {
        self.links.cut();
        for s in &self.sockets {
            let _ = s.shutdown(Shutdown::Both);
        }
    }
    /// Whether the caller has cut them.
    pub fn is_cut(&self) -> bool {
        self.links.is_cut()
    }
    /// The error of somebody who fails on a connection that was cut.
    pub fn blame(&self, e: Error) -> Error {
        match self.is_cut() {
            true => aborted(),
            false => e,
        }
    }
    /// Segments that the network has lost so far, and how long it takes at most until one is sent again.
    pub fn lost(&self) -> (u64, Duration) {
        let all = self.sockets.iter();
        let all = all.filter_map(|s| stasis_kernel::fds::sent_again(s).ok());
        all.fold((0, Duration::ZERO), |(n, longest), (again, rto_us)| {
            let rto = Duration::from_micros(rto_us.into());
            (n + u64::from(again), longest.max(rto))
        })
    }
    /// Frames and bytes sent so far.
    pub fn sent(&self) -> (u64, u64) {
        let of = |n: &AtomicU64| n.load(Ordering::Acquire);
        (of(&self.frames), of(&self.bytes))
    }
    fn frame(&self, f: Frame, bytes: &[u8]) -> Result<()> {
        let done = self.links.with(|link| {
            link.write_all(&f.bytes())?;
            link.write_all(bytes)?;
            link.flush()
        });
        let done = done.ok_or_else(aborted)?;
        done.map_err(|e| self.blame(lost(e)))?;
        self.frames.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::AcqRel);
        Ok(())
    }
}

/// A pages image of a folder at the other host.
#[derive(Debug, Clone)]
pub struct Remote {
    stream: std::sync::Arc<Stream>,
    folder: u32,
    image: u32,
}

/// The stream that a dump's pages go to, and the number of its folder.
#[derive(Debug, Clone)]
pub struct Target {
    /// The connections.
    pub stream: std::sync::Arc<Stream>,
    /// From 1.
    pub folder: u32,
}

impl Target {
    /// The image with this number.
    pub fn image(&self, image: u32) -> Remote {
        Remote {
            stream: self.stream.clone(),
            folder: self.folder,
            image,
        }
    }
}

impl Remote {
    /// Sends bytes of the image.
    ///
    /// # Errors
    /// E6720, E2724.
    pub fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut at = at;
        for piece in bytes.chunks(wire::LONGEST_FRAME) {
            let f = Frame {
                folder: self.folder,
                image: self.image,
                len: piece.len() as u32,
                at,
            };
            self.stream.frame(f, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
    /// All of it was sent: it has so many bytes.
    ///
    /// # Errors
    /// E6720, E2724.
    pub fn end(&self, len: u64) -> Result<()> {
        let f = Frame {
            folder: self.folder,
            image: self.image,
            len: 0,
            at: len,
        };
        self.stream.frame(f, &[])
    }
}

/// The caller has asked for it.
pub fn aborted() -> Error {
    Error::new("E2724", Blame::Caller, "the migration was aborted")
        .advice("the tree runs on where it was")
}
