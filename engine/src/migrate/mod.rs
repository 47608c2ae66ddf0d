//! Live migration: a tree moves to another host while it runs.
//!
//! It is a chain of dumps whose pages images lie at the other host. Each round ([`crate::pre_dump`]) sends what was written since
//! the round before while the tree runs; its pagemaps stay here, in a folder without a name, for the next round to know what is
//! there. When so little is left that the rest fits into the downtime the caller allows, the tree is frozen, a dump sends the
//! rest, and the destination has a folder like that of any incremental dump, which it restores.
//!
//! Long because the rounds and the handover are one story.
//!
//! Who runs is decided in five words:
//! 1. *Ready*: the destination's tree stands at its commit point. Until then whatever fails is a failed dump here and a failed
//!    restore there: the tree runs on here, and nothing is left there.
//! 2. *Go*: from here on the caller cannot abort any more.
//! 3. *Runs*: the destination's tree runs. Only now the one here is killed.
//! 4. *Dead*: the destination need not answer questions any more.
//!    Except in post-copy, where it stays frozen until all its pages were asked for.
//! 5. If the connection is lost between 2 and 3, the source asks by a new one, for [`ASK_SECS`], while its tree stays frozen. If
//!    nobody answers it lets the tree run; the destination, which saw that *Runs* was never received, kills its own.
//!
//! Long because the source's whole conversation, with every way it can end, is here.
pub mod callers;
mod census;
mod forecast;
pub(crate) mod pool;
mod receive;
pub mod staging;
pub mod stream;
pub mod wire;

pub(crate) use census::is_memory;
pub use receive::{Hearing, MOST_CONNECTIONS, Receiver, Told};

use crate::error::{Blame, Error, Result};
use crate::events::{Moment, Watcher};
use crate::far::{Counter, Links};
use crate::options::{After, Options};
use crate::pages::PAGE;
use crate::report::DumpReport;
use crate::tls::{self, Tls};
use forecast::{Forecast, Shown};
use stasis_kernel::ids::HostPid;
use stasis_kernel::mnt;
use stasis_proto::{ImageDir, Kind};
use std::io::Read;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver as Receiving, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use stream::{Stream, Target, aborted};
use tracing::{debug, info, warn};
use wire::{Link, Role, Say, Token, hear, lost, odd, say};

/// How long the source asks what has become of the tree, in seconds.
pub const ASK_SECS: u64 = 3;
/// More rounds than these bring nothing.
const ROUNDS: u32 = 30;
/// Rounds that leave as much as the one before, until it is clear that the tree writes faster than it is sent.
const FUTILE: u32 = 3;

/// How connections are made.
#[derive(Debug, Clone)]
pub struct Way {
    /// HOST:PORT.
    pub to: String,
    /// How many for pages.
    pub connections: u32,
    /// How they are secured.
    pub tls: Option<Arc<Tls>>,
}

impl Way {
    fn link(&self, role: Role, token: &Token) -> Result<Box<dyn Link>> {
        let cannot = |e: std::io::Error| {
            Error::new(
                "E6722",
                Blame::Host,
                format!("cannot connect to {}", self.to),
            )
            .why(e)
            .advice("run `stasis receive --listen HOST:PORT` there first")
        };
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for a in self.to.to_socket_addrs().map_err(cannot)? {
            match TcpStream::connect_timeout(&a, Duration::from_secs(ASK_SECS)) {
                Ok(s) => {
                    wire::prepare(&s)?;
                    let host = self.to.rsplit_once(':').map_or("", |(host, _)| host);
                    let host = host.trim_start_matches('[').trim_end_matches(']');
                    let mut link = tls::connect(self.tls.as_deref(), s, host)?;
                    wire::introduce(&mut *link, role, token)?;
                    return Ok(link);
                }
                Err(e) => last = e,
            }
        }
        Err(cannot(last))
    }
}

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// The tree may stand still for so long.
    pub downtime: Duration,
    /// If that cannot be met: stop it nevertheless.
    pub force: bool,
    /// If that cannot be met: let it run there before all its memory is there.
    pub post_copy: bool,
    /// How long the destination may take to bring the tree back.
    pub patience: Duration,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// From 1; the last is the one in which the tree stands.
    pub round: u32,
    /// Bytes sent in all.
    pub sent: u64,
    /// Bytes a second, over the last second or the last round.
    pub rate: u64,
    /// Bytes that are known to be left.
    pub left: u64,
    /// How long the tree would stand still now, once it is known.
    pub downtime: Option<Duration>,
    /// The tree stands still.
    pub frozen: bool,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Rounds, with the last.
    pub rounds: u32,
    /// Bytes of memory sent in all, and of them with the tree frozen.
    pub sent: u64,
    /// See `sent`.
    pub sent_frozen: u64,
    /// Bytes that stayed here until the tree ran there (post-copy).
    pub later: u64,
    /// From the freeze until the destination said that the tree runs there, in microseconds.
    pub downtime_us: u64,
    /// What was expected of that before.
    pub expected_us: u64,
    /// Where that time went.
    pub stood: Stood,
    /// All of it, in microseconds.
    pub total_us: u64,
    /// The root at the destination.
    pub pid: i32,
    /// The last dump.
    pub dump: DumpReport,
}

/// The parts of a downtime, one after the other, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stood {
    /// Stopping all tasks.
    pub freezing_us: u64,
    /// The dump, which sends the pages that were left.
    pub dump_us: u64,
    /// The other images.
    pub images_us: u64,
    /// The restore, until the destination said that the tree stands there.
    pub restore_us: u64,
    /// Until it ran.
    pub running_us: u64,
}

/// A folder in memory that has no name: it goes with its last descriptor.
#[derive(Debug)]
struct Nameless {
    fd: OwnedFd,
}

impl Nameless {
    fn make() -> Result<Self> {
        let no = |e: stasis_kernel::error::SysError| {
            Error::new("E6726", Blame::Host, "no folder in memory can be made")
                .why(e)
                .advice("migrate as root, or name a folder with -D")
        };
        Ok(Self {
            fd: mnt::nameless_tmpfs().map_err(no)?,
        })
    }
    fn path(&self) -> PathBuf {
        // children of the engine (hooks) find it by this path, too
        format!("/proc/{}/fd/{}", HostPid::own().0, self.fd.as_raw_fd()).into()
    }
}

/// Until when the caller may abort.
const OPEN: u8 = 0;
const ABORTED: u8 = 1;
const DECIDED: u8 = 2;

/// Stops a migration, from any thread.
#[derive(Debug, Clone)]
pub struct Brake {
    stream: Arc<Stream>,
    state: Arc<AtomicU8>,
}

impl Brake {
    /// Aborts; false: it is too late, the tree runs at the destination or is about to.
    pub fn pull(&self) -> bool {
        let new = self
            .state
            .compare_exchange(OPEN, ABORTED, Ordering::AcqRel, Ordering::Acquire);
        if new.is_ok() {
            self.stream.cut();
        }
        new != Err(DECIDED)
    }
    fn decide(&self) -> Result<()> {
        let new = self
            .state
            .compare_exchange(OPEN, DECIDED, Ordering::AcqRel, Ordering::Acquire);
        new.map(drop).map_err(|_| aborted())
    }
}

/// A migration whose connections stand.
pub struct Migration {
    way: Way,
    token: Token,
    words: Box<dyn Link>,
    brake: Brake,
    /// For the caller at the destination.
    word: String,
}

impl Migration {
    /// Connects.
    ///
    /// # Errors
    /// E6722, E6720, E6721.
    pub fn connect(way: Way) -> Result<Self> {
        let token = wire::new_token()?;
        let mut words = way.link(Role::Words, &token)?;
        let connections = way.connections.clamp(1, MOST_CONNECTIONS);
        say(&mut *words, &Say::Begin { connections })?;
        expect_done(&mut *words)?;
        let pages = (0..connections)
            .map(|_| way.link(Role::Pages, &token))
            .collect::<Result<Vec<_>>>()?;
        expect_done(&mut *words)?;
        let stream = Arc::new(Stream::new(pages, words.socket())?);
        Ok(Self {
            way,
            token,
            words,
            brake: Brake {
                stream,
                state: Arc::new(AtomicU8::new(OPEN)),
            },
            word: String::new(),
        })
    }
    /// What stops it.
    pub fn brake(&self) -> Brake {
        self.brake.clone()
    }
    /// Moves the tree under `o.pid`; where its images would go does not matter. `word` is for the caller at the destination.
    ///
    /// # Errors
    /// The tree runs on here, and not there; but for E6725, which says that it is not known whether it runs there.
    pub fn run(
        mut self,
        o: &Options,
        goal: &Goal,
        word: String,
        tell: &(dyn Fn(&Progress) + Sync),
    ) -> Result<Report> {
        let begun = Instant::now();
        self.word = word;
        let here = Nameless::make()?;
        let stream = self.brake.stream.clone();
        let run = Run {
            o,
            goal,
            here: here.path(),
            stream: stream.clone(),
            progress: Mutex::new(Progress::default()),
            tell,
        };
        let (over, is_over) = std::sync::mpsc::channel();
        let done = std::thread::scope(|s| {
            let run = &run;
            s.spawn(move || run.tick(&is_over));
            let done = run.story(self);
            drop(over);
            done
        });
        let done = done.map_err(|e| stream.blame(e));
        if done.is_err() {
            // nothing of it stays with a tree that runs on
            crate::dump::untrack(&run.here);
        }
        let mut report = done?;
        report.total_us = begun.elapsed().as_micros() as u64;
        report.sent = stream.sent().1;
        Ok(report)
    }
}

impl Stood {
    /// All of it.
    pub fn sum_us(&self) -> u64 {
        self.freezing_us + self.dump_us + self.images_us + self.restore_us + self.running_us
    }
}

fn expect_done(words: &mut dyn Link) -> Result<()> {
    match hear(words)? {
        Say::Done => Ok(()),
        Say::Failed { code, text } => Err(refused(&code, &text)),
        other => Err(odd(format!("{other:?} in place of Done"))),
    }
}

/// What the destination says of its failure.
fn refused(code: &str, text: &str) -> Error {
    let text: String = text
        .chars()
        .filter(|c| !c.is_control() || *c == '\n')
        .collect();
    let first = text.lines().next().unwrap_or_default();
    Error::new(
        "E6723",
        Blame::Host,
        "the destination cannot bring the tree back",
    )
    .why(if first.is_empty() { code } else { first })
    .advice("see its log; the tree runs on here")
}

/// The rounds.
struct Run<'a> {
    o: &'a Options,
    goal: &'a Goal,
    here: PathBuf,
    stream: Arc<Stream>,
    progress: Mutex<Progress>,
    tell: &'a (dyn Fn(&Progress) + Sync),
}

impl Run<'_> {
    /// Tells every second how far it is.
    fn tick(&self, over: &Receiving<()>) {
        let (mut last, mut sent) = (Instant::now(), 0);
        while over.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            let now = self.stream.sent().1;
            let rate = (now - sent) * 1_000_000 / (last.elapsed().as_micros() as u64).max(1);
            (last, sent) = (Instant::now(), now);
            self.update(|p| p.rate = rate);
        }
    }
    fn update(&self, f: impl FnOnce(&mut Progress)) {
        let mut p = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut p);
        p.sent = self.stream.sent().1;
        (self.tell)(&p);
    }
    fn options(&self, round: u32) -> Options {
        let mut o = self.o.clone();
        o.images = self.here.join(round.to_string());
        o.after = After::Default;
        o.memory.parent = (round > 1).then(|| format!("../{}", round - 1).into());
        o.memory.stream = Some(Target {
            stream: self.stream.clone(),
            folder: round,
        });
        o
    }
    fn story(&self, mut m: Migration) -> Result<Report> {
        let mut round = 1;
        let (mut left_before, mut futile) = (u64::MAX, 0);
        let mut forecast = Forecast::default();
        let mut later = false;
        let expected = loop {
            self.update(|p| p.round = round);
            let (shown, left) = self.round(&mut *m.words, round)?;
            forecast.add(shown);
            let (rate, downtime) = (forecast.rate(), forecast.stand(left));
            info!(
                "round {round}: sent {} bytes, {left} are left: it would stand for {} ms",
                shown.bytes,
                downtime.as_millis()
            );
            debug!("{shown:?}, {rate} bytes a second");
            self.update(|p| (p.rate, p.left, p.downtime) = (rate, left, Some(downtime)));
            round += 1;
            // a round that helps is worth it: it costs nobody anything, and how busy the hosts will be in the last one is not known
            let helps = left < left_before / 4 * 3;
            let little = forecast.sending(left) * 10 <= self.goal.downtime;
            if downtime <= self.goal.downtime && (little || !helps) {
                break downtime;
            }
            futile = match left.saturating_mul(10) >= left_before.saturating_mul(9) {
                true => futile + 1,
                false => 0,
            };
            left_before = left;
            if futile >= FUTILE || round > ROUNDS {
                if self.goal.post_copy {
                    later = true;
                    break forecast.stand(0);
                }
                if self.goal.force {
                    warn!("--max-downtime cannot be met: the tree is stopped nevertheless");
                    break downtime;
                }
                return Err(too_long(self.goal.downtime, downtime, left, rate));
            }
        };
        self.update(|p| (p.round, p.frozen) = (round, true));
        let mut report = self.last(m, round, later)?;
        report.expected_us = expected.as_micros() as u64;
        Ok(report)
    }
    /// A round while the tree runs: what it showed, and how many bytes are left.
    fn round(&self, words: &mut dyn Link, round: u32) -> Result<(Shown, u64)> {
        let (sent, (lost, _)) = (self.stream.sent().1, self.stream.lost());
        let o = self.options(round);
        let begun = Instant::now();
        let r = crate::pre_dump(&o)?;
        let (frozen, sealing) = (micros(r.frozen_us), micros(r.memwrite_us));
        let ready = begun.elapsed().saturating_sub(frozen + sealing);
        let folder = Instant::now();
        send_folder(words, &o.images, round)?;
        settle(words, &self.stream, false)?;
        let comparing = micros(r.comparing_us);
        let sending = sealing.saturating_sub(comparing) + folder.elapsed();
        let root = HostPid(self.o.pid);
        let work = census::work(root);
        let asked = Instant::now();
        say(words, &Say::Rehearse { work })?;
        let (took, filling, busy, pressure) = match hear(words)? {
            Say::Rehearsed {
                took_us,
                filling_us,
                busy_us,
                pressure,
            } => (
                micros(took_us),
                micros(filling_us),
                micros(busy_us),
                pressure,
            ),
            Say::Failed { code, text } => return Err(refused(&code, &text)),
            other => return Err(odd(format!("{other:?} in place of Rehearsed"))),
        };
        let exchange = asked.elapsed().saturating_sub(busy);
        // last of all: it grows until the tree stands
        let looking = Instant::now();
        let left = census::left(root, (round > 1).then_some(r.shpages_written * PAGE));
        let since = begun.elapsed().saturating_sub(ready + frozen);
        let (now_lost, repeating) = self.stream.lost();
        let shown = Shown {
            ready,
            repeating: if now_lost > lost {
                repeating
            } else {
                Duration::ZERO
            },
            frozen,
            // the last dump compares shared memory, too
            look: looking.elapsed() + comparing,
            exchange,
            rehearsal: took,
            filling,
            pressure,
            bytes: self.stream.sent().1 - sent,
            sending,
            writing: forecast::per_second(left, since),
        };
        Ok((shown, left))
    }
    /// The round in which the tree stands.
    fn last(&self, mut m: Migration, round: u32, later: bool) -> Result<Report> {
        let before = self.stream.sent().1;
        let mut o = self.options(round);
        if later {
            let connections = m.way.connections.clamp(1, MOST_CONNECTIONS);
            say(&mut *m.words, &Say::Keep { connections })?;
            let links = (0..connections).map(|_| m.way.link(Role::Later, &m.token));
            let links = Links::new(links.collect::<Result<_>>()?)?;
            expect_done(&mut *m.words)?;
            o.memory.counter = Some(Counter::Links(links));
        }
        let handover = Arc::new(Handover {
            folder: o.images.clone(),
            round,
            patience: self.goal.patience,
            brake: m.brake.clone(),
            way: m.way,
            token: m.token,
            word: m.word,
            words: Mutex::new(m.words),
            begun: Mutex::new(None),
            done: Mutex::default(),
        });
        // after all others: when it returns, the tree runs at the destination
        o.events.0.push(handover.clone());
        let dumped = crate::dump(&o);
        if dumped.is_ok() {
            let mut words = handover
                .words
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Err(e) = say(&mut **words, &Say::Dead) {
                debug!("{e}");
            }
        }
        let dump = dumped?;
        let done = handover.done.lock();
        let (pid, mut stood) = *done.unwrap_or_else(PoisonError::into_inner);
        stood.freezing_us = dump.freezing_us;
        debug!("{stood:?}");
        Ok(Report {
            rounds: round,
            sent_frozen: self.stream.sent().1 - before,
            later: dump.pages_lazy * PAGE,
            downtime_us: stood.sum_us(),
            stood,
            pid,
            dump,
            ..Report::default()
        })
    }
}

fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn too_long(goal: Duration, downtime: Duration, left: u64, rate: u64) -> Error {
    Error::new(
        "E4727",
        Blame::Container,
        format!("a downtime of {} ms cannot be met", goal.as_millis()),
    )
    .why(format!(
        "rounds do not help any more: {} MiB are left after each, at {} MiB/s it would stand for {} ms",
        left >> 20,
        rate >> 20,
        downtime.as_millis()
    ))
    .advice("raise --max-downtime, or pass --post-copy or --force; the tree runs on here")
}

/// Ships the files of a folder but for its pages, which are there, and what tracks them here.
fn send_folder(words: &mut dyn Link, path: &Path, number: u32) -> Result<()> {
    let dir = ImageDir::open(path)?;
    say(words, &Say::Folder { number })?;
    for name in dir.list()? {
        if name == Kind::Tracking.file() || name.starts_with("marks-") {
            continue;
        }
        let mut file = dir.open_raw(&name)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|e| Error::new("E6001", Blame::Host, name.clone()).why(e))?;
        let len = bytes.len() as u64;
        say(words, &Say::File { name, len })?;
        words.write_all(&bytes).map_err(lost)?;
    }
    words.flush().map_err(lost)
}

/// Waits until all pages that were sent are in place.
fn settle(words: &mut dyn Link, stream: &Stream, last: bool) -> Result<()> {
    let frames = stream.sent().0;
    say(words, &Say::Settle { frames, last })?;
    expect_done(words)
}

/// Told when the last dump is complete and the tree frozen: lets the destination take over.
struct Handover {
    folder: PathBuf,
    round: u32,
    patience: Duration,
    brake: Brake,
    way: Way,
    token: Token,
    word: String,
    words: Mutex<Box<dyn Link>>,
    begun: Mutex<Option<Instant>>,
    /// The root at the destination, and what that took.
    done: Mutex<(i32, Stood)>,
}

impl Watcher for Handover {
    fn moment(&self, moment: Moment) -> Result<()> {
        match moment {
            Moment::NetworkLock => {
                // told when all tasks stand
                let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
                begun.get_or_insert_with(Instant::now);
                Ok(())
            }
            Moment::PostDump => {
                let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
                let dump_us = begun.map_or(0, |b| b.elapsed().as_micros() as u64);
                let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
                let (pid, stood) = self.hand_over(&mut words)?;
                let stood = Stood { dump_us, ..stood };
                *self.done.lock().unwrap_or_else(PoisonError::into_inner) = (pid, stood);
                Ok(())
            }
            _ => Ok(()),
        }
    }
    fn orphan_pts_master(&self, _: BorrowedFd<'_>) -> Result<bool> {
        Ok(false)
    }
}

impl Handover {
    fn hand_over(&self, words: &mut Box<dyn Link>) -> Result<(i32, Stood)> {
        let mut stood = Stood::default();
        let mut at = Instant::now();
        let mut lap = || {
            std::mem::replace(&mut at, Instant::now())
                .elapsed()
                .as_micros() as u64
        };
        send_folder(&mut **words, &self.folder, self.round)?;
        settle(&mut **words, &self.brake.stream, true)?;
        stood.images_us = lap();
        let number = self.round;
        let word = self.word.clone();
        say(&mut **words, &Say::Restore { number, word })?;
        words
            .socket()
            .set_read_timeout(Some(self.patience))
            .map_err(lost)?;
        match hear(&mut **words)? {
            Say::Ready => {}
            Say::Failed { code, text } => return Err(refused(&code, &text)),
            other => return Err(odd(format!("{other:?} in place of Ready"))),
        }
        stood.restore_us = lap();
        crate::kill_point();
        self.brake.decide()?;
        let told = say(&mut **words, &Say::Go).and_then(|()| hear(&mut **words));
        let pid = match told {
            Ok(Say::Runs { pid }) => Ok(pid),
            Ok(Say::Failed { code, text }) => Err(refused(&code, &text)),
            Ok(other) => self.ask(words, &odd(format!("{other:?} in place of Runs"))),
            Err(e) => self.ask(words, &e),
        }?;
        stood.running_us = lap();
        Ok((pid, stood))
    }
    /// Finds out whether the tree runs at the destination.
    fn ask(&self, words: &mut Box<dyn Link>, why: &Error) -> Result<i32> {
        warn!("{why}; asking what has become of the tree");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(ASK_SECS) {
            std::thread::sleep(Duration::from_millis(50));
            let Ok(mut link) = self.way.link(Role::Question, &self.token) else {
                continue;
            };
            let _ = link
                .socket()
                .set_read_timeout(Some(Duration::from_secs(ASK_SECS)));
            match hear(&mut *link) {
                Ok(Say::Runs { pid }) => {
                    *words = link;
                    return Ok(pid);
                }
                Ok(Say::Never) => return Err(why.clone()),
                _ => {}
            }
        }
        Err(Error::new(
            "E6725",
            Blame::Host,
            "it is not known whether the tree runs at the destination",
        )
        .why(&why.what)
        .advice("the tree runs on here; if it runs there too, end it there"))
    }
}

/// Whether what was written to a socket has all arrived, as far as the kernel knows.
fn is_acknowledged(s: &TcpStream) -> bool {
    stasis_kernel::fds::unsent(s).is_ok_and(|n| n == 0)
}
