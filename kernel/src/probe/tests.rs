use super::*;
use crate::ids::HostPid;
use crate::procfs::ProcDir;

#[test]
fn names_are_distinct_and_plain() {
    for (i, p) in all().iter().enumerate() {
        assert!(all()[..i].iter().all(|q| q.name != p.name), "{}", p.name);
        assert!(
            p.name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        );
        assert!(!p.purpose.is_empty() && !p.without.is_empty());
    }
    assert!(find("kcmp").is_some() && find("no-such").is_none());
}

#[test]
fn every_probe_gives_an_answer_and_leaves_nothing() {
    let me = ProcDir::open(HostPid::own()).unwrap();
    for p in all() {
        let outcome = p.run();
        println!("{:24} {outcome:?}", p.name);
        match &outcome {
            Outcome::Present(_) => {}
            Outcome::Absent(why) | Outcome::Denied(why) => {
                assert!(!why.is_empty());
                // Nothing of ours went wrong: these would be mistakes of the probe itself.
                for bug in ["EFAULT", "EBADF", "probe's child", "ECANCELED", "ECHILD"] {
                    assert!(!why.contains(bug), "{}: {why}", p.name);
                }
            }
        }
        // Required features are what this machine runs the other tests with.
        assert!(
            !p.required || outcome.is_present(),
            "{}: {outcome:?}",
            p.name
        );
    }
    // Children of other tests may live, zombies of probes may not.
    for pid in me.children().unwrap() {
        if let Ok(s) = ProcDir::open(pid)
            .map_err(Error::from)
            .and_then(|d| d.stat())
        {
            assert!(s.exit_signal != 0, "a probe left {pid} behind");
        }
    }
}

#[test]
fn denied_is_not_absent() {
    let o = |e| Outcome::from(SysError::new("bpf", e, ""));
    assert!(matches!(o(Errno::EPERM), Outcome::Denied(_)));
    assert!(matches!(o(Errno::EACCES), Outcome::Denied(_)));
    assert!(matches!(o(Errno::ENOSYS), Outcome::Absent(_)));
    assert_eq!(
        o(Errno::ENOSYS).text(),
        "bpf: ENOSYS (Function not implemented)"
    );
    let row = |required, outcome| Report {
        probe: Probe {
            required,
            ..*find("bpf").unwrap()
        },
        outcome,
    };
    assert!(row(true, o(Errno::EPERM)).is_fatal());
    assert!(!row(false, o(Errno::EPERM)).is_fatal());
    assert!(!row(true, Outcome::OK).is_fatal());
}

#[test]
fn capabilities_agree_with_status() {
    let tid = HostPid(nix::unistd::gettid().as_raw());
    let eff = ProcDir::open(tid).unwrap().status().unwrap().cap_eff;
    for n in [12, 19, 21, 24, 40] {
        let got = tasks::capability(n).unwrap().is_present();
        assert_eq!(got, eff >> n & 1 == 1);
    }
    assert!(matches!(tasks::capability(63).unwrap(), Outcome::Denied(_)));
}

#[test]
fn a_child_that_dies_of_a_signal_is_named() {
    let e = child::in_child(|| {
        // SAFETY: ends the child.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        0
    });
    assert_eq!(e.unwrap_err().what, "probe child killed by SIGKILL");
    assert_eq!(child::in_child(|| 42).unwrap(), 42);
}
