//! Security labels of tasks: AppArmor profiles and SELinux contexts.
//!
//! **Dump.** The label of each thread is recorded, unless it is that of a task nobody confines.
//!
//! **Restore.** Each thread takes its label on among the last rows, when its credentials are set. A label comes from the image only
//! if the caller gives no other (`--lsm-profile`), and it is never dropped silently: a host without that module refuses.
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::{Arg, Call};
use stasis_kernel::ids::HostPid;
use stasis_proto::pb::{self, Lsmtype};
use std::fs;
use std::path::Path;

/// Longest label that is written: attr files of /proc take a page.
const LONGEST: usize = 4095;

/// The label of a task nobody confines.
const UNCONFINED: &str = "unconfined";

/// Which module gives labels on this machine. `root` is `/` but for tests.
pub fn of_host(root: &Path) -> Lsmtype {
    let apparmor = fs::read_to_string(root.join("sys/module/apparmor/parameters/enabled"));
    if apparmor.is_ok_and(|e| e.trim() == "Y") {
        Lsmtype::Apparmor
    } else if root.join("sys/fs/selinux/status").exists() {
        Lsmtype::Selinux
    } else {
        Lsmtype::NoLsm
    }
}

/// Folders of /proc/PID/attr, the module's own first.
fn files(lsm: Lsmtype) -> &'static [&'static str] {
    match lsm {
        Lsmtype::NoLsm => &[],
        Lsmtype::Selinux => &["attr/current"],
        Lsmtype::Apparmor => &["attr/apparmor/current", "attr/current"],
    }
}

/// The label of a thread, as an image has it; `None`: nobody confines it.
///
/// # Errors
/// E4462: a label that cannot be carried. Failures to read /proc.
pub fn label(lsm: Lsmtype, tid: HostPid) -> Result<Option<String>> {
    let mut last = None;
    for file in files(lsm) {
        let path = format!("/proc/{}/{file}", tid.0);
        match fs::read_to_string(&path) {
            Ok(text) => return plain(lsm, &text).map_err(|e| e.on(format!("thread {}", tid.0))),
            Err(e) => last = Some((path, e)),
        }
    }
    match last {
        None => Ok(None),
        Some((path, e)) => {
            let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
            Err(stasis_kernel::error::SysError::new("openat", errno, path).into())
        }
    }
}

/// What the kernel says, without the mode.
fn plain(lsm: Lsmtype, text: &str) -> Result<Option<String>> {
    let text = text.trim_end_matches(['\0', '\n']);
    match lsm {
        Lsmtype::NoLsm => Ok(None),
        Lsmtype::Apparmor => {
            let name = text.rsplit_once(" (").map_or(text, |(name, _)| name);
            if name.contains("//&") || name.starts_with(':') {
                return Err(Error::new(
                    "E4462",
                    Blame::Container,
                    format!("AppArmor profile {name:?}"),
                )
                .why("it is stacked, or of a policy namespace, which this version does not carry")
                .advice("run the container under one profile of the host's"));
            }
            Ok((name != UNCONFINED).then(|| name.to_string()))
        }
        Lsmtype::Selinux => {
            let kind = text.split(':').nth(2);
            Ok((kind != Some("unconfined_t")).then(|| text.to_string()))
        }
    }
}

/// What a caller says: `apparmor:NAME` or `selinux:CONTEXT`.
fn named(text: &str) -> Result<(Lsmtype, &str)> {
    match text.split_once(':') {
        Some(("apparmor", name)) if !name.is_empty() => Ok((Lsmtype::Apparmor, name)),
        Some(("selinux", name)) if !name.is_empty() => Ok((Lsmtype::Selinux, name)),
        _ => Err(
            Error::new("E2060", Blame::Caller, format!("--lsm-profile {text}"))
                .why("it is neither apparmor:NAME nor selinux:CONTEXT")
                .advice("name the module and the label"),
        ),
    }
}

/// The label a thread gets: module and name; `None`: it is left as it is born.
///
/// # Errors
/// E5463: a label no kernel would take. E6464: this machine does not have the module.
pub fn decide<'a>(
    image: Lsmtype,
    host: Lsmtype,
    label: Option<&'a str>,
    over: Option<&'a str>,
) -> Result<Option<(Lsmtype, &'a str)>> {
    let Some(label) = label.filter(|_| image != Lsmtype::NoLsm) else {
        return Ok(None);
    };
    let (lsm, name) = match over {
        Some(text) => named(text)?,
        None => (image, label),
    };
    if name.len() > LONGEST || name.contains(['\0', '\n']) {
        return Err(Error::new("E5463", Blame::Image, "a security label")
            .why("it is longer than the kernel takes, or no text")
            .advice("dump again, or name another with --lsm-profile"));
    }
    if name == UNCONFINED && host != lsm {
        return Ok(None);
    }
    if host != lsm {
        let module = match lsm {
            Lsmtype::Selinux => "SELinux",
            _ => "AppArmor",
        };
        return Err(Error::new("E6464", Blame::Host, format!("security label {name:?}"))
            .why(format!("the tree ran under {module}, which this machine does not have enabled"))
            .advice("restore where it is, or give the protection up: --lsm-profile apparmor:unconfined"));
    }
    Ok(Some((lsm, name)))
}

/// Rows by which a thread takes its label on; they stand behind `before` others.
pub fn rows(lsm: Lsmtype, name: &str, before: usize) -> Vec<Call> {
    let (file, text) = match lsm {
        Lsmtype::NoLsm => return Vec::new(),
        Lsmtype::Selinux => ("/proc/thread-self/attr/current", name.to_string()),
        Lsmtype::Apparmor => (
            "/proc/thread-self/attr/current",
            format!("changeprofile {name}"),
        ),
    };
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as u64;
    let len = text.len() as u64;
    vec![
        Call::new(
            libc::SYS_openat,
            vec![
                Arg::Named(libc::AT_FDCWD as u64, "AT_FDCWD".into()),
                Arg::Str(file.into()),
                Arg::Named(flags, "O_WRONLY|O_CLOEXEC".into()),
                Arg::Int(0),
            ],
        ),
        Call::new(
            libc::SYS_write,
            vec![Arg::Ret(before), Arg::In(text.into_bytes()), Arg::Int(len)],
        )
        .must_be(len),
        Call::new(libc::SYS_close, vec![Arg::Ret(before)]),
    ]
}

/// The module an inventory names.
pub fn of_image(inventory: &pb::InventoryEntry) -> Lsmtype {
    let named = inventory.lsmtype.and_then(|l| Lsmtype::try_from(l).ok());
    named.unwrap_or(Lsmtype::NoLsm)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AA: Lsmtype = Lsmtype::Apparmor;
    const SE: Lsmtype = Lsmtype::Selinux;
    const NO: Lsmtype = Lsmtype::NoLsm;

    #[test]
    fn the_module_of_a_machine_is_found() {
        let t = tempfile::tempdir().unwrap();
        assert_eq!(of_host(t.path()), NO);
        fs::create_dir_all(t.path().join("sys/fs/selinux")).unwrap();
        fs::write(t.path().join("sys/fs/selinux/status"), "").unwrap();
        assert_eq!(of_host(t.path()), SE);
        let aa = t.path().join("sys/module/apparmor/parameters");
        fs::create_dir_all(&aa).unwrap();
        fs::write(aa.join("enabled"), "N\n").unwrap();
        assert_eq!(of_host(t.path()), SE);
        fs::write(aa.join("enabled"), "Y\n").unwrap();
        assert_eq!(of_host(t.path()), AA);
    }

    #[test]
    fn labels_are_read_as_the_kernel_writes_them() {
        let aa = |t| plain(AA, t).map_err(|e| e.code);
        assert_eq!(
            aa("docker-default (enforce)\n"),
            Ok(Some("docker-default".into()))
        );
        assert_eq!(aa("a b (complain)"), Ok(Some("a b".into())));
        assert_eq!(aa("unconfined\n"), Ok(None));
        assert_eq!(aa("a//&b (enforce)\n"), Err("E4462"));
        assert_eq!(aa(":ns://x (enforce)\n"), Err("E4462"));
        let se = |t: &str| plain(SE, t).unwrap();
        let context = "system_u:system_r:container_t:s0:c1,c2";
        assert_eq!(se(&format!("{context}\0")), Some(context.into()));
        assert_eq!(
            se("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023"),
            None
        );
    }

    #[test]
    fn a_label_is_never_dropped_silently() {
        let ok = |i, h, l, o| decide(i, h, l, o).map_err(|e| e.code);
        assert_eq!(ok(AA, AA, Some("p"), None), Ok(Some((AA, "p"))));
        assert_eq!(ok(AA, AA, None, None), Ok(None));
        assert_eq!(ok(NO, AA, Some("p"), None), Ok(None));
        assert_eq!(ok(AA, NO, Some("p"), None), Err("E6464"));
        assert_eq!(ok(AA, SE, Some("p"), None), Err("E6464"));
        // the caller's word
        assert_eq!(
            ok(AA, AA, Some("p"), Some("apparmor:q")),
            Ok(Some((AA, "q")))
        );
        assert_eq!(
            ok(SE, SE, Some("a:b:c"), Some("selinux:x:y:z")),
            Ok(Some((SE, "x:y:z")))
        );
        assert_eq!(ok(AA, NO, Some("p"), Some("apparmor:unconfined")), Ok(None));
        assert_eq!(
            ok(AA, AA, Some("p"), Some("apparmor:unconfined")),
            Ok(Some((AA, "unconfined")))
        );
        assert_eq!(ok(AA, AA, Some("p"), Some("smack:q")), Err("E2060"));
        assert_eq!(ok(AA, AA, Some("p\0"), None), Err("E5463"));
    }

    #[test]
    fn rows_say_what_is_written() {
        let shown: Vec<String> = rows(AA, "p", 2).iter().map(ToString::to_string).collect();
        assert!(
            shown[0].contains("/proc/thread-self/attr/current"),
            "{shown:?}"
        );
        assert!(shown[1].contains("answer of row 2"), "{shown:?}");
        assert_eq!(rows(NO, "p", 0).len(), 0);
    }
}
