//! Seccomp filters from a profile of an OCI bundle.
//!
//! Only root may read the filters of a task (ptrace(2), PTRACE_SECCOMP_GET_FILTER). A rootless dump uses what the runtime was
//! told to install: the profile is compiled again here. What comes out decides like the runtime's filter and is not the same
//! program; 32-bit and x32 calls, which libseccomp could judge one by one, fail with ENOSYS where the profile allows their
//! architecture at all.
//!
//! Facts of runc (libcontainer/seccomp): a rule with the default action is no rule; rules of one call with conditions on
//! different arguments must all hold, those on the same argument are alternatives; calls newer than all the profile knows fail
//! with ENOSYS, unless the default is to allow.
use crate::error::{Blame, Error, Result};
use stasis_kernel::names;

/// A condition on an argument (OCI `linux.seccomp.syscalls[].args[]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// How it is compared.
    pub op: Compare,
    /// With what; for [`Compare::Masked`] the mask.
    pub value: u64,
    /// What a masked argument must be.
    pub value_two: u64,
}

/// `SCMP_CMP_...`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the words of the specification
pub enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Masked,
}

/// A rule: what happens to these calls under these conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Names of system calls; those this program does not know are passed over, as runtimes do.
    pub names: Vec<String>,
    /// `SECCOMP_RET_...` with its data.
    pub action: u32,
    /// Conditions.
    pub args: Vec<Condition>,
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// `SECCOMP_RET_...` for calls without a rule.
    pub default: u32,
    /// It lets 32-bit or x32 calls be made at all.
    pub other_archs: bool,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Actions of seccomp(2).
pub mod action {
    /// The call is made.
    pub const ALLOW: u32 = 0x7fff_0000;
    /// It fails with the errno in the low 16 bits.
    pub const ERRNO: u32 = 0x0005_0000;
    /// The thread dies.
    pub const KILL_THREAD: u32 = 0;
    /// Without the data.
    pub const MASK: u32 = 0xffff_0000;
}

/// AUDIT_ARCH_X86_64
const ARCH: u32 = 0xc000_003e;
/// The bit of x32 calls.
const X32: u32 = 0x4000_0000;
/// BPF_MAXINSNS
const MOST: usize = 4096;
// offsets in struct seccomp_data
const NR_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGS_AT: u32 = 16;

/// linux/bpf_common.h
mod code {
    pub const LOAD: u16 = 0x20;
    pub const AND: u16 = 0x54;
    pub const EQ: u16 = 0x15;
    pub const GT: u16 = 0x25;
    pub const GE: u16 = 0x35;
    pub const RET: u16 = 0x06;
}

/// Where a jump of a rule goes.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// The condition holds.
    Holds,
    /// The rule does not apply.
    Fails,
}

type Op = (u16, To, To, u32);

#[derive(Default)]
struct Program(Vec<u8>);

impl Program {
    fn len(&self) -> usize {
        self.0.len() / 8
    }
    fn put(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.0.extend_from_slice(&code.to_le_bytes());
        self.0.extend_from_slice(&[jt, jf]);
        self.0.extend_from_slice(&k.to_le_bytes());
    }
    fn ret(&mut self, action: u32) {
        self.put(code::RET, 0, 0, action);
    }
    /// One rule for one call: falls through if it does not apply.
    fn rule(&mut self, nr: u32, args: &[Condition], action: u32) {
        let conditions: Vec<Vec<Op>> = args.iter().map(condition).collect();
        let len: usize = conditions.iter().map(Vec::len).sum();
        if len == 0 {
            self.put(code::EQ, 0, 1, nr);
            self.ret(action);
            return;
        }
        // a condition leaves an argument where the number was
        self.put(code::EQ, 0, len as u8 + 2, nr);
        let mut left = len;
        for c in conditions {
            for (i, (code, yes, no, k)) in c.iter().enumerate() {
                left -= 1;
                let jump = |to: &To| match to {
                    To::Next => 0,
                    To::Holds => (c.len() - 1 - i) as u8,
                    To::Fails => left as u8 + 1,
                };
                self.put(*code, jump(yes), jump(no), *k);
            }
        }
        self.ret(action);
        self.put(code::LOAD, 0, 0, NR_AT);
    }
}

/// Falls through if the condition holds.
fn condition(c: &Condition) -> Vec<Op> {
    use To::{Fails, Holds, Next};
    let low = ARGS_AT + 8 * c.index;
    let load = |at: u32| (code::LOAD, Next, Next, at);
    let (lo, hi) = (c.value as u32, (c.value >> 32) as u32);
    match c.op {
        Compare::Equal => vec![
            load(low + 4),
            (code::EQ, Next, Fails, hi),
            load(low),
            (code::EQ, Next, Fails, lo),
        ],
        Compare::NotEqual => vec![
            load(low + 4),
            (code::EQ, Next, Holds, hi),
            load(low),
            (code::EQ, Fails, Next, lo),
        ],
        Compare::Greater | Compare::GreaterOrEqual => vec![
            load(low + 4),
            (code::GT, Holds, Next, hi),
            (code::EQ, Next, Fails, hi),
            load(low),
            match c.op {
                Compare::Greater => (code::GT, Next, Fails, lo),
                _ => (code::GE, Next, Fails, lo),
            },
        ],
        Compare::Less | Compare::LessOrEqual => vec![
            load(low + 4),
            (code::GT, Fails, Next, hi),
            (code::EQ, Next, Holds, hi),
            load(low),
            match c.op {
                Compare::Less => (code::GE, Fails, Next, lo),
                _ => (code::GT, Fails, Next, lo),
            },
        ],
        Compare::Masked => vec![
            load(low + 4),
            (code::AND, Next, Next, hi),
            (code::EQ, Next, Fails, (c.value_two >> 32) as u32 & hi),
            load(low),
            (code::AND, Next, Next, lo),
            (code::EQ, Next, Fails, c.value_two as u32 & lo),
        ],
    }
}

/// The alternatives of a rule: conditions on the same argument are alternatives, all others belong together.
fn alternatives(args: &[Condition]) -> Vec<Vec<Condition>> {
    let twice = args
        .iter()
        .any(|a| args.iter().filter(|b| b.index == a.index).count() > 1);
    match twice {
        true => args.iter().map(|a| vec![*a]).collect(),
        false => vec![args.to_vec()],
    }
}

impl Profile {
    /// The program: raw `struct sock_filter`s.
    ///
    /// # Errors
    /// E7054: more than the kernel takes.
    pub fn compile(&self) -> Result<Vec<u8>> {
        let mut p = Program::default();
        let other = match self.other_archs {
            true => action::ERRNO | libc::ENOSYS as u32,
            false => action::KILL_THREAD,
        };
        p.put(code::LOAD, 0, 0, ARCH_AT);
        p.put(code::EQ, 1, 0, ARCH);
        p.ret(other);
        p.put(code::LOAD, 0, 0, NR_AT);
        p.put(code::GE, 0, 1, X32);
        p.ret(other);
        let (mut last, mut known) = (0, false);
        for r in &self.rules {
            for nr in r.names.iter().filter_map(|n| names::syscall_nr(n)) {
                let nr = nr as u32;
                (last, known) = (nr.max(last), true);
                if r.action == self.default {
                    continue;
                }
                for args in alternatives(&r.args) {
                    p.rule(nr, &args, r.action);
                }
            }
        }
        let errno = action::ERRNO | libc::ENOSYS as u32;
        let allows = matches!(self.default & action::MASK, 0x7fff_0000 | 0x7ffc_0000);
        if known && !allows && self.default != errno {
            p.put(code::GT, 0, 1, last);
            p.ret(errno);
        }
        p.ret(self.default);
        match p.len() <= MOST {
            true => Ok(p.0),
            false => Err(
                Error::new("E7054", Blame::Caller, "the container's seccomp profile")
                    .why(format!(
                        "{} instructions are more than the kernel takes ({MOST})",
                        p.len()
                    ))
                    .advice("dump as root: then the filters themselves are read"),
            ),
        }
    }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
