//! The command line as callers write it.
use super::options::{EXTERNALS, Fate, OPTIONS, Takes};
use super::parse::{config, line};
use super::settings::Settings;
use stasis_engine::After;
use stasis_engine::options::CgroupMode;
use std::time::Duration;

/// The options criu 4.2 has, and `hooks-dir`: name, letter, argument (`-` none, `[X]` optional).
const KNOWN: &str = "\
tree t PID
leave-stopped s -
leave-running R -
restore-detached d -
daemon - -
restore-sibling S -
images-dir D DIR
work-dir W DIR
prev-images-dir - DIR
log-file o FILE
log-pid - -
verbosity v [N]
display-stats - -
version V -
help h -
pidfile - FILE
status-fd - FD
action-script - FILE
hooks-dir - DIR
exec-cmd - -
shell-job j -
tcp-established - -
tcp-close - -
skip-in-flight - -
ext-unix-sk x [INODE]
external - RES
ext-mount-map M KEY:VAL
veth-pair - IN=OUT
inherit-fd - fd[N]:KEY
join-ns J NS:FILE
empty-ns - net
root r PATH
skip-mnt - PATH
enable-fs - LIST
enable-external-sharing - -
enable-external-masters - -
mntns-compat-mode - -
manage-cgroups - [MODE]
cgroup-root - PATH
cgroup-props - STR
cgroup-props-file - FILE
cgroup-dump-controller - NAME
cgroup-yard - PATH
freeze-cgroup - PATH
cpu-cap - [LIST]
lsm-profile - TYPE:NAME
lsm-mount-context - CTX
network-lock - METHOD
evasive-devices - -
file-locks l -
file-validation - MODE
skip-file-rwx-check - -
ghost-limit - SIZE
ghost-fiemap - -
link-remap - -
force-irmap - -
irmap-scan-path - PATH
timeout - SECONDS
weak-sysctls - -
allow-uprobes - -
track-mem - -
auto-dedup - -
pre-dump-mode - MODE
lazy-pages - -
page-server - -
address - ADDR
port - PORT
ps-socket - FD
stream - -
tls - -
tls-cacert - FILE
tls-cacrl - FILE
tls-cert - FILE
tls-key - FILE
tls-no-cn-verify - -
libdir L DIR
config - FILE
no-default-config - -
feature - NAME
all - -
extra - -
experimental - -
unprivileged - -
close - FD
deprecated - -
";

/// An argument that makes sense, for the options where not every word does.
fn sample(name: &str) -> &'static str {
    match name {
        "tree" | "close" | "timeout" | "port" | "ps-socket" => "7",
        "verbosity" => "4",
        "manage-cgroups" => "ignore",
        "cpu-cap" => "ins",
        "file-validation" => "filesize",
        "pre-dump-mode" => "read",
        "ghost-limit" => "2M",
        "irmap-scan-path" => "/a",
        "external" => "mnt[/a]:b",
        "ext-mount-map" | "cgroup-root" => "/a:b",
        "veth-pair" => "a=b",
        "inherit-fd" => "fd[7]:pipe:[8]",
        "join-ns" => "uts:8",
        "empty-ns" => "net",
        "lsm-profile" => "apparmor:x",
        "network-lock" => "skip",
        "ext-unix-sk" | "status-fd" => "9",
        _ => "x",
    }
}

fn settle(words: &[&str]) -> Result<Settings, String> {
    let words: Vec<String> = words.iter().map(|w| (*w).to_string()).collect();
    let mut s = Settings::default();
    s.take(&line(&words)?.given)?;
    Ok(s)
}

#[test]
fn every_option_of_criu_is_accepted_or_refused_by_name() {
    let mut known = 0;
    for row in KNOWN.lines() {
        let [name, letter, argument] = row.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        known += 1;
        let opt = OPTIONS
            .iter()
            .find(|o| o.long == name)
            .unwrap_or_else(|| panic!("--{name} is not in the table"));
        assert_eq!(
            opt.short.map_or("-".into(), |c| c.to_string()),
            letter,
            "--{name}"
        );
        let takes = match argument.chars().next() {
            Some('-') => Takes::Nothing,
            Some('[') => Takes::Maybe,
            _ => Takes::Value,
        };
        assert_eq!(opt.takes, takes, "--{name}");
        let mut spellings = match takes {
            Takes::Nothing => vec![format!("--{name}")],
            _ => vec![format!("--{name}={}", sample(name))],
        };
        if let Some(c) = opt.short {
            spellings.push(match takes {
                Takes::Nothing => format!("-{c}"),
                _ => format!("-{c}{}", sample(name)),
            });
        }
        for s in spellings {
            match (settle(&[&s]), opt.fate) {
                (Ok(got), Fate::Harmless(why)) => {
                    assert!(got.notes.iter().any(|n| n.contains(why)), "{s}: no note");
                }
                // some sorts of external things are, some are not
                (Err(e), Fate::Honoured) if e.contains("not in this version") => {}
                (Ok(got), Fate::Honoured) => {
                    let (got, fresh) = (format!("{got:?}"), format!("{:?}", Settings::default()));
                    assert_ne!(got, fresh, "{s} changes nothing");
                }
                (Err(e), Fate::Refused(why)) => {
                    assert!(e.contains(why), "{e}");
                    let spelt = s.split('=').next().unwrap();
                    assert!(
                        e.contains(&spelt[..spelt.len().min(2)]),
                        "{e} does not name {s}"
                    );
                }
                (got, fate) => panic!("{s}: {fate:?} but {got:?}"),
            }
        }
    }
    assert_eq!(
        known,
        OPTIONS.len(),
        "the table has options criu does not have"
    );
}

#[test]
fn words_are_taken_as_getopt_takes_them() {
    let s = settle(&["-t7", "-D", "img", "-RjW/w", "-o", "x.log"]).unwrap();
    assert_eq!(s.options.pid, 7);
    assert_eq!(s.options.images.to_str(), Some("img"));
    assert_eq!(s.options.after, After::Running);
    assert!(s.options.shell_job);
    // an optional argument takes the rest of its cluster: -vvW/w is no verbosity
    assert!(settle(&["-vvW"]).is_err());
    let s = settle(&["--tree", "7", "--tree=8", "--leave-run", "--no-shell-job"]).unwrap();
    assert_eq!(
        (s.options.pid, s.options.after, s.options.shell_job),
        (8, After::Running, false)
    );
    assert!(settle(&["--le"]).unwrap_err().contains("ambiguous"));
    assert!(settle(&["--nope"]).unwrap_err().contains("'--nope'"));
    assert!(settle(&["-Z"]).unwrap_err().contains("'Z'"));
    assert!(settle(&["-t"]).unwrap_err().contains("'-t'"));
    assert!(settle(&["-t", "abc"]).unwrap_err().contains("abc"));
    assert!(settle(&["-t0"]).is_err());
    assert!(settle(&["--shell-job=x"]).unwrap_err().contains("argument"));
    let words: Vec<String> = ["-v4", "restore", "-d", "--exec-cmd", "--", "ls", "-l"]
        .map(String::from)
        .to_vec();
    let l = line(&words).unwrap();
    assert_eq!(l.words, ["restore"]);
    assert_eq!(l.rest, ["ls", "-l"]);
}

#[test]
fn an_optional_argument_must_be_attached() {
    let words: Vec<String> = ["-v", "4", "dump"].map(String::from).to_vec();
    let l = line(&words).unwrap();
    assert_eq!(l.words, ["4", "dump"]);
    for (word, level) in [("-v", 3), ("-vv", 4), ("-vvv", 5), ("-v0", 0), ("-v4", 4)] {
        assert_eq!(settle(&[word]).unwrap().verbosity, level, "{word}");
    }
    assert_eq!(settle(&["-v", "-v"]).unwrap().verbosity, 4);
    assert_eq!(settle(&["--verbosity=1"]).unwrap().verbosity, 1);
    assert_eq!(settle(&["--verbosity"]).unwrap().verbosity, 3);
}

#[test]
fn values_reach_the_engine() {
    let s = settle(&[
        "-t",
        "7",
        "-D",
        "i",
        "-W",
        "w",
        "--ghost-limit",
        "3K",
        "--timeout",
        "2",
        "-l",
        "-S",
        "-d",
        "--link-remap",
        "--evasive-devices",
        "--skip-file-rwx-check",
        "--pidfile",
        "p",
        "-s",
    ])
    .unwrap();
    let o = s.engine().unwrap();
    assert_eq!(
        (o.pid, o.ghost_limit, o.timeout),
        (7, Some(3072), Duration::from_secs(2))
    );
    assert!(o.file_locks && o.link_remap && o.evasive_devices && o.skip_file_rwx_check);
    assert!(o.sibling && o.detach);
    assert_eq!(o.after, After::Stopped);
    assert_eq!(o.pidfile.unwrap().to_str(), Some("w/p"));
    assert_eq!(o.images.to_str(), Some("i"));
    assert!(settle(&["--ghost-limit", "3X"]).is_err());
    let mode = |words: &[&str]| settle(words).unwrap().options.cgroups.mode;
    assert_eq!(mode(&["--manage-cgroups"]), CgroupMode::Soft);
    assert_eq!(mode(&["--manage-cgroups=full"]), CgroupMode::Full);
    assert_eq!(mode(&[]), CgroupMode::Soft);
    assert_eq!(mode(&["--manage-cgroups=ignore"]), CgroupMode::Ignore);
    assert!(settle(&["--manage-cgroups=some"]).is_err());
    assert!(
        settle(&["--file-validation", "buildid"])
            .unwrap_err()
            .contains("filesize")
    );
    let c = settle(&["--cpu-cap=all,^fpu"]).unwrap().cpu_cap;
    assert!(c.asked && c.ins && !c.fpu);
    assert!(settle(&["--cpu-cap=sse"]).is_err());
}

#[test]
fn configuration_files_are_options_without_dashes() {
    let text = "# a comment\n\ntcp-established\nlog-file \"my dump.log\" # why\nghost-limit=5M\ntimeout = 3\nimages-dir 'a\\b'\n";
    let mut s = Settings::default();
    s.take(&config(text).unwrap()).unwrap();
    assert_eq!(s.log.as_ref().unwrap().to_str(), Some("my dump.log"));
    assert_eq!(
        (s.options.ghost_limit, s.options.timeout),
        (Some(5 << 20), Duration::from_secs(3))
    );
    assert_eq!(s.options.images.to_str(), Some("a\\b"));
    assert!(s.options.network.tcp_established);
    for (bad, why) in [
        ("nope", "line 1"),
        ("\nlog-file \"x", "line 2: a quote"),
        ("shell-job yes", "'yes'"),
        ("tree", "requires an argument"),
    ] {
        assert!(config(bad).unwrap_err().contains(why), "{bad}");
    }
}

/// The rows of the book's table, as the code would write them.
fn book() -> String {
    let fate = |f: Fate| match f {
        Fate::Honoured => "honoured".to_string(),
        Fate::Harmless(why) => format!("no difference: {why}"),
        Fate::Refused(why) => format!("refused: {why}"),
    };
    let row = |o: &super::options::Opt| {
        let short = o.short.map_or(String::new(), |c| format!("`-{c}`, "));
        let mut rows = format!("| {short}`--{}` | {} |\n", o.long, fate(o.fate));
        if o.long == "external" {
            for kind in EXTERNALS {
                rows += &format!("| `--external {kind}[...]` | {} |\n", fate(o.fate));
            }
        }
        rows
    };
    OPTIONS.iter().map(row).collect()
}

/// With `STASIS_WRITE_BOOK` in the environment the table is written instead of compared.
#[test]
fn the_book_tells_what_becomes_of_each_option() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/user/criu.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, table) = page.split_once("|---|---|\n").unwrap();
    if std::env::var_os("STASIS_WRITE_BOOK").is_some() {
        std::fs::write(path, format!("{before}|---|---|\n{}", book())).unwrap();
        return;
    }
    assert!(
        table == book(),
        "docs/user/criu.md is not up to date: run this test once with STASIS_WRITE_BOOK=1 in the environment"
    );
}
