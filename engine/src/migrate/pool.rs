//! Several connections to one other end: whoever needs one takes one that is free.
use super::wire::Link;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The connections.
pub struct Pool {
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    free: Vec<Box<dyn Link>>,
    cut: bool,
}

impl Pool {
    /// Of connections that are made.
    pub fn new(links: Vec<Box<dyn Link>>) -> Self {
        Self {
            state: Mutex::new(State {
                free: links,
                cut: false,
            }),
            freed: Condvar::new(),
        }
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Does something with one, when one is free; `None` if they were cut. One that failed stays with the others: the next fails
    /// too, and nobody waits for ever.
    pub fn with<T>(&self, act: impl FnOnce(&mut dyn Link) -> T) -> Option<T> {
        let mut link = {
            let mut state = self.state();
            loop {
                if state.cut {
                    return None;
                }
                match state.free.pop() {
                    Some(l) => break l,
                    None => {
                        state = self
                            .freed
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        };
        let done = act(&mut *link);
        self.state().free.push(link);
        self.freed.notify_one();
        Some(done)
    }
    /// Does something with each that is free.
    ///
    /// # Errors
    /// The first of `act`.
    pub fn each<E>(&self, mut act: impl FnMut(&mut dyn Link) -> Result<(), E>) -> Result<(), E> {
        self.state().free.iter_mut().try_for_each(|l| act(&mut **l))
    }
    /// Nobody gets one any more.
    pub fn cut(&self) {
        self.state().cut = true;
        self.freed.notify_all();
    }
    /// Whether they were cut.
    pub fn is_cut(&self) -> bool {
        self.state().cut
    }
}
