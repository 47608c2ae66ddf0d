//! Hooks: programs of the administrator's, described in folders of JSON files (`hooks.d`), run at the stages of a dump or restore.
//!
//! The files have the form of OCI hooks (containers-hooks-1.0.0): `{"version": "1.0.0", "hook": {"path", "args", "env",
//! "timeout"}, "when": {"always": true}, "stages": ["pre-dump"]}`, with stages of our own. A file in a later folder hides one of the
//! same name in an earlier one; hooks run in the order of their files' names. Each finds the state of the container as JSON
//! (OCI runtime specification) on its standard input. One that fails, or takes too long, undoes the dump or restore.
use oci_spec::runtime::{ContainerState, Hook, State, StateBuilder};
use serde::Deserialize;
use stasis_engine::{Blame, Error, Moment, Options, Result, Watcher};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Folders that are looked at unless others are named; the later wins.
pub const FOLDERS: [&str; 2] = ["/usr/share/stasis/hooks.d", "/etc/stasis/hooks.d"];

/// The stages of hooks, in order.
pub const STAGES: [&str; 9] = [
    "pre-dump",
    "network-lock",
    "post-dump",
    "pre-restore",
    "setup-namespaces",
    "post-restore",
    "network-unlock",
    "pre-resume",
    "post-resume",
];

/// A hook that says nothing else may take this long: the tree may be frozen meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file of a folder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    version: String,
    hook: Hook,
    when: When,
    stages: Vec<String>,
}

/// Whose hook it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    #[serde(default)]
    always: bool,
    /// Regular expressions for the name and the value of an annotation of the container; all must be met.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl When {
    fn holds(
        &self,
        annotations: &HashMap<String, String>,
    ) -> std::result::Result<bool, regex_lite::Error> {
        for (name, value) in &self.annotations {
            let (name, value) = (
                regex_lite::Regex::new(name)?,
                regex_lite::Regex::new(value)?,
            );
            if !annotations
                .iter()
                .any(|(n, v)| name.is_match(n) && value.is_match(v))
            {
                return Ok(false);
            }
        }
        Ok(self.always || !self.annotations.is_empty())
    }
}

/// What hooks are told of the container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id; of a tree that is none, the root's pid.
    pub id: String,
    /// Its bundle; of a tree that is none, the image folder.
    pub bundle: PathBuf,
    /// Its annotations.
    pub annotations: HashMap<String, String>,
}

/// Hooks with their stages.
#[derive(Debug)]
pub struct Hooks {
    /// What the state says is done at a stage: a dump or a restore.
    dump: Option<i32>,
    container: Container,
    hooks: Vec<(String, Vec<String>, Hook)>,
}

fn bad(file: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(
        "E7040",
        Blame::Caller,
        format!("hook file {}", file.display()),
    )
    .why(why)
    .advice("mend it, or move it out of the folder")
}

/// Reads the hooks of these folders that concern this container.
///
/// # Errors
/// A file cannot be read or makes no sense. A folder that is not there is none.
pub fn read(folders: &[PathBuf], container: Container, dump: Option<i32>) -> Result<Hooks> {
    let mut files: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for folder in folders {
        let entries = match std::fs::read_dir(folder) {
            Ok(e) => e,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(bad(folder, e)),
        };
        for e in entries {
            let path = e.map_err(|e| bad(folder, e))?.path();
            if path.extension().is_some_and(|x| x == "json")
                && let Some(name) = path.file_name()
            {
                files.insert(name.to_owned(), path);
            }
        }
    }
    let mut hooks = Vec::new();
    for (name, file) in files {
        let text = std::fs::read(&file).map_err(|e| bad(&file, e))?;
        let d: Described = serde_json::from_slice(&text).map_err(|e| bad(&file, e))?;
        if d.version != "1.0.0" {
            return Err(bad(
                &file,
                format!("its version is {}, not 1.0.0", d.version),
            ));
        }
        if let Some(s) = d.stages.iter().find(|s| !STAGES.contains(&s.as_str())) {
            let why = format!("there is no stage {s}; stages are {}", STAGES.join(", "));
            return Err(bad(&file, why));
        }
        if !d.hook.path().is_absolute() {
            return Err(bad(&file, "the path of its hook is not absolute"));
        }
        if d.when
            .holds(&container.annotations)
            .map_err(|e| bad(&file, e))?
        {
            hooks.push((name.to_string_lossy().into_owned(), d.stages, d.hook));
        }
    }
    Ok(Hooks {
        dump,
        container,
        hooks,
    })
}

/// Has the hooks of these folders (or the usual ones) told of a dump or restore with these options.
///
/// # Errors
/// As for [`read`].
pub fn watch(o: &mut Options, folders: &[PathBuf], container: Option<Container>) -> Result<()> {
    let usual: Vec<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    let folders = if folders.is_empty() { &usual } else { folders };
    let dump = Some(o.pid).filter(|p| *p != 0);
    let container = container.unwrap_or_else(|| Container {
        id: dump.map_or_else(|| "restored".into(), |p| p.to_string()),
        bundle: o.images.clone(),
        annotations: HashMap::new(),
    });
    let hooks = read(folders, container, dump)?;
    if !hooks.hooks.is_empty() {
        o.events.0.push(Arc::new(hooks));
    }
    Ok(())
}

impl Hooks {
    /// Hooks of a bundle, each for one stage.
    pub fn of_bundle(hooks: Vec<(String, Hook)>, container: Container, dump: Option<i32>) -> Self {
        let hooks = hooks
            .into_iter()
            .map(|(stage, h)| (format!("{} of config.json", stage), vec![stage], h))
            .collect();
        Self {
            dump,
            container,
            hooks,
        }
    }
    fn state(&self, moment: Moment) -> Result<State> {
        let mut annotations = self.container.annotations.clone();
        annotations.insert("org.stasis.stage".into(), moment.name().into());
        let pid = moment.pid().or(self.dump);
        let mut b = StateBuilder::default()
            .version("1.0.2")
            .id(self.container.id.clone())
            .status(match (self.dump, moment) {
                (Some(_), _) | (None, Moment::PostResume(_)) => ContainerState::Running,
                _ => ContainerState::Created,
            })
            .bundle(self.container.bundle.clone())
            .annotations(annotations);
        if let Some(pid) = pid {
            b = b.pid(pid);
        }
        b.build()
            .map_err(|e| Error::bug(format!("the state of a container: {e}")))
    }
}

impl Watcher for Hooks {
    fn moment(&self, moment: Moment) -> Result<()> {
        let stage = moment.name();
        let mine = self.hooks.iter().filter(|h| h.1.iter().any(|s| s == stage));
        for (name, _, hook) in mine {
            let state = serde_json::to_vec(&self.state(moment)?)
                .map_err(|e| Error::bug(format!("the state of a container: {e}")))?;
            tracing::debug!("hook {name} at {stage}");
            run(hook, &state).map_err(|why| {
                Error::new(
                    "E7041",
                    Blame::Caller,
                    format!("hook {name} failed at {stage}"),
                )
                .why(why)
                .advice("mend the hook, or move its file out of the folder")
            })?;
        }
        Ok(())
    }
    fn orphan_pts_master(&self, _: BorrowedFd<'_>) -> Result<bool> {
        Ok(false)
    }
}

/// Runs a hook to its end; what it says on standard error is part of the reason if it fails.
fn run(hook: &Hook, state: &[u8]) -> std::result::Result<(), String> {
    let mut c = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        c.arg0(name).args(args);
    }
    c.env_clear();
    for e in hook.env().iter().flatten() {
        if let Some((k, v)) = e.split_once('=') {
            c.env(k, v);
        }
    }
    c.stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let cannot = |e: std::io::Error| format!("{}: {e}", hook.path().display());
    let mut child = c.spawn().map_err(cannot)?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let limit = match hook.timeout() {
        Some(s) => Duration::from_secs(s.max(0) as u64),
        None => PATIENCE,
    };
    let until = Instant::now() + limit;
    // a state is smaller than a pipe, so this never waits; whoever does not want to read it need not
    if let Some(mut to) = stdin {
        let _ = to.write_all(state);
    }
    let said = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.map(|e| e.take(4096).read_to_string(&mut text));
        text
    });
    let status = loop {
        if let Some(status) = child.try_wait().map_err(cannot)? {
            break status;
        }
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("it was still running after {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if status.success() {
        return Ok(());
    }
    let said = said.join().unwrap_or_default();
    Err(format!("{status}: {}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(annotations: &[(&str, &str)]) -> Container {
        Container {
            id: "c1".into(),
            bundle: "/b".into(),
            annotations: annotations
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        }
    }

    fn put(dir: &Path, name: &str, script: &str, when: &str, stages: &str, timeout: u32) {
        let text = format!(
            r#"{{"version": "1.0.0", "hook": {{"path": "/bin/sh", "args": ["sh", "-c", "{script}"], "timeout": {timeout}}},
                "when": {when}, "stages": [{stages}]}}"#
        );
        std::fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn hooks_run_at_their_stages_in_order_and_get_the_state() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let told = a.path().join("told");
        let note = |word: &str| format!("echo {word} >>{0}; cat >>{0}; echo >>{0}", told.display());
        put(
            a.path(),
            "20.json",
            &note("second"),
            r#"{"always": true}"#,
            r#""pre-dump""#,
            5,
        );
        put(
            a.path(),
            "10.json",
            &note("hidden"),
            r#"{"always": true}"#,
            r#""pre-dump""#,
            5,
        );
        put(
            b.path(),
            "10.json",
            &note("first"),
            r#"{"always": true}"#,
            r#""pre-dump", "post-dump""#,
            5,
        );
        put(
            a.path(),
            "30.json",
            &note("other"),
            r#"{"annotations": {"^role$": "web"}}"#,
            r#""pre-dump""#,
            5,
        );
        std::fs::write(a.path().join("README"), "no hook").unwrap();
        let folders = [a.path().into(), b.path().into(), "/nowhere".into()];
        let h = read(&folders, container(&[("role", "db")]), Some(7)).unwrap();
        h.moment(Moment::NetworkLock).unwrap();
        h.moment(Moment::PreDump).unwrap();
        let text = std::fs::read_to_string(&told).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[0], lines[2]), ("first", "second"), "{text}");
        let v: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(
            (&v["id"], &v["pid"], &v["status"]),
            (&"c1".into(), &7.into(), &"running".into())
        );
        assert_eq!(v["annotations"]["org.stasis.stage"], "pre-dump");
        assert_eq!(lines.len(), 4, "{text}");
        let h = read(&folders, container(&[("role", "web-2")]), Some(7)).unwrap();
        assert_eq!(h.hooks.len(), 3);
    }

    #[test]
    fn a_hook_that_fails_or_hangs_stops_everything() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().to_path_buf()];
        put(
            dir.path(),
            "a.json",
            "echo no room >&2; exit 3",
            r#"{"always": true}"#,
            r#""pre-restore""#,
            5,
        );
        let h = read(&folders, container(&[]), None).unwrap();
        let e = h.moment(Moment::PreRestore).unwrap_err();
        assert_eq!(e.code, "E7041");
        assert!(
            e.why.contains("exit status: 3") && e.why.contains("no room"),
            "{e}"
        );
        put(
            dir.path(),
            "a.json",
            "sleep 20",
            r#"{"always": true}"#,
            r#""pre-restore""#,
            1,
        );
        let h = read(&folders, container(&[]), None).unwrap();
        let begun = Instant::now();
        let e = h.moment(Moment::PreRestore).unwrap_err();
        assert!(
            e.why.contains("after 1 s") && begun.elapsed() < Duration::from_secs(10),
            "{e}"
        );
    }

    #[test]
    fn files_that_make_no_sense_are_named() {
        for (text, why) in [
            ("{", "EOF"),
            (
                r#"{"version": "2", "hook": {"path": "/x"}, "when": {}, "stages": []}"#,
                "1.0.0",
            ),
            (
                r#"{"version": "1.0.0", "hook": {"path": "/x"}, "when": {}, "stages": ["prestart"]}"#,
                "prestart",
            ),
            (
                r#"{"version": "1.0.0", "hook": {"path": "x"}, "when": {}, "stages": []}"#,
                "absolute",
            ),
            (
                r#"{"version": "1.0.0", "hook": {"path": "/x"}, "when": {"commands": []}, "stages": []}"#,
                "commands",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("x.json"), text).unwrap();
            let e = read(&[dir.path().into()], container(&[]), None).unwrap_err();
            assert!(e.what.contains("x.json") && e.why.contains(why), "{e}");
        }
    }
}
