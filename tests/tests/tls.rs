//! Connections secured by TLS: page servers, lazy-pages and migrations, with ourselves and with CRIU (`STASIS_CRIU` names a binary of
//! CRIU 4.2 that was built with gnutls); and what is refused.
use stasis_tests::build;
use stasis_tests::engine::Engine;
use stasis_tests::pki::{Authority, options};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Runs one of the scripts in namespaces of its own, with a word in its environment.
fn script(name: &str, args: &[&str], env: (&str, &str)) -> String {
    let script = build::source_dir().with_file_name("migrate").join(name);
    let out = Command::new("unshare")
        .args(["-n", "-p", "-m", "--fork", "--mount-proc", "--kill-child"])
        .args(["--propagation", "private", "sh"])
        .arg(script)
        .args(args)
        .env(env.0, env.1)
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    format!("{said}{}", String::from_utf8_lossy(&out.stderr))
}

/// A folder with certificates and the engine under the names `criu` and `stasis`.
fn world() -> (tempfile::TempDir, String) {
    let tmp = tempfile::tempdir().expect("a folder");
    let engine = Engine::under_test().expect("an engine").path;
    for name in ["criu", "stasis"] {
        symlink(&engine, tmp.path().join(name)).expect("link");
    }
    let ca = Authority::new(tmp.path(), "ca").expect("an authority");
    let hosts = ["127.0.0.1", "10.78.1.1", "10.78.2.1"];
    ca.issue("own", 7, &hosts).expect("a certificate");
    ca.issue("other", 8, &["elsewhere.test"])
        .expect("a certificate");
    ca.revoke("seven", 7).expect("a list");
    ca.revoke("nine", 9).expect("a list");
    let stranger = Authority::new(tmp.path(), "stranger").expect("an authority");
    stranger.issue("foreign", 7, &hosts).expect("a certificate");
    let own = tmp.path().join("criu").display().to_string();
    (tmp, own)
}

/// Ours, and CRIU's own if it is there.
fn roles(own: &str) -> Vec<[String; 2]> {
    let mut all = vec![[own.into(), own.into()]];
    match std::env::var("STASIS_CRIU") {
        Ok(criu) => all.extend([[own.into(), criu.clone()], [criu, own.into()]]),
        Err(_) => eprintln!("not with CRIU: STASIS_CRIU does not name a binary of CRIU 4.2"),
    }
    all
}

#[test]
fn pages_go_to_a_page_server() {
    let (tmp, own) = world();
    let guest = build::guest("map_anon").expect("the guest");
    let guest = guest.display().to_string();
    for (i, [server, dump]) in roles(&own).iter().enumerate() {
        let work = tmp.path().join(i.to_string()).display().to_string();
        let mut args: Vec<&str> = vec![server, dump, &own, &guest, &work];
        let tls = options(tmp.path(), "ca", "own");
        args.extend(tls.iter().map(String::as_str));
        let said = script("pages.sh", &args, ("TLS", ""));
        let several = said.contains("over 3 further connections");
        assert_eq!(several, server == dump, "{server} {dump}: {said}");
        assert!(
            said.contains("over: PASS") && !said.contains("FAIL"),
            "{server} {dump}: {said}"
        );
    }
}

#[test]
fn pages_that_stay_are_asked_for() {
    let (tmp, own) = world();
    let guest = build::guest("map_anon").expect("the guest");
    let guest = guest.display().to_string();
    let tls = options(tmp.path(), "ca", "own").join(" ");
    for (i, [daemon, dump]) in roles(&own).iter().enumerate() {
        // CRIU 4.2 cannot keep pages on kernels where tee(2) of them is refused
        if *dump != own {
            continue;
        }
        let work = tmp.path().join(i.to_string()).display().to_string();
        let said = script(
            "lazy.sh",
            &[dump, daemon, &own, &guest, &work, "remote"],
            ("TLS", &tls),
        );
        assert!(
            said.contains("PASS") && !said.contains("FAIL"),
            "{daemon}: {said}"
        );
    }
}

#[test]
fn a_tree_migrates() {
    let (tmp, _) = world();
    let programs = ["redis-server", "redis-benchmark", "redis-cli", "python3"];
    if let Some(p) = programs.iter().find(|p| !build::program_exists(p)) {
        eprintln!("skipped: {p} is not installed");
        return;
    }
    let stasis = tmp.path().join("stasis").display().to_string();
    let work = tmp.path().join("world").display().to_string();
    let tests = build::source_dir()
        .with_file_name("migrate")
        .display()
        .to_string();
    let tls = options(tmp.path(), "ca", "own");
    // no tree stands still for so short: it runs there before its memory is there
    let mut args = vec![&*stasis, &*work, &*tests, "20", "2", "1"];
    args.extend(tls.iter().map(String::as_str));
    let said = script("world.sh", &args, ("MIGRATE", "--post-copy"));
    assert!(
        said.contains("keys right") && !said.contains("FAIL"),
        "{said}"
    );
    assert!(!said.contains("\"bytes_later\":0,"), "{said}");
}

/// Whoever listens for a migration; ends with this.
struct Listening(Child, String);

impl Listening {
    fn new(stasis: &Path, tls: &[String]) -> Self {
        let mut child = Command::new(stasis)
            .args(["--json", "receive", "--listen", "127.0.0.1:0"])
            .args(tls)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("stasis");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let told: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let at = told["listening"].as_str().expect("an address").into();
        Self(child, at)
    }
    /// The code with which a migration to it fails. No process has that number: once it is connected there is nothing to move.
    fn refuses(&self, stasis: &Path, tls: &[String]) -> String {
        let out = Command::new(stasis)
            .args(["--json", "migrate", "2147483647", "--to", &self.1])
            .args(tls)
            .output()
            .expect("stasis");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let told = said
            .lines()
            .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        let code = told
            .filter_map(|v| Some(v["error"]["code"].as_str()?.to_string()))
            .next_back();
        code.unwrap_or(said)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn who_is_not_trusted_is_sent_away() {
    let (tmp, _) = world();
    let dir = tmp.path();
    let stasis = dir.join("stasis");
    let own = options(dir, "ca", "own");
    let with = |more: &[&str], of: &[String]| -> Vec<String> {
        let more = more
            .iter()
            .map(|m| m.replace("DIR", &dir.display().to_string()));
        of.iter().cloned().chain(more).collect()
    };
    let open = "E4001";
    // the error of who is sent away after the other has shown its certificate comes with the first answer
    let closed = ["E6713", "E6720"];
    let l = || Listening::new(&stasis, &own);
    assert_eq!(l().refuses(&stasis, &own), open);
    assert!(closed.contains(&&*l().refuses(&stasis, &[])), "no TLS");
    let foreign = options(dir, "ca", "foreign");
    assert!(
        closed.contains(&&*l().refuses(&stasis, &foreign)),
        "a stranger's certificate"
    );
    let trusts_others = options(dir, "stranger", "own");
    assert_eq!(l().refuses(&stasis, &trusts_others), "E6713");
    let elsewhere = Listening::new(&stasis, &options(dir, "ca", "other"));
    assert_eq!(elsewhere.refuses(&stasis, &own), "E6713");
    let any = with(&["--tls-no-cn-verify"], &own);
    assert_eq!(elsewhere.refuses(&stasis, &any), open);
    // also without a name the certificate must be a trusted one
    let any = with(&["--tls-no-cn-verify"], &trusts_others);
    assert_eq!(l().refuses(&stasis, &any), "E6713");
    let seven = with(&["--tls-cacrl", "DIR/seven.crl"], &own);
    assert_eq!(l().refuses(&stasis, &seven), "E6713");
    let nine = with(&["--tls-cacrl", "DIR/nine.crl"], &own);
    assert_eq!(l().refuses(&stasis, &nine), open);
    let strict = Listening::new(&stasis, &seven);
    let mut other = options(dir, "ca", "own");
    assert!(
        closed.contains(&&*strict.refuses(&stasis, &other)),
        "a revoked certificate"
    );
    other = options(dir, "ca", "other");
    assert_eq!(strict.refuses(&stasis, &other), open);
    let missing = options(dir, "ca", "nobody");
    assert_eq!(l().refuses(&stasis, &missing), "E2730");
}
