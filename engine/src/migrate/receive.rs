//! The destination of a migration: pages land in a folder in memory, and the tree is brought back from there.
//!
//! Long because what is said, by whom and in which order, is to be read beside what is done with it.
use super::callers::{Callers, SOON_SECS};
use super::staging::Staging;
use super::wire::{Link, Role, Say, Token, Work, hear, lost, odd, say};
use super::{ASK_SECS, Nameless, is_acknowledged};
use crate::error::{Blame, Error, Result};
use crate::events::{Moment, Watcher};
use crate::far::Far;
use crate::options::Options;
use crate::report::RestoreReport;
use crate::restore::rehearse::Rehearsed;
use crate::tls::Tls;
use stasis_kernel::ids::HostPid;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// More connections for pages than these bring nothing.
pub const MOST_CONNECTIONS: u32 = 16;

/// What the caller is told.
#[derive(Debug, Clone, Copy)]
pub enum Told {
    /// A migration has begun.
    Begins(SocketAddr),
    /// A round is in place: its number, and bytes of pages so far.
    Round(u32, u64),
}

/// Waits for a migration.
pub struct Receiver {
    callers: Callers,
    /// Where images go, if not into memory.
    folder: Option<PathBuf>,
}

/// What has come.
struct Collected {
    /// Of the last folder.
    number: u32,
    /// Connections to pages that stayed at the source.
    later: Vec<Box<dyn Link>>,
    /// What the caller there tells the one here.
    word: String,
}

/// What is done with that word.
pub type Hearing<'a> = &'a dyn Fn(&str, &mut Options) -> Result<()>;

impl Receiver {
    /// Listens. `folder`: where images go; `None`: into memory, from where they go with the last page.
    ///
    /// # Errors
    /// E6728.
    pub fn listen(at: &str, folder: Option<PathBuf>, tls: Option<Arc<Tls>>) -> Result<Self> {
        let listener = TcpListener::bind(at).map_err(|e| {
            Error::new("E6728", Blame::Host, format!("cannot listen at {at}"))
                .why(e)
                .advice("name a local address and a free port: HOST:PORT")
        })?;
        Ok(Self {
            callers: Callers { listener, tls },
            folder,
        })
    }
    /// Where it listens.
    ///
    /// # Errors
    /// E6728.
    pub fn address(&self) -> Result<SocketAddr> {
        self.callers
            .listener
            .local_addr()
            .map_err(|e| Error::new("E6728", Blame::Host, "no address").why(e))
    }
    /// Takes one migration, and lets its tree run here. `o`: what the caller says of the restore; `word` may change it by what the
    /// caller at the source has said.
    ///
    /// # Errors
    /// Nothing of the tree is left here.
    pub fn take(
        &self,
        o: &Options,
        word: Hearing<'_>,
        tell: &(dyn Fn(Told) + Sync),
    ) -> Result<RestoreReport> {
        let (token, words) = loop {
            if let Some(c) = self.callers.accept(None)?
                && c.role == Role::Words
            {
                break (c.token, c.link);
            }
        };
        tell(Told::Begins(words.socket().peer_addr().map_err(lost)?));
        let gate = Arc::new(Gate {
            words: Mutex::new(words),
            told: AtomicBool::new(false),
        });
        crate::network::make_ready(o)?;
        let nameless;
        let path = match &self.folder {
            Some(f) => f.clone(),
            None => {
                nameless = Nameless::make()?;
                nameless.path()
            }
        };
        let taken = self
            .collect(&path, (&token, !o.memory.lazy), &gate, tell)
            .and_then(|c| {
                // all threads that took pages have ended: a restore may fork
                let mut o = o.clone();
                word(&c.word, &mut o)?;
                o.memory.far = (!c.later.is_empty()).then(|| Arc::new(Far::new(c.later)));
                o.images = path.join(c.number.to_string());
                o.memory.parent = None;
                o.detach = true;
                // before all others: they are told when it is decided
                o.events.0.insert(0, gate.clone());
                crate::restore(&o)
            });
        match taken {
            Ok(r) => self.see_off(r, &token, &gate),
            Err(e) => {
                let text = e.to_string();
                let code = e.code.into();
                let told = say(&mut **gate.words(), &Say::Failed { code, text });
                if told.is_err() && gate.told.load(Ordering::Acquire) {
                    // the source may not know whether its last word has arrived
                    self.answer(&token, &Say::Never);
                }
                Err(e)
            }
        }
    }
    /// Takes all folders of a tree that comes back `whole`, or else before its memory.
    fn collect(
        &self,
        path: &Path,
        (token, whole): (&Token, bool),
        gate: &Gate,
        tell: &(dyn Fn(Told) + Sync),
    ) -> Result<Collected> {
        let mut words = gate.words();
        let connections = match hear(&mut **words)? {
            Say::Begin { connections } if connections <= MOST_CONNECTIONS => connections,
            other => return Err(odd(format!("{other:?} in place of Begin"))),
        };
        say(&mut **words, &Say::Done)?;
        let links = self.callers.links(Role::Pages, connections, token)?;
        say(&mut **words, &Say::Done)?;
        let staging = Staging::of_folders(path);
        staging.while_pages_come(links, || {
            self.rounds(&staging, &mut **words, (token, whole), tell)
        })
    }
    fn rounds(
        &self,
        staging: &Staging,
        words: &mut dyn Link,
        (token, whole): (&Token, bool),
        tell: &(dyn Fn(Told) + Sync),
    ) -> Result<Collected> {
        let mut dir = None;
        let mut later = Vec::new();
        loop {
            match hear(words)? {
                Say::Folder { number } => dir = Some((number, staging.dir(number)?)),
                Say::File { name, len } => match &dir {
                    Some((_, d)) => staging.file(d, &name, len, words)?,
                    None => return Err(odd("a file of no folder")),
                },
                Say::Settle { frames, last } => {
                    let bytes = staging.settled(frames)?;
                    say(words, &Say::Done)?;
                    // what older rounds hold of the same pages stays: taking it out of huge pages costs more than it is worth
                    if let Some((number, _)) = dir.as_ref().filter(|_| !last) {
                        tell(Told::Round(*number, bytes));
                    }
                }
                Say::Rehearse { work } => say(words, &rehearse(work, whole))?,
                Say::Keep { connections } if connections <= MOST_CONNECTIONS => {
                    later = self.callers.links(Role::Later, connections, token)?;
                    say(words, &Say::Done)?;
                }
                Say::Restore { number, word } => {
                    return Ok(Collected {
                        number,
                        later,
                        word,
                    });
                }
                other => return Err(odd(format!("{other:?} in the middle of images"))),
            }
        }
    }
    /// The tree runs: the source may kill its own.
    fn see_off(&self, r: RestoreReport, token: &Token, gate: &Gate) -> Result<RestoreReport> {
        let mut words = gate.words();
        let runs = Say::Runs { pid: r.pid };
        if let Ok(Say::Dead) = hear(&mut **words) {
            return Ok(r);
        }
        if is_acknowledged(words.socket()) || self.answer(token, &runs) {
            info!("the source has gone without a word; it was told that the tree runs here");
            return Ok(r);
        }
        stasis_kernel::offspring::end(HostPid(r.pid));
        Err(Error::new(
            "E6725",
            Blame::Host,
            "the source does not know that the tree runs here",
        )
        .why("the connection was lost at the moment of the handover, and nobody has asked since")
        .advice("the tree was ended here: it runs on at the source"))
    }
    /// Waits for the source's question, and answers; false if it does not come.
    fn answer(&self, token: &Token, what: &Say) -> bool {
        let until = Instant::now() + Duration::from_secs(ASK_SECS);
        while let Ok(Some(mut c)) = self.callers.accept(Some(until)) {
            if c.role == Role::Question && c.token == *token && say(&mut *c.link, what).is_ok() {
                let _ = c
                    .link
                    .socket()
                    .set_read_timeout(Some(Duration::from_secs(ASK_SECS)));
                // its thanks, or its end
                let _ = hear(&mut *c.link);
                return is_acknowledged(c.link.socket());
            }
        }
        false
    }
}

/// Tries how long a restore takes here now.
fn rehearse(mut work: Work, whole: bool) -> Say {
    if !whole {
        work.resident = 0;
    }
    let begun = Instant::now();
    // a busy host is not busy at every moment
    let tries = (0..3).map(|_| crate::restore::rehearse::rehearse(&work));
    let all: Result<Vec<Rehearsed>> = tries.collect();
    let all = all.unwrap_or_else(|e| {
        // the restore itself may have other rights, or more luck
        warn!("a rehearsal of the restore failed: {e}");
        Vec::new()
    });
    let done = all.into_iter().max_by_key(|r| r.took + r.filling);
    let done = done.unwrap_or_default();
    Say::Rehearsed {
        took_us: done.took.as_micros() as u64,
        filling_us: done.filling.as_micros() as u64,
        busy_us: begun.elapsed().as_micros() as u64,
        pressure: stasis_kernel::procfs::cpu_pressure().unwrap_or(0),
    }
}

/// Holds the restored tree at its commit point until the source says that it may run.
struct Gate {
    words: Mutex<Box<dyn Link>>,
    /// The source was told that the tree is ready.
    told: AtomicBool,
}

impl Gate {
    fn words(&self) -> MutexGuard<'_, Box<dyn Link>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher for Gate {
    fn moment(&self, moment: Moment) -> Result<()> {
        let mut words = self.words();
        match moment {
            Moment::PreResume(_) => {}
            Moment::PostResume(pid) => return say(&mut **words, &Say::Runs { pid }),
            _ => return Ok(()),
        }
        crate::kill_point();
        self.told.store(true, Ordering::Release);
        say(&mut **words, &Say::Ready)?;
        let soon = Some(Duration::from_secs(SOON_SECS));
        words.socket().set_read_timeout(soon).map_err(lost)?;
        match hear(&mut **words)? {
            Say::Go => Ok(()),
            other => Err(odd(format!("{other:?} in place of Go"))),
        }
    }
    fn orphan_pts_master(&self, _: BorrowedFd<'_>) -> Result<bool> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Goal, Migration, Way};
    use super::*;
    use std::io::Write;

    #[test]
    fn who_knocks_and_talks_nonsense_is_sent_away() {
        let r = Receiver::listen("127.0.0.1:0", None, None).unwrap();
        let at = r.address().unwrap();
        let mut stranger = std::net::TcpStream::connect(at).unwrap();
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n")
            .unwrap();
        let way = Way {
            to: at.to_string(),
            connections: 2,
            tls: None,
        };
        let o = Options::new(".");
        std::thread::scope(|s| {
            let source = s.spawn(|| Migration::connect(way).map(drop));
            // the source goes without a migration
            assert_eq!(
                r.take(&o, &|_, _| Ok(()), &|_| ()).unwrap_err().code,
                "E6720"
            );
            source.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_failed_dump_leaves_nothing_at_either_side() {
        let tmp = tempfile::tempdir().unwrap();
        let r = Receiver::listen("127.0.0.1:0", Some(tmp.path().into()), None).unwrap();
        let way = Way {
            to: r.address().unwrap().to_string(),
            connections: 1,
            tls: None,
        };
        let goal = Goal {
            downtime: Duration::from_secs(1),
            force: false,
            post_copy: false,
            patience: Duration::from_secs(5),
        };
        let o = Options::new(".");
        std::thread::scope(|s| {
            let source = s.spawn(|| {
                Migration::connect(way)?.run(&Options::new("."), &goal, String::new(), &|_| ())
            });
            assert_eq!(
                r.take(&o, &|_, _| Ok(()), &|_| ()).unwrap_err().code,
                "E6720"
            );
            // no task was named
            assert_eq!(source.join().unwrap().unwrap_err().code, "E2001");
        });
    }
}
