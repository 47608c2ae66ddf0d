//! Settings below /proc/sys/net. The file system shows those of the network namespace of whoever looks
//! (net/sysctl_net.c, net_ctl_header_lookup()), so these functions must be called in it.
use crate::error::{Blame, Error, Result};
use stasis_proto::pb;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// IPv4 settings of a device, in the order of `net_device_entry.conf4`.
pub const CONF4: &[&str] = &[
    "accept_local",
    "accept_redirects",
    "accept_source_route",
    "arp_accept",
    "arp_announce",
    "arp_filter",
    "arp_ignore",
    "arp_notify",
    "bootp_relay",
    "disable_policy",
    "disable_xfrm",
    "force_igmp_version",
    "forwarding",
    "igmpv2_unsolicited_report_interval",
    "igmpv3_unsolicited_report_interval",
    "log_martians",
    "medium_id",
    "promote_secondaries",
    "proxy_arp",
    "proxy_arp_pvlan",
    "route_localnet",
    "rp_filter",
    "secure_redirects",
    "send_redirects",
    "shared_media",
    "src_valid_mark",
    "tag",
    "ignore_routes_with_linkdown",
    "drop_gratuitous_arp",
    "drop_unicast_in_l2_multicast",
];

/// IPv6 settings of a device, in the order of `net_device_entry.conf6`.
pub const CONF6: &[&str] = &[
    "accept_dad",
    "accept_ra",
    "accept_ra_defrtr",
    "accept_ra_from_local",
    "accept_ra_min_hop_limit",
    "accept_ra_mtu",
    "accept_ra_pinfo",
    "accept_ra_rt_info_max_plen",
    "accept_ra_rtr_pref",
    "accept_redirects",
    "accept_source_route",
    "autoconf",
    "dad_transmits",
    "disable_ipv6",
    "drop_unicast_in_l2_multicast",
    "drop_unsolicited_na",
    "force_mld_version",
    "force_tllao",
    "forwarding",
    "hop_limit",
    "ignore_routes_with_linkdown",
    "keep_addr_on_down",
    "max_addresses",
    "max_desync_factor",
    "mldv1_unsolicited_report_interval",
    "mldv2_unsolicited_report_interval",
    "mtu",
    "ndisc_notify",
    "optimistic_dad",
    "proxy_ndp",
    "regen_max_retry",
    "router_probe_interval",
    "router_solicitation_delay",
    "router_solicitation_interval",
    "router_solicitations",
    "stable_secret",
    "suppress_frag_ndisc",
    "temp_prefered_lft",
    "temp_valid_lft",
    "use_oif_addrs_only",
    "use_optimistic",
    "use_tempaddr",
];

/// The one setting of a device that is text; it cannot be read before it was set.
const SECRET: &str = "stable_secret";
/// `netns_entry.unix_conf`.
pub const UNIX: &[&str] = &["max_dgram_qlen"];
/// `netns_entry.ipv4_sysctl`.
pub const IPV4: &[&str] = &["ping_group_range"];
/// More settings than any kernel has: an image with more is none of ours.
const MOST: usize = 4096;

fn root() -> PathBuf {
    PathBuf::from("/proc/sys/net")
}

/// One setting; `None` if this kernel has none of this name, or it has no value yet.
pub fn read(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(root().join(name)).ok()?;
    Some(text.trim_end_matches('\n').to_string())
}

/// All settings of a list below a folder, in the list's order.
pub fn list(folder: &str, names: &[&str]) -> Vec<pb::SysctlEntry> {
    let one = |name: &&str| {
        let text = read(&format!("{folder}/{name}"));
        if *name == SECRET || folder == "ipv4" {
            return pb::SysctlEntry {
                r#type: pb::SysctlType::CtlStr as i32,
                sarg: text,
                ..Default::default()
            };
        }
        pb::SysctlEntry {
            r#type: pb::SysctlType::Ctl32 as i32,
            iarg: text.and_then(|t| t.trim().parse().ok()),
            ..Default::default()
        }
    };
    names.iter().map(one).collect()
}

/// Where a list of values from an image goes.
pub fn of_list<'a>(
    folder: &'a str,
    names: &'a [&'a str],
    values: &'a [pb::SysctlEntry],
) -> impl Iterator<Item = (String, String)> + 'a {
    names.iter().zip(values).filter_map(move |(name, v)| {
        let value = match (v.iarg, &v.sarg) {
            (_, Some(s)) => s.clone(),
            (Some(i), None) => i.to_string(),
            (None, None) => return None,
        };
        Some((format!("{folder}/{name}"), value))
    })
}

/// Every setting that is not one of a device in [`CONF4`] or [`CONF6`]. Those that only tell something are left out.
pub fn all_others() -> Vec<pb::StasisSysctl> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(root().join(&at)) else {
            continue;
        };
        for e in entries.flatten() {
            let name = at.join(e.file_name());
            let Ok(meta) = e.metadata() else { continue };
            if meta.is_dir() {
                folders.push(name);
                continue;
            }
            let Some(name) = name.to_str() else { continue };
            if !writable(&meta) || known(name) || one_shot(name) {
                continue;
            }
            if let Some(value) = read(name) {
                let name = name.to_string();
                found.push(pb::StasisSysctl { name, value });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn writable(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let mode = meta.permissions().mode();
    mode & 0o200 != 0 && mode & 0o400 != 0
}

/// It has a field of its own.
fn known(name: &str) -> bool {
    let mut parts = name.split('/');
    let family = parts.next().unwrap_or("");
    let last = name.rsplit('/').next().unwrap_or("");
    parts.next() == Some("conf")
        && match family {
            "ipv4" => CONF4.contains(&last),
            "ipv6" => CONF6.contains(&last),
            _ => false,
        }
}

/// Writing it does something instead of setting something.
fn one_shot(name: &str) -> bool {
    matches!(name, "ipv4/route/flush" | "ipv6/route/flush")
}

/// Sets a setting, unless it has the value already. Names come from images: they stay below /proc/sys/net.
///
/// # Errors
/// The name leads elsewhere; or the kernel lacks the setting or refuses the value, unless `weak`: then only the answer is false.
pub fn write(name: &str, value: &str, weak: bool) -> Result<bool> {
    let plain = Path::new(name)
        .components()
        .all(|c| matches!(c, Component::Normal(_)));
    if !plain || name.len() > 256 {
        return Err(Error::new(
            "E5600",
            Blame::Image,
            format!("setting {name:?} is no name below /proc/sys/net"),
        )
        .advice("dump again; this image was changed or damaged"));
    }
    let now = read(name);
    if now.as_deref().map(squeezed) == Some(squeezed(value)) {
        return Ok(true);
    }
    match std::fs::write(root().join(name), value) {
        Ok(()) => Ok(true),
        Err(_) if weak => Ok(false),
        Err(e) => {
            let why = match e.kind() {
                ErrorKind::NotFound => "this kernel has no such setting".to_string(),
                _ => e.to_string(),
            };
            Err(Error::new(
                "E6600",
                Blame::Host,
                format!("cannot set /proc/sys/net/{name} to {value:?}"),
            )
            .why(why)
            .advice("pass --weak-sysctls to go on without settings that this host refuses"))
        }
    }
}

/// Numbers are shown with tabs between them, and written with any space.
fn squeezed(value: &str) -> Vec<&str> {
    value.split_whitespace().collect()
}

/// Refuses lists no kernel could have written.
///
/// # Errors
/// Too many settings.
pub fn bounded(n: usize) -> Result<()> {
    if n <= MOST {
        return Ok(());
    }
    Err(Error::new(
        "E5600",
        Blame::Image,
        format!("{n} settings of the network"),
    )
    .why(format!("no kernel has more than {MOST}"))
    .advice("dump again; this image was changed or damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_their_folder() {
        for bad in [
            "../kernel/hostname",
            "/etc/passwd",
            "ipv4/../../kernel/x",
            "a/./../b",
        ] {
            assert_eq!(write(bad, "1", true).expect_err(bad).code, "E5600");
        }
        assert!(!write("ipv4/no_such_setting", "1", true).expect("weak"));
        assert_eq!(
            write("ipv4/no_such_setting", "1", false)
                .expect_err("strict")
                .code,
            "E6600"
        );
    }

    #[test]
    fn settings_of_devices_have_their_fields() {
        assert!(known("ipv4/conf/eth0/rp_filter"));
        assert!(!known("ipv4/conf/eth0/arp_evict_nocarrier"));
        assert!(!known("ipv4/ip_forward"));
    }
}
