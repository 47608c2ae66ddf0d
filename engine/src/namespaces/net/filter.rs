//! What netfilter holds in a namespace: rules of nftables. Tracked connections are in `tracked.rs`.
//!
//! Rules are kept as the kernel's own messages and said again in one batch, so nothing of them is parsed and nothing lost. CRIU
//! keeps them as text for libnftables, which only libnftables reads well: from CRIU's images such text is taken if it is but
//! CRIU's own lock, and refused by name otherwise. Where stasis has rules it writes a text that CRIU refuses, so that no
//! container comes back without its firewall.
use crate::error::{Blame, Error, Result};
use nix::errno::Errno;
use stasis_kernel::error::SysError;
use stasis_kernel::netlink::{
    Attrs, Body, Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Netlink,
};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
/// Bytes of `struct nfgenmsg`.
pub(super) const NFGENMSG: usize = 4;
/// Tables of network locks: they hold packets of this very dump.
const LOCK: &str = "stasis-lock-";

/// A sort of thing of nftables: the message that makes it, the one that asks for it, the attribute with its table, and the attributes
/// that the kernel tells but does not take (handles, use counts, padding, what only says where a rule stands).
struct Sort {
    new: u16,
    get: u16,
    only_told: &'static [u16],
}

const TABLE: Sort = Sort {
    new: 0,
    get: 1,
    only_told: &[3, 4, 5, 7],
};
const CHAIN: Sort = Sort {
    new: 3,
    get: 4,
    only_told: &[2, 6, 9, 11],
};
const OBJECT: Sort = Sort {
    new: 18,
    get: 19,
    only_told: &[5, 6, 7],
};
const SET: Sort = Sort {
    new: 9,
    get: 10,
    only_told: &[14, 16, 19, 20],
};
const ELEMENTS: Sort = Sort {
    new: 12,
    get: 13,
    only_told: &[],
};
const FLOW_TABLE: Sort = Sort {
    new: 22,
    get: 23,
    only_told: &[4, 5, 6],
};
const RULE: Sort = Sort {
    new: 6,
    get: 7,
    only_told: &[3, 6, 8],
};
const NFTA_SET_ID: u16 = 10;
/// In an order in which they can be made: each needs only what is before it.
const ORDER: [&Sort; 7] = [&TABLE, &CHAIN, &OBJECT, &SET, &ELEMENTS, &FLOW_TABLE, &RULE];
/// A bit of NFTA_TABLE_FLAGS: the table is a process's own, who makes it again.
const OWNED: u32 = 2;

pub(super) fn subsystem(kind: u16) -> u16 {
    kind >> 8
}

/// All rules of the namespace the caller is in; empty if there are none.
///
/// # Errors
/// The kernel cannot be asked.
pub fn rules() -> Result<Vec<u8>> {
    let mut nl = match Netlink::netfilter() {
        Ok(nl) => nl,
        Err(e) if e.errno == Errno::EPROTONOSUPPORT => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut all = Vec::new();
    let mut sets: Vec<(u8, String, String)> = Vec::new();
    let mut left_out: Vec<(u8, String)> = Vec::new();
    for sort in ORDER {
        if sort.new == ELEMENTS.new {
            for (family, table, set) in &sets {
                let mut b = Body::new(&[*family, 0, 0, 0]);
                b.text(1, table).text(2, set);
                all.extend(ask(&mut nl, sort, &b.0)?);
            }
            continue;
        }
        let told = ask(&mut nl, sort, &[0; NFGENMSG])?;
        for m in Messages(&told).flatten() {
            let a = m.attrs(NFGENMSG);
            let Some(table) = a.text(1) else { continue };
            if sort.new == TABLE.new && somebody_elses(&a, &table) {
                left_out.push((m.u8(0), table));
                continue;
            }
            if left_out.iter().any(|l| l.0 == m.u8(0) && l.1 == table) {
                continue;
            }
            if sort.new == SET.new {
                sets.push((m.u8(0), table, a.text(2).unwrap_or_default()));
            }
            all.extend_from_slice(m.bytes());
            all.resize(stasis_kernel::netlink::align(all.len()), 0);
        }
    }
    Ok(all)
}

/// A lock's table, or one that its process makes again (NFT_TABLE_F_OWNER).
fn somebody_elses(a: &Attrs<'_>, name: &str) -> bool {
    let flags = a.get(2).and_then(|f| f.try_into().ok());
    name.starts_with(LOCK) || flags.is_some_and(|f| u32::from_be_bytes(f) & OWNED != 0)
}

fn ask(nl: &mut Netlink, sort: &Sort, body: &[u8]) -> Result<Vec<u8>> {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | sort.get;
    match nl.dump("nftables(dump)", kind, body) {
        Ok(all) => Ok(all),
        // built without nftables, or without flow tables
        Err(e) if matches!(e.errno, Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

/// Makes all rules in the namespace the caller is in, or none.
///
/// # Errors
/// The image has other messages than such; or the kernel refuses them.
pub fn make_rules(all: &[u8]) -> Result<()> {
    let [hi, lo] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    let mut parts = vec![(NFNL_MSG_BATCH_BEGIN, 0, vec![0, 0, hi, lo])];
    for m in Messages(all) {
        let m = m.map_err(|e| damaged(e.to_string()))?;
        let sort = ORDER
            .iter()
            .find(|s| m.kind() == NFNL_SUBSYS_NFTABLES << 8 | s.new);
        let (Some(sort), Some(head)) = (sort, m.body().get(..NFGENMSG)) else {
            return Err(damaged(format!(
                "a message of type {:#x} makes no rule",
                m.kind()
            )));
        };
        // of the header only the family is the thing's; the rest is the generation it was told in
        let mut b = Body::new(&[head[0], 0, 0, 0]);
        for (kind, v) in raw(m.attrs(NFGENMSG)) {
            if !sort.only_told.contains(&(kind & 0x3fff)) {
                b.attr(kind, v);
            }
        }
        if sort.new == SET.new {
            // no number of a set may stand twice in a batch
            b.be32(NFTA_SET_ID, parts.len() as u32);
        }
        parts.push((m.kind(), NLM_F_CREATE | NLM_F_APPEND, b.0));
    }
    if let Some(last) = parts.last_mut().filter(|p| p.0 != NFNL_MSG_BATCH_BEGIN) {
        last.1 |= NLM_F_ACK;
    } else {
        return Ok(());
    }
    parts.push((NFNL_MSG_BATCH_END, 0, vec![0, 0, hi, lo]));
    Netlink::netfilter()?
        .batch("nftables(rules)", &parts)
        .map_err(|e| refused("the rules of nftables", &e))
}

/// Attributes with their flags: nested ones must be said nested.
fn raw(a: Attrs<'_>) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = a.0;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..len)?;
        rest = rest
            .get(stasis_kernel::netlink::align(len)..)
            .unwrap_or(&[]);
        Some((kind, value))
    })
}

/// What stands in `nftables-N.img` when the rules are in `netns-N.img`: no text that libnftables takes.
pub const NOT_FOR_CRIU: &str =
    "rules are in the image of the network namespace: restore with stasis\n";

/// Is this text of CRIU's (nftables or iptables) nothing but its own lock? Its dump of rules comes after the lock is on.
pub fn only_locks(text: &str) -> bool {
    text.lines().map(str::trim).all(|l| {
        let structure = l.is_empty()
            || l == "}"
            || l.starts_with('#')
            || l.starts_with('*')
            || l.starts_with(':')
            || l == "COMMIT"
            || l.ends_with('{')
            || (l.starts_with("type ") && l.ends_with("policy accept;"));
        let lock = l.contains("jump CRIU")
            || l.contains("-j CRIU")
            || l.starts_with("-A CRIU ")
            || (l.starts_with("meta mark 0x0000c114") && l.ends_with("accept"))
            || (l.starts_with("counter packets") && l.ends_with("drop"));
        structure || lock
    })
}

pub(super) fn damaged(why: String) -> Error {
    Error::new(
        "E5606",
        Blame::Image,
        "an image of netfilter's state cannot be used",
    )
    .why(why)
    .advice("dump again, or copy the folder again if it was copied")
}

/// Rules as text, which this version does not read.
pub fn text(name: &str) -> Error {
    Error::new("E5607", Blame::Image, format!("{name} has rules as text"))
        .why("CRIU writes them so, and stasis does not parse them")
        .advice("empty that file, and load the rules by an action script at post-setup-namespaces")
}

pub(super) fn refused(what: &str, e: &SysError) -> Error {
    Error::new("E6607", Blame::Host, format!("cannot make {what}"))
        .why(e)
        .advice("this kernel must have the parts of netfilter that were used where it was dumped")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_criu_is_known_and_other_rules_are_not() {
        let lock = "table ip filter {\n\tchain CRIU {\n\t\tmeta mark 0x0000c114 counter packets 0 bytes 0 accept\n\t\tcounter packets 0 bytes 0 drop\n\t}\n\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tcounter packets 0 bytes 0 jump CRIU\n\t}\n}\n";
        assert!(only_locks(lock));
        assert!(only_locks(""));
        assert!(!only_locks(
            "table inet foo {\n\tchain c {\n\t\ttcp dport 99 drop\n\t}\n}\n"
        ));
        assert!(!only_locks(
            "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -j DROP\nCOMMIT\n"
        ));
        assert!(!only_locks(NOT_FOR_CRIU));
    }

    #[test]
    fn other_messages_are_refused() {
        let m = stasis_kernel::netlink::message(16, 0, 0, &[0; 16]);
        assert_eq!(make_rules(&m).expect_err("a link").code, "E5606");
        make_rules(&[]).expect("nothing");
    }
}
