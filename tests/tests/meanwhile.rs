//! What happens to a tree while it is dumped: it ends, it is continued, it cannot be stopped in time.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stasis_tests::build;
use stasis_tests::engine::Engine;
use stasis_tests::wait::until;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A process of its own session; it is killed and reaped when the test is over, however that ends.
struct Running(Child, tempfile::TempDir);

impl Running {
    fn start(program: &Path, args: &[&str]) -> Self {
        let work = tempfile::tempdir().expect("a folder");
        let mut c = Command::new("setsid");
        let null = || Stdio::null();
        c.arg(program).args(args).current_dir(work.path());
        c.stdin(null()).stdout(null()).stderr(null());
        Self(c.spawn().expect("it starts"), work)
    }
    fn guest(name: &str) -> Self {
        let program = build::guest(name).expect("the guest compiles");
        let work = tempfile::tempdir().expect("a folder");
        let mut c = Command::new("setsid");
        c.arg(program).arg(work.path()).arg("-");
        c.current_dir(work.path());
        c.stdin(Stdio::null()).stdout(Stdio::null());
        let g = Self(c.spawn().expect("the guest starts"), work);
        until("ready", || g.1.path().join("ready").exists());
        g
    }
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }
    fn passes(mut self) {
        kill(self.pid(), Signal::SIGTERM).expect("it lives");
        until("its end", || {
            self.0.try_wait().expect("our child").is_some()
        });
        let verdict = fs::read_to_string(self.1.path().join("result")).expect("a verdict");
        assert_eq!(verdict.trim(), "PASS");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a dump that lets the tree run on.
fn dump(pid: Pid, dir: &Path, options: &[&str]) -> Child {
    let engine = Engine::under_test().expect("an engine");
    Command::new(&engine.path)
        .args(["dump", &pid.to_string(), "--leave-running", "-D"])
        .arg(dir)
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the engine starts")
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The letter of its state.
fn state(pid: Pid) -> char {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = text.rsplit(')').next().unwrap_or_default();
    after.trim_start().chars().next().unwrap_or('?')
}

/// Whoever ends is dumped whole, or it is said that it is gone; never half of it.
#[test]
fn the_process_ends() {
    let (mut dumped, mut gone) = (0, 0);
    for round in 0..40u32 {
        let seconds = format!("0.{:04}", 20 + round * 7);
        let g = Running::start(Path::new("sleep"), &[&seconds]);
        let dir = tempfile::tempdir().expect("a folder");
        let out = dump(g.pid(), dir.path(), &[])
            .wait_with_output()
            .expect("its end");
        let complete = dir.path().join("inventory.img").exists();
        assert_eq!(out.status.success(), complete, "{}", said(&out));
        if complete {
            dumped += 1;
        } else {
            gone += 1;
            let text = said(&out);
            // setsid itself may be met before it has become a leader
            assert!(text.contains("error[E4"), "{text}");
        }
    }
    println!("{dumped} dumped, {gone} gone in time");
}

/// Children that come and go all the time do not make a dump fail.
#[test]
fn children_end() {
    let g = Running::start(
        Path::new("sh"),
        &["-c", "while :; do /bin/true & /bin/true; wait; done"],
    );
    until("it runs", || state(g.pid()) != '?');
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..15 {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dump(g.pid(), dir.path(), &[])
            .wait_with_output()
            .expect("its end");
        let text = said(&out);
        // a child that is between vfork and execve, or between fork and its own mappings, is met like any other
        assert!(out.status.success(), "{text}");
        assert!(dir.path().join("inventory.img").exists());
    }
    assert!(state(g.pid()) != 'Z' && state(g.pid()) != '?');
}

/// A stopped tree that is continued while it is dumped runs afterwards: the signal is not lost.
#[test]
fn it_is_continued() {
    for round in 0..12u64 {
        let g = Running::guest("plain");
        kill(g.pid(), Signal::SIGSTOP).expect("it lives");
        until("it is stopped", || state(g.pid()) == 'T');
        let dir = tempfile::tempdir().expect("a folder");
        let engine = dump(g.pid(), dir.path(), &[]);
        std::thread::sleep(Duration::from_micros(500 * round));
        kill(g.pid(), Signal::SIGCONT).expect("it lives");
        let out = engine.wait_with_output().expect("its end");
        assert!(out.status.success(), "{}", said(&out));
        until("it runs", || matches!(state(g.pid()), 'R' | 'S'));
        g.passes();
    }
}

/// A task that does not stop within the time given is named, and the tree goes on.
#[test]
fn it_does_not_stop_in_time() {
    let g = Running::guest("vfork");
    let dir = tempfile::tempdir().expect("a folder");
    let begun = Instant::now();
    let out = dump(g.pid(), dir.path(), &["--timeout", "1"])
        .wait_with_output()
        .expect("its end");
    let text = said(&out);
    assert!(!out.status.success() && text.contains("E4005"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{text}");
    assert!(!dir.path().join("inventory.img").exists());
    g.passes();
}
