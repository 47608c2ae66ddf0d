//! Moving much memory: ordinary threads that never touch ptrace share out pieces of work.
use crate::error::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below so many bytes threads cost more than they save.
pub const ALONE: u64 = 8 << 20;
/// More threads than these fight over the page allocator.
const MOST: usize = 4;

/// Does `act` on every item, each once, in several threads if `bytes` is much; `state` makes what a thread keeps for itself.
///
/// # Errors
/// The first that happened; items not begun by then are left.
pub fn each<T: Sync, S>(
    bytes: u64,
    items: &[T],
    state: impl Fn() -> S + Sync,
    act: impl Fn(&T, &mut S) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let work = || {
        let mut own = state();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.lock().expect("no panic while held").is_some() {
                return;
            }
            if let Err(e) = act(item, &mut own) {
                failed.lock().expect("no panic while held").get_or_insert(e);
                return;
            }
        }
    };
    let workers = if bytes > ALONE {
        std::thread::available_parallelism()
            .map_or(1, |n| n.get())
            .min(MOST)
    } else {
        1
    };
    if workers == 1 {
        work();
    } else {
        std::thread::scope(|s| {
            for _ in 0..workers {
                s.spawn(work);
            }
        });
    }
    failed
        .into_inner()
        .expect("workers have ended")
        .map_or(Ok(()), Err)
}
