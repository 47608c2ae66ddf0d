//! The socket side of the drop-in: `criu swrk`, as runc, crun and go-criu use it.
//!
//! Long because every type of request has its test.

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use stasis_proto::pb::{CriuFeatures, CriuOpts, CriuReq, CriuReqType, InheritFd};
use stasis_tests::engine::Engine;
use stasis_tests::rpc::{Manner, Worker, no_worker_starts, request};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

fn worker(manner: Manner) -> Worker {
    // something has 3, so that it is not the socket's own number here
    let _three = File::open("/dev/null").unwrap();
    Worker::start(&Engine::under_test().unwrap(), manner, None).unwrap()
}

#[test]
fn the_version_is_a_released_one_on_any_descriptor() {
    for manner in [Manner::Runc, Manner::GoCriu] {
        let mut w = worker(manner);
        let r = w.ask(&request(CriuReqType::Version, None)).unwrap();
        let v = r.version.clone().expect("a version");
        assert_eq!((r.success, r.r#type()), (true, CriuReqType::Version));
        assert_eq!(
            (v.major_number, v.minor_number, v.sublevel),
            (4, 2, Some(0))
        );
        // go-criu and libcriu count a minor up when there is one
        assert_eq!(v.gitid, None);
        assert_eq!(w.end().unwrap(), 0);
    }
}

#[test]
fn questions_may_follow_each_other() {
    let mut w = worker(Manner::GoCriu);
    let mut q = request(CriuReqType::FeatureCheck, None);
    q.keep_open = Some(true);
    q.features = Some(CriuFeatures {
        mem_track: Some(true),
        lazy_pages: None,
        pidfd_store: Some(true),
    });
    let r = w.ask(&q).unwrap();
    let f = r.features.expect("answers");
    assert!(r.success && f.mem_track.is_some());
    assert_eq!((f.lazy_pages, f.pidfd_store), (Some(false), Some(false)));
    let check = w.ask(&request(CriuReqType::Check, None)).unwrap();
    assert_eq!((check.r#type(), check.success), (CriuReqType::Check, true));
    assert_eq!(w.end().unwrap(), 0);
}

#[test]
fn what_cannot_be_served_is_answered_with_a_reason() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = File::open(tmp.path()).unwrap();
    let own = |o: CriuOpts| {
        Some(CriuOpts {
            images_dir_fd: dir.as_raw_fd(),
            log_level: Some(4),
            log_file: Some("x.log".into()),
            ..o
        })
    };
    let none = CriuOpts::default;
    let pid = Some(std::process::id() as i32);
    let cases: Vec<(CriuReq, &str)> = vec![
        (request(CriuReqType::Empty, None), "no type"),
        (request(CriuReqType::Dump, None), "no opts"),
        (
            request(
                CriuReqType::Dump,
                Some(CriuOpts {
                    images_dir_fd: -1,
                    ..none()
                }),
            ),
            "images_dir",
        ),
        (
            request(
                CriuReqType::Dump,
                Some(CriuOpts {
                    images_dir_fd: 999,
                    ..none()
                }),
            ),
            "images_dir_fd 999",
        ),
        (
            // the worker is a child of who asks
            request(CriuReqType::Dump, own(none())),
            "the engine itself is in that tree",
        ),
        (
            request(
                CriuReqType::Dump,
                own(CriuOpts {
                    empty_ns: Some(1),
                    pid,
                    ..none()
                }),
            ),
            "empty_ns 0x1",
        ),
        (
            request(
                CriuReqType::Dump,
                own(CriuOpts {
                    log_file: Some("../x".into()),
                    ..none()
                }),
            ),
            "pid",
        ),
        (
            request(
                CriuReqType::Restore,
                own(CriuOpts {
                    inherit_fd: vec![InheritFd {
                        key: "pipe:[1]".into(),
                        fd: 77,
                    }],
                    ..none()
                }),
            ),
            "inherit_fd pipe:[1]",
        ),
        (request(CriuReqType::Restore, own(none())), "inventory.img"),
    ];
    for (q, why) in cases {
        let mut w = worker(Manner::GoCriu);
        let r = w.ask(&q).unwrap();
        let told = r.cr_errmsg.clone().unwrap_or_default();
        assert!(!r.success && told.contains(why), "{q:?}: {r:?}");
        assert_eq!(r.r#type(), q.r#type());
        assert!(r.cr_errno.is_some_and(|n| n > 0), "{r:?}");
        if q.r#type() == CriuReqType::Restore {
            assert_eq!(r.restore.map(|r| r.pid), Some(-1));
        }
        assert_eq!(w.end().unwrap(), 1);
    }
    let log = std::fs::read_to_string(tmp.path().join("x.log")).unwrap();
    assert!(log.contains("Error ("), "{log}");
    let mut w = worker(Manner::GoCriu);
    let bad = CriuOpts {
        images_dir_fd: dir.as_raw_fd(),
        log_file: Some("../x".into()),
        ..none()
    };
    let r = w.ask(&request(CriuReqType::Dump, Some(bad))).unwrap();
    assert_eq!(r.cr_errno, Some(56), "{r:?}");
    assert!(r.cr_errmsg.unwrap().contains("../x"));
}

/// A process of its own session, with nothing that leads outside.
fn sleeper() -> i32 {
    sleeper_at(Stdio::null())
}

/// The same with this standard input.
fn sleeper_at(input: Stdio) -> i32 {
    let mut c = Command::new("/usr/bin/setsid");
    c.args(["sleep", "1000"])
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // setsid(1) forks only if it leads a group, and here it does not
    let child = {
        let _alone = no_worker_starts();
        c.spawn().unwrap()
    };
    let pid = child.id() as i32;
    // the tests wait for it by its number
    std::mem::forget(child);
    let comm = format!("/proc/{pid}/comm");
    while std::fs::read_to_string(&comm).unwrap() != "sleep\n" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    pid
}

fn options(dir: &File, log: &str) -> CriuOpts {
    CriuOpts {
        images_dir_fd: dir.as_raw_fd(),
        work_dir_fd: Some(dir.as_raw_fd()),
        log_level: Some(4),
        log_file: Some(log.into()),
        notify_scripts: Some(true),
        ..Default::default()
    }
}

fn gone(pid: i32) {
    waitpid(Pid::from_raw(pid), None).unwrap();
}

#[test]
fn a_tree_is_dumped_and_restored_as_a_child_of_the_runtime() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = File::open(tmp.path()).unwrap();
    let pid = sleeper();

    // whoever objects stops the dump, and the tree runs on
    for objection in ["pre-dump", "network-lock", "post-dump"] {
        let mut w = worker(Manner::Runc);
        w.object_to = Some(objection);
        let dump = CriuOpts {
            pid: Some(pid),
            ..options(&dir, "dump.log")
        };
        let r = w.ask(&request(CriuReqType::Dump, Some(dump))).unwrap();
        assert!(!r.success, "{objection}: {r:?}");
        assert!(!tmp.path().join("inventory.img").exists(), "{objection}");
        let unlocked = w.names().contains(&"network-unlock");
        assert_eq!(unlocked, objection != "pre-dump", "{objection}");
        let again = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).unwrap();
        assert_eq!(again, nix::sys::wait::WaitStatus::StillAlive, "{objection}");
    }

    let mut w = worker(Manner::Runc);
    let dump = CriuOpts {
        pid: Some(pid),
        ..options(&dir, "dump.log")
    };
    let r = w.ask(&request(CriuReqType::Dump, Some(dump))).unwrap();
    let log = || std::fs::read_to_string(tmp.path().join("dump.log")).unwrap();
    assert!(r.success, "{r:?}\n{}", log());
    assert_eq!(
        w.names(),
        ["pre-dump", "network-lock", "query-ext-files", "post-dump"]
    );
    assert_eq!(w.end().unwrap(), 0);
    gone(pid);
    assert!(tmp.path().join("stats-dump").exists() && tmp.path().join("inventory.img").exists());

    for (objection, manner) in [
        (Some("post-restore"), Manner::Runc),
        (Some("pre-resume"), Manner::Runc),
        (None, Manner::GoCriu),
    ] {
        let mut w = worker(manner);
        w.object_to = objection;
        let restore = CriuOpts {
            rst_sibling: Some(true),
            ..options(&dir, "restore.log")
        };
        let r = w
            .ask(&request(CriuReqType::Restore, Some(restore)))
            .unwrap();
        let log = std::fs::read_to_string(tmp.path().join("restore.log")).unwrap();
        if objection.is_some() {
            assert!(!r.success, "{log}");
            // a sibling is its parent's to wait for, also a killed one
            gone(pid);
            assert!(!Path::new(&format!("/proc/{pid}")).exists());
            continue;
        }
        assert!(r.success, "{r:?}\n{log}");
        assert_eq!(r.restore.map(|r| r.pid), Some(pid));
        assert_eq!(
            w.names(),
            [
                "pre-restore",
                "setup-namespaces",
                "post-setup-namespaces",
                "post-restore",
                "network-unlock",
                "pre-resume",
                "post-resume"
            ]
        );
        for (name, told, _) in &w.told {
            let of_root = !matches!(name.as_str(), "pre-restore" | "network-unlock");
            assert_eq!(told.is_some(), of_root, "{name}");
        }
        assert_eq!(w.end().unwrap(), 0);
        assert!(tmp.path().join("stats-restore").exists());
        nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        // only a parent can
        gone(pid);
    }
}

fn log(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_default()
}

/// What the caller names only when the tree is frozen stays outside, and comes back from the caller.
#[test]
fn the_answer_to_a_question_names_files_outside() {
    use std::os::unix::fs::MetadataExt;
    let tmp = tempfile::tempdir().unwrap();
    let dir = File::open(tmp.path()).unwrap();
    let [old, new] = ["old", "new"].map(|n| File::create_new(tmp.path().join(n)).unwrap());
    let pid = sleeper_at(old.try_clone().unwrap().into());
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/0")).unwrap();
    let mount: u32 = info
        .lines()
        .find_map(|l| l.strip_prefix("mnt_id:"))
        .and_then(|n| n.trim().parse().ok())
        .unwrap();
    let key = format!("file[{mount:x}:{:x}]", old.metadata().unwrap().ino());
    for (named, good) in [("bogus", false), (key.as_str(), true)] {
        let mut w = worker(Manner::Runc);
        w.external = vec![named.into()];
        let dump = CriuOpts {
            pid: Some(pid),
            ..options(&dir, "dump.log")
        };
        let r = w.ask(&request(CriuReqType::Dump, Some(dump))).unwrap();
        assert_eq!(r.success, good, "{r:?}\n{}", log(tmp.path(), "dump.log"));
        if !good {
            assert!(r.cr_errmsg.unwrap().contains("names bogus"));
        }
    }
    gone(pid);
    let restore = |inherit_fd| {
        let stdio = [
            new.try_clone().unwrap().into(),
            Stdio::null(),
            Stdio::null(),
        ];
        let mut w =
            Worker::start(&Engine::under_test().unwrap(), Manner::GoCriu, Some(stdio)).unwrap();
        let opts = CriuOpts {
            rst_sibling: Some(true),
            inherit_fd,
            ..options(&dir, "restore.log")
        };
        w.ask(&request(CriuReqType::Restore, Some(opts))).unwrap()
    };
    let r = restore(Vec::new());
    assert!(!r.success && r.cr_errmsg.unwrap().contains(&key));
    let r = restore(vec![InheritFd { key, fd: 0 }]);
    assert!(r.success, "{r:?}\n{}", log(tmp.path(), "restore.log"));
    let link = std::fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
    nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    gone(pid);
    assert_eq!(link, tmp.path().join("new"));
}

/// Pages go to a server that was asked for over another connection, and which another request waits for.
#[test]
fn page_servers_are_started_by_requests() {
    use stasis_proto::pb::CriuPageServerInfo;
    for t in [CriuReqType::PageServer, CriuReqType::PageServerChld] {
        let tmp = tempfile::tempdir().unwrap();
        let [here, there] = ["here", "there"].map(|n| {
            std::fs::create_dir(tmp.path().join(n)).unwrap();
            File::open(tmp.path().join(n)).unwrap()
        });
        let mut server = worker(Manner::GoCriu);
        let (mut status, ready) = std::io::pipe().unwrap();
        let opts = CriuOpts {
            status_fd: Some(ready.as_raw_fd()),
            ..options(&there, "server.log")
        };
        let mut q = request(t, Some(opts));
        q.keep_open = Some(true);
        let r = server.ask(&q).unwrap();
        drop(ready);
        let told = || log(&tmp.path().join("there"), "server.log");
        assert!(r.success, "{r:?}\n{}", told());
        assert_eq!(r.r#type(), CriuReqType::PageServer);
        let (pid, port) = r.ps.map(|p| (p.pid(), p.port())).unwrap();
        assert!(pid > 0 && port > 0);
        let mut byte = [1];
        std::io::Read::read_exact(&mut status, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        let tree = sleeper();
        let dump = CriuOpts {
            pid: Some(tree),
            ps: Some(CriuPageServerInfo {
                address: Some("127.0.0.1".into()),
                port: Some(port),
                ..Default::default()
            }),
            ..options(&here, "dump.log")
        };
        let mut w = worker(Manner::GoCriu);
        let r = w.ask(&request(CriuReqType::Dump, Some(dump))).unwrap();
        assert!(r.success, "{r:?}\n{}", told());
        gone(tree);
        if t == CriuReqType::PageServerChld {
            let mut q = request(CriuReqType::WaitPid, None);
            q.pid = Some(pid as u32);
            let r = server.ask(&q).unwrap();
            assert_eq!((r.success, r.status), (true, Some(0)), "{r:?}\n{}", told());
        }
        let _ = server.end().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while Path::new(&format!("/proc/{pid}/fd/0")).exists() {
            assert!(std::time::Instant::now() < until, "it goes on: {}", told());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        for e in std::fs::read_dir(tmp.path().join("there")).unwrap() {
            let e = e.unwrap();
            if e.file_name().to_string_lossy().starts_with("page") {
                std::fs::rename(e.path(), tmp.path().join("here").join(e.file_name())).unwrap();
            }
        }
        let mut w = worker(Manner::GoCriu);
        let restore = CriuOpts {
            rst_sibling: Some(true),
            ..options(&here, "restore.log")
        };
        let r = w
            .ask(&request(CriuReqType::Restore, Some(restore)))
            .unwrap();
        assert!(
            r.success,
            "{r:?}\n{}",
            log(&tmp.path().join("here"), "restore.log")
        );
        nix::sys::signal::kill(Pid::from_raw(tree), nix::sys::signal::SIGKILL).unwrap();
        gone(tree);
    }
}

/// Two answers for one question: after the dump, if the caller runs on, and after each restore.
#[test]
fn a_caller_may_ask_for_its_own_dump() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let engine = Engine::under_test().unwrap();
    let service = Service::start(&engine, dir);
    let images = dir.join("images");
    std::fs::create_dir(&images).unwrap();
    let opts = CriuOpts {
        images_dir_fd: -1,
        images_dir: Some(images.display().to_string()),
        log_level: Some(4),
        log_file: Some("dump.log".into()),
        ..Default::default()
    };
    let hex = hex(&request(CriuReqType::Dump, Some(opts)));
    let answer = dir.join("answer");
    let script = format!(
        "{CLIENT} open(F, '>', $ARGV[2]) or die; print F unpack('H*', $b) or die; close F; sleep 1000"
    );
    let mut c = Command::new("setsid");
    c.args(["perl", "-e", &script])
        .arg(&service.socket)
        .arg(hex)
        .arg(&answer);
    c.current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = {
        let _alone = no_worker_starts();
        c.spawn().unwrap()
    };
    let pid = child.id() as i32;
    // the dump ends it, without an answer
    let told = || log(&images, "dump.log");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if answer.exists() || std::time::Instant::now() > until => {
                let _ = child.kill();
                panic!("it was not dumped: {}", told());
            }
            None => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    };
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9),
        "{}",
        told()
    );
    assert!(images.join("inventory.img").exists(), "{}", told());
    assert!(!answer.exists());
    for _ in 0..2 {
        let out = Command::new(&engine.path)
            .args(["criu", "restore", "-d", "-S", "-D"])
            .arg(&images)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let r = loop {
            match unhex(&log(dir, "answer")) {
                Some(r) => break r,
                None => assert!(std::time::Instant::now() < until, "it was not told"),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        assert!(r.success && r.r#type() == CriuReqType::Dump, "{r:?}");
        assert_eq!(r.dump.and_then(|d| d.restored), Some(true), "{r:?}");
        nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        gone(pid);
        std::fs::remove_file(&answer).unwrap();
    }
}

/// `criu service`, ended with the test.
struct Service {
    child: std::process::Child,
    socket: std::path::PathBuf,
}

impl Service {
    fn start(engine: &Engine, dir: &Path) -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
        let at = dir.join("s");
        let child = Command::new(&engine.path)
            .args(["criu", "service", "--address"])
            .arg(&at)
            .arg("-o")
            .arg(dir.join("service.log"))
            .spawn()
            .unwrap();
        let service = Self { child, socket: at };
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        );
        let fd = fd.unwrap();
        let address = UnixAddr::new(&service.socket).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while connect(fd.as_raw_fd(), &address).is_err() {
            assert!(std::time::Instant::now() < until, "no service");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        service
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends the request of the second argument (hexadecimal) to the socket of the first, and has the answer in `$b`.
const CLIENT: &str = "use Socket; socket(S, AF_UNIX, SOCK_SEQPACKET, 0) or die; \
                      connect(S, sockaddr_un($ARGV[0])) or die; send(S, pack('H*', $ARGV[1]), 0); \
                      recv(S, $b, 8192, 0);";

fn hex(r: &CriuReq) -> String {
    let bytes = stasis_proto::prost::Message::encode_to_vec(r);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A response; `None` as long as there is none.
fn unhex(text: &str) -> Option<stasis_proto::pb::CriuResp> {
    let bytes: Option<Vec<u8>> = (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok())
        .collect();
    let bytes = bytes.filter(|b| !b.is_empty())?;
    stasis_proto::prost::Message::decode(&bytes[..]).ok()
}

/// A service does for its callers what they may do themselves, and no more.
#[test]
fn a_service_has_the_rights_of_its_caller() {
    let engine = Engine::under_test().unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let service = Service::start(&engine, dir);
    let victim = sleeper();
    let dump = request(
        CriuReqType::Dump,
        Some(CriuOpts {
            images_dir_fd: -1,
            images_dir: Some(dir.display().to_string()),
            pid: Some(victim),
            leave_running: Some(true),
            log_level: Some(4),
            ..Default::default()
        }),
    );
    let hex = hex(&dump);
    // root asks for itself and is served; nobody asks the same for a process of root's: a small client, as nobody
    let client = format!("{CLIENT} print unpack('H*', $b)");
    let ask = |user: &str| {
        let out = Command::new("setpriv")
            .args([
                &format!("--reuid={user}"),
                &format!("--regid={user}"),
                "--clear-groups",
            ])
            .args(["perl", "-e", &client])
            .arg(&service.socket)
            .arg(&hex)
            .output()
            .unwrap();
        unhex(&String::from_utf8(out.stdout).unwrap()).unwrap()
    };
    let refused = ask("65534");
    assert!(!refused.success, "{refused:?}");
    assert!(!dir.join("inventory.img").exists());
    for e in std::fs::read_dir(dir).unwrap().flatten() {
        if e.path() != service.socket && e.file_name() != "service.log" {
            let _ = std::fs::remove_file(e.path());
        }
    }
    let served = ask("0");
    assert!(served.success, "{served:?}");
    assert!(dir.join("inventory.img").exists());
    nix::sys::signal::kill(Pid::from_raw(victim), nix::sys::signal::SIGKILL).unwrap();
    gone(victim);
}
