//! Containers of Debian's runtimes, checkpointed and restored by the runtimes' own commands.
//!
//! `STASIS_ENGINE` names another engine (CRIU); `STASIS_KEEP` a folder that gets a copy of each scenario's.

use stasis_tests::engine::Engine;
use stasis_tests::runtimes::{Outcome, run, scenarios};
use std::path::Path;

fn works(name: &str) {
    let s = scenarios().find(|s| s.name == name).expect("in the table");
    let engine = Engine::under_test().expect("an engine");
    match run(Path::new(env!("CARGO_BIN_EXE_stasis-box")), s, &engine) {
        Ok(Outcome::Passed) => println!("{name}: ok"),
        Ok(Outcome::Skipped(why)) => {
            assert!(std::env::var_os("CI").is_none(), "{name}: {why}");
            eprintln!("skipped: {name}: {why}");
        }
        Ok(Outcome::Failed(why)) => panic!("{name}:\n{why}"),
        Err(e) => panic!("{name} could not be run: {e:#}"),
    }
}

macro_rules! works {
    ($($name:ident)*) => {
        $(#[test] fn $name() { works(stringify!($name)); })*

        #[test]
        fn every_scenario_is_run() {
            let run = [$(stringify!($name)),*];
            let all: Vec<_> = scenarios().map(|s| s.name).collect();
            assert_eq!(run[..], all[..]);
        }
    };
}
works!(runc_pipe runc_again_and_again runc_leave_running runc_paused runc_readonly runc_shared_cgroup_namespace runc_volume runc_many
    runc_host_file runc_user_namespace runc_loopback runc_terminal runc_lazy runc_cgroup_modes bundle_alone bundle_seccomp crun_requests crun_image_under_runc bundle_migrates podman_checkpoint podman_leave_running podman_export podman_volume
    podman_image podman_user_namespace podman_again
    podman_ten_times podman_file_locks podman_terminal podman_ignore podman_addresses podman_pod podman_pre_checkpoint
    podman_tcp_silent podman_tcp_busy podman_tcp_import podman_tcp_neighbours
    rootless_process rootless_runc rootless_runc_plain_dump rootless_podman rootless_podman_shared_memory rootless_podman_import
    rootless_unknown_filter
    redis_runc redis_podman nginx_runc nginx_podman
    hostile_tasks hostile_files hostile_mounts);
