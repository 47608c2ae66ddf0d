//! What a dump refuses, it names, and leaves unharmed: each test looks at the error and then lets the task finish its work.

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use stasis_tests::build;
use stasis_tests::engine::Engine;
use stasis_tests::wait::until;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A guest of its own session; it is killed and reaped when the test is over, however that ends.
struct Running(Child, tempfile::TempDir);

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }
    fn work(&self) -> &Path {
        self.1.path()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn guest(name: &str) -> Running {
    let work = tempfile::tempdir().expect("a folder");
    let program = build::guest(name).expect("the guest compiles");
    let child = Command::new(program)
        .arg(work.path())
        .arg("-")
        .current_dir(work.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the guest starts");
    let running = Running(child, work);
    until("ready", || running.work().join("ready").exists());
    running
}

/// The error of a dump that must fail, and how long that took.
fn refused(pid: Pid, options: &[&str]) -> (String, Duration) {
    let dir = tempfile::tempdir().expect("a folder");
    let engine = Engine::under_test().expect("an engine");
    let begun = Instant::now();
    let out = Command::new(&engine.path)
        .args(["dump", &pid.to_string(), "--leave-running", "-D"])
        .arg(dir.path())
        .args(options)
        .output()
        .expect("the engine starts");
    let took = begun.elapsed();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "it was dumped:\n{text}");
    assert!(!dir.path().join("inventory.img").exists(), "{text}");
    (text, took)
}

/// What a preflight tells of a task.
fn foretold(pid: Pid, options: &[&str]) -> String {
    let engine = Engine::under_test().expect("an engine");
    let out = Command::new(&engine.path)
        .args(["check", "--pid", &pid.to_string()])
        .args(options)
        .output()
        .expect("the engine starts");
    let text = [out.stdout, out.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

fn status(pid: Pid, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = text.lines().find(|l| l.starts_with(key)).expect("the line");
    line[key.len()..].trim().to_string()
}

/// The guest's own verdict.
fn passes(mut g: Running) {
    assert_eq!(status(g.pid(), "TracerPid:"), "0");
    kill(g.pid(), Signal::SIGTERM).expect("it lives");
    let ended = g.0.wait().expect("its end");
    let verdict = fs::read_to_string(g.work().join("result")).expect("a verdict");
    assert_eq!((verdict.trim(), ended.code()), ("PASS", Some(0)));
}

/// Its parent sleeps so that nothing can stop it: said soon, not after the limit of the whole dump.
#[test]
fn a_parent_in_vfork() {
    let g = guest("vfork");
    let (text, took) = refused(g.pid(), &[]);
    assert!(text.contains("E4005") && text.contains("vfork"), "{text}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let text = foretold(g.pid(), &[]);
    assert!(text.contains("E4005"), "{text}");
    passes(g);
}

#[test]
fn a_traced_task() {
    let g = guest("plain");
    ptrace::seize(g.pid(), ptrace::Options::empty()).expect("seized");
    let (text, _) = refused(g.pid(), &[]);
    assert!(text.contains("E4004"), "{text}");
    let own = format!("by process {}:", nix::unistd::gettid());
    assert!(text.contains(&own), "the tracer is not named: {text}");
    // still ours, and let go only now
    ptrace::interrupt(g.pid()).expect("still traced");
    waitpid(g.pid(), None).expect("it stops");
    ptrace::detach(g.pid(), None).expect("detached");
    passes(g);
}

/// A program of the i386 ABI that makes its own session, waits for a byte and ends with 7.
#[test]
fn a_32_bit_task() {
    let code: &[u8] = &[
        0xb8, 66, 0, 0, 0, 0xcd, 0x80, // setsid
        0xb8, 3, 0, 0, 0, 0x31, 0xdb, 0x89, 0xe1, 0xba, 1, 0, 0, 0, 0xcd,
        0x80, // read(0, esp, 1)
        0xb8, 1, 0, 0, 0, 0xbb, 7, 0, 0, 0, 0xcd, 0x80, // exit(7)
    ];
    let at = 0x0804_8000u32;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1, 1, 1];
    elf.resize(16, 0);
    for half in [2u16, 3] {
        elf.extend(half.to_le_bytes());
    }
    for word in [1, at + 84, 52, 0, 0] {
        elf.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let len = 84 + code.len() as u32;
    for word in [1, 0, at, at, len, len, 5, 4096] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    let work = tempfile::tempdir().expect("a folder");
    let path = work.path().join("small");
    fs::write(&path, elf).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    let child = match Command::new(&path).stdin(Stdio::piped()).spawn() {
        Ok(c) => c,
        Err(e) if e.raw_os_error() == Some(Errno::ENOEXEC as i32) => {
            eprintln!("skipped: this kernel runs no 32-bit programs");
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let mut g = Running(child, work);
    let pid = g.pid();
    let leads = || nix::unistd::getsid(Some(pid)) == Ok(pid);
    until("its session", || {
        leads() && status(pid, "State:").starts_with('S')
    });
    let (text, _) = refused(pid, &[]);
    assert!(text.contains("E4006"), "{text}");
    let text = foretold(pid, &[]);
    assert!(text.contains("E4006"), "{text}");
    assert_eq!(status(pid, "TracerPid:"), "0");
    let mut to = g.0.stdin.take().expect("a pipe");
    to.write_all(b"x").expect("it reads");
    assert_eq!(g.0.wait().expect("its end").code(), Some(7));
}

/// Only looked at where kernel threads can be seen.
#[test]
fn a_kernel_thread() {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let thread = fs::read_dir("/proc").expect("/proc").find_map(|e| {
        let pid: i32 = e.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let flags = stat.rsplit_once(')')?.1.split_whitespace().nth(6)?;
        (flags.parse::<u64>().ok()? & PF_KTHREAD != 0).then_some(pid)
    });
    let Some(pid) = thread else {
        eprintln!("skipped: no kernel thread in this pid namespace");
        return;
    };
    let (text, _) = refused(Pid::from_raw(pid), &["--shell-job"]);
    assert!(text.contains("E4002"), "{text}");
}

/// A leader whose first child stayed in the session it left: that one goes on outside of the tree.
#[test]
fn half_a_session() {
    let work = tempfile::tempdir().expect("a folder");
    let child = Command::new("sh")
        .args(["-c", "sleep 60 & echo $! > kid; exec setsid sleep 60"])
        .current_dir(work.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("sh");
    let g = Running(child, work);
    let pid = g.pid();
    until("its session", || nix::unistd::getsid(Some(pid)) == Ok(pid));
    let kid = fs::read_to_string(g.work().join("kid")).expect("written");
    let kid = Pid::from_raw(kid.trim().parse().expect("a pid"));
    let told = std::panic::catch_unwind(|| {
        let (text, _) = refused(pid, &[]);
        assert!(text.contains("E4012"), "{text}");
        assert!(text.contains(&format!("task {kid} ")), "{text}");
        let text = foretold(pid, &[]);
        assert!(text.contains("E4012"), "{text}");
        for p in [pid, kid] {
            assert_eq!(status(p, "TracerPid:"), "0");
            assert!(status(p, "State:").starts_with('S'));
        }
        // no member of its session either
        let (text, _) = refused(kid, &[]);
        assert!(text.contains("E4010"), "{text}");
    });
    let _ = kill(kid, Signal::SIGKILL);
    told.expect("as it should be");
}
