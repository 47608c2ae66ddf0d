//! Control groups on the real kernel: where a tree was it comes back, freezing leaves no trace, a failed restore no group.
//!
//! Each test runs once more inside fresh namespaces (`unshare`), where cgroup v2 alone is mounted, and works in a group of its
//! own below the one the tests were started in. That group is emptied and removed again, however the test ends. The file is long
//! because what the tests share and the tests stand together.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stasis_tests::build;
use stasis_tests::engine::Engine;
use stasis_tests::group::Group;
use stasis_tests::wait::until_reaping as until;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The test of that name, inside.
fn inside(name: &str) {
    let engine = Engine::under_test().expect("an engine");
    let out = Command::new("unshare")
        .args([
            "-m",
            "-n",
            "-p",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
            "--",
        ])
        .arg(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            &format!("inside::{name}"),
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("STASIS_ENGINE", engine.path)
        .stdin(Stdio::null())
        .output()
        .expect("unshare of util-linux");
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test] fn $name() { inside(stringify!($name)); })*
    };
}
tests!(a_tree_is_back_in_its_groups in_a_namespace_of_its_own threads_are_back_in_theirs a_new_root
    modes_are_kept freezing_leaves_no_trace a_killed_engine_leaves_no_trace_of_freezing a_failed_restore_leaves_no_group);

/// What these tests do with their group.
trait InGroup {
    fn end(&self, below: &str);
    fn sub(&self, name: &str) -> PathBuf;
}

impl InGroup for Group {
    /// Kills all processes of a group and the groups below it ("": its own), and waits until their numbers are free.
    fn end(&self, below: &str) {
        let path = Path::new(&self.path()).join(below).display().to_string();
        let path = path.trim_end_matches('/');
        let is_member = |pid: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let group = text.lines().find_map(|l| l.strip_prefix("0::"));
            group.is_some_and(|g| g == path || g.starts_with(&format!("{path}/")))
        };
        let members: Vec<String> = fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|p| p.bytes().all(|b| b.is_ascii_digit()) && is_member(p))
            .collect();
        assert!(!members.is_empty(), "nobody is in {path}");
        fs::write(self.0.join(below).join("cgroup.kill"), "1").expect("a group");
        until("their end", || {
            let gone = |p: &String| !Path::new("/proc").join(p).exists();
            members.iter().all(gone)
        });
    }
    fn sub(&self, name: &str) -> PathBuf {
        let at = self.0.join(name);
        fs::create_dir_all(&at).expect("a group below");
        at
    }
}

/// A guest in a group, in a session of its own.
struct Guest {
    pid: Pid,
    work: tempfile::TempDir,
}

impl Guest {
    fn start(name: &str, args: &[&str], group: &Path, wrap: &[&str]) -> Self {
        let work = tempfile::tempdir().expect("a folder");
        let program = build::guest(name).expect("the guest compiles");
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.display());
        let child = Command::new("sh")
            .args(["-c", &enter, "sh"])
            .args(wrap)
            .arg(program)
            .arg(work.path())
            .arg("-")
            .args(args)
            .current_dir(work.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the guest starts");
        let ready = work.path().join("ready");
        until("ready", || ready.exists());
        let pid = Pid::from_raw(child.id() as i32);
        // it is reaped with all others
        std::mem::forget(child);
        Guest { pid, work }
    }
    fn finish(self) {
        kill(self.pid, Signal::SIGTERM).expect("it is there");
        let result = self.work.path().join("result");
        until("the result", || result.exists());
        let said = fs::read_to_string(&result).expect("a result");
        assert_eq!(said.trim(), "PASS");
    }
    fn gone(&self) {
        let at = format!("/proc/{}", self.pid);
        until("its end", || !Path::new(&at).exists());
    }
}

/// Runs the engine as criu; its words if it fails.
fn criu(verb: &str, dir: &Path, args: &[&str], kill_at: Option<u32>) -> Result<(), String> {
    let engine = Engine::under_test().expect("an engine");
    let mut c = Command::new(engine.path);
    c.arg("criu")
        .arg(verb)
        .arg("-D")
        .arg(dir)
        .args(args)
        .stdin(Stdio::null());
    if let Some(n) = kill_at {
        c.env("STASIS_KILL_AT", n.to_string());
    }
    let out = c.output().expect("the engine starts");
    match out.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}

fn dump(g: &Guest, dir: &Path, args: &[&str]) -> Result<(), String> {
    let pid = g.pid.to_string();
    criu("dump", dir, &[&["-t", &pid], args].concat(), None)
}

/// The group of a thread in cgroup v2.
fn group_of(task: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{task}/cgroup")).expect("it is there");
    text.lines()
        .find_map(|l| l.strip_prefix("0::"))
        .expect("cgroup v2")
        .to_string()
}

fn read(group: &Path, file: &str) -> String {
    fs::read_to_string(group.join(file))
        .expect(file)
        .trim()
        .to_string()
}

/// Waits until nothing in the group is in the middle of being frozen or thawed: the state and the wish agree.
fn settled(group: &Path) -> String {
    let wish = || read(group, "cgroup.freeze");
    let is = || read(group, "cgroup.events").contains("frozen 1");
    until("it settles", || (wish() == "1") == is());
    wish()
}

/// Whether everybody below a group waits for something.
fn all_sleep(group: &Path) -> bool {
    let sleeps = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|s| s.starts_with('S'))
    };
    let pids = |dir: &Path| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    let mut groups = below.map(|e| e.path()).filter(|p| p.is_dir());
    pids(group).lines().all(sleeps) && groups.all(|g| all_sleep(&g))
}

mod inside {
    use super::*;

    /// The guest's process and its first child in a group of its own, and an empty group with a limit.
    fn family(top: &Group) -> (Guest, PathBuf, PathBuf) {
        let (a, b) = (top.sub("in/a"), top.sub("in/b"));
        fs::write(top.sub("in/a/empty").join("cgroup.max.descendants"), "7").expect("a limit");
        let g = Guest::start("tree", &[], &a, &[]);
        let children = format!("/proc/{0}/task/{0}/children", g.pid);
        let children = fs::read_to_string(children).expect("children");
        let child = children.split_whitespace().next().expect("a child");
        fs::write(b.join("cgroup.procs"), child).expect("it moves");
        (g, a, b)
    }

    fn back_home(with_groups: bool) {
        let top = Group::of_test("groups");
        let (g, _, b) = family(&top);
        let child = read(&b, "cgroup.procs");
        let before = [group_of(&g.pid.to_string()), group_of(&child)];
        let dir = tempfile::tempdir().expect("a folder");
        dump(&g, dir.path(), &["--manage-cgroups=soft"]).expect("a dump");
        g.gone();
        if !with_groups {
            top.remove();
        }
        criu("restore", dir.path(), &["-d"], None).expect("a restore");
        assert_eq!([group_of(&g.pid.to_string()), group_of(&child)], before);
        assert_eq!(
            read(&top.0.join("in/a/empty"), "cgroup.max.descendants"),
            "7"
        );
        g.finish();
    }

    #[test]
    #[ignore = "runs in namespaces"]
    fn a_tree_is_back_in_its_groups() {
        back_home(true);
        back_home(false);
    }

    #[test]
    #[ignore = "runs in namespaces"]
    fn in_a_namespace_of_its_own() {
        let top = Group::of_test("groups");
        let leaf = top.sub("container");
        let g = Guest::start("plain", &[], &leaf, &["unshare", "-C"]);
        let below = top.sub("container/inner");
        fs::write(below.join("cgroup.procs"), g.pid.to_string()).expect("it moves");
        let dir = tempfile::tempdir().expect("a folder");
        dump(&g, dir.path(), &[]).expect("a dump");
        g.gone();
        top.remove();
        let own = fs::read_link("/proc/self/ns/cgroup").expect("a namespace");
        criu("restore", dir.path(), &["-d"], None).expect("a restore");
        let pid = g.pid.to_string();
        assert_eq!(group_of(&pid), format!("{}/container/inner", top.path()));
        let theirs = fs::read_link(format!("/proc/{pid}/ns/cgroup")).expect("a namespace");
        assert_ne!(theirs, own);
        // as the task itself sees it
        let seen = Command::new("nsenter")
            .args(["-C", "-t", &pid, "cat"])
            .arg(format!("/proc/{pid}/cgroup"))
            .output()
            .expect("nsenter of util-linux");
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert!(seen.lines().any(|l| l == "0::/inner"), "{seen}");
        g.finish();
    }

    #[test]
    #[ignore = "runs in namespaces"]
    fn threads_are_back_in_theirs() {
        let top = Group::of_test("groups");
        let (a, b) = (top.sub("t/a"), top.sub("t/b"));
        for d in [&a, &b] {
            fs::write(d.join("cgroup.type"), "threaded").expect("a threaded group");
        }
        let g = Guest::start("threads", &["5"], &top.0.join("t"), &[]);
        let tasks = fs::read_dir(format!("/proc/{}/task", g.pid)).expect("threads");
        let mut tids: Vec<String> = tasks
            .map(|t| {
                t.expect("a thread")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        tids.sort();
        for (n, tid) in tids.iter().enumerate() {
            let to = [top.0.join("t"), a.clone(), b.clone()];
            fs::write(to[n % 3].join("cgroup.threads"), tid).expect("it moves");
        }
        let groups = || -> Vec<String> { tids.iter().map(|t| group_of(t)).collect() };
        let before = groups();
        assert!(before.iter().any(|g| g.ends_with("/t/b")), "{before:?}");
        let dir = tempfile::tempdir().expect("a folder");
        dump(&g, dir.path(), &[]).expect("a dump");
        g.gone();
        top.remove();
        criu("restore", dir.path(), &["-d"], None).expect("a restore");
        assert_eq!(groups(), before);
        g.finish();
    }

    #[test]
    #[ignore = "runs in namespaces"]
    fn a_new_root() {
        let top = Group::of_test("groups");
        let (g, ..) = family(&top);
        let dir = tempfile::tempdir().expect("a folder");
        dump(&g, dir.path(), &[]).expect("a dump");
        g.gone();
        // what podman and crun say: no controller; what runc says: an empty one
        for (n, form) in ["", ":"].iter().enumerate() {
            let to = format!("{form}{}/new{n}", top.path());
            criu("restore", dir.path(), &["-d", "--cgroup-root", &to], None).expect("a restore");
            let group = group_of(&g.pid.to_string());
            assert!(
                group.starts_with(&format!("{}/new{n}/", top.path())),
                "{group}"
            );
            if n == 0 {
                top.end("new0");
            }
        }
        g.finish();
    }

    #[test]
    #[ignore = "runs in namespaces"]
    fn modes_are_kept() {
        let top = Group::of_test("groups");
        let (g, a, _) = family(&top);
        let dir = tempfile::tempdir().expect("a folder");
        dump(&g, dir.path(), &[]).expect("a dump");
        g.gone();
        let restore = |mode: &str| {
            let mode = format!("--manage-cgroups={mode}");
            criu("restore", dir.path(), &["-d", &mode], None)
        };
        let end = || top.end("");
        let e = restore("strict").expect_err("its groups are there");
        assert!(e.contains("E6440"), "{e}");
        restore("none").expect("its groups are there");
        assert_eq!(group_of(&g.pid.to_string()), format!("{}/in/a", top.path()));
        end();
        fs::write(top.0.join("in/a/empty/cgroup.max.descendants"), "5").expect("a limit");
        restore("soft").expect("its groups are there");
        assert_eq!(
            read(&top.0.join("in/a/empty"), "cgroup.max.descendants"),
            "5"
        );
        end();
        restore("full").expect("its groups are there");
        assert_eq!(
            read(&top.0.join("in/a/empty"), "cgroup.max.descendants"),
            "7"
        );
        end();
        Group(a.clone()).remove();
        for mode in ["none", "props"] {
            let e = restore(mode).expect_err("a group is missing");
            assert!(e.contains("E6440"), "{mode}: {e}");
            assert!(!a.exists());
        }
        restore("ignore").expect("groups are not looked at");
        assert_eq!(group_of(&g.pid.to_string()), group_of("self"));
        assert!(!a.exists());
        // outside of its group nothing else ends it
        g.finish();
    }

    /// Every combination of before and after, with an error in the middle too.
    #[test]
    #[ignore = "runs in namespaces"]
    fn freezing_leaves_no_trace() {
        let top = Group::of_test("groups");
        let inner = top.sub("inner");
        let g = Guest::start("tree", &[], &top.0, &[]);
        let freeze = ["-R", "--freeze-cgroup", top.0.to_str().expect("a path")];
        let dir = tempfile::tempdir().expect("a folder");
        for state in ["0", "1"] {
            fs::write(top.0.join("cgroup.freeze"), state).expect("a state");
            fs::write(inner.join("cgroup.freeze"), state).expect("a state");
            settled(&top.0);
            dump(&g, dir.path(), &freeze).expect("a dump");
            assert_eq!(
                (
                    settled(&top.0).as_str(),
                    read(&inner, "cgroup.freeze").as_str()
                ),
                (state, state)
            );
            // no room for the images: the tree is held by then
            let small = tempfile::tempdir().expect("a folder");
            let (none, size): (Option<&str>, _) = (None, "size=40k");
            mount(
                none,
                small.path(),
                Some("tmpfs"),
                MsFlags::empty(),
                Some(size),
            )
            .expect("tmpfs");
            let e = dump(&g, small.path(), &freeze).expect_err("it is full");
            umount2(small.path(), MntFlags::MNT_DETACH).expect("tmpfs");
            assert!(e.contains("ENOSPC") || e.contains("No space"), "{e}");
            assert_eq!(settled(&top.0), state);
        }
        // a frozen group that nobody named is named by the error
        let e = dump(&g, dir.path(), &["-R"]).expect_err("it is frozen");
        assert!(e.contains("E4444"), "{e}");
        assert_eq!(settled(&top.0), "1");
        fs::write(top.0.join("cgroup.freeze"), "0").expect("thawed");
        g.finish();
    }

    #[test]
    #[ignore = "runs in namespaces"]
    fn a_killed_engine_leaves_no_trace_of_freezing() {
        let top = Group::of_test("groups");
        let g = Guest::start("tree", &[], &top.0, &[]);
        let dir = tempfile::tempdir().expect("a folder");
        let pid = g.pid.to_string();
        let args = [
            "-t",
            &pid,
            "-R",
            "--freeze-cgroup",
            top.0.to_str().expect("a path"),
        ];
        for state in ["0", "1"] {
            fs::write(top.0.join("cgroup.freeze"), state).expect("a state");
            settled(&top.0);
            let mut killed = 0;
            // points further and further apart
            let (mut n, mut step) = (0, 1);
            loop {
                let done = criu("dump", dir.path(), &args, Some(n));
                // the guardian acts when the engine is gone
                until("the state of before", || {
                    read(&top.0, "cgroup.freeze") == state
                });
                settled(&top.0);
                match done {
                    Ok(()) => break,
                    Err(e) => assert_eq!(e, "", "it was not killed"),
                }
                killed += 1;
                (n, step) = (n + step, step + n / 8);
                if state == "1" {
                    // who was frozen again in the middle of a tape ends it: the next would lie below it on the stack (E4008)
                    fs::write(top.0.join("cgroup.freeze"), "0").expect("thawed");
                    until("all sleep again", || all_sleep(&top.0));
                    fs::write(top.0.join("cgroup.freeze"), state).expect("a state");
                    settled(&top.0);
                }
            }
            assert!(killed > 5, "killed at {killed} places only");
        }
        fs::write(top.0.join("cgroup.freeze"), "0").expect("thawed");
        g.finish();
    }

    #[test]
    #[ignore = "runs in namespaces"]
    fn a_failed_restore_leaves_no_group() {
        let top = Group::of_test("groups");
        let (g, ..) = family(&top);
        let dir = tempfile::tempdir().expect("a folder");
        dump(&g, dir.path(), &[]).expect("a dump");
        g.gone();
        let sub = top.0.join("in");
        Group(sub.clone()).remove();
        // somebody has the pid of a task of the tree
        let last = (g.pid.as_raw() - 1).to_string();
        fs::write("/proc/sys/kernel/ns_last_pid", last).expect("a namespace of our own");
        let mut other = Command::new("sleep").arg("100").spawn().expect("sleep");
        assert_eq!(other.id() as i32, g.pid.as_raw());
        let e = criu("restore", dir.path(), &["-d"], None).expect_err("its pid is taken");
        assert!(e.contains("E6101"), "{e}");
        assert!(!sub.exists(), "groups are left");
        other.kill().expect("it is there");
        other.wait().expect("it ends");
        criu("restore", dir.path(), &["-d"], None).expect("a restore");
        g.finish();
    }
}
