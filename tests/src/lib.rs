//! Guests, and the harness that freezes and restores them through any engine with the `criu` command line.
//!
//! - `guests/*.c`: one program per kind. Each builds a state, sleeps, checks the state, reports (see `guests/guest.h`).
//! - [`guests`]: the one table of guests with the options they need, and what our engine is known to do ([`guests::WORKS`]).
//! - [`build`]: compiles a guest when its source is newer than its binary.
//! - [`case`]: one case = guest + scenario + engines, run in a box; [`mod@engine`]: how an engine is called.
//! - [`container`]: the same case inside a container of its own.
//! - [`init`]: the box itself: the first process of a fresh pid, mount and IPC namespace, in which the case runs.
//! - [`program`], [`working`]: real programs, disturbed while they work, compared with an undisturbed run.
//! - [`runtimes`]: containers of real runtimes, checkpointed and restored by them.
//! - [`rpc`]: requests of container runtimes, as recorded from them.
//! - [`group`], [`wait`]: a control group of a test's own; waiting.
//! - [`life`]: killing and failing engines at every step, and looking at what is left.
//!
//! The tests need root (or the capabilities to make namespaces). Nothing here touches the host's mounts, sysctls or
//! processes: a case ends with its pid namespace.

pub mod build;
pub mod case;
pub mod container;
pub mod engine;
pub mod group;
pub mod guests;
mod incremental;
pub mod init;
mod lazy;
pub mod life;
mod ours;
pub mod pki;
pub mod program;
pub mod rpc;
pub mod runtimes;
pub mod wait;
pub mod working;
