//! Pages that stayed with whoever dumped them: asked for, and answered, in CRIU's page server protocol.
//!
//! GET names pages of a process (its number stands where other commands have type and number). The answer is ADD_F with the flag
//! PRESENT and how many pages follow: at least one, perhaps fewer than were asked for. CLOSE ends it, and is answered by four
//! bytes of zero.
use crate::dump::Left;
use crate::error::{Blame, Error, Result};
use crate::migrate::pool::Pool;
use crate::migrate::wire::{self, Link};
use crate::pages::{PAGE, PRESENT};
use crate::remote::{ADD_F, CLOSE, FORCE_CLOSE, GET, Message, Server, lost, odd};
use crate::tls::{self, Tls};
use std::fmt;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Pages served at a time: 256 KiB.
const STEP: u64 = 64;

/// Connections to who has the pages. Whoever needs some takes one that is free.
pub struct Far {
    links: Pool,
    sockets: Vec<RawFd>,
}

impl fmt::Debug for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections", self.sockets.len())
    }
}

impl Far {
    /// Of connections that are made.
    pub fn new(links: Vec<Box<dyn Link>>) -> Self {
        Self {
            sockets: links.iter().map(|l| l.socket().as_raw_fd()).collect(),
            links: Pool::new(links),
        }
    }
    /// Connects to a page server: by one connection, as CRIU's takes no more.
    ///
    /// # Errors
    /// E6710, E6713.
    pub fn connect(s: &Server) -> Result<Self> {
        let link = s.link()?;
        // a unix socket of a caller's has none of these
        let _ = wire::prepare(link.socket());
        Ok(Self::new(vec![link]))
    }
    /// Numbers of the sockets.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.sockets.iter().copied()
    }
    /// Brings pages of a process.
    ///
    /// # Errors
    /// E6710, E5710.
    pub fn fetch(&self, pid: u32, addr: u64, buf: &mut [u8]) -> Result<()> {
        let (mut addr, whose) = (addr, u64::from(pid));
        let done = self.links.with(|link| {
            let mut rest = buf;
            while !rest.is_empty() {
                let asked = rest.len() as u64 / PAGE;
                let ask = Message {
                    command: GET,
                    pages: asked,
                    addr,
                    whose,
                };
                link.write_all(&ask.bytes())
                    .and_then(|()| link.flush())
                    .map_err(lost)?;
                let mut head = [0; Message::LEN];
                link.read_exact(&mut head).map_err(lost)?;
                let told = Message::parse(&head);
                if told.command & 0xffff != ADD_F
                    || told.addr != addr
                    || told.whose != whose
                    || !(1..=asked).contains(&told.pages)
                {
                    return Err(odd("pages that nobody asked for"));
                }
                let (now, later) = rest.split_at_mut((told.pages * PAGE) as usize);
                link.read_exact(now).map_err(lost)?;
                rest = later;
                addr += told.pages * PAGE;
            }
            Ok(())
        });
        done.unwrap_or_else(|| Err(lost("it was given up")))
    }
    /// Says that nothing more is needed.
    ///
    /// # Errors
    /// E6710: the other end does not know that it may go.
    pub fn close(&self) -> Result<()> {
        self.links.each(|link| {
            let end = Message {
                command: CLOSE,
                pages: 0,
                addr: 0,
                whose: 0,
            };
            link.write_all(&end.bytes())
                .and_then(|()| link.flush())
                .map_err(lost)?;
            let mut status = [0; 4];
            link.read_exact(&mut status)
                .and_then(|()| link.bye())
                .map_err(lost)
        })
    }
}

/// Gives pages of stopped processes to who asks for them, until it says that this was all. Gives their number.
///
/// # Errors
/// E6710: the connection ended before that; E5710.
pub fn serve(link: &mut dyn Link, left: &[Left]) -> Result<u64> {
    let mut total = 0;
    let mut buf = vec![0u8; (STEP * PAGE) as usize];
    loop {
        let mut head = [0; Message::LEN];
        match link.read_exact(&mut head) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                return Err(lost("the destination has gone before it had all pages"));
            }
            done => done.map_err(lost)?,
        }
        let m = Message::parse(&head);
        match m.command & 0xffff {
            GET => {}
            CLOSE | FORCE_CLOSE => {
                link.write_all(&[0; 4])
                    .and_then(|()| link.flush())
                    .and_then(|()| link.bye())
                    .map_err(lost)?;
                return Ok(total);
            }
            c => {
                return Err(odd(format!(
                    "command {c:#x} in place of a question for pages"
                )));
            }
        }
        let all = left
            .iter()
            .find(|l| u64::from(l.own) == m.whose)
            .ok_or_else(|| odd(format!("process {} was not dumped here", m.whose)))?;
        let found = all.from(m.addr, m.pages.min(1 << 34)).ok_or_else(|| {
            odd(format!(
                "no page of process {} was left at {:#x}",
                m.whose, m.addr
            ))
        })?;
        let answer = Message {
            command: ADD_F | PRESENT << 16,
            pages: found,
            ..m
        };
        link.write_all(&answer.bytes()).map_err(lost)?;
        let mut sent = 0;
        while sent < found {
            let n = STEP.min(found - sent);
            let buf = &mut buf[..(n * PAGE) as usize];
            all.read(m.addr + sent * PAGE, buf)?;
            link.write_all(buf).map_err(lost)?;
            sent += n;
        }
        link.flush().map_err(lost)?;
        total += found;
    }
}

/// Serves several connections at once; gives the number of pages.
///
/// # Errors
/// As [`serve`]: the first that happened.
pub fn serve_all(links: Vec<Box<dyn Link>>, left: &[Left]) -> Result<u64> {
    std::thread::scope(|s| {
        let threads: Vec<_> = links
            .into_iter()
            .map(|mut l| s.spawn(move || serve(&mut *l, left)))
            .collect();
        let mut sum = Ok(0);
        for t in threads {
            let n = t
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sum = sum.and_then(|s| Ok(s + n?));
        }
        sum
    })
}

/// Where a dump that keeps pages waits for who wants them.
#[derive(Debug, Clone)]
pub enum Counter {
    /// It listens here, for one connection, and secures that so.
    Listening(Arc<TcpListener>, Option<Arc<Tls>>),
    /// A connection the caller has made: its descriptor; and how it is secured.
    Connected(i32, Option<Arc<Tls>>),
    /// Connections of a migration.
    Links(Links),
}

/// Connections for whoever takes them.
#[derive(Clone, Default)]
pub struct Links {
    links: Arc<Mutex<Vec<Box<dyn Link>>>>,
    sockets: Arc<Vec<TcpStream>>,
}

impl Links {
    /// Of connections that are made.
    ///
    /// # Errors
    /// E6710.
    pub fn new(links: Vec<Box<dyn Link>>) -> Result<Self> {
        let sockets = links.iter().map(|l| l.socket().try_clone());
        Ok(Self {
            sockets: Arc::new(sockets.collect::<std::io::Result<_>>().map_err(lost)?),
            links: Arc::new(Mutex::new(links)),
        })
    }
    /// Ends them: whoever serves on one fails.
    fn cut(&self) {
        for s in self.sockets.iter() {
            let _ = s.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Links")
    }
}

impl Counter {
    /// Serves while `meanwhile` lets somebody ask who is known already; if that fails, nobody is served any more.
    ///
    /// # Errors
    /// Those of `meanwhile`, and of serving. `None`: who asks is not known yet, nothing was done.
    pub fn serve_during(
        &self,
        left: &[Left],
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Option<Result<u64>> {
        let Counter::Links(links) = self else {
            return None;
        };
        Some(std::thread::scope(|s| {
            let served = s.spawn(|| self.serve(left));
            let done = meanwhile();
            if done.is_err() {
                links.cut();
            }
            let served = served
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.and(served)
        }))
    }
    /// Waits for who wants the pages, and gives them away.
    ///
    /// # Errors
    /// As [`serve`].
    pub fn serve(&self, left: &[Left]) -> Result<u64> {
        let links = match self {
            Counter::Listening(l, tls) => {
                let (c, from) = l.accept().map_err(lost)?;
                wire::prepare(&c)?;
                tracing::info!("pages go to {from}");
                vec![tls::accept(tls.as_deref(), c)?]
            }
            Counter::Connected(fd, tls) => {
                let c = TcpStream::from(crate::inherited::descriptor(*fd)?);
                vec![tls::accept(tls.as_deref(), c)?]
            }
            Counter::Links(l) => {
                std::mem::take(&mut *l.links.lock().unwrap_or_else(PoisonError::into_inner))
            }
        };
        if links.is_empty() {
            return Err(Error::new(
                "E6710",
                Blame::Host,
                "nobody came for the pages",
            ));
        }
        serve_all(links, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::mm_run;
    use stasis_kernel::ids::HostPid;

    fn both() -> (Box<dyn Link>, Box<dyn Link>) {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
        (Box::new(a), Box::new(l.accept().unwrap().0))
    }

    #[test]
    fn pages_come_as_they_are_asked_for_and_no_others() {
        let memory = vec![7u8; 200 * PAGE as usize];
        let at = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let left = [Left {
            own: 42,
            host: HostPid::own(),
            runs: vec![mm_run(at, 100 * PAGE), mm_run(at + 110 * PAGE, PAGE)],
        }];
        let talk = |f: &dyn Fn(&Far) -> Result<()>| {
            let (a, mut b) = both();
            std::thread::scope(|s| {
                let left = &left;
                // it has the connection to itself: its end is the end of that, too
                let served = s.spawn(move || serve(&mut *b, left).map_err(|e| e.code));
                let far = Far::new(vec![a]);
                let got = f(&far).map_err(|e| e.code);
                drop(far);
                (got, served.join().unwrap())
            })
        };
        let good = talk(&|far| {
            let mut buf = vec![0; 100 * PAGE as usize];
            far.fetch(42, at, &mut buf)?;
            assert!(buf.iter().all(|b| *b == 7));
            far.fetch(42, at + 110 * PAGE, &mut buf[..PAGE as usize])?;
            far.close()
        });
        assert_eq!(good, (Ok(()), Ok(101)));
        let one = [0; PAGE as usize];
        assert_eq!(talk(&|_| Ok(())), (Ok(()), Err("E6710")));
        for (pid, addr) in [(43, at), (42, at + 105 * PAGE), (42, 0), (42, !4095)] {
            let r = talk(&|far| far.fetch(pid, addr, &mut one.clone()));
            assert_eq!(r, (Err("E6710"), Err("E5710")), "{pid} {addr:#x}");
        }
    }
}
