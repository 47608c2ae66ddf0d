//! Pages over a connection: CRIU's page server protocol.
//!
//! A message is 32 bytes, little endian: command (lower 16 bits) and flags of a pagemap entry (upper 16), four bytes of
//! nothing, number of pages, address, and whose pages (type in the lower 8 bits: 1 a process, 2 shared memory; its number above).
//! OPEN2 begins a pagemap and is answered by a byte: whether the server has one of an earlier dump. ADD_F names pages, which
//! follow if the flags say PRESENT. CLOSE ends, and is answered by four bytes of zero when all is written.
use crate::error::{Blame, Error, Result};
use crate::migrate::wire::Link;
use crate::pages::{IN_PARENT, LAZY, PAGE, PRESENT};
use crate::tls::{self, Tls};
use stasis_proto::{ImageDir, ImageWriter, Kind, pb};
use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

const ADD: u32 = 1;
const HOLE: u32 = 2;
const OPEN: u32 = 3;
const OPEN2: u32 = 4;
const PARENT: u32 = 5;
pub(crate) const ADD_F: u32 = 6;
pub(crate) const GET: u32 = 7;
pub(crate) const CLOSE: u32 = 0x1023;
pub(crate) const FORCE_CLOSE: u32 = 0x1024;

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
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// E6710, E6713.
    pub fn connect(s: &Server) -> Result<Self> {
        Ok(Self {
            to: s.link()?,
            forced: s.connected.is_some(),
        })
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
    /// E6710.
    pub fn open(&mut self, pid: u32) -> Result<()> {
        self.say(OPEN2, 0, 0, u64::from(pid) << 8 | PROCESS)?;
        let mut has_parent = [0];
        self.to.read_exact(&mut has_parent).map_err(lost)
    }
    /// Announces pages, which [`Client::pages`] sends then.
    ///
    /// # Errors
    /// E6710.
    pub fn add(&mut self, pid: u32, addr: u64, pages: u64, lazy: bool) -> Result<()> {
        let flags = PRESENT | if lazy { LAZY } else { 0 };
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
        self.say(if self.forced { FORCE_CLOSE } else { CLOSE }, 0, 0, 0)?;
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
/// there is one. Gives the number of pages.
///
/// # Errors
/// E6710, E5710, E5701; those of writing.
pub fn receive(mut from: Box<dyn Link>, dir: &ImageDir) -> Result<u64> {
    let mut open: Option<Receiving> = None;
    let (mut ids, mut total) = (FIRST_ID.., 0);
    let mut buf = vec![0u8; STEP];
    loop {
        let mut b = [0; Message::LEN];
        from.read_exact(&mut b).map_err(lost)?;
        let m = Message::parse(&b);
        let flags = match m.command & 0xffff {
            ADD_F => m.command >> 16,
            ADD => PRESENT,
            HOLE => IN_PARENT,
            c @ (OPEN | OPEN2) => {
                finish(open.take())?;
                let id = ids.next().ok_or_else(|| odd("too many pagemaps"))?;
                let r = begin(dir, m.whose, id)?;
                if c == OPEN2 {
                    let has = dir.parent().map_or(Ok(false), |p| p.exists(&r.name))?;
                    from.write_all(&[u8::from(has)]).map_err(lost)?;
                }
                open = Some(r);
                continue;
            }
            PARENT => {
                let has = dir.parent().map_or(Ok(false), |p| {
                    p.exists(&name(m.whose)?).map_err(Error::from)
                })?;
                from.write_all(&i32::from(has).to_le_bytes())
                    .map_err(lost)?;
                continue;
            }
            CLOSE | FORCE_CLOSE => {
                finish(open.take())?;
                dir.sync_all()?;
                from.write_all(&[0; 4])
                    .and_then(|()| from.bye())
                    .map_err(lost)?;
                return Ok(total);
            }
            c => return Err(odd(format!("there is no command {c:#x}"))),
        };
        let r = open
            .as_mut()
            .filter(|r| r.whose == m.whose)
            .ok_or_else(|| odd("pages of a pagemap that is not open"))?;
        add(r, &m, flags)?;
        if flags & IN_PARENT != 0 {
            if dir.parent().is_none() {
                return Err(odd(
                    "pages are said to be here already, and there is no folder before",
                ));
            }
            continue;
        }
        let mut left = if flags & PRESENT != 0 {
            m.pages * PAGE
        } else {
            0
        };
        total += left / PAGE;
        while left > 0 {
            let n = left.min(STEP as u64) as usize;
            from.read_exact(&mut buf[..n]).map_err(lost)?;
            r.pages.write_all(&buf[..n]).map_err(|e| {
                Error::new("E6001", Blame::Host, "cannot write pages")
                    .why(e)
                    .advice("make room where the images go")
            })?;
            left -= n as u64;
        }
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
        in_parent: None,
    })?)
}

fn finish(r: Option<Receiving>) -> Result<()> {
    r.map_or(Ok(()), |r| Ok(r.map.finish()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn link(s: UnixStream) -> Box<dyn Link> {
        Box::new(TcpStream::from(OwnedFd::from(s)))
    }

    fn both(dir: &ImageDir, talk: impl FnOnce(&mut Client) -> Result<()> + Send) -> Result<u64> {
        let (a, b) = UnixStream::pair().unwrap();
        std::thread::scope(|s| {
            let client = s.spawn(|| {
                let mut c = Client {
                    to: link(a),
                    forced: false,
                };
                talk(&mut c)
            });
            let r = receive(link(b), dir);
            let told = client.join().unwrap();
            r.inspect(|_| told.unwrap())
        })
    }

    #[test]
    fn pages_arrive_where_a_restore_finds_them() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let n = both(&dir, |c| {
            for pid in [7, 8] {
                c.open(pid)?;
                c.add(pid, 0x1000, 2, true)?;
                c.pages(&[pid as u8; 8192])?;
                c.add(pid, 0x9000, 1, false)?;
                c.pages(&[99; 4096])?;
            }
            c.close()
        });
        assert_eq!(n.unwrap(), 6);
        let p = crate::pages::Pages::load(&dir, "pagemap-8.img").unwrap();
        assert_eq!(p.runs, [(0x1000, 0x2000, 0), (0x9000, 0x1000, 0x2000)]);
        assert_eq!(p.sources[0].id, FIRST_ID + 1);
        let mut one = [0; 1];
        p.open(&dir).unwrap().read(&mut one, 0x1fff).unwrap();
        assert_eq!(one, [8]);
    }

    #[test]
    fn nonsense_from_a_connection_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let code = |talk: &(dyn Fn(&mut Client) -> Result<()> + Sync)| {
            both(&dir, |c| talk(c).or(Ok(()))).unwrap_err().code
        };
        assert_eq!(code(&|c| c.add(7, 0x1000, 1, false)), "E5710");
        assert_eq!(code(&|c| c.say(77, 0, 0, 0)), "E5710");
        assert_eq!(code(&|c| c.say(OPEN2, 0, 0, 7 << 8 | 99)), "E5710");
        let overlap = |c: &mut Client| {
            c.open(7)?;
            c.say(ADD_F | IN_PARENT << 16, 1, 0x1000, 7 << 8 | 1)
        };
        assert_eq!(code(&overlap), "E5710");
        let huge = |c: &mut Client| {
            c.open(7)?;
            c.add(7, 0x1000, u64::MAX / 2, false)
        };
        assert_eq!(code(&huge), "E5710");
        assert_eq!(code(&|c| c.open(7)), "E6710");
    }
}
