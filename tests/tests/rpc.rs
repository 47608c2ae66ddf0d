//! The socket side of the drop-in: `criu swrk`, as runc, crun and go-criu use it.

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use stasis_proto::pb::{CriuFeatures, CriuOpts, CriuReq, CriuReqType, InheritFd};
use stasis_tests::engine::Engine;
use stasis_tests::rpc::{Manner, Worker, request};
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
        (request(CriuReqType::Dump, own(none())), "pid is not given"),
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
    let mut c = Command::new("/usr/bin/setsid");
    c.args(["sleep", "1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // setsid(1) forks only if it leads a group, and here it does not
    let child = c.spawn().unwrap();
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

/// A service does for its callers what they may do themselves, and no more.
#[test]
fn a_service_has_the_rights_of_its_caller() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let engine = Engine::under_test().unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let socket_path = dir.join("s");
    let mut service = Command::new(&engine.path)
        .args(["criu", "service", "--address"])
        .arg(&socket_path)
        .arg("-o")
        .arg(dir.join("service.log"))
        .spawn()
        .unwrap();
    while !socket_path.exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // root asks for itself: the same request is served
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let address = UnixAddr::new(&socket_path).unwrap();
    let mut tries = 0;
    while connect(fd.as_raw_fd(), &address).is_err() && tries < 100 {
        tries += 1;
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
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
    let bytes = stasis_proto::prost::Message::encode_to_vec(&dump);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    // nobody asks the same for a process of root's: a small client, as nobody
    let client = "use Socket; socket(S, AF_UNIX, SOCK_SEQPACKET, 0) or die; \
                  connect(S, sockaddr_un($ARGV[0])) or die; send(S, pack('H*', $ARGV[1]), 0); \
                  recv(S, $b, 8192, 0); print unpack('H*', $b)";
    let ask = |user: &str| {
        let out = Command::new("setpriv")
            .args([
                &format!("--reuid={user}"),
                &format!("--regid={user}"),
                "--clear-groups",
            ])
            .args(["perl", "-e", client])
            .arg(&socket_path)
            .arg(&hex)
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let bytes: Vec<u8> = (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        <stasis_proto::pb::CriuResp as stasis_proto::prost::Message>::decode(&bytes[..]).unwrap()
    };
    let refused = ask("65534");
    assert!(!refused.success, "{refused:?}");
    assert!(!dir.join("inventory.img").exists());
    for e in std::fs::read_dir(dir).unwrap().flatten() {
        if e.path() != socket_path && e.file_name() != "service.log" {
            let _ = std::fs::remove_file(e.path());
        }
    }
    let served = ask("0");
    assert!(served.success, "{served:?}");
    assert!(dir.join("inventory.img").exists());
    service.kill().unwrap();
    service.wait().unwrap();
    nix::sys::signal::kill(Pid::from_raw(victim), nix::sys::signal::SIGKILL).unwrap();
    gone(victim);
}
