//! Random trees: the guest `random` builds a tree after a plan that proptest made up, and verifies all of it.
//!
//! Each plan is run alone (it must pass, or the guest is wrong), dumped twice and left running, and dumped and restored
//! twice over. `STASIS_RANDOM` is the number of plans (40), `STASIS_SEED` decides which. A plan that fails is made
//! smaller as long as it still fails, and printed: it can be given to the guest as its parameter. What the words mean
//! is told in `guests/random.c`.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use stasis_tests::case::{Outcome, Scenario, run_with};
use stasis_tests::engine::Engine;
use stasis_tests::guests::find;
use std::cell::Cell;
use std::fmt;
use std::path::Path;

/// Tasks that the guest has room for, without the root.
const TASKS: usize = 30;

/// What a task does, in order.
#[derive(Clone, Debug)]
enum Deed {
    Word(char, u16, u16),
    /// Flags of the child (see the guest), and what it does.
    Child(u16, Vec<Deed>),
}

#[derive(Clone)]
struct Plan(Vec<Deed>);

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn put(deeds: &[Deed], left: &mut usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for deed in deeds {
                match deed {
                    Deed::Word(letter, a, b) => write!(f, "{letter}{a},{b} ")?,
                    Deed::Child(flags, deeds) if *left > 0 => {
                        *left -= 1;
                        write!(f, "({flags} ")?;
                        put(deeds, left, f)?;
                        f.write_str(") ")?;
                    }
                    Deed::Child(..) => {}
                }
            }
            Ok(())
        }
        put(&self.0, &mut TASKS.clone(), f)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn plans() -> impl Strategy<Value = Plan> {
    let letters: Vec<char> = "pFFefwwwEssaoudcCmmmmMMMMDUUUUURbbhhqqqiTttnklNgSSGGJJJBB"
        .chars()
        .collect();
    let word = (proptest::sample::select(letters), 0..20u16, 0..5000u16)
        .prop_map(|(letter, a, b)| Deed::Word(letter, a, b));
    // Plain, a session, a group; zombies and the reaped also with those; stopped.
    let flags = proptest::sample::select(vec![0u16, 0, 0, 1, 2, 4, 5, 6, 8, 9, 10, 16, 17, 18]);
    let deed = word.prop_recursive(5, 150, 12, move |inner| {
        prop_oneof![
            1 => (flags.clone(), prop::collection::vec(inner.clone(), 0..10)).prop_map(|(f, d)| Deed::Child(f, d)),
            1 => inner,
        ]
    });
    // Half of the plans without the words that the guest will not do together with stopped children.
    (prop::collection::vec(deed, 1..30), any::<bool>()).prop_map(|(mut deeds, calm)| {
        if calm {
            keep_groups(&mut deeds);
        }
        Plan(deeds)
    })
}

fn keep_groups(deeds: &mut Vec<Deed>) {
    deeds.retain(|d| !matches!(d, Deed::Word('G' | 'S' | 'J', ..)));
    for d in deeds {
        if let Deed::Child(_, deeds) = d {
            keep_groups(deeds);
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |v| {
        v.parse().unwrap_or_else(|_| panic!("{name} is no number"))
    })
}

fn holds(plan: &str, engine: &Engine) -> Result<(), TestCaseError> {
    let boxer = Path::new(env!("CARGO_BIN_EXE_stasis-box"));
    let guest = find("random").expect("in the table");
    let text = [plan.to_string()];
    for scenario in [
        Scenario::Native,
        Scenario::LeaveRunning,
        Scenario::Generations(2),
    ] {
        match run_with(boxer, guest, &text, &scenario, Some((engine, engine))) {
            Ok(Outcome::Passed) => {}
            Ok(other) => {
                return Err(TestCaseError::fail(format!("{scenario:?}: {other:#?}")));
            }
            Err(e) => return Err(TestCaseError::fail(format!("{scenario:?}: {e:#}"))),
        }
    }
    Ok(())
}

#[test]
fn random_trees_verify_themselves() {
    let cases = u32::try_from(number("STASIS_RANDOM", 40)).expect("STASIS_RANDOM");
    let seed = number("STASIS_SEED", u64::from(std::process::id()));
    let engine = Engine::under_test().expect("engine");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        max_shrink_iters: 150,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (trees, tasks) = (Cell::new(0), Cell::new(0));
    let end = runner.run(&plans(), |plan| {
        trees.set(trees.get() + 1);
        tasks.set(tasks.get() + 1 + plan.to_string().matches('(').count());
        holds(&plan.to_string(), &engine)
    });
    match end {
        Ok(()) => println!(
            "STASIS_SEED={seed}: {} trees with {} tasks",
            trees.get(),
            tasks.get()
        ),
        Err(TestError::Fail(why, plan)) => {
            panic!(
                "STASIS_SEED={seed}, after {} trees\nplan: {plan}\n{}",
                trees.get(),
                why.message().replace("\\n", "\n")
            )
        }
        Err(e) => panic!("STASIS_SEED={seed}: {e}"),
    }
}

/// The plan in `STASIS_PLAN`, for whoever looks into a failure.
#[test]
#[ignore = "needs STASIS_PLAN"]
fn one_plan() {
    let text = std::env::var("STASIS_PLAN").expect("STASIS_PLAN is a plan");
    let engine = Engine::under_test().expect("engine");
    if let Err(e) = holds(&text, &engine) {
        panic!("{}", e.to_string().replace("\\n", "\n"));
    }
}
