//! Pages over a connection: CRIU's page server protocol.
//!
//! A message is 32 bytes, little endian: command (lower 16 bits) and flags of a pagemap entry (upper 16), four bytes of
//! nothing, number of pages, address, and whose pages (type in the lower 8 bits: 1 a process, 2 shared memory; its number above).
//! OPEN2 begins a pagemap and is answered by a byte: whether the server has one of an earlier dump. ADD_F names pages, which
//! follow if the flags say PRESENT. CLOSE ends, and is answered by four bytes of zero when all is written.
//!
//! Between two of ours pages go over several connections at once. In the first OPEN2 the client offers it where CRIU leaves zeroes
//! and its server looks at nothing: the address is a mark, the number of pages that of connections. A server of ours that can
//! take them sets a further bit of the byte it answers, and sends sixteen bytes more, a token. The connections are introduced as
//! those of a migration ([`wire`]), and pages come over them as they do there, in frames; ADD_F then only lists them, and
//! CLOSE says how many frames there are.
use crate::error::{Blame, Error, Result};
use crate::migrate::MOST_CONNECTIONS;
use crate::migrate::callers::Callers;
use crate::migrate::staging::Staging;
use crate::migrate::stream::{Remote, Stream, Target};
use crate::migrate::wire::{self, Link, Role};
use crate::pages::{IN_PARENT, LAZY, PAGE, PRESENT};
use crate::tls::{self, Tls};
use stasis_proto::{ImageDir, ImageWriter, Kind, pb};
use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use tracing::info;

const ADD: u32 = 1;
const HOLE: u32 = 2;
const OPEN: u32 = 3;
const OPEN2: u32 = 4;
const PARENT: u32 = 5;
pub(crate) const ADD_F: u32 = 6;
pub(crate) const GET: u32 = 7;
pub(crate) const CLOSE: u32 = 0x1023;
pub(crate) const FORCE_CLOSE: u32 = 0x1024;

/// Address of an OPEN2 that offers further connections.
const OFFER: u64 = u64::from_le_bytes(*b"stasis\x00\x01");
/// Bit of its answer: they may come.
const TAKEN: u8 = 0x80;
/// Flag of ADD_F: its pages come over them.
const APART: u32 = 1 << 15;
/// Further connections that are offered.
const CONNECTIONS: u32 = 3;

const PROCESS: u64 = 1;
const SHARED: u64 = 2;

/// Numbers of pages images at a server begin behind this, so that its folder can be put together with that of the dump.
const FIRST_ID: u32 = 0x10000;
/// Bytes received at a time.
const STEP: usize = 256 * 1024;

/// Where a page server is.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its host's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// A connection the caller has made: its descriptor.
    pub connected: Option<i32>,
    /// How the connection is secured.
    pub tls: Option<Arc<Tls>>,
}

impl Server {
    /// Connects.
    ///
    /// # Errors
    /// E6710, E6713.
    pub fn link(&self) -> Result<Box<dyn Link>> {
        let socket = match self.connected {
            Some(fd) => TcpStream::from(crate::inherited::descriptor(fd)?),
            None => TcpStream::connect((self.host.as_str(), self.port)).map_err(lost)?,
        };
        // a unix socket of a caller's has nothing to delay
        let _ = socket.set_nodelay(true);
        tls::connect(self.tls.as_deref(), socket, &self.host)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) command: u32,
    pub(crate) pages: u64,
    pub(crate) addr: u64,
    pub(crate) whose: u64,
}

impl Message {
    pub(crate) const LEN: usize = 32;
    pub(crate) fn bytes(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..4].copy_from_slice(&self.command.to_le_bytes());
        b[8..16].copy_from_slice(&self.pages.to_le_bytes());
        b[16..24].copy_from_slice(&self.addr.to_le_bytes());
        b[24..].copy_from_slice(&self.whose.to_le_bytes());
        b
    }
    pub(crate) fn parse(b: &[u8; Self::LEN]) -> Self {
        let word = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("eight bytes"));
        Self {
            command: word(0) as u32,
            pages: word(8),
            addr: word(16),
            whose: word(24),
        }
    }
}

pub(crate) fn lost(e: impl std::fmt::Display) -> Error {
    Error::new(
        "E6710",
        Blame::Host,
        "the connection to the page server is lost",
    )
    .why(e)
    .advice("look at the page server's log; is it there, and is there room for the pages?")
}

/// Our end of a connection to a page server.
pub struct Client {
    to: Box<dyn Link>,
    forced: bool,
    /// How to connect once more, until that was offered.
    offer: Option<Server>,
    /// Further connections.
    stream: Option<Arc<Stream>>,
    /// Number of the pagemap at the server.
    image: u32,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// E6710, E6713.
    pub fn connect(s: &Server) -> Result<Self> {
        let forced = s.connected.is_some();
        Ok(Self::on(s.link()?, forced, (!forced).then(|| s.clone())))
    }
    fn on(to: Box<dyn Link>, forced: bool, offer: Option<Server>) -> Self {
        Self {
            to,
            forced,
            offer,
            stream: None,
            image: FIRST_ID - 1,
        }
    }
    fn say(&mut self, command: u32, pages: u64, addr: u64, whose: u64) -> Result<()> {
        let m = Message {
            command,
            pages,
            addr,
            whose,
        };
        self.to.write_all(&m.bytes()).map_err(lost)
    }
    /// Begins the pagemap of a process.
    ///
    /// # Errors
    /// E6710, E6713.
    pub fn open(&mut self, pid: u32) -> Result<()> {
        let offer = self.offer.take();
        let (more, mark) = match offer {
            Some(_) => (u64::from(CONNECTIONS), OFFER),
            None => (0, 0),
        };
        self.say(OPEN2, more, mark, u64::from(pid) << 8 | PROCESS)?;
        self.image += 1;
        let mut has_parent = [0];
        self.to.read_exact(&mut has_parent).map_err(lost)?;
        match offer {
            Some(s) if has_parent[0] & TAKEN != 0 => self.spread(&s),
            _ => Ok(()),
        }
    }
    /// Makes further connections.
    fn spread(&mut self, s: &Server) -> Result<()> {
        let mut token = [0; 16];
        self.to.read_exact(&mut token).map_err(lost)?;
        let link = |_| {
            let mut link = s.link()?;
            wire::introduce(&mut *link, Role::Pages, &token)?;
            Ok(link)
        };
        let links = (0..CONNECTIONS).map(link).collect::<Result<_>>()?;
        self.stream = Some(Arc::new(Stream::new(links, self.to.socket())?));
        Ok(())
    }
    /// Where the pages of this pagemap go, if not after what announces them.
    pub fn apart(&self) -> Option<Remote> {
        let stream = self.stream.clone()?;
        Some(Target { stream, folder: 1 }.image(self.image))
    }
    /// Announces pages, which [`Client::pages`] sends then, or [`Client::apart`].
    ///
    /// # Errors
    /// E6710.
    pub fn add(&mut self, pid: u32, addr: u64, pages: u64, lazy: bool) -> Result<()> {
        let flags = PRESENT | if lazy { LAZY } else { 0 };
        let flags = flags | if self.stream.is_some() { APART } else { 0 };
        self.say(
            ADD_F | flags << 16,
            pages,
            addr,
            u64::from(pid) << 8 | PROCESS,
        )
    }
    /// Sends contents of pages.
    ///
    /// # Errors
    /// E6710.
    pub fn pages(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).map_err(lost)
    }
    /// Waits until the server has written everything.
    ///
    /// # Errors
    /// E6710, E6711.
    pub fn close(&mut self) -> Result<()> {
        let frames = self.stream.as_ref().map_or(0, |s| s.sent().0);
        let command = if self.forced { FORCE_CLOSE } else { CLOSE };
        self.say(command, frames, 0, 0)?;
        let mut status = [0; 4];
        self.to.read_exact(&mut status).map_err(lost)?;
        match i32::from_le_bytes(status) {
            0 => self.to.bye().map_err(lost),
            n => Err(
                Error::new("E6711", Blame::Host, "the page server has failed")
                    .why(format!("it answered {n}"))
                    .advice("look at its log"),
            ),
        }
    }
}

pub(crate) fn odd(why: impl Into<String>) -> Error {
    Error::new("E5710", Blame::Image, "pages from a connection")
        .why(why.into())
        .advice("both ends must be the same version of the protocol, and trusted")
}

/// A pagemap that is being received.
struct Receiving {
    whose: u64,
    map: ImageWriter,
    name: String,
    pages: File,
    end: u64,
}

/// Takes pages from a connection into a folder until its other end says that this was all. `dir` knows the folder before, if
/// there is one; `more` is where further connections may come. Gives the number of pages.
///
/// # Errors
/// E6710, E5710, E5701; those of writing.
pub fn receive(from: Box<dyn Link>, dir: &ImageDir, more: Option<&Callers>) -> Result<u64> {
    let mut t = Taking {
        from,
        dir,
        more,
        staging: None,
        open: None,
        last: FIRST_ID - 1,
        total: 0,
        buf: vec![0u8; STEP],
    };
    let links = match t.take()? {
        Some(links) => links,
        None => return Ok(t.total),
    };
    let staging = Arc::new(Staging::of_one(dir.try_clone()?));
    t.staging = Some(staging.clone());
    if let Some(r) = &t.open {
        staging.name(t.last, r.again()?);
    }
    // a second offer is none of the protocol
    staging.while_pages_come(links, || match t.take()? {
        Some(_) => Err(odd("connections are offered twice")),
        None => Ok(t.total),
    })
}

/// A connection that pages come from.
struct Taking<'a> {
    from: Box<dyn Link>,
    dir: &'a ImageDir,
    more: Option<&'a Callers>,
    /// Where pages go that come over further connections.
    staging: Option<Arc<Staging>>,
    open: Option<Receiving>,
    /// Number of the last pages image.
    last: u32,
    total: u64,
    buf: Vec<u8>,
}

impl Taking<'_> {
    /// Until the end, or until further connections have come: those.
    fn take(&mut self) -> Result<Option<Vec<Box<dyn Link>>>> {
        loop {
            let mut b = [0; Message::LEN];
            self.from.read_exact(&mut b).map_err(lost)?;
            let m = Message::parse(&b);
            let flags = match m.command & 0xffff {
                ADD_F => m.command >> 16,
                ADD => PRESENT,
                HOLE => IN_PARENT,
                OPEN => {
                    self.begin(m.whose)?;
                    continue;
                }
                OPEN2 => {
                    let has = u8::from(self.begin(m.whose)?);
                    match self.more.filter(|_| m.addr == OFFER) {
                        Some(more) => return self.spread(more, m.pages, has).map(Some),
                        None => self.answer(&[has])?,
                    }
                    continue;
                }
                PARENT => {
                    let has = self.has_parent(&name(m.whose)?)?;
                    self.answer(&i32::from(has).to_le_bytes())?;
                    continue;
                }
                CLOSE | FORCE_CLOSE => {
                    if let Some(s) = &self.staging {
                        s.settled(m.pages)?;
                    }
                    finish(self.open.take())?;
                    self.dir.sync_all()?;
                    self.answer(&[0; 4])?;
                    self.from.bye().map_err(lost)?;
                    return Ok(None);
                }
                c => return Err(odd(format!("there is no command {c:#x}"))),
            };
            self.pages(&m, flags)?;
        }
    }
    fn answer(&mut self, bytes: &[u8]) -> Result<()> {
        let done = self.from.write_all(bytes);
        done.and_then(|()| self.from.flush()).map_err(lost)
    }
    fn has_parent(&self, name: &str) -> Result<bool> {
        let parent = self.dir.parent();
        Ok(parent.map_or(Ok(false), |p| p.exists(name))?)
    }
    /// Begins a pagemap: whether the folder before has it.
    fn begin(&mut self, whose: u64) -> Result<bool> {
        finish(self.open.take())?;
        self.last = self
            .last
            .checked_add(1)
            .ok_or_else(|| odd("too many pagemaps"))?;
        let r = begin(self.dir, whose, self.last)?;
        if let Some(s) = &self.staging {
            s.name(self.last, r.again()?);
        }
        let has = self.has_parent(&r.name)?;
        self.open = Some(r);
        Ok(has)
    }
    /// Takes an offer of connections.
    fn spread(&mut self, more: &Callers, n: u64, has: u8) -> Result<Vec<Box<dyn Link>>> {
        let n = u32::try_from(n)
            .ok()
            .filter(|n| (1..=MOST_CONNECTIONS).contains(n));
        let n = n.ok_or_else(|| odd("more connections than anybody needs"))?;
        let token = wire::new_token()?;
        let mut answer = vec![has | TAKEN];
        answer.extend(token);
        self.answer(&answer)?;
        let links = more.links(Role::Pages, n, &token)?;
        info!("pages come over {n} further connections");
        Ok(links)
    }
    /// Pages that are announced, and follow unless they come apart.
    fn pages(&mut self, m: &Message, flags: u32) -> Result<()> {
        let r = self
            .open
            .as_mut()
            .filter(|r| r.whose == m.whose)
            .ok_or_else(|| odd("pages of a pagemap that is not open"))?;
        let apart = flags & APART != 0;
        if apart && self.staging.is_none() {
            return Err(odd("pages over connections that nobody made"));
        }
        let flags = flags & !APART;
        add(r, m, flags)?;
        if flags & IN_PARENT != 0 {
            return match self.dir.parent() {
                Some(_) => Ok(()),
                None => Err(odd(
                    "pages are said to be here already, and there is no folder before",
                )),
            };
        }
        let mut left = if flags & PRESENT != 0 {
            m.pages * PAGE
        } else {
            0
        };
        self.total += left / PAGE;
        while left > 0 && !apart {
            let n = left.min(STEP as u64) as usize;
            self.from.read_exact(&mut self.buf[..n]).map_err(lost)?;
            r.pages.write_all(&self.buf[..n]).map_err(|e| {
                Error::new("E6001", Blame::Host, "cannot write pages")
                    .why(e)
                    .advice("make room where the images go")
            })?;
            left -= n as u64;
        }
        Ok(())
    }
}

impl Receiving {
    /// Its pages image once more.
    fn again(&self) -> Result<File> {
        let no = |e| Error::new("E6001", Blame::Host, "cannot write pages").why(e);
        self.pages.try_clone().map_err(no)
    }
}

fn name(whose: u64) -> Result<String> {
    // types of CRIU before 2.0, too
    match whose & 0xff {
        PROCESS | 10 | 11 | 16 | 17 => Ok(Kind::Pagemap.file_of(whose >> 8)),
        SHARED | 27 | 28 | 29 | 32 | 33 | 34 => Ok(Kind::ShmemPagemap.file_of(whose >> 8)),
        t => Err(odd(format!("there are no pagemaps of type {t}"))),
    }
}

fn begin(dir: &ImageDir, whose: u64, id: u32) -> Result<Receiving> {
    let name = name(whose)?;
    let mut map = dir.writer(&name)?;
    map.write(&pb::PagemapHead { pages_id: id })?;
    Ok(Receiving {
        whose,
        map,
        pages: dir.create_raw(&Kind::Pages.file_of(id))?,
        name,
        end: 0,
    })
}

fn add(r: &mut Receiving, m: &Message, flags: u32) -> Result<()> {
    let end = m
        .pages
        .checked_mul(PAGE)
        .and_then(|n| n.checked_add(m.addr))
        .filter(|e| *e <= u64::MAX >> 1 && m.addr.is_multiple_of(PAGE) && m.addr >= r.end);
    r.end = end.ok_or_else(|| odd("runs of pages overlap or leave the address space"))?;
    Ok(r.map.write(&pb::PagemapEntry {
        vaddr: m.addr,
        compat_nr_pages: crate::kinds::shmem::compat_pages(m.pages),
        nr_pages: Some(m.pages),
        flags: Some(flags),
        ..Default::default()
    })?)
}

fn finish(r: Option<Receiving>) -> Result<()> {
    r.map_or(Ok(()), |r| Ok(r.map.finish()?))
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
