//! The options of the `criu` command line: one row each, and what this version makes of it.
//!
//! Every row is honoured, accepted because it cannot matter here (and the log says why), or refused by name. A row that
//! is none of these does not compile.

/// Does an option take an argument?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// A switch; `--no-NAME` turns it off again.
    Nothing,
    /// `--name VALUE`, `--name=VALUE`, `-nVALUE`, `-n VALUE`.
    Value,
    /// Only attached: `--name=VALUE`, `-nVALUE`.
    Maybe,
}

/// What this version does with an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It does what its row in the manual says.
    Honoured,
    /// It cannot make a difference; the reason goes to the log.
    Harmless(&'static str),
    /// The command fails and says this: why, and what to do.
    Refused(&'static str),
}

/// One option.
#[derive(Debug)]
pub struct Opt {
    /// Name behind `--`.
    pub long: &'static str,
    /// Letter behind `-`.
    pub short: Option<char>,
    /// Its argument.
    pub takes: Takes,
    /// What becomes of it.
    pub fate: Fate,
}

const fn opt(long: &'static str, short: Option<char>, takes: Takes, fate: Fate) -> Opt {
    Opt {
        long,
        short,
        takes,
        fate,
    }
}

use Fate::{Harmless, Honoured, Refused};
use Takes::{Maybe, Nothing, Value};

/// The sorts of `--external`.
pub static EXTERNALS: &[&str] = &[
    "mnt", "net", "pid", "unix", "veth", "macvlan", "netdev", "tty", "file", "dev",
];

/// All options, in the order of the manual.
pub static OPTIONS: &[Opt] = &[
    opt("tree", Some('t'), Value, Honoured),
    opt("leave-stopped", Some('s'), Nothing, Honoured),
    opt("leave-running", Some('R'), Nothing, Honoured),
    opt("restore-detached", Some('d'), Nothing, Honoured),
    opt("daemon", None, Nothing, Honoured),
    opt("restore-sibling", Some('S'), Nothing, Honoured),
    opt("images-dir", Some('D'), Value, Honoured),
    opt("work-dir", Some('W'), Value, Honoured),
    opt("prev-images-dir", None, Value, Honoured),
    opt("log-file", Some('o'), Value, Honoured),
    opt(
        "log-pid",
        None,
        Nothing,
        Harmless(
            "tasks run no code of the engine, so they write no log: all lines are in this one",
        ),
    ),
    opt("verbosity", Some('v'), Maybe, Honoured),
    opt("display-stats", None, Nothing, Honoured),
    opt("version", Some('V'), Nothing, Honoured),
    opt("help", Some('h'), Nothing, Honoured),
    opt("pidfile", None, Value, Honoured),
    opt("status-fd", None, Value, Honoured),
    opt("action-script", None, Value, Honoured),
    // of our own
    opt("hooks-dir", None, Value, Honoured),
    opt("exec-cmd", None, Nothing, Honoured),
    opt("shell-job", Some('j'), Nothing, Honoured),
    opt("tcp-established", None, Nothing, Honoured),
    opt("tcp-close", None, Nothing, Honoured),
    opt("skip-in-flight", None, Nothing, Honoured),
    opt("ext-unix-sk", Some('x'), Maybe, Honoured),
    opt("external", None, Value, Honoured),
    opt("ext-mount-map", Some('M'), Value, Honoured),
    opt("veth-pair", None, Value, Honoured),
    opt("inherit-fd", None, Value, Honoured),
    opt("join-ns", Some('J'), Value, Honoured),
    opt("empty-ns", None, Value, Honoured),
    opt("root", Some('r'), Value, Honoured),
    opt("skip-mnt", None, Value, Honoured),
    opt("enable-fs", None, Value, Honoured),
    opt("enable-external-sharing", None, Nothing, Honoured),
    opt("enable-external-masters", None, Nothing, Honoured),
    opt(
        "mntns-compat-mode",
        None,
        Nothing,
        Harmless("mounts are built in one way only, which needs no older kernel's help"),
    ),
    opt("manage-cgroups", None, Maybe, Honoured),
    opt("cgroup-root", None, Value, Honoured),
    opt("cgroup-props", None, Value, Honoured),
    opt("cgroup-props-file", None, Value, Honoured),
    opt("cgroup-dump-controller", None, Value, Honoured),
    opt("cgroup-yard", None, Value, Honoured),
    opt("freeze-cgroup", None, Value, Honoured),
    opt("cpu-cap", None, Maybe, Honoured),
    opt("lsm-profile", None, Value, Honoured),
    opt("lsm-mount-context", None, Value, Honoured),
    opt("network-lock", None, Value, Honoured),
    opt("evasive-devices", None, Nothing, Honoured),
    opt("file-locks", Some('l'), Nothing, Honoured),
    opt("file-validation", None, Value, Honoured),
    opt("skip-file-rwx-check", None, Nothing, Honoured),
    opt("ghost-limit", None, Value, Honoured),
    opt(
        "ghost-fiemap",
        None,
        Nothing,
        Harmless("holes of deleted files are found another way"),
    ),
    opt("link-remap", None, Nothing, Honoured),
    opt(
        "force-irmap",
        None,
        Nothing,
        Harmless("the name of a watched file is always looked for and written"),
    ),
    opt("irmap-scan-path", None, Value, Honoured),
    opt("timeout", None, Value, Honoured),
    opt("weak-sysctls", None, Nothing, Honoured),
    opt(
        "allow-uprobes",
        None,
        Nothing,
        Refused(
            "the mapping of uprobes is not carried in this version; remove the probes before the dump",
        ),
    ),
    opt("track-mem", None, Nothing, Honoured),
    opt("auto-dedup", None, Nothing, Honoured),
    opt("pre-dump-mode", None, Value, Honoured),
    opt("lazy-pages", None, Nothing, Honoured),
    opt("page-server", None, Nothing, Honoured),
    opt("address", None, Value, Honoured),
    opt("port", None, Value, Honoured),
    opt("ps-socket", None, Value, Honoured),
    opt(
        "stream",
        None,
        Nothing,
        Refused("image streaming is not in this version; dump to a folder on tmpfs and read that"),
    ),
    opt("tls", None, Nothing, Honoured),
    opt("tls-cacert", None, Value, Honoured),
    opt("tls-cacrl", None, Value, Honoured),
    opt("tls-cert", None, Value, Honoured),
    opt("tls-key", None, Value, Honoured),
    opt("tls-no-cn-verify", None, Nothing, Honoured),
    opt(
        "libdir",
        Some('L'),
        Value,
        Harmless("plugins are not loaded; what would need one is refused by name"),
    ),
    opt("config", None, Value, Honoured),
    opt("no-default-config", None, Nothing, Honoured),
    opt("feature", None, Value, Honoured),
    opt("all", None, Nothing, Honoured),
    opt("extra", None, Nothing, Honoured),
    opt("experimental", None, Nothing, Honoured),
    opt(
        "unprivileged",
        None,
        Nothing,
        Harmless("rights are tried, not asked for: what they do not allow is named when it is met"),
    ),
    opt("close", None, Value, Honoured),
    opt(
        "deprecated",
        None,
        Nothing,
        Harmless("no option is treated as deprecated"),
    ),
];

/// The option with this letter.
pub fn by_short(c: char) -> Option<&'static Opt> {
    OPTIONS.iter().find(|o| o.short == Some(c))
}

/// The option with this name, or the only one that begins so (as getopt_long(3) allows).
///
/// # Errors
/// A sentence: unknown, or ambiguous.
pub fn by_long(name: &str) -> Result<&'static Opt, String> {
    if let Some(o) = OPTIONS.iter().find(|o| o.long == name) {
        return Ok(o);
    }
    let like: Vec<_> = OPTIONS
        .iter()
        .filter(|o| !name.is_empty() && o.long.starts_with(name))
        .collect();
    match like[..] {
        [one] => Ok(one),
        [] => Err(format!("unrecognized option '--{name}'")),
        _ => Err(format!(
            "option '--{name}' is ambiguous: {}",
            like.iter()
                .map(|o| format!("--{}", o.long))
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}
