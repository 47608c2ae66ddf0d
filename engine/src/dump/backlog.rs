//! Images are written by a thread of their own, behind the one that traces.
//!
//! ptrace binds a tracee to one thread of the engine; making 1400 small files and copying pages into them needs no ptrace and is
//! half of the work of a wide tree. Jobs are done in the order they come; after the first that fails the others are dropped.
use crate::error::{Error, Result};
use stasis_proto::prost::{Message, Name};
use stasis_proto::{ImageDir, Kind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many jobs may wait: bounds the memory.
const AHEAD: usize = 256;
/// How many bytes the jobs that were weighed may hold, as long as there is more than one.
const HELD: usize = 4 << 20;

/// What a job has written.
#[derive(Debug, Default, Clone, Copy)]
pub struct Wrote {
    /// Pages of memory.
    pub pages: u64,
    /// Pages left to the dump before.
    pub skipped: u64,
}

/// Something to write.
type Job = Box<dyn FnOnce(&ImageDir) -> Result<Wrote> + Send>;

/// What has been written in the end.
#[derive(Debug, Default, Clone, Copy)]
pub struct Written {
    /// Pages of memory.
    pub pages: u64,
    /// Pages left to the dump before.
    pub skipped: u64,
    /// Time that jobs with pages took.
    pub copying: Duration,
}

/// The writing thread. Dropping it waits for the job at hand and leaves the others.
pub struct Backlog {
    to: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<Result<Written>>>,
    stop: Arc<AtomicBool>,
    /// Bytes that weighed jobs hold.
    held: Arc<(Mutex<usize>, Condvar)>,
}

impl Backlog {
    /// Starts the thread.
    pub fn start(dir: &ImageDir) -> Result<Self> {
        let dir = dir.try_clone()?;
        let (to, jobs) = sync_channel::<Job>(AHEAD);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let log = tracing::dispatcher::get_default(Clone::clone);
        let writer = std::thread::spawn(move || {
            tracing::dispatcher::with_default(&log, || {
                let mut all = Written::default();
                // the sender learns of an error by the channel's end
                for job in jobs {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    let begun = Instant::now();
                    let wrote = job(&dir)?;
                    all.skipped += wrote.skipped;
                    if wrote.pages > 0 {
                        all.pages += wrote.pages;
                        all.copying += begun.elapsed();
                    }
                }
                Ok(all)
            })
        });
        Ok(Self {
            to: Some(to),
            writer: Some(writer),
            stop,
            held: Arc::default(),
        })
    }
    /// Takes a job that holds so many bytes; waits while others hold too many.
    ///
    /// # Errors
    /// That of an earlier job.
    pub fn add_weighed(
        &mut self,
        bytes: usize,
        job: impl FnOnce(&ImageDir) -> Result<Wrote> + Send + 'static,
    ) -> Result<()> {
        let (held, freed) = &*self.held;
        let mut sum = held.lock().expect("no panic while held");
        while *sum > 0 && *sum + bytes > HELD {
            // a writer that failed frees nothing: sending tells
            if self.writer.as_ref().is_none_or(JoinHandle::is_finished) {
                break;
            }
            let wait = freed.wait_timeout(sum, Duration::from_millis(20));
            sum = wait.expect("no panic while held").0;
        }
        *sum += bytes;
        drop(sum);
        let held = self.held.clone();
        self.add(move |dir| {
            let wrote = job(dir);
            *held.0.lock().expect("no panic while held") -= bytes;
            held.1.notify_one();
            wrote
        })
    }
    /// Takes a job.
    ///
    /// # Errors
    /// That of an earlier job.
    pub fn add(
        &mut self,
        job: impl FnOnce(&ImageDir) -> Result<Wrote> + Send + 'static,
    ) -> Result<()> {
        let sent = self
            .to
            .as_ref()
            .is_some_and(|t| t.send(Box::new(job)).is_ok());
        if sent {
            return Ok(());
        }
        let failed = self.end().err();
        Err(failed.unwrap_or_else(|| Error::bug("the writer of images has ended early")))
    }
    /// Takes an image of one message.
    pub fn one<M: Message + Name + 'static>(&mut self, kind: Kind, id: u32, m: M) -> Result<()> {
        self.add(move |dir| {
            Ok(dir
                .write_one(&kind.file_of(id), &m)
                .map(|()| Wrote::default())?)
        })
    }
    /// Takes an image of many messages.
    pub fn all<M: Message + Name + 'static>(
        &mut self,
        kind: Kind,
        id: u32,
        m: Vec<M>,
    ) -> Result<()> {
        self.add(move |dir| {
            Ok(dir
                .write_all(&kind.file_of(id), &m)
                .map(|()| Wrote::default())?)
        })
    }
    /// Waits until all that was taken so far is written.
    ///
    /// # Errors
    /// The first that happened.
    pub fn settle(&mut self) -> Result<()> {
        let (done, is_done) = sync_channel(1);
        self.add(move |_| {
            let _ = done.send(());
            Ok(Wrote::default())
        })?;
        match is_done.recv() {
            Ok(()) => Ok(()),
            Err(_) => self.end().map(|_| ()),
        }
    }
    /// Waits until all is written.
    ///
    /// # Errors
    /// The first that happened.
    pub fn end(&mut self) -> Result<Written> {
        self.to = None;
        let Some(writer) = self.writer.take() else {
            return Ok(Written::default());
        };
        writer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.to = None;
        if let Some(w) = self.writer.take() {
            let _ = w.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_proto::pb;

    #[test]
    fn weighed_jobs_wait_for_room_and_one_too_heavy_goes_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let mut b = Backlog::start(&dir).unwrap();
        for _ in 0..8 {
            b.add_weighed(HELD / 2 + 1, |_| Ok(Wrote::default()))
                .unwrap();
        }
        b.add_weighed(2 * HELD, |_| Err(Error::bug("on purpose")))
            .unwrap();
        // does not wait for ever for what the failed writer held
        let then = b.add_weighed(2 * HELD, |_| Ok(Wrote::default()));
        assert!(then.is_err() || b.end().is_err());
    }

    #[test]
    fn jobs_are_done_in_order_and_the_first_error_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = ImageDir::create(tmp.path()).unwrap();
        let mut b = Backlog::start(&dir).unwrap();
        let fs = pb::FsEntry {
            cwd_id: 1,
            root_id: 2,
            umask: None,
        };
        b.one(Kind::Fs, 7, fs).unwrap();
        b.settle().unwrap();
        assert!(dir.exists("fs-7.img").unwrap());
        b.add(|_| {
            Ok(Wrote {
                pages: 3,
                skipped: 0,
            })
        })
        .unwrap();
        assert_eq!(b.end().unwrap().pages, 3);
        assert_eq!(dir.read_one::<pb::FsEntry>("fs-7.img").unwrap(), fs);
        let mut b = Backlog::start(&dir).unwrap();
        b.add(|_| Err(Error::bug("on purpose"))).unwrap();
        b.one(Kind::Fs, 8, fs).ok();
        let e = b.end().unwrap_err();
        assert!(e.to_string().contains("on purpose"), "{e}");
        assert!(!dir.exists("fs-8.img").unwrap());
    }
}
