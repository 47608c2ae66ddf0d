//! The lock of nftables rules, said to the kernel over netlink. A table is its owner's: it goes when the socket is closed, so
//! also when the process dies, until it is kept.
//!
//! It is the whole lock where eBPF is not allowed; beside an eBPF lock it is the second net, which holds devices that appear while
//! the lock is on, and connections whose addresses are translated before a device sees them. Long because every rule is spelled out
//! in the kernel's own expressions.
use crate::Error;
use crate::state::{Scope, State};
use crate::tuple::Tuple;
use nix::errno::Errno;
use stasis_kernel::netlink::{
    Body, Message, Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Netlink,
};
use std::net::IpAddr;
use tracing::debug;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFPROTO_INET: u8 = 1;
const NFPROTO_BRIDGE: u8 = 7;
/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Before every other filter, behind the tracking of connections, which must not forget them.
const PRIORITY: i32 = -190;
const NFT_TABLE_F_OWNER: u32 = 2;
/// An attribute holds at most 64 KiB; an element takes at most 56 bytes.
const ELEMENTS: usize = 1000;
/// Protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// Message types of nf_tables.
#[derive(Debug, Clone, Copy)]
enum Nft {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewSetElem = 12,
}

fn kind(n: Nft) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | n as u16
}

fn header(family: u8) -> [u8; NFGENMSG] {
    [family, 0, 0, 0]
}

/// The table of one lock.
#[derive(Debug)]
pub struct Net {
    nl: Netlink,
    /// What the rules are, to say them again when the table is kept.
    rules: Rules,
    there: bool,
    /// The ends of the connections are not here: packets cross this namespace, or one of its bridges.
    crossing: bool,
    /// The table for bridges is there.
    bridged: bool,
}

/// What is held.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Devices that another net covers; all others are held.
    pub but: Vec<u32>,
    /// The connections; empty: all.
    pub tuples: Vec<Tuple>,
}

fn name(id: u64) -> String {
    format!("stasis-lock-{id:016x}")
}

impl Net {
    /// In the namespace the caller is in. Nothing is held yet. `crossing`: connections only go through it.
    pub fn prepare(crossing: bool) -> Result<Self, Error> {
        Ok(Self {
            nl: Netlink::netfilter()?,
            rules: Rules::default(),
            there: false,
            crossing,
            bridged: false,
        })
    }
    /// Makes the table, at once whole.
    pub fn arm(&mut self, state: &State, mut rules: Rules) -> Result<(), Error> {
        if self.crossing {
            // a port alone may be anybody's here
            rules.tuples.retain(|t| t.remote.is_some());
        }
        self.rules = rules;
        self.say(state, true)?;
        self.there = true;
        Ok(())
    }
    /// From now on the table outlives this process.
    pub fn keep(&mut self, state: &State) -> Result<(), Error> {
        self.say(state, false)
    }
    /// Takes the table away.
    pub fn release(&mut self, id: u64) -> Result<(), Error> {
        if !self.there {
            return Ok(());
        }
        for family in [NFPROTO_INET, NFPROTO_BRIDGE] {
            let mut parts = vec![begin()];
            parts.push((kind(Nft::DelTable), NLM_F_ACK, delete(family, id)));
            parts.push(end());
            match self.nl.batch("nftables(delete the lock)", &parts) {
                Ok(()) => {}
                Err(e) if e.errno == Errno::ENOENT => {}
                // a kernel without tables for bridges
                Err(_) if family == NFPROTO_BRIDGE => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.there = false;
        Ok(())
    }
    fn say(&mut self, state: &State, owned: bool) -> Result<(), Error> {
        match self.say_with(state, owned, true) {
            // a kernel without the expression for sockets
            Err(Error::Sys(e)) if e.errno == Errno::ENOENT => self.say_with(state, owned, false),
            other => other,
        }?;
        if self.crossing
            && let Err(e) = self.say_bridge(state, owned)
        {
            debug!("packets that only cross a bridge are not held: {e}");
        }
        Ok(())
    }
    /// The same for packets that stay within a bridge.
    fn say_bridge(&mut self, state: &State, owned: bool) -> Result<(), Error> {
        let table = name(state.id);
        let mut parts = vec![begin()];
        if self.bridged {
            parts.push((kind(Nft::DelTable), 0, delete(NFPROTO_BRIDGE, state.id)));
        }
        let mut b = Body::new(&header(NFPROTO_BRIDGE));
        b.text(1, &table)
            .be32(2, if owned { NFT_TABLE_F_OWNER } else { 0 })
            .attr(6, &state.bytes());
        parts.push((kind(Nft::NewTable), NLM_F_CREATE | NLM_F_EXCL, b.0));
        chain(NFPROTO_BRIDGE, &table, "forward", FORWARD, &mut parts);
        for shape in SHAPES.into_iter().filter(|s| s.remote) {
            shape.set(NFPROTO_BRIDGE, &table, &self.rules.tuples, &mut parts);
            for input in [true, false] {
                let list = shape.rule(NFPROTO_BRIDGE, input);
                rule(NFPROTO_BRIDGE, &table, "forward", list, &mut parts);
            }
        }
        if let Some(last) = parts.last_mut() {
            last.1 |= NLM_F_ACK;
        }
        parts.push(end());
        self.nl.batch("nftables(lock of bridges)", &parts)?;
        self.bridged = true;
        Ok(())
    }
    fn say_with(&mut self, state: &State, owned: bool, sockets: bool) -> Result<(), Error> {
        let table = name(state.id);
        let mut parts = vec![begin()];
        if self.there {
            parts.push((kind(Nft::DelTable), 0, delete(NFPROTO_INET, state.id)));
        }
        let mut b = Body::new(&header(NFPROTO_INET));
        b.text(1, &table)
            .be32(2, if owned { NFT_TABLE_F_OWNER } else { 0 })
            .attr(6, &state.bytes());
        parts.push((kind(Nft::NewTable), NLM_F_CREATE | NLM_F_EXCL, b.0));
        for (name, hook) in [("input", 1), ("output", 3), ("forward", FORWARD)] {
            if hook != FORWARD || self.crossing {
                chain(NFPROTO_INET, &table, name, hook, &mut parts);
            }
        }
        if state.scope == Scope::Connections {
            for shape in SHAPES {
                shape.set(NFPROTO_INET, &table, &self.rules.tuples, &mut parts);
            }
        }
        if self.crossing {
            for (shape, name) in SHAPES
                .into_iter()
                .flat_map(|s| ["input", "output", "forward"].map(|n| (s, n)))
            {
                for input in [true, false] {
                    let list = shape.rule(NFPROTO_INET, input);
                    rule(NFPROTO_INET, &table, name, list, &mut parts);
                }
            }
        }
        for (chain, input) in [("input", true), ("output", false)] {
            if self.crossing {
                break;
            }
            let mut rule = |list: Body| rule(NFPROTO_INET, &table, chain, list, &mut parts);
            // a packet that arrives has a mark of its own only if it comes round the loopback device
            for by_socket in [false, true] {
                if by_socket && !(input && sockets) {
                    continue;
                }
                let mut list = Body::default();
                match by_socket {
                    true => expr(&mut list, "socket", |d| {
                        d.be32(1, 1).be32(2, REG);
                    }),
                    false => meta(&mut list, 3, REG),
                }
                compare(&mut list, REG, &state.mark.to_ne_bytes());
                verdict(&mut list, NF_ACCEPT);
                rule(list);
            }
            match state.scope {
                Scope::WholeNamespace => {
                    for device in &self.rules.but {
                        let mut list = Body::default();
                        meta(&mut list, if input { 4 } else { 5 }, REG);
                        compare(&mut list, REG, &device.to_ne_bytes());
                        verdict(&mut list, NF_ACCEPT);
                        rule(list);
                    }
                    for protocol in WITH_PORTS {
                        let mut list = Body::default();
                        meta(&mut list, 16, REG);
                        compare(&mut list, REG, &[protocol]);
                        verdict(&mut list, NF_DROP);
                        rule(list);
                    }
                }
                Scope::Connections => {
                    for shape in SHAPES {
                        rule(shape.rule(NFPROTO_INET, input));
                    }
                }
            }
        }
        if let Some(last) = parts.last_mut() {
            last.1 |= NLM_F_ACK;
        }
        parts.push(end());
        Ok(self.nl.batch("nftables(lock)", &parts)?)
    }
}

fn begin() -> (u16, u16, Vec<u8>) {
    let [hi, lo] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    (NFNL_MSG_BATCH_BEGIN, 0, vec![0, 0, hi, lo])
}

fn end() -> (u16, u16, Vec<u8>) {
    let [hi, lo] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    (NFNL_MSG_BATCH_END, 0, vec![0, 0, hi, lo])
}

type Parts = Vec<(u16, u16, Vec<u8>)>;

/// NF_INET_FORWARD and NF_BR_FORWARD
const FORWARD: u32 = 2;

fn chain(family: u8, table: &str, name: &str, hook: u32, parts: &mut Parts) {
    let mut b = Body::new(&header(family));
    b.text(1, table)
        .text(3, name)
        .nest(4, |h| {
            h.be32(1, hook).be32(2, PRIORITY as u32);
        })
        .text(7, "filter");
    parts.push((kind(Nft::NewChain), NLM_F_CREATE, b.0));
}

fn rule(family: u8, table: &str, chain: &str, list: Body, parts: &mut Parts) {
    let mut b = Body::new(&header(family));
    b.text(1, table).text(2, chain).nest(4, |e| e.0 = list.0);
    parts.push((kind(Nft::NewRule), NLM_F_CREATE | NLM_F_APPEND, b.0));
}

fn delete(family: u8, id: u64) -> Vec<u8> {
    let mut b = Body::new(&header(family));
    b.text(1, &name(id));
    b.0
}

/// Which parts of a tuple a set has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    six: bool,
    local: bool,
    remote: bool,
}

/// Connections, listeners at an address, listeners at any, for both families.
const SHAPES: [Shape; 6] = [
    Shape {
        six: false,
        local: true,
        remote: true,
    },
    Shape {
        six: false,
        local: true,
        remote: false,
    },
    Shape {
        six: false,
        local: false,
        remote: false,
    },
    Shape {
        six: true,
        local: true,
        remote: true,
    },
    Shape {
        six: true,
        local: true,
        remote: false,
    },
    Shape {
        six: true,
        local: false,
        remote: false,
    },
];

impl Shape {
    fn name(self) -> String {
        let family = if self.six { "6" } else { "4" };
        let what = match (self.local, self.remote) {
            (true, true) => "connections",
            (true, false) => "listeners",
            _ => "ports",
        };
        format!("{what}{family}")
    }
    fn id(self) -> u32 {
        SHAPES
            .iter()
            .position(|s| *s == self)
            .map_or(0, |p| p as u32 + 1)
    }
    fn address(self) -> u32 {
        if self.six { 16 } else { 4 }
    }
    /// Bytes of a key: addresses, ports, protocol, each filled up to whole words.
    fn len(self) -> u32 {
        let addresses = u32::from(self.local) + u32::from(self.remote);
        addresses * self.address() + 4 + if self.remote { 4 } else { 0 } + 4
    }
    fn key(self, t: &Tuple) -> Option<Vec<u8>> {
        let (local, remote) = (t.local(), t.remote());
        // a listener on any address of IPv6 may be one of IPv4, too
        let any = local.is_unspecified() && remote.is_none();
        let family_fits = local.is_ipv6() == self.six || (any && local.is_ipv6());
        if !family_fits || any == self.local || remote.is_some() != self.remote {
            return None;
        }
        let mut k = Vec::new();
        let mut put = |ip: IpAddr| match ip {
            IpAddr::V4(a) => k.extend(a.octets()),
            IpAddr::V6(a) => k.extend(a.octets()),
        };
        if self.local {
            put(local);
        }
        if let Some((r, _)) = remote {
            if r.is_ipv6() != self.six {
                return None;
            }
            put(r);
        }
        let mut port = |p: u16| {
            k.extend(p.to_be_bytes());
            k.extend([0; 2]);
        };
        port(t.local.port());
        if let Some((_, p)) = remote {
            port(p);
        }
        k.extend([t.protocol, 0, 0, 0]);
        Some(k)
    }
    fn set(self, family: u8, table: &str, tuples: &[Tuple], parts: &mut Parts) {
        let mut b = Body::new(&header(family));
        b.text(1, table)
            .text(2, &self.name())
            .be32(3, 0)
            .be32(4, 0)
            .be32(5, self.len())
            .be32(10, self.id());
        parts.push((kind(Nft::NewSet), NLM_F_CREATE, b.0));
        let mut keys: Vec<Vec<u8>> = tuples.iter().filter_map(|t| self.key(t)).collect();
        keys.sort();
        keys.dedup();
        for some in keys.chunks(ELEMENTS) {
            let mut b = Body::new(&header(family));
            b.text(1, table).text(2, &self.name()).be32(4, self.id());
            b.nest(3, |list| {
                for key in some {
                    list.nest(1, |e| {
                        e.nest(1, |k| {
                            k.attr(1, key);
                        });
                    });
                }
            });
            parts.push((kind(Nft::NewSetElem), NLM_F_CREATE, b.0));
        }
    }
    /// Loads what the set has from a packet, and drops it if it is there.
    fn rule(self, family: u8, input: bool) -> Body {
        let mut list = Body::default();
        match family {
            // NFT_META_PROTOCOL: the type in the Ethernet header
            NFPROTO_BRIDGE => {
                meta(&mut list, 1, REG);
                let ethertype: u16 = if self.six { 0x86dd } else { 0x0800 };
                compare(&mut list, REG, &ethertype.to_be_bytes());
            }
            // NFT_META_NFPROTO
            _ => {
                meta(&mut list, 15, REG);
                compare(&mut list, REG, &[if self.six { 10 } else { 2 }]);
            }
        }
        let size = self.address();
        // where source and target address are in the header
        let (source, target) = if self.six { (8, 24) } else { (12, 16) };
        let (local, remote) = if input {
            (target, source)
        } else {
            (source, target)
        };
        let (local_port, remote_port) = if input { (2, 0) } else { (0, 2) };
        let mut at = REG;
        let mut load = |list: &mut Body, base, offset, len: u32| {
            expr(list, "payload", |d| {
                d.be32(1, at).be32(2, base).be32(3, offset).be32(4, len);
            });
            at += len.div_ceil(4);
        };
        if self.local {
            load(&mut list, 1, local, size);
        }
        if self.remote {
            load(&mut list, 1, remote, size);
        }
        load(&mut list, 2, local_port, 2);
        if self.remote {
            load(&mut list, 2, remote_port, 2);
        }
        meta(&mut list, 16, at);
        expr(&mut list, "lookup", |d| {
            d.text(1, &self.name()).be32(2, REG).be32(4, self.id());
        });
        verdict(&mut list, NF_DROP);
        list
    }
}

/// NFT_REG32_00: the first of the registers of one word each.
const REG: u32 = 8;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

fn expr(list: &mut Body, name: &str, data: impl FnOnce(&mut Body)) {
    list.nest(1, |e| {
        e.text(1, name).nest(2, data);
    });
}

fn meta(list: &mut Body, key: u32, register: u32) {
    expr(list, "meta", |d| {
        d.be32(1, register).be32(2, key);
    });
}

fn compare(list: &mut Body, register: u32, value: &[u8]) {
    expr(list, "cmp", |d| {
        d.be32(1, register).be32(2, 0).nest(3, |v| {
            v.attr(1, value);
        });
    });
}

fn verdict(list: &mut Body, code: u32) {
    expr(list, "immediate", |d| {
        d.be32(1, 0).nest(2, |v| {
            v.nest(2, |c| {
                c.be32(1, code);
            });
        });
    });
}

/// The locks of this sort in the namespace the caller is in.
pub fn all() -> Result<Vec<(State, Net)>, Error> {
    let mut nl = match Netlink::netfilter() {
        Ok(nl) => nl,
        // no nfnetlink, no tables
        Err(e) if e.errno == Errno::EPROTONOSUPPORT => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let tables = nl.dump("nftables(list tables)", kind(Nft::GetTable), &header(0))?;
    let mut found = Vec::new();
    for m in Messages(&tables).flatten() {
        if let Some(state) = state_of(&m) {
            let net = Net {
                nl: Netlink::netfilter()?,
                rules: Rules::default(),
                there: true,
                crossing: false,
                bridged: false,
            };
            found.push((state, net));
        }
    }
    Ok(found)
}

fn state_of(m: &Message<'_>) -> Option<State> {
    let a = m.attrs(NFGENMSG);
    let state = State::parse(a.get(6)?)?;
    (a.text(1)? == name(state.id)).then_some(state)
}
