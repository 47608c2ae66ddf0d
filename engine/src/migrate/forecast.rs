//! How long the tree would stand still if it were stopped now: from what the rounds so far have shown.
//!
//! Nothing of it is a constant of some machine. The source's part is a round's own freeze and the time a look at the whole tree
//! takes; the destination's is a rehearsal there ([`crate::restore::rehearse`]), under the load it has; between them lie
//! exchanges, which are timed, and the pages, at the rate at which the rounds landed. Of times the worst of the last rounds
//! counts, of rates their average, and a margin is added, which grows with the destination's load.
use std::collections::VecDeque;
use std::time::Duration;

/// So many rounds are remembered: load comes and goes.
const REMEMBERED: usize = 4;
/// Rounds with fewer bytes are mostly waiting: they tell nothing of the rate.
const TELLING: u64 = 4 << 20;
/// Bytes a second as long as no round has told: that of a slow network.
const UNKNOWN_RATE: u64 = 32 << 20;
/// Waits for the other end in the last round: pages are in place, the tree stands, it runs.
const EXCHANGES: u32 = 3;
/// The last dump looks at everything more often than a round does, and a restore does in many steps what a rehearsal does in one.
/// What they took for redis, idle and with four programs for each processor, differed by less.
const MORE: (u32, u32) = (2, 10);
/// Connections on which the last of a message may be lost: that of words, and two for pages.
const LOSSES: u32 = 3;
/// Added to everything, in percent, on an idle destination.
const MARGIN: u32 = 30;

/// What one round has shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// From the word to stop it until that began.
    pub ready: Duration,
    /// The tree stood still.
    pub frozen: Duration,
    /// A look at all that the last dump must describe.
    pub look: Duration,
    /// A word there and back.
    pub exchange: Duration,
    /// The destination's rehearsal.
    pub rehearsal: Duration,
    /// What the destination needs to bring all memory before the tree runs, if it does not do so later.
    pub filling: Duration,
    /// How much of the last ten seconds tasks of the destination waited for a processor, in percent.
    pub pressure: u32,
    /// Bytes of pages, and how long they took.
    pub bytes: u64,
    /// See `bytes`.
    pub sending: Duration,
    /// Segments were lost on the way, and how long it takes until one is sent again.
    pub repeating: Duration,
    /// Bytes a second that the tree has written since.
    pub writing: u64,
}

/// The rounds so far.
#[derive(Debug, Default)]
pub struct Forecast {
    shown: VecDeque<Shown>,
    /// Of telling rounds.
    telling: VecDeque<Shown>,
}

impl Forecast {
    /// A round is over.
    pub fn add(&mut self, s: Shown) {
        if s.bytes >= TELLING {
            self.telling.push_back(s);
        }
        self.shown.push_back(s);
        forget(&mut self.shown);
        forget(&mut self.telling);
    }
    /// Bytes a second that can be counted on.
    pub fn rate(&self) -> u64 {
        let rate = |of: &VecDeque<Shown>| {
            let (bytes, time) = (of.iter().map(|s| s.bytes), of.iter().map(|s| s.sending));
            per_second(bytes.sum(), time.sum())
        };
        match self.telling.is_empty() {
            false => rate(&self.telling).max(1),
            // small rounds are a hint where there is nothing better
            true => rate(&self.shown).max(UNKNOWN_RATE),
        }
    }
    /// How long so many bytes take.
    pub fn sending(&self, bytes: u64) -> Duration {
        Duration::from_micros(bytes.saturating_mul(1_000_000) / self.rate())
    }
    /// How long the tree would stand still if so many bytes are left, and it writes on until it stands.
    pub fn stand(&self, left: u64) -> Duration {
        let newest = self.shown.back().copied().unwrap_or_default();
        let running = newest.ready + newest.frozen;
        let left = left + (newest.writing as f64 * running.as_secs_f64()) as u64;
        let worst = |of: &dyn Fn(&Shown) -> Duration| self.shown.iter().map(of).max();
        let worst = |of: &dyn Fn(&Shown) -> Duration| worst(of).unwrap_or_default();
        let here = worst(&|s| s.frozen) * MORE.0 + worst(&|s| s.look);
        let there = worst(&|s| s.rehearsal) * MORE.1 + worst(&|s| s.filling);
        let between = worst(&|s| s.exchange) * EXCHANGES
            + worst(&|s| s.repeating) * LOSSES
            + self.sending(left);
        let pressure = self.shown.iter().map(|s| s.pressure).max().unwrap_or(0);
        (here + there + between) * (100 + MARGIN + pressure.min(100) / 4) / 100
    }
}

/// A rate.
pub fn per_second(bytes: u64, took: Duration) -> u64 {
    bytes.saturating_mul(1_000_000) / (took.as_micros() as u64).max(1)
}

/// Keeps the newest.
fn forget<T>(all: &mut VecDeque<T>) {
    all.drain(..all.len().saturating_sub(REMEMBERED));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn round(ms: u32, mib: u64) -> Shown {
        Shown {
            frozen: MS * ms,
            rehearsal: MS * ms,
            bytes: mib << 20,
            sending: MS * 100,
            ..Shown::default()
        }
    }

    #[test]
    fn the_worst_of_the_last_rounds_counts() {
        let mut f = Forecast::default();
        f.add(round(80, 100));
        let bad = f.stand(0);
        assert_eq!(bad, MS * (80 * MORE.0 + 80 * MORE.1) * 130 / 100);
        f.add(round(10, 50));
        assert_eq!(f.stand(0), bad);
        assert_eq!(f.rate() >> 20, 750);
        for _ in 0..REMEMBERED {
            f.add(round(10, 50));
        }
        assert_eq!(f.stand(0), bad / 8);
        assert_eq!(f.stand(100 << 20), bad / 8 + MS * 200 * 130 / 100);
    }

    #[test]
    fn a_busy_destination_is_expected_to_be_slower() {
        let mut f = Forecast::default();
        f.add(round(10, 50));
        let idle = f.stand(0);
        f.add(Shown {
            pressure: 80,
            ..round(10, 50)
        });
        assert_eq!(f.stand(0), idle * 150 / 130);
    }

    #[test]
    fn a_small_round_says_nothing_of_the_rate() {
        let mut f = Forecast::default();
        assert_eq!(f.rate(), UNKNOWN_RATE);
        f.add(round(1, 200));
        f.add(round(1, 1));
        assert_eq!(f.rate() >> 20, 2000);
    }
}
