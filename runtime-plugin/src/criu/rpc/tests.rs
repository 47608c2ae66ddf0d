//! Fields of requests into settings, and what callers are told.
use super::super::options::{Fate, by_long};
use super::super::settings::Settings;
use super::connection::Peer;
use super::request::{self, Folders};
use super::{LONGEST, answers, errno, message};
use stasis_engine::options::CgroupMode;
use stasis_engine::{After, Blame, Error};
use stasis_proto::pb::{
    CriuCgMode, CriuFeatures, CriuNetworkLockMethod, CriuOpts, CriuVethPair, ExtMountMap,
    JoinNamespace,
};
use std::time::Duration;

fn taken(o: &CriuOpts) -> Result<Settings, String> {
    let mut s = Settings::default();
    request::take(&mut s, o)?;
    Ok(s)
}

#[test]
fn fields_become_options() {
    let o = CriuOpts {
        pid: Some(7),
        leave_running: Some(true),
        evasive_devices: Some(true),
        shell_job: Some(true),
        file_locks: Some(true),
        link_remap: Some(true),
        ghost_limit: Some(4096),
        timeout: Some(3),
        rst_sibling: Some(true),
        orphan_pts_master: Some(true),
        skip_file_rwx_check: Some(true),
        cpu_cap: Some(1 | 8),
        ..Default::default()
    };
    let s = taken(&o).unwrap();
    let e = &s.options;
    assert_eq!(
        (e.pid, e.after, e.timeout),
        (7, After::Running, Duration::from_secs(3))
    );
    assert!(e.evasive_devices && e.shell_job && e.file_locks && e.link_remap && e.sibling);
    assert!(e.orphan_pts_master && e.skip_file_rwx_check);
    assert_eq!(e.ghost_limit, Some(4096));
    assert!(s.cpu_cap.fpu && !s.cpu_cap.ins && s.cpu_cap.asked);
}

#[test]
fn a_false_field_asks_for_nothing() {
    // runc sends every switch, also those that are off
    let o = CriuOpts {
        leave_running: Some(false),
        ext_unix_sk: Some(false),
        tcp_established: Some(false),
        auto_dedup: Some(false),
        lazy_pages: Some(false),
        track_mem: Some(false),
        tls: Some(false),
        manage_cgroups: Some(false),
        empty_ns: Some(0),
        parent_img: Some(String::new()),
        ..Default::default()
    };
    let (got, fresh) = (taken(&o).unwrap(), Settings::default());
    assert_eq!(format!("{got:?}"), format!("{fresh:?}"));
}

#[test]
fn what_the_table_refuses_is_refused_with_the_name_of_the_field() {
    let is = |name: &str| by_long(name).unwrap().fate;
    let cases: Vec<(&str, &str, CriuOpts)> = vec![
        (
            "tls",
            "tls",
            CriuOpts {
                tls: Some(true),
                ..Default::default()
            },
        ),
        (
            "root",
            "root",
            CriuOpts {
                root: Some("/r".into()),
                ..Default::default()
            },
        ),
        (
            "track_mem",
            "track-mem",
            CriuOpts {
                track_mem: Some(true),
                ..Default::default()
            },
        ),
        (
            "freeze_cgroup",
            "freeze-cgroup",
            CriuOpts {
                freeze_cgroup: Some("/c".into()),
                ..Default::default()
            },
        ),
        (
            "join_ns",
            "join-ns",
            CriuOpts {
                join_ns: vec![JoinNamespace {
                    ns: "ipc".into(),
                    ns_file: "/x".into(),
                    extra_opt: None,
                }],
                ..Default::default()
            },
        ),
    ];
    for (field, option, o) in cases {
        match (is(option), taken(&o)) {
            (Fate::Refused(why), Err(e)) => assert!(e.contains(field) && e.contains(why), "{e}"),
            (Fate::Refused(_), Ok(_)) => panic!("{field} was taken"),
            (_, r) => drop(r.unwrap()),
        }
    }
    for o in [
        CriuOpts {
            empty_ns: Some(0x2000_0000),
            ..Default::default()
        },
        CriuOpts {
            manage_cgroups_mode: Some(99),
            ..Default::default()
        },
        CriuOpts {
            network_lock: Some(99),
            ..Default::default()
        },
        CriuOpts {
            pidfd_store_sk: Some(5),
            ..Default::default()
        },
    ] {
        assert!(taken(&o).is_err(), "{o:?}");
    }
}

#[test]
fn modes_have_the_meaning_they_have_for_criu() {
    let o = CriuOpts {
        // the newer field wins
        manage_cgroups: Some(true),
        manage_cgroups_mode: Some(CriuCgMode::Ignore as i32),
        network_lock: Some(CriuNetworkLockMethod::Skip as i32),
        ..Default::default()
    };
    assert_eq!(taken(&o).unwrap().options.cgroups.mode, CgroupMode::Ignore);
    let o = CriuOpts {
        manage_cgroups: Some(true),
        ..Default::default()
    };
    match taken(&o) {
        Ok(s) => assert_eq!(s.options.cgroups.mode, CgroupMode::Soft),
        Err(e) => assert!(e.contains("manage_cgroups"), "{e}"),
    }
}

#[test]
fn repeated_things_are_kept_once() {
    let pair = || ExtMountMap {
        key: "/dev/null".into(),
        val: "/dev/null".into(),
    };
    let o = CriuOpts {
        ext_mnt: vec![pair(), pair()],
        veths: vec![CriuVethPair {
            if_in: "eth0".into(),
            if_out: "v0@br".into(),
        }],
        ..Default::default()
    };
    match taken(&o) {
        Ok(s) => {
            assert_eq!(s.options.mounts.external.len(), 1);
            assert_eq!(s.options.network.veths[0].2.as_deref(), Some("br"));
        }
        Err(e) => assert!(e.contains("not in this version"), "{e}"),
    }
}

#[test]
fn folders_are_descriptors_of_whoever_asks() {
    use std::os::fd::AsRawFd;
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("here"), "").unwrap();
    let dir = std::fs::File::open(tmp.path()).unwrap();
    let peer = Peer {
        pid: std::process::id() as i32,
        uid: 0,
        gid: 0,
    };
    let mut o = CriuOpts {
        images_dir_fd: dir.as_raw_fd(),
        log_file: Some("a.log".into()),
        log_level: Some(4),
        ..Default::default()
    };
    let (mut s, mut held) = (Settings::default(), Folders::default());
    request::folders(&mut s, &o, peer, &mut held).unwrap();
    drop(dir);
    assert!(s.options.images.join("here").exists());
    assert_eq!(s.work_dir(), s.options.images);
    assert_eq!((s.verbosity, s.log), (4, Some("a.log".into())));
    o.images_dir_fd = -1;
    let mut s = Settings::default();
    assert!(request::folders(&mut s, &o, peer, &mut held).is_err());
    o.images_dir = Some("/some/where".into());
    o.log_file = None;
    request::folders(&mut s, &o, peer, &mut held).unwrap();
    assert_eq!(s.options.images.to_str(), Some("/some/where"));
    assert_eq!(s.log, Some("criu.log".into()));
}

#[test]
fn messages_are_short_and_numbers_tell_the_blame() {
    let e = Error::new("E4001", Blame::Container, "no task 7")
        .why("ä".repeat(2000))
        .advice("x");
    let told = message(&e);
    assert!(
        told.len() <= LONGEST && told.starts_with("error[E4001]: no task 7: ä"),
        "{told}"
    );
    assert!(told.ends_with("..."));
    assert_eq!(errno(&e), 3);
    assert_eq!(errno(&Error::new("E7011", Blame::Caller, "x")), 56);
}

#[test]
fn features_are_answered_by_probes() {
    let asked = CriuFeatures {
        mem_track: Some(true),
        ..Default::default()
    };
    let f = answers(&asked, &[]);
    assert_eq!((f.mem_track, f.lazy_pages), (Some(false), Some(false)));
    let f = answers(&asked, &stasis_engine::check());
    if by_long("track-mem").unwrap().fate != Fate::Honoured {
        assert_eq!(f.mem_track, Some(false));
    }
}

/// Fields of `criu_opts` in the schema: number, name, type.
fn fields() -> Vec<(u32, String, String)> {
    let schema = include_str!("../../../../proto/schema/rpc.proto");
    let from = schema.find("message criu_opts {").unwrap();
    let body = &schema[from..];
    let body = &body[..body.find("\n}").unwrap()];
    let field = |l: &str| {
        let words: Vec<&str> = l.split_whitespace().collect();
        let [_, sort, name, "=", number, ..] = words[..] else {
            return None;
        };
        let number = number.trim_end_matches(';').parse().ok()?;
        Some((number, name.to_owned(), sort.to_owned()))
    };
    body.lines().filter_map(field).collect()
}

/// The field alone, with a value that is not its default, as bytes of the message.
fn alone(number: u32, name: &str, sort: &str) -> Vec<u8> {
    let varint = |n: u64| {
        let (mut n, mut b) = (n, Vec::new());
        while n >= 128 {
            b.push(n as u8 | 128);
            n >>= 7;
        }
        b.push(n as u8);
        b
    };
    let key = |number: u32, wire: u32| varint(u64::from(number << 3 | wire));
    let bytes = |number: u32, value: &[u8]| {
        let mut b = key(number, 2);
        b.extend(varint(value.len() as u64));
        b.extend(value);
        b
    };
    let plain = |number: u32, n: u64| [key(number, 0), varint(n)].concat();
    let inner = match sort {
        "criu_veth_pair" => [bytes(1, b"eth0"), bytes(2, b"veth0")].concat(),
        "ext_mount_map" | "inherit_fd" | "cgroup_root" | "join_namespace" => match name {
            "ext_mnt" => [bytes(1, b"/a"), bytes(2, b"/b")].concat(),
            "inherit_fd" => [bytes(1, b"pipe:[5]"), plain(2, 3)].concat(),
            "cg_root" => bytes(2, b"/group"),
            _ => [bytes(1, b"net"), bytes(2, b"/proc/1/ns/net")].concat(),
        },
        "unix_sk" => plain(1, 5),
        "criu_page_server_info" => [bytes(1, b"10.0.0.1"), plain(2, 5)].concat(),
        "bool" => return plain(number, 1),
        "string" => {
            let value: &[u8] = match name {
                "external" => b"mnt[/a]:b",
                "lsm_profile" => b"apparmor:some",
                _ => b"/some/text",
            };
            return bytes(number, value);
        }
        // a number: the network namespace's flag where only that makes sense
        _ if name == "empty_ns" => return plain(number, 0x4000_0000),
        _ if name == "pre_dump_mode" || name == "network_lock" => return plain(number, 2),
        _ => return plain(number, 4),
    };
    bytes(number, &inner)
}

/// Every field changes what is done, or is refused by its name, or is said to make no difference.
#[test]
fn no_field_is_passed_over() {
    use stasis_proto::prost::Message;
    // what is taken elsewhere than with the options: folders and log, the connection, what is executed, the request's own file
    const ELSEWHERE: [&str; 12] = [
        "images_dir_fd",
        "images_dir",
        "work_dir_fd",
        "log_level",
        "log_file",
        "log_to_stderr",
        "notify_scripts",
        "exec_cmd",
        "config_file",
        "cpu_cap",
        // asks for the mode that is usual
        "manage_cgroups",
        "status_fd",
    ];
    let all = fields();
    assert!(all.len() > 65, "{} fields", all.len());
    for (number, name, sort) in all {
        if ELSEWHERE.contains(&name.as_str()) {
            continue;
        }
        let mut bytes = vec![8, 0]; // images_dir_fd, which is required
        bytes.extend(alone(number, &name, &sort));
        let o = CriuOpts::decode(&bytes[..]).unwrap();
        assert_ne!(
            o,
            CriuOpts::decode(&[8u8, 0][..]).unwrap(),
            "{name} is not in the message"
        );
        match taken(&o) {
            Err(why) => assert!(why.contains(&name) || why.contains("ps"), "{name}: {why}"),
            Ok(s) => {
                let (now, before) = (format!("{s:?}"), format!("{:?}", Settings::default()));
                assert!(now != before, "{name} is passed over");
            }
        }
    }
}
