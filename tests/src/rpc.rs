//! A runtime's side of the socket: what runc, crun (libcriu) and go-criu send to `criu swrk`, for tests.
//!
//! The fields are those that were recorded from Debian's runc 1.1.5, runc 1.5.1, crun 1.8.1 and crun 1.27.

use crate::engine::Engine;
use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair,
};
use stasis_proto::pb::{
    CriuNotify, CriuOpts, CriuReq, CriuReqType, CriuResp, ExtMountMap, InheritFd,
};
use stasis_proto::prost::Message;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What go-criu has room for: a longer response is an error there.
const GO_CRIU_BUFFER: usize = 8192;

static STARTING: Mutex<()> = Mutex::new(());

/// While this is held no worker is started: the socket of one that is about to be would be inherited by any other child.
pub fn no_worker_starts() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a runtime starts its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// runc: the socket is descriptor 3.
    Runc,
    /// go-criu: the socket has the number it has in the runtime.
    GoCriu,
}

/// A worker, and the socket to it.
pub struct Worker {
    child: Child,
    socket: OwnedFd,
    /// Every notification: its name and pid, and how many descriptors came with it.
    pub told: Vec<(String, Option<i32>, usize)>,
    /// Descriptors that came.
    pub received: Vec<RawFd>,
    /// The notification that is answered with a failure.
    pub object_to: Option<&'static str>,
    /// What is named when the worker asks for files outside of the tree.
    pub external: Vec<String>,
}

impl Worker {
    /// Starts a worker; its standard files are those of `stdio`, or nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(engine: &Engine, manner: Manner, stdio: Option<[Stdio; 3]>) -> Result<Self> {
        let _alone = no_worker_starts();
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let n = theirs.as_raw_fd();
        let mut c = match manner {
            Manner::Runc => {
                // a name is all that makes our binary a criu, and only bash can give one
                let line = format!("exec 3<&{n} && exec -a criu \"$0\" swrk 3");
                let mut c = Command::new("/bin/bash");
                c.arg("-c").arg(line).arg(&engine.path);
                c
            }
            Manner::GoCriu => {
                let mut c = Command::new(&engine.path);
                c.arg0("criu").arg("swrk").arg(n.to_string());
                c
            }
        };
        match stdio {
            Some([i, o, e]) => c.stdin(i).stdout(o).stderr(e),
            None => c.stdin(Stdio::null()),
        };
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let child = c.spawn().context("the worker")?;
        Ok(Self {
            child,
            socket: ours,
            told: Vec::new(),
            received: Vec::new(),
            object_to: None,
            external: Vec::new(),
        })
    }
    /// The worker's pid.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }
    /// Sends a request, answers notifications, gives the response.
    ///
    /// # Errors
    /// The worker ended without one, or what it sent would break a runtime.
    pub fn ask(&mut self, request: &CriuReq) -> Result<CriuResp> {
        self.send(request)?;
        loop {
            let (r, fds) = self.receive()?;
            if r.r#type() != CriuReqType::Notify {
                return Ok(r);
            }
            let CriuNotify { script, pid } = r.notify.context("a NOTIFY without its message")?;
            let name = script.context("a notification without a name")?;
            let good = self.object_to != Some(name.as_str());
            let opts = (name == "query-ext-files").then(|| CriuOpts {
                images_dir_fd: -1,
                external: self.external.clone(),
                ..Default::default()
            });
            self.told.push((name, pid, fds.len()));
            self.received.extend(fds);
            self.send(&CriuReq {
                r#type: CriuReqType::Notify as i32,
                notify_success: Some(good),
                opts,
                ..Default::default()
            })?;
        }
    }
    fn send(&self, request: &CriuReq) -> Result<()> {
        let bytes = request.encode_to_vec();
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).context("to the worker")?;
        Ok(())
    }
    fn receive(&self) -> Result<(CriuResp, Vec<RawFd>)> {
        let mut bytes = vec![0; 40960];
        let mut room = nix::cmsg_space!([RawFd; 4]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut room),
            MsgFlags::empty(),
        )?;
        let n = got.bytes;
        let mut fds = Vec::new();
        for c in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(f) = c {
                fds.extend(f);
            }
        }
        ensure!(n > 0, "the worker ended without a response");
        ensure!(n <= GO_CRIU_BUFFER, "{n} bytes are too many for go-criu");
        Ok((CriuResp::decode(&bytes[..n])?, fds))
    }
    /// Names of all notifications.
    pub fn names(&self) -> Vec<&str> {
        self.told.iter().map(|t| t.0.as_str()).collect()
    }
    /// As runtimes end it: the socket is closed, the worker's exit code given.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn end(self) -> Result<i32> {
        let Self {
            mut child, socket, ..
        } = self;
        drop(socket);
        child.wait()?.code().context("the worker was killed")
    }
}

/// A request of this type.
pub fn request(t: CriuReqType, opts: Option<CriuOpts>) -> CriuReq {
    CriuReq {
        r#type: t as i32,
        opts,
        ..Default::default()
    }
}

/// What runtimes say in every DUMP and RESTORE.
fn always(images: &File, log: &str) -> CriuOpts {
    CriuOpts {
        images_dir_fd: images.as_raw_fd(),
        work_dir_fd: Some(images.as_raw_fd()),
        log_level: Some(4),
        log_file: Some(log.into()),
        ext_unix_sk: Some(false),
        tcp_established: Some(false),
        shell_job: Some(false),
        file_locks: Some(false),
        manage_cgroups: Some(true),
        ..Default::default()
    }
}

/// What runc says besides.
fn runc_always(images: &File, log: &str) -> CriuOpts {
    CriuOpts {
        notify_scripts: Some(true),
        auto_dedup: Some(false),
        lazy_pages: Some(false),
        empty_ns: Some(0x4000_0000),
        orphan_pts_master: Some(true),
        ..always(images, log)
    }
}

/// DUMP as runc 1.1.5 sends it for a container without bind mounts.
pub fn runc_dump(images: &File, pid: i32, rootfs: &Path, cgroup: Option<&str>) -> CriuOpts {
    CriuOpts {
        pid: Some(pid),
        root: Some(rootfs.display().to_string()),
        leave_running: Some(false),
        freeze_cgroup: cgroup.map(Into::into),
        ext_mnt: vec![
            ext("/proc/kcore", "/dev/null"),
            ext("/proc/keys", "/dev/null"),
        ],
        ..runc_always(images, "dump.log")
    }
}

/// RESTORE as runc 1.1.5 sends it; `stdio`: the files of 0 to 2 in descriptors.json.
pub fn runc_restore(images: &File, root: &Path, stdio: &[String]) -> CriuOpts {
    CriuOpts {
        evasive_devices: Some(true),
        rst_sibling: Some(true),
        root: Some(root.display().to_string()),
        ext_mnt: vec![ext("/dev/null", "/dev/null"), ext("/dev/null", "/dev/null")],
        inherit_fd: inherited(stdio),
        ..runc_always(images, "restore.log")
    }
}

/// DUMP as crun 1.8.1 sends it through libcriu: fewer fields, no notifications.
pub fn crun_dump(images: &File, pid: i32, root: &str, cgroup: Option<&str>) -> CriuOpts {
    CriuOpts {
        pid: Some(pid),
        root: Some(root.into()),
        leave_running: Some(false),
        manage_cgroups_mode: Some(stasis_proto::pb::CriuCgMode::Soft as i32),
        freeze_cgroup: cgroup.map(Into::into),
        orphan_pts_master: Some(true),
        ..always(images, "dump.log")
    }
}

/// RESTORE as crun 1.8.1 sends it.
pub fn crun_restore(images: &File, root: &Path, stdio: &[String]) -> CriuOpts {
    CriuOpts {
        rst_sibling: Some(true),
        root: Some(root.display().to_string()),
        notify_scripts: Some(true),
        orphan_pts_master: Some(true),
        inherit_fd: inherited(stdio),
        ..always(images, "restore.log")
    }
}

/// A mount from outside.
pub fn ext(key: &str, val: &str) -> ExtMountMap {
    ExtMountMap {
        key: key.into(),
        val: val.into(),
    }
}

/// Only pipes are handed over by key, as descriptors 0 to 2.
fn inherited(stdio: &[String]) -> Vec<InheritFd> {
    let pipes = stdio
        .iter()
        .zip(0..)
        .filter(|(f, _)| f.starts_with("pipe:"));
    pipes
        .map(|(f, n)| InheritFd {
            key: f.clone(),
            fd: n,
        })
        .collect()
}
