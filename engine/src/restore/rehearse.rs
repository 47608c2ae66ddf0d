//! A rehearsal: the work that a restore is, done on nothing, to see how long it takes on this machine now.
//!
//! Tasks are born of a stub, make mappings and files by their tapes, get pages, are seized and ended. What is much is done in
//! part, and the time is multiplied.
use super::perform::seize;
use crate::error::Result;
use crate::migrate::wire::Work;
use crate::pages::PAGE;
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::fds;
use stasis_kernel::ids::{HostPid, RemotePtr};
use stasis_kernel::ptrace::{Tracee, kill};
use stasis_kernel::reel::{PlayError, Reel, STUB_SOCKET, spawn_stub};
use stasis_kernel::vm;
use std::time::{Duration, Instant};

/// Where the reel is; nothing else is in these tasks.
const REEL: u64 = 0x10_0000_0000;
/// Where their mappings are.
const MAPPINGS: u64 = 0x20_0000_0000;
/// Most that is really done: tasks, and for each mappings and files.
const MOST: (u32, u32, u32) = (8, 400, 100);
/// How much memory is filled to see how fast that goes.
const FILLED: u64 = 8 << 20;

/// What a restore would take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rehearsed {
    /// Besides its memory.
    pub took: Duration,
    /// For its memory.
    pub filling: Duration,
}

/// Tasks that end with this.
struct Born(Vec<HostPid>);

impl Drop for Born {
    fn drop(&mut self) {
        for p in &self.0 {
            let _ = kill(p.0, libc::SIGKILL);
        }
        for p in &self.0 {
            let _ = Tracee { tid: p.0 }.wait_gone();
        }
    }
}

/// Rehearses a restore.
///
/// # Errors
/// Those of the kernel, of which a restore would die too.
pub fn rehearse(w: &Work) -> Result<Rehearsed> {
    let begun = Instant::now();
    let tasks = w.tasks.clamp(1, MOST.0);
    let each = |all: u32, most: u32| (all / w.tasks.max(1)).clamp(1, most);
    let (mappings, files) = (each(w.mappings, MOST.1), each(w.files, MOST.2));
    let (_ours, theirs) = fds::seqpacket_pair()?;
    let mut reel = Reel::create(REEL, tasks as usize + 1, 16 << 20)?;
    let stub = HostPid(spawn_stub(&reel, REEL - (1 << 20), &theirs, false)?);
    let mut born = Born(vec![stub]);
    let births: Vec<Call> = (1..=tasks as usize)
        .map(|slot| {
            // children of the engine, so that it can wait for their end
            let flags = (libc::CLONE_PARENT | libc::SIGCHLD) as u64;
            let how = Arg::Named(flags, "CLONE_PARENT|SIGCHLD".into());
            let mut c = Call::new(libc::SYS_clone, vec![how]);
            c.child_slot = Some(slot);
            reel.expect_parent(slot, None);
            c
        })
        .collect();
    let played = play(&mut reel, &[(0, &births[..])])?;
    born.0.extend(played.iter().map(|p| HostPid(*p as i32)));
    let rows: Vec<Call> = (0..u64::from(mappings))
        .map(|n| map(MAPPINGS + n * 2 * PAGE, PAGE))
        .chain((0..files).map(|_| Call::new(libc::SYS_dup, vec![Arg::Int(STUB_SOCKET as u64)])))
        .collect();
    let tapes: Vec<_> = (1..=tasks as usize).map(|s| (s, &rows[..])).collect();
    play(&mut reel, &tapes)?;
    let page = vec![1u8; (u64::from(mappings) * PAGE) as usize];
    let ranges: Vec<_> = (0..u64::from(mappings))
        .map(|n| vm::RemoteRange {
            addr: RemotePtr(MAPPINGS + n * 2 * PAGE),
            len: PAGE as usize,
        })
        .collect();
    for t in &born.0[1..] {
        vm::writev(*t, &ranges, &page)?;
        let tracee = seize(*t)?;
        tracee.interrupt()?;
        tracee.wait_stop()?;
        let regs = tracee.regs()?;
        tracee.set_regs(&regs)?;
        tracee.cont(0)?;
    }
    let filled = match w.resident {
        0 => Duration::ZERO,
        _ => fill(&mut reel, stub)?,
    };
    drop(born);
    let took = begun.elapsed().saturating_sub(filled);
    let times = |all: u32, done: u32| f64::from(all.max(done)) / f64::from(done);
    let parts = times(w.tasks, tasks) * times(w.mappings / w.tasks.max(1), mappings);
    Ok(Rehearsed {
        took: took.mul_f64(parts),
        filling: filled.mul_f64(w.resident as f64 / FILLED as f64),
    })
}

/// How long it takes to fill [`FILLED`].
fn fill(reel: &mut Reel, stub: HostPid) -> Result<Duration> {
    let at = MAPPINGS + (1 << 32);
    play(reel, &[(0, &[map(at, FILLED)])])?;
    let piece = vec![1u8; 256 << 10];
    let begun = Instant::now();
    for n in (0..FILLED).step_by(piece.len()) {
        vm::write(stub, RemotePtr(at + n), &piece)?;
    }
    Ok(begun.elapsed())
}

fn map(at: u64, len: u64) -> Call {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let args = vec![
        Arg::Hex(at),
        Arg::Hex(len),
        Arg::Named(prot, "PROT_READ|PROT_WRITE".into()),
        Arg::MapFlags(flags),
        Arg::Int(u64::MAX),
        Arg::Int(0),
    ];
    Call::new(libc::SYS_mmap, args).must_be(at)
}

/// Plays tapes; gives all their answers.
fn play(reel: &mut Reel, tapes: &[(usize, &[Call])]) -> Result<Vec<u64>> {
    let begun = Instant::now();
    let mut alive = || (begun.elapsed() > Duration::from_secs(5)).then(|| "no answer".to_string());
    let played = reel.play(tapes, &mut alive);
    let played =
        played.map_err(|e: PlayError| super::perform::played(&e, "a task of the rehearsal"))?;
    Ok(played.into_iter().flat_map(|p| p.rets).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_kernel::procfs::ProcDir;

    #[test]
    fn a_rehearsal_leaves_nothing_and_tells_more_for_more_work() {
        let work = |tasks| Work {
            tasks,
            mappings: tasks * 40,
            files: tasks * 10,
            resident: 64 << 20,
        };
        let one = rehearse(&work(1)).unwrap();
        assert!(!one.took.is_zero() && !one.filling.is_zero());
        // eight are done, the others reckoned
        let many = rehearse(&work(8000)).unwrap();
        assert!(many.took > one.took, "{one:?} {many:?}");
        let own = ProcDir::open(HostPid::own()).unwrap();
        for c in own.children().unwrap() {
            let name = ProcDir::open(c).map(|p| p.comm().unwrap_or_default());
            assert_ne!(name.unwrap_or_default(), b"stasis-stub");
        }
    }
}
