//! The container's seccomp profile, as its runtime's `config.json` tells it.
//!
//! For a rootless dump, which may not read the filters of a task. podman keeps config.json in the work folder it names, beside the
//! folder of the images; the verbs of bundles know where it is.
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, Spec,
};
use stasis_engine::seccomp::{Compare, Condition, Profile, Rule};
use stasis_engine::{Blame, Error, Result};
use std::path::Path;

/// EPERM, what a call fails with where the profile does not say.
const USUAL: u32 = 1;

/// What was found, for a dump that may not need it: root reads the filters themselves.
pub fn if_any(found: Result<Option<Vec<u8>>>) -> Option<Vec<u8>> {
    found.unwrap_or_else(|e| {
        tracing::info!("no seccomp profile: {e}");
        None
    })
}

/// The filter of the first of these config.json that is there; `None` if there is none, or it has no profile.
///
/// # Errors
/// A config.json that cannot be read, or a profile that cannot be compiled.
pub fn find(folders: &[&Path]) -> Result<Option<Vec<u8>>> {
    let file = folders
        .iter()
        .map(|f| f.join("config.json"))
        .find(|f| f.is_file());
    let Some(file) = file else {
        return Ok(None);
    };
    let spec = Spec::load(&file).map_err(|e| {
        Error::new("E7050", Blame::Caller, file.display().to_string())
            .why(e)
            .advice(
                "it lies where a container's config.json is looked for: remove it if it is none",
            )
    })?;
    of(&spec)
}

/// The filter of a bundle's profile, if it has one.
///
/// # Errors
/// A profile that cannot be compiled.
pub fn of(spec: &Spec) -> Result<Option<Vec<u8>>> {
    let linux = spec.linux().as_ref();
    match linux.and_then(|l| l.seccomp().as_ref()) {
        Some(s) => compile(s).map(Some),
        None => Ok(None),
    }
}

/// By the C library that runtimes use, where it was built in; else by the engine, which decides alike for 64-bit programs.
fn compile(s: &LinuxSeccomp) -> Result<Vec<u8>> {
    by_library(s).unwrap_or_else(|| by_engine(s))
}

#[cfg(feature = "libseccomp")]
fn by_library(s: &LinuxSeccomp) -> Option<Result<Vec<u8>>> {
    Some(crate::libseccomp::compile(s))
}

#[cfg(not(feature = "libseccomp"))]
fn by_library(_: &LinuxSeccomp) -> Option<Result<Vec<u8>>> {
    None
}

/// Without the library.
pub fn by_engine(s: &LinuxSeccomp) -> Result<Vec<u8>> {
    profile(s)?.compile()
}

fn profile(s: &LinuxSeccomp) -> Result<Profile> {
    let rule = |r: &oci_spec::runtime::LinuxSyscall| -> Result<Rule> {
        Ok(Rule {
            names: r.names().clone(),
            action: action(r.action(), r.errno_ret())?,
            args: r.args().iter().flatten().map(condition).collect(),
        })
    };
    let others = [Arch::ScmpArchX86, Arch::ScmpArchX32];
    Ok(Profile {
        default: action(s.default_action(), s.default_errno_ret())?,
        other_archs: s
            .architectures()
            .iter()
            .flatten()
            .any(|a| others.contains(a)),
        rules: s
            .syscalls()
            .iter()
            .flatten()
            .map(rule)
            .collect::<Result<_>>()?,
    })
}

fn action(a: LinuxSeccompAction, errno: Option<u32>) -> Result<u32> {
    use LinuxSeccompAction::*;
    let data = errno.unwrap_or(USUAL) & 0xffff;
    Ok(match a {
        ScmpActKill | ScmpActKillThread => 0,
        ScmpActKillProcess => 0x8000_0000,
        ScmpActTrap => 0x0003_0000,
        ScmpActErrno => 0x0005_0000 | data,
        ScmpActTrace => 0x7ff0_0000 | data,
        ScmpActLog => 0x7ffc_0000,
        ScmpActAllow => 0x7fff_0000,
        ScmpActNotify => {
            return Err(
                Error::new("E7054", Blame::Caller, "the container's seccomp profile")
                    .why("it asks a listener (SCMP_ACT_NOTIFY), who would have to be there again")
                    .advice("run the container with a profile without listeners"),
            );
        }
    })
}

fn condition(a: &LinuxSeccompArg) -> Condition {
    use LinuxSeccompOperator::*;
    Condition {
        index: a.index() as u32,
        op: match a.op() {
            ScmpCmpNe => Compare::NotEqual,
            ScmpCmpLt => Compare::Less,
            ScmpCmpLe => Compare::LessOrEqual,
            ScmpCmpEq => Compare::Equal,
            ScmpCmpGe => Compare::GreaterOrEqual,
            ScmpCmpGt => Compare::Greater,
            ScmpCmpMaskedEq => Compare::Masked,
        },
        value: a.value(),
        value_two: a.value_two().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_found_and_compiled() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(find(&[tmp.path()]).unwrap(), None);
        let seccomp = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read", "clone"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
        let config = format!(r#"{{"ociVersion": "1.0.0", "linux": {{"seccomp": {seccomp}}}}}"#);
        std::fs::write(tmp.path().join("config.json"), config).unwrap();
        let other = Path::new("/no/such/folder");
        let f = find(&[other, tmp.path()]).unwrap().unwrap();
        assert_eq!(f.len() % 8, 0);
        std::fs::write(tmp.path().join("config.json"), "{").unwrap();
        assert_eq!(find(&[tmp.path()]).unwrap_err().code, "E7050");
    }
}
