//! Things from outside of the tree, in the forms the command line and the requests have for them.
use super::options::EXTERNALS;
use stasis_engine::Options;
use std::path::PathBuf;

/// The sorts of namespaces that can come from outside.
const NAMESPACES: [&str; 8] = ["net", "pid", "mnt", "ipc", "uts", "user", "time", "cgroup"];

/// `KIND[NAME]` or `KIND[NAME]:VALUE`.
fn parts(text: &str) -> Option<(&str, &str, Option<&str>)> {
    let (kind, rest) = text.split_once('[')?;
    // a name may hold brackets itself: the last one that ends it counts
    let end = rest
        .rfind("]:")
        .or_else(|| rest.strip_suffix(']').map(str::len))?;
    let value = rest[end + 1..].strip_prefix(':');
    Some((kind, &rest[..end], value))
}

/// `--external RES`
///
/// # Errors
/// What is wrong with it, or why it is not in this version.
pub fn take(o: &mut Options, text: &str) -> Result<(), String> {
    let (kind, name, value) =
        parts(text).ok_or("KIND[NAME] or KIND[NAME]:VALUE is needed, as in mnt[/data]:data")?;
    let needed = || {
        value
            .filter(|v| !v.is_empty())
            .ok_or(format!("{kind}[{name}]:VALUE is needed"))
    };
    match kind {
        "mnt" if name.is_empty() => {
            o.mounts.auto_external = true;
            for flag in value.unwrap_or_default().chars() {
                match flag {
                    'm' => o.mounts.external_masters = true,
                    's' => o.mounts.external_sharing = true,
                    c => {
                        return Err(format!(
                            "'{c}' is none of the flags m (masters) and s (sharing)"
                        ));
                    }
                }
            }
        }
        "mnt" => mount(o, name, needed()?),
        "unix" => {
            let ino = name.parse().map_err(|_| "an inode number is needed")?;
            o.network.external_unix_inodes.push(ino);
        }
        "veth" => {
            let (out, bridge) = bridged(needed()?);
            o.network.veths.push((name.into(), out, bridge));
        }
        "macvlan" => o.network.macvlans.push((name.into(), needed()?.into())),
        "netdev" => o.network.netdevs.push((name.into(), needed()?.into())),
        ns if NAMESPACES.contains(&ns) => {
            let ino = name
                .parse()
                .map_err(|_| "the inode number of a namespace is needed")?;
            o.namespaces
                .external
                .push((ns.into(), ino, needed()?.into()));
        }
        "dev" => mount(o, &format!("dev[{name}]"), needed()?),
        "tty" | "file" => o.namespaces.other.push(text.into()),
        _ => {
            return Err(format!(
                "{kind} is no sort of external thing, which are {}",
                EXTERNALS.join(", ")
            ));
        }
    }
    Ok(())
}

/// An external mount; a pair that was given already is not given twice.
pub fn mount(o: &mut Options, key: &str, value: &str) {
    let pair = (key.to_owned(), value.to_owned());
    if !o.mounts.external.contains(&pair) {
        o.mounts.external.push(pair);
    }
}

/// `--ext-mount-map KEY:VAL`, the old form of `mnt[KEY]:VAL`; `auto` is that of `mnt[]`.
///
/// # Errors
/// As for [`take`].
pub fn mount_map(o: &mut Options, text: &str) -> Result<(), String> {
    match text.split_once(':') {
        Some((key, val)) if !key.is_empty() => take(o, &format!("mnt[{key}]:{val}")),
        None if text == "auto" => take(o, "mnt[]"),
        _ => Err("KEY:VALUE or auto is needed".into()),
    }
}

/// `--veth-pair IN=OUT{@BRIDGE}`, the old form of `veth[IN]:OUT@BRIDGE`.
///
/// # Errors
/// As for [`take`].
pub fn veth_pair(o: &mut Options, text: &str) -> Result<(), String> {
    let (inside, outside) = text.split_once('=').ok_or("IN=OUT is needed")?;
    take(o, &format!("veth[{inside}]:{outside}"))
}

fn bridged(out: &str) -> (String, Option<String>) {
    match out.split_once('@') {
        Some((dev, bridge)) => (dev.into(), Some(bridge.into())),
        None => (out.into(), None),
    }
}

/// `--inherit-fd fd[N]:KEY`
///
/// # Errors
/// What is wrong with it.
pub fn inherit(o: &mut Options, text: &str) -> Result<(), String> {
    const FORM: &str = "fd[NUMBER]:KEY is needed, as in fd[5]:pipe:[1234]";
    let (n, key) = text
        .strip_prefix("fd[")
        .and_then(|t| t.split_once("]:"))
        .ok_or(FORM)?;
    let fd: i32 = n.parse().ok().filter(|n| *n >= 0).ok_or(FORM)?;
    inherited(o, key, fd)
}

/// A descriptor that stands for a key.
///
/// # Errors
/// The key is empty.
pub fn inherited(o: &mut Options, key: &str, fd: i32) -> Result<(), String> {
    if key.is_empty() {
        return Err("the key is empty".into());
    }
    // one pipe may be standard output and standard error: runtimes bring it twice
    let pair = (key.to_owned(), fd);
    if !o.namespaces.inherit.contains(&pair) {
        o.namespaces.inherit.push(pair);
    }
    Ok(())
}

/// `--join-ns NS:PID_OR_FILE{,EXTRA}`
///
/// # Errors
/// What is wrong with it.
pub fn join(o: &mut Options, text: &str) -> Result<(), String> {
    let (ns, file) = text.split_once(':').ok_or("NAME:FILE is needed")?;
    let (file, extra) = match file.split_once(',') {
        Some((f, e)) => (f, Some(e)),
        None => (file, None),
    };
    joined(o, ns, file, extra)
}

/// A namespace the tree is restored into: by its file, or by a pid of a task in it.
///
/// # Errors
/// Unknown sort, no file, or ids for a user namespace.
pub fn joined(o: &mut Options, ns: &str, file: &str, extra: Option<&str>) -> Result<(), String> {
    if !NAMESPACES.contains(&ns) {
        return Err(format!("{ns} is no sort of namespace"));
    }
    if file.is_empty() {
        return Err("the file of the namespace is missing".into());
    }
    if let Some(extra) = extra {
        return Err(format!(
            "the ids {extra} cannot be chosen: tasks have those of the image; leave them out"
        ));
    }
    let path = match file.parse::<u32>() {
        Ok(pid) => PathBuf::from(format!("/proc/{pid}/ns/{ns}")),
        Err(_) => PathBuf::from(file),
    };
    o.namespaces.join.push((ns.into(), path));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_things_are_taken_in_all_forms() {
        let mut o = Options::new(".");
        for text in [
            "mnt[]:ms",
            "mnt[/a]b]:cookie",
            "net[4026531840]:extRootNetNS",
            "pid[7]:extRootPidNS",
            "unix[12]",
            "veth[eth0]:veth1@br0",
            "macvlan[eth1]:eth0",
            "netdev[wlan0]:wlan0",
            "tty[8800:20]",
            "file[1f:3a]",
            "dev[8/1]:disk",
        ] {
            take(&mut o, text).unwrap();
        }
        let (m, n, s) = (&o.mounts, &o.network, &o.namespaces);
        assert!(m.auto_external && m.external_masters && m.external_sharing);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            m.external,
            [pair("/a]b", "cookie"), pair("dev[8/1]", "disk")]
        );
        assert_eq!(
            s.external[0],
            ("net".into(), 4_026_531_840, "extRootNetNS".into())
        );
        assert_eq!(
            n.veths,
            [("eth0".into(), "veth1".into(), Some("br0".into()))]
        );
        assert_eq!(s.other, ["tty[8800:20]", "file[1f:3a]"]);
        for bad in [
            "mnt", "mnt[x", "mnt[/a]:", "mnt[]:q", "net[x]:K", "bogus[1]",
        ] {
            assert!(take(&mut o, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn descriptors_and_namespaces_from_outside() {
        let mut o = Options::new(".");
        inherit(&mut o, "fd[5]:pipe:[1234]").unwrap();
        inherit(&mut o, "fd[5]:pipe:[1234]").unwrap();
        inherit(&mut o, "fd[6]:pipe:[1234]").unwrap();
        assert!(inherit(&mut o, "5:pipe").is_err());
        assert!(inherit(&mut o, "fd[-5]:x").is_err());
        let key = || "pipe:[1234]".to_string();
        assert_eq!(o.namespaces.inherit, [(key(), 5), (key(), 6)]);
        join(&mut o, "ipc:/proc/1/ns/ipc").unwrap();
        join(&mut o, "uts:42").unwrap();
        assert_eq!(o.namespaces.join[1].1, PathBuf::from("/proc/42/ns/uts"));
        assert!(join(&mut o, "foo:42").is_err());
        assert!(join(&mut o, "user:42,0,0").unwrap_err().contains("0,0"));
    }
}
