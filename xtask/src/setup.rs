//! Debian packages that tests, demo and bench need. Nothing else of the system is touched.
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Need {
    /// A program, or an absolute path, that is there when the package is.
    probe: &'static str,
    package: &'static str,
    why: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        probe: "gcc",
        package: "gcc",
        why: "guest programs of the tests are C",
    },
    Need {
        probe: "/usr/include/stdio.h",
        package: "libc6-dev",
        why: "headers for them",
    },
    Need {
        probe: "clang",
        package: "clang",
        why: "compiles the network lock's programs; without it the object that is checked in is used",
    },
    Need {
        probe: "unshare",
        package: "util-linux",
        why: "demo and bench run in namespaces of their own",
    },
    Need {
        probe: "ip",
        package: "iproute2",
        why: "the proof that connections survive joins two network namespaces",
    },
    Need {
        probe: "crit",
        package: "criu",
        why: "its crit reads our images in tests; its engine is not used",
    },
    Need {
        probe: "/usr/include/seccomp.h",
        package: "libseccomp-dev",
        why: "the feature libseccomp compiles profiles with it; without the feature it is not needed",
    },
    Need {
        probe: "runc",
        package: "runc",
        why: "containers of demo and tests",
    },
    Need {
        probe: "busybox",
        package: "busybox-static",
        why: "what runs in them",
    },
    Need {
        probe: "make",
        package: "make",
        why: "a build is dumped in the middle, by a test",
    },
    Need {
        probe: "xz",
        package: "xz-utils",
        why: "xz -T2 is dumped at work, by a test",
    },
    Need {
        probe: "perl",
        package: "perl",
        why: "data is dumped at work, by a test",
    },
    Need {
        probe: "python3",
        package: "python3",
        why: "python is dumped at work, by a test",
    },
    Need {
        probe: "node",
        package: "nodejs",
        why: "node is dumped at work, by a test",
    },
    Need {
        probe: "javac",
        package: "openjdk-17-jdk-headless",
        why: "a JVM is dumped at work, by a test",
    },
    Need {
        probe: "podman",
        package: "podman",
        why: "containers are checkpointed and restored by it, by tests",
    },
    Need {
        probe: "/usr/bin/conmon",
        package: "conmon",
        why: "podman watches containers with it",
    },
    Need {
        probe: "/usr/lib/podman/netavark",
        package: "netavark",
        why: "podman's networks, and podman starts no container without it",
    },
    Need {
        probe: "ip",
        package: "iproute2",
        why: "loopback of tests' networks is set up with it",
    },
    Need {
        probe: "iptables",
        package: "iptables",
        why: "netavark sets up podman's bridge with it",
    },
    Need {
        probe: "newuidmap",
        package: "uidmap",
        why: "rootless podman makes its user namespace with it",
    },
    Need {
        probe: "redis-server",
        package: "redis-server",
        why: "a database in a container is checkpointed under load, by tests",
    },
    Need {
        probe: "redis-benchmark",
        package: "redis-tools",
        why: "the load",
    },
    Need {
        probe: "nginx",
        package: "nginx-light",
        why: "a web server in a container is checkpointed under load, by tests",
    },
    Need {
        probe: "wrk",
        package: "wrk",
        why: "the load",
    },
];

fn present(probe: &str) -> bool {
    if probe.starts_with('/') {
        return Path::new(probe).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // where Debian keeps administrators' programs, even if the caller's PATH does not
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|d: PathBuf| d.join(probe).is_file())
}

/// Runs the verb: says what is missing and why, installs it.
///
/// # Errors
/// Not root, no apt-get, or the installation failed.
pub fn run() -> Result<()> {
    let missing: Vec<_> = NEEDS.iter().filter(|n| !present(n.probe)).collect();
    if missing.is_empty() {
        println!("setup: everything is there");
        return Ok(());
    }
    for n in &missing {
        println!("setup: {} is missing: {}", n.package, n.why);
    }
    let packages: Vec<_> = missing.iter().map(|n| n.package).collect();
    let command = format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if !present("apt-get") {
        bail!(
            "this is no Debian: install what corresponds to {}",
            packages.join(", ")
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("run as root: {command}");
    }
    println!("setup: {command}");
    apt(&["update", "--quiet"])?;
    apt(&[
        &["install", "--yes", "--quiet", "--no-install-recommends"],
        &packages[..],
    ]
    .concat())
}

fn apt(args: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("apt-get")?;
    if !status.success() {
        bail!("apt-get {}: {status}", args.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_not() {
        assert!(present("sh"));
        assert!(present("/etc/passwd"));
        assert!(!present("no-such-program-of-anybody"));
        assert!(!present("/no/such/file"));
    }
}
