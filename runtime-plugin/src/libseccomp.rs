//! The container's seccomp profile, compiled by libseccomp (the feature `libseccomp`): the program that Debian's runc makes of it,
//! 32-bit and x32 calls included.
//!
//! runc puts a prologue before it (libcontainer/seccomp/patchbpf): calls newer than all the profile names fail with ENOSYS,
//! unless the default lets them through anyway. The same is done here.
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator,
};
use stasis_engine::{Blame, Error, Result};
use std::io::{Read, Seek};

/// AUDIT_ARCH_*, and what it is called in profiles.
const ARCHS: [(u32, ScmpArch); 2] = [(0xc000_003e, ScmpArch::X8664), (0x4000_0003, ScmpArch::X86)];
const X32_BIT: u32 = 0x4000_0000;
// linux/bpf_common.h
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
// offsets in struct seccomp_data
const NR_AT: u32 = 0;
const ARCH_AT: u32 = 4;
/// SECCOMP_RET_ERRNO | ENOSYS
const ENOSYS: u32 = 0x0005_0000 | 38;

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new("E7056", Blame::Caller, "the container's seccomp profile")
        .why(why)
        .advice("correct linux.seccomp in config.json: the runtime would refuse it too")
}

/// Compiles a profile for a machine of this architecture.
///
/// # Errors
/// E7056: libseccomp does not take it.
pub fn compile(s: &LinuxSeccomp) -> Result<Vec<u8>> {
    let default = action(s.default_action(), s.default_errno_ret())?;
    let mut ctx = ScmpFilterContext::new(default).map_err(refused)?;
    let mut archs = vec![ARCHS[0]];
    for a in s.architectures().iter().flatten() {
        let arch = match a {
            Arch::ScmpArchX86 => ARCHS[1].1,
            Arch::ScmpArchX32 => ScmpArch::X32,
            // those of other machines say nothing here
            _ => continue,
        };
        ctx.add_arch(arch).map_err(refused)?;
        archs.extend(ARCHS.iter().filter(|x| x.1 == arch));
    }
    let mut last = vec![None; archs.len()];
    for r in s.syscalls().iter().flatten() {
        let act = action(r.action(), r.errno_ret())?;
        let conditions: Vec<ScmpArgCompare> = r.args().iter().flatten().map(condition).collect();
        let mut seen = std::collections::BTreeSet::new();
        let alternatives = !conditions
            .iter()
            .zip(r.args().iter().flatten())
            .all(|(_, a)| seen.insert(a.index()));
        for name in r.names() {
            for (l, (_, arch)) in last.iter_mut().zip(&archs) {
                let nr = ScmpSyscall::from_name_by_arch(name, *arch).ok();
                let nr = nr.map(i32::from).and_then(|n| u32::try_from(n).ok());
                *l = nr.max(*l);
            }
            // names libseccomp does not know are passed over, as runtimes do
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            if act == default {
                continue;
            }
            match (alternatives, &conditions[..]) {
                (_, []) => ctx.add_rule(act, call).map(drop),
                (false, all) => ctx.add_rule_conditional(act, call, all).map(drop),
                // runc: conditions on one argument are alternatives
                (true, all) => all.iter().try_for_each(|c| {
                    ctx.add_rule_conditional(act, call, std::slice::from_ref(c))
                        .map(drop)
                }),
            }
            .map_err(|e| refused(format!("the rule of {name}: {e}")))?;
        }
    }
    let mut file = tempfile()?;
    ctx.export_bpf(&mut file).map_err(refused)?;
    let mut program = prologue(s, &archs, &last);
    let read = file.rewind().and_then(|()| file.read_to_end(&mut program));
    read.map_err(refused)?;
    match program.len() / 8 {
        n @ 1..=4096 if program.len() % 8 == 0 && n > 0 => Ok(program),
        n => Err(refused(format!(
            "it comes to {n} instructions, more than the kernel takes"
        ))),
    }
}

/// A file without a name: libseccomp writes to descriptors only.
fn tempfile() -> Result<std::fs::File> {
    let fd = rustix::fs::memfd_create("stasis-seccomp", rustix::fs::MemfdFlags::CLOEXEC);
    fd.map(Into::into).map_err(|e| {
        Error::new("E7056", Blame::Host, "memfd_create")
            .why(e)
            .advice("free memory or descriptors")
    })
}

/// Calls above the last one that is named do not exist for the container.
fn prologue(s: &LinuxSeccomp, archs: &[(u32, ScmpArch)], last: &[Option<u32>]) -> Vec<u8> {
    use LinuxSeccompAction::{ScmpActAllow, ScmpActErrno, ScmpActLog};
    let through = match s.default_action() {
        ScmpActAllow | ScmpActLog => true,
        ScmpActErrno => s.default_errno_ret() == Some(38),
        _ => false,
    };
    let mut b = Vec::new();
    let mut put = |code: u16, jt: u8, jf: u8, k: u32| {
        b.extend_from_slice(&code.to_le_bytes());
        b.extend_from_slice(&[jt, jf]);
        b.extend_from_slice(&k.to_le_bytes());
    };
    if through {
        return b;
    }
    for ((number, arch), last) in archs.iter().zip(last) {
        let Some(last) = last else {
            continue;
        };
        let native = *arch == ScmpArch::X8664;
        put(LOAD, 0, 0, ARCH_AT);
        put(JUMP_EQUAL, 0, if native { 4 } else { 3 }, *number);
        put(LOAD, 0, 0, NR_AT);
        if native {
            // libseccomp judges x32
            put(JUMP_GREATER_OR_EQUAL, 2, 0, X32_BIT);
        }
        put(JUMP_GREATER, 0, 1, *last);
        put(RETURN, 0, 0, ENOSYS);
    }
    b
}

fn action(a: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    use LinuxSeccompAction::*;
    // EPERM, what a call fails with where the profile does not say
    let data = errno.unwrap_or(1);
    Ok(match a {
        ScmpActKill | ScmpActKillThread => ScmpAction::KillThread,
        ScmpActKillProcess => ScmpAction::KillProcess,
        ScmpActTrap => ScmpAction::Trap,
        ScmpActErrno => ScmpAction::Errno(data as i32),
        ScmpActTrace => ScmpAction::Trace(data as u16),
        ScmpActLog => ScmpAction::Log,
        ScmpActAllow => ScmpAction::Allow,
        ScmpActNotify => {
            return Err(refused(
                "it asks a listener (SCMP_ACT_NOTIFY), who would have to be there again",
            ));
        }
    })
}

fn condition(a: &LinuxSeccompArg) -> ScmpArgCompare {
    use LinuxSeccompOperator::*;
    let two = a.value_two().unwrap_or(0);
    let (op, datum) = match a.op() {
        ScmpCmpNe => (ScmpCompareOp::NotEqual, a.value()),
        ScmpCmpLt => (ScmpCompareOp::Less, a.value()),
        ScmpCmpLe => (ScmpCompareOp::LessOrEqual, a.value()),
        ScmpCmpEq => (ScmpCompareOp::Equal, a.value()),
        ScmpCmpGe => (ScmpCompareOp::GreaterEqual, a.value()),
        ScmpCmpGt => (ScmpCompareOp::Greater, a.value()),
        ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(a.value()), two),
    };
    ScmpArgCompare::new(a.index() as u32, op, datum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::by_engine;
    use serde_json::json;

    /// What a filter says of a call: just the instructions that both compilers use.
    fn says(filter: &[u8], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::from(nr.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend([0; 8]);
        data.extend(args.iter().flat_map(|a| a.to_le_bytes()));
        let word = |b: &[u8]| u32::from_le_bytes(b[..4].try_into().unwrap());
        let program: Vec<&[u8]> = filter.chunks(8).collect();
        let (mut pc, mut a) = (0, 0);
        loop {
            let i = program[pc];
            let (code, k) = (u16::from_le_bytes([i[0], i[1]]), word(&i[4..]));
            let jump = |yes: bool| usize::from(if yes { i[2] } else { i[3] });
            pc += 1;
            match code {
                LOAD => a = word(&data[k as usize..]),
                0x54 => a &= k,
                0x05 => pc += k as usize,
                JUMP_EQUAL => pc += jump(a == k),
                JUMP_GREATER => pc += jump(a > k),
                JUMP_GREATER_OR_EQUAL => pc += jump(a >= k),
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn profile() -> LinuxSeccomp {
        serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["read", "write", "close", "mmap", "futex", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 0xffff_ffffu64, "op": "SCMP_CMP_EQ"}]},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}, {"index": 2, "value": 5, "op": "SCMP_CMP_LT"}]},
                {"names": ["ioctl"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 1, "value": 0x1_0000_0002u64, "op": "SCMP_CMP_GE"}, {"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
            ]
        }))
        .unwrap()
    }

    #[test]
    fn the_library_and_the_engine_decide_alike() {
        let near = [
            0,
            1,
            2,
            5,
            8,
            40,
            0x7e02_0000,
            0xffff_ffff,
            0x1_0000_0001,
            0x1_0000_0002,
            u64::MAX,
        ];
        let s = profile();
        let (library, engine) = (compile(&s).unwrap(), by_engine(&s).unwrap());
        let mut allowed = 0;
        for nr in 0..600 {
            for a in near {
                for b in near {
                    let args = [a, b, b, 0, 0, 0];
                    let says = [&library, &engine].map(|f| says(f, ARCHS[0].0, nr, args));
                    assert_eq!(says[0], says[1], "call {nr} with {args:x?}");
                    allowed += u32::from(says[0] == 0x7fff_0000);
                }
            }
        }
        assert!(allowed > 5 * 121, "{allowed}");
        // what the engine does not judge: read(2) of 32-bit programs and of x32
        assert_eq!(says(&library, ARCHS[1].0, 3, [0; 6]), 0x7fff_0000);
        assert_eq!(says(&library, ARCHS[0].0, X32_BIT, [0; 6]), 0x7fff_0000);
        // and what was not asked for
        assert_eq!(says(&library, 0xc000_00b7, 0, [0; 6]), 0);
    }

    #[test]
    fn what_cannot_be_compiled_is_refused_by_name() {
        let mut v = serde_json::to_value(profile()).unwrap();
        v["syscalls"][0]["action"] = json!("SCMP_ACT_NOTIFY");
        let e = compile(&serde_json::from_value(v).unwrap()).unwrap_err();
        assert_eq!(e.code, "E7056");
    }
}
