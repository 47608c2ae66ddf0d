//! How unix sockets come back: all at once, because each depends on others.
//!
//! First, before the tree is born: sockets are made, bound, listen, and are connected; what has been accepted before is
//! accepted again from the same listener or, where that is gone, from one made for the moment; behind them the connections that wait to
//! be accepted (`unixsk_waiting.rs`). Then, when all files exist: queues, connections of datagram sockets, and what would have
//! hindered both (options, shutdowns).
//!
//! Long because the cases of one order of events stand together.
use super::common::{body, settle, settle_at};
use super::unixsk::{self, CLOSED, ESTABLISHED, EXTERN, LISTEN, SERVICE, shown};
use super::unixsk_acts::{Deeds, Name, Send, To, What};
use super::{Act, PlanCx, Stage, malformed, sockopts};
use crate::error::{Blame, Error, Result};
use stasis_kernel::call::FdRef;
use stasis_kernel::unix::Ucred;
use stasis_proto::pb;
use stasis_proto::prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A message of the image.
struct Packet {
    entry: pb::SkPacketEntry,
    bytes: Vec<u8>,
}

/// A socket of the tree.
pub(super) struct Sk<'a> {
    entry: &'a pb::FileEntry,
    pub(super) u: &'a pb::UnixSkEntry,
    pub(super) file: FdRef,
    /// A task that has it.
    holder: Option<u32>,
}

impl Sk<'_> {
    pub(super) fn kind(&self) -> i32 {
        self.u.r#type as i32
    }
    pub(super) fn dgram(&self) -> bool {
        self.kind() == libc::SOCK_DGRAM
    }
    pub(super) fn ext(&self) -> pb::StasisUnixEntry {
        self.u.stasis.clone().unwrap_or_default()
    }
    /// Who made the pair, connected or listened. Images of CRIU do not tell: then it was whoever has it.
    pub(super) fn cred(&self) -> Option<Ucred> {
        match &self.u.stasis {
            Some(s) => cred(s.peer_cred.as_ref()),
            None => self.holder.map(|pid| Ucred {
                pid: pid as i32,
                uid: 0,
                gid: 0,
            }),
        }
    }
    fn named(&self) -> bool {
        !self.u.name.is_empty()
    }
    fn name(&self) -> Name {
        let perms = self.u.file_perms.as_ref();
        let mut path = self.u.name.clone();
        if path[0] != 0 && path.last() != Some(&0) {
            path.push(0);
        }
        Name {
            path,
            dir: self.u.name_dir.as_ref().map(PathBuf::from),
            root: self.ext().root.map(PathBuf::from),
            deleted: self.u.deleted == Some(true),
            perms: perms.map(|p| (p.mode, p.uid, p.gid)),
        }
    }
}

/// A name of a socket that is no more.
pub(super) fn ghost(path: &[u8]) -> Name {
    Name {
        path: path.to_vec(),
        dir: None,
        root: None,
        deleted: true,
        perms: None,
    }
}

/// Numbers that processes can have.
pub(super) fn cred(c: Option<&pb::StasisUcred>) -> Option<Ucred> {
    let c = c.filter(|c| c.pid > 0 && c.pid < 1 << 22)?;
    Some(Ucred {
        pid: c.pid as i32,
        uid: c.uid,
        gid: c.gid,
    })
}

/// What a service tells a task that asked for its own dump, once it is restored.
fn restored(id_for: u32) -> Packet {
    let told = pb::CriuResp {
        r#type: pb::CriuReqType::Dump as i32,
        success: true,
        dump: Some(pb::CriuDumpResp {
            restored: Some(true),
        }),
        ..Default::default()
    };
    let bytes = told.encode_to_vec();
    let entry = pb::SkPacketEntry {
        id_for,
        length: bytes.len() as u32,
        ..Default::default()
    };
    Packet { entry, bytes }
}

/// All of them, when the first is planned.
pub(super) fn plan(entry: &pb::FileEntry, cx: &mut PlanCx) -> Result<()> {
    body(entry, &entry.usk, "usk")?;
    if cx.made.insert(("unix sockets", 0), Vec::new()).is_some() {
        return Ok(());
    }
    let before = cx.stage();
    let mut all = World::read(cx)?;
    cx.enter(Stage::First);
    all.inherited(cx);
    all.listeners(cx);
    all.streams(cx)?;
    all.datagrams(cx)?;
    for l in std::mem::take(&mut all.passing) {
        all.deed(cx, None, vec![What::Close(l)], "a listener of the moment");
    }
    all.unaccepted(cx)?;
    let (urgent, others): (Vec<_>, Vec<_>) = all.done().partition(|s| all.has_urgent(s));
    let urgent: Vec<_> = urgent.iter().map(|s| s.entry).collect();
    for s in others {
        settle(cx, s.file, s.u.flags, &s.u.fown);
    }
    cx.enter(Stage::Queues);
    all.queues(cx)?;
    all.late(cx)?;
    // an out-of-band byte that comes sends SIGURG to the owner, who was told long ago
    for entry in urgent {
        let u = body(entry, &entry.usk, "usk")?;
        settle_at(Stage::Mapped, cx, cx.file(entry.id), u.flags, &u.fown);
    }
    cx.enter(before);
    Ok(())
}

pub(super) struct World<'a> {
    pub(super) sks: BTreeMap<u32, Sk<'a>>,
    /// Sockets outside of the tree, by inode number: their names.
    outside: BTreeMap<u32, Vec<u8>>,
    /// Sockets that the caller handed over.
    given: BTreeSet<u32>,
    packets: BTreeMap<u32, Vec<Packet>>,
    /// Listeners made for the moment, by name.
    moment: BTreeMap<Name, FdRef>,
    passing: Vec<FdRef>,
    /// Peers that are closed again when they have filled the queue of the socket with this number.
    stand_ins: BTreeMap<u32, FdRef>,
    /// Datagram sockets whose connection is made already, by socketpair(2): (its number, its partner's file).
    paired: BTreeMap<u32, FdRef>,
    /// Peers to connect to when queues are filled.
    later: BTreeMap<u32, FdRef>,
}

impl<'a> World<'a> {
    fn read(cx: &mut PlanCx<'a>) -> Result<Self> {
        let mut w = World {
            sks: BTreeMap::new(),
            outside: BTreeMap::new(),
            given: BTreeSet::new(),
            packets: BTreeMap::new(),
            moment: BTreeMap::new(),
            passing: Vec::new(),
            stand_ins: BTreeMap::new(),
            paired: BTreeMap::new(),
            later: BTreeMap::new(),
        };
        let files = cx.files;
        for entry in files.values() {
            let Some(u) = entry.usk.as_deref() else {
                continue;
            };
            if u.uflags & EXTERN != 0 {
                w.outside.insert(u.ino, u.name.clone());
                continue;
            }
            let bad = |why: &str| Err(malformed(entry, why));
            match (u.r#type as i32, u.state) {
                (libc::SOCK_STREAM | libc::SOCK_SEQPACKET, ESTABLISHED | CLOSED | LISTEN) => {}
                (libc::SOCK_DGRAM, ESTABLISHED | CLOSED) => {}
                _ => return bad("a unix socket of an unknown type or state"),
            }
            if u.name.len() > 109 {
                return bad("the name of a unix socket is too long");
            }
            let asked = u.uflags == SERVICE && u.r#type as i32 != libc::SOCK_DGRAM;
            if u.uflags != 0 && !(asked && u.state == CLOSED) {
                return bad("its peer belongs to a plugin of CRIU");
            }
            if u.state == LISTEN && u.name.is_empty() {
                return bad("it listens and has no name");
            }
            let file = cx.file(entry.id);
            let holder = cx.holders.get(&entry.id).and_then(|h| h.first());
            let sk = Sk {
                entry,
                u,
                file,
                holder: holder.map(|h| h.0),
            };
            if w.sks.insert(u.ino, sk).is_some() {
                return bad("two unix sockets have the same inode number");
            }
        }
        if cx.dir.exists("sk-queues.img")? {
            let mut r = cx.dir.reader("sk-queues.img")?;
            while let Some(e) = r.read::<pb::SkPacketEntry>()? {
                let bytes = r.payload(e.length.into())?;
                let id = e.id_for;
                let p = Packet { entry: e, bytes };
                w.packets.entry(id).or_default().push(p);
            }
        }
        for s in w.sks.values().filter(|s| s.u.uflags == SERVICE) {
            w.packets.insert(s.entry.id, vec![restored(s.entry.id)]);
        }
        Ok(w)
    }
    /// Sockets the engine makes.
    pub(super) fn done(&self) -> impl Iterator<Item = &Sk<'a>> {
        let ours = |s: &&Sk| !self.given.contains(&s.u.ino);
        self.sks.values().filter(ours)
    }
    fn inos(&self, which: impl Fn(&Sk) -> bool) -> Vec<u32> {
        let mine = self.done().filter(|s| which(s));
        mine.map(|s| s.u.ino).collect()
    }
    pub(super) fn deed(
        &self,
        cx: &mut PlanCx,
        by: Option<Ucred>,
        what: Vec<What>,
        why: &'static str,
    ) {
        let stage = cx.stage();
        cx.act_at(stage, Act::Unix(Deeds { by, what }), why);
    }
    /// Does an out-of-band byte wait in it?
    fn has_urgent(&self, s: &Sk) -> bool {
        let of = |p: &Packet| p.entry.stasis.as_ref().is_some_and(|x| x.oob == Some(true));
        self.packets
            .get(&s.entry.id)
            .is_some_and(|all| all.iter().any(of))
    }
    /// What the caller hands over: the driver has planned it.
    fn inherited(&mut self, cx: &PlanCx) {
        let inherit = &cx.options.namespaces.inherit;
        let given = |i: &&u32| inherit.iter().any(|(k, _)| *k == format!("socket:[{i}]"));
        self.given = self.sks.keys().filter(given).copied().collect();
    }
    fn listeners(&self, cx: &mut PlanCx) {
        for s in self.done().filter(|s| s.u.state == LISTEN) {
            let what = vec![What::Socket(s.kind(), s.file), What::Bind(s.file, s.name())];
            self.deed(cx, None, what, "a listening socket");
            let waiting = self.waiting(s).len() as u32;
            let listen = vec![What::Listen(s.file, s.u.backlog.max(waiting))];
            self.deed(cx, s.cred(), listen, "it listens");
        }
    }
    /// The listener of the tree that has this name.
    fn listener(&self, s: &Sk, name: &[u8]) -> Option<FdRef> {
        let same = |l: &&Sk| l.u.state == LISTEN && l.kind() == s.kind() && l.u.name == name;
        // one that was deleted may share its name with a live one; the live one is the better guess
        let mut all: Vec<_> = self.done().filter(same).collect();
        all.sort_by_key(|l| l.u.deleted != s.u.deleted);
        all.first().map(|l| l.file)
    }
    /// A listener with this name for the moment.
    fn for_the_moment(
        &mut self,
        cx: &mut PlanCx,
        kind: i32,
        name: Name,
        by: Option<Ucred>,
    ) -> FdRef {
        if let Some(l) = self.moment.get(&name) {
            return *l;
        }
        let l = cx.temp();
        let what = vec![What::Socket(kind, l), What::Bind(l, name.clone())];
        self.deed(cx, None, what, "a listener of the moment");
        self.deed(cx, by, vec![What::Listen(l, 1)], "it listens");
        self.moment.insert(name, l);
        self.passing.push(l);
        l
    }
    /// Connects `a` to a listener and accepts `b`. `by`: who connects.
    fn join(
        &self,
        cx: &mut PlanCx,
        kind: i32,
        (a, name): (FdRef, Option<Name>),
        listener: FdRef,
        b: FdRef,
        by: Option<Ucred>,
    ) {
        let mut what = vec![What::Socket(kind, a)];
        what.extend(name.map(|n| What::Bind(a, n)));
        self.deed(cx, None, what, "it connects");
        let connect = vec![What::Connect(a, To::File(listener))];
        self.deed(cx, by, connect, "it connects");
        self.deed(cx, None, vec![What::Accept(listener, b)], "it is accepted");
    }
    fn peer_of(&self, s: &Sk) -> Option<&Sk<'a>> {
        let p = self.sks.get(&s.u.peer)?;
        (p.u.peer == s.u.ino && p.kind() == s.kind()).then_some(p)
    }
    fn streams(&mut self, cx: &mut PlanCx) -> Result<()> {
        let mut pairs: BTreeMap<Option<Ucred>, Vec<What>> = BTreeMap::new();
        for ino in self.inos(|s| !s.dgram() && s.u.state != LISTEN) {
            let s = &self.sks[&ino];
            let peer = s.u.peer;
            let single = || {
                let mut what = vec![What::Socket(s.kind(), s.file)];
                if s.named() {
                    what.push(What::Bind(s.file, s.name()));
                }
                what
            };
            if s.u.uflags == SERVICE {
                self.orphan(cx, ino);
            } else if s.u.state == CLOSED {
                self.deed(cx, None, single(), "a socket");
            } else if peer == 0 {
                self.orphan(cx, ino);
            } else if let Some(p) = self.peer_of(s) {
                if self.given.contains(&peer) || peer < ino {
                    continue;
                }
                if s.named() || p.named() {
                    self.connected(cx, ino, peer);
                } else {
                    let pair = What::Pair(s.kind(), s.file, p.file);
                    pairs.entry(s.cred()).or_default().push(pair);
                }
            } else if self.sks.get(&peer).is_some_and(|p| p.u.state == LISTEN) {
                self.deed(cx, None, single(), "a socket that will connect");
            } else if let Some(name) = self.outside.get(&peer).cloned() {
                self.foreign(cx, ino, &name)?;
            } else {
                return Err(malformed(
                    s.entry,
                    &format!("its peer (inode {peer}) is not in the image"),
                ));
            }
        }
        for (by, what) in pairs {
            self.deed(cx, by, what, "connected pairs");
        }
        Ok(())
    }
    /// Both ends are of the tree, and one at least has a name.
    fn connected(&mut self, cx: &mut PlanCx, one: u32, other: u32) {
        let (x, y) = (&self.sks[&one], &self.sks[&other]);
        let (lx, ly) = (self.listener(x, &x.u.name), self.listener(y, &y.u.name));
        // whoever has a listener's name was accepted by it
        let accepted = if y.named() && (ly.is_some() || !x.named() || lx.is_none()) {
            (y, x, ly)
        } else {
            (x, y, lx)
        };
        let (b, a, listener) = accepted;
        let (kind, to, from) = (b.kind(), b.file, a.file);
        let (told, by) = (a.cred(), b.cred());
        let own = a.named().then(|| a.name());
        let name = b.name();
        let listener = match listener {
            Some(l) => l,
            None => self.for_the_moment(cx, kind, name, told),
        };
        self.join(cx, kind, (from, own), listener, to, by);
    }
    /// Its peer was closed: it gets one for the moment.
    fn orphan(&mut self, cx: &mut PlanCx, ino: u32) {
        let s = &self.sks[&ino];
        let (kind, file, by) = (s.kind(), s.file, s.cred());
        let gone = s.ext().gone.unwrap_or_default();
        let t = cx.temp();
        let lost = (!gone.is_empty()).then(|| ghost(&gone));
        let own = s.named().then(|| s.name());
        let of_ours = self.listener(s, &s.u.name).filter(|_| s.named());
        let of_its = self.listener(s, &gone).filter(|_| !gone.is_empty());
        if let Some(l) = of_ours {
            self.join(cx, kind, (t, lost), l, file, by);
        } else if let Some(l) = of_its {
            self.join(cx, kind, (file, own), l, t, None);
        } else if let Some(g) = lost {
            let l = self.for_the_moment(cx, kind, g, by);
            self.join(cx, kind, (file, own), l, t, None);
        } else if let Some(n) = own {
            let l = self.for_the_moment(cx, kind, n, None);
            self.join(cx, kind, (t, None), l, file, by);
        } else {
            self.deed(
                cx,
                by,
                vec![What::Pair(kind, file, t)],
                "its peer was closed",
            );
        }
        self.stand_ins.insert(ino, t);
    }
    /// Its peer is outside of the tree.
    fn foreign(&mut self, cx: &mut PlanCx, ino: u32, name: &[u8]) -> Result<()> {
        let s = &self.sks[&ino];
        if !unixsk::allowed(cx.options, [ino, s.u.peer]) && !unixsk::is_service(name) {
            return Err(Error::new(
                "E2500",
                Blame::Caller,
                format!("file entry {} (socket:[{ino}])", s.entry.id),
            )
            .why(format!(
                "it was connected to {}, outside of the tree",
                if name.is_empty() { "a socket without name".into() } else { shown(name) }
            ))
            .advice(format!(
                "hand over a socket with --inherit-fd 'fd[N]:socket:[{ino}]', or pass --ext-unix-sk (--external unix[{ino}]) to have it connected again by name, or closed if there is none"
            )));
        }
        if name.is_empty() && !s.dgram() {
            cx.warnings.push(format!(
                "socket:[{ino}]: its peer was outside of the tree and has no name: it is closed"
            ));
            self.orphan(cx, ino);
            return Ok(());
        }
        let mut what = vec![What::Socket(s.kind(), s.file)];
        if s.named() {
            what.push(What::Bind(s.file, s.name()));
        }
        if !name.is_empty() {
            what.push(What::Connect(s.file, To::Name(name.to_vec())));
        }
        self.deed(cx, None, what, "a connection to the outside");
        self.paired.insert(ino, s.file);
        Ok(())
    }
    fn datagrams(&mut self, cx: &mut PlanCx) -> Result<()> {
        let mut pairs: BTreeMap<Option<Ucred>, Vec<What>> = BTreeMap::new();
        let mut after = Vec::new();
        let mut made = BTreeSet::new();
        for ino in self.inos(|s| s.dgram()) {
            let s = &self.sks[&ino];
            let Some(p) = self
                .sks
                .get(&s.u.peer)
                .filter(|p| p.dgram() && p.u.ino != ino)
            else {
                continue;
            };
            if made.contains(&ino) || made.contains(&p.u.ino) || self.given.contains(&p.u.ino) {
                continue;
            }
            let mutual = p.u.peer == ino;
            // only socketpair(2) makes datagram sockets tell who they belong to
            let told = |x: &Sk| x.ext().peer_cred.is_some();
            let by_pair = mutual && told(s) && told(p);
            if !by_pair && p.named() && (s.named() || !mutual) {
                continue;
            }
            if !mutual && p.named() {
                continue;
            }
            made.extend([ino, p.u.ino]);
            pairs
                .entry(s.cred())
                .or_default()
                .push(What::Pair(libc::SOCK_DGRAM, s.file, p.file));
            for x in [s, p] {
                if x.named() {
                    after.push(What::Bind(x.file, x.name()));
                }
            }
            self.paired.insert(ino, p.file);
            if mutual {
                self.paired.insert(p.u.ino, s.file);
            } else {
                // the other end went elsewhere: that is told as an error, which was read long ago
                after.push(What::Connect(p.file, To::Nobody));
                after.push(What::Clear(s.file));
            }
        }
        for (by, what) in pairs {
            self.deed(cx, by, what, "pairs of datagram sockets");
        }
        if !after.is_empty() {
            self.deed(cx, None, after, "what became of the pairs");
        }
        for ino in self.inos(|s| s.dgram() && !made.contains(&s.u.ino)) {
            let s = &self.sks[&ino];
            if let Some(name) = self.outside.get(&s.u.peer).cloned() {
                self.foreign(cx, ino, &name)?;
                continue;
            }
            let gone = s.ext().gone;
            let own = s.named().then(|| What::Bind(s.file, s.name()));
            if gone.is_none()
                && s.u.peer == 0
                && !s.named()
                && self.packets.contains_key(&s.entry.id)
            {
                // images of CRIU do not tell of peers that were closed; whoever filled its queue was one
                let t = cx.temp();
                let what = vec![
                    What::Pair(libc::SOCK_DGRAM, s.file, t),
                    What::Connect(s.file, To::Nobody),
                    What::Clear(t),
                ];
                self.deed(cx, None, what, "a datagram socket without peer");
                self.stand_ins.insert(ino, t);
                continue;
            }
            if gone.as_ref().is_some_and(Vec::is_empty) {
                let t = cx.temp();
                let pair = vec![What::Pair(libc::SOCK_DGRAM, s.file, t)];
                self.deed(cx, s.cred(), pair, "its peer was closed");
                self.deed(cx, None, own.into_iter().collect(), "its name");
                self.paired.insert(ino, t);
                self.stand_ins.insert(ino, t);
                continue;
            }
            let mut what = vec![What::Socket(libc::SOCK_DGRAM, s.file)];
            what.extend(own);
            self.deed(cx, None, what, "a datagram socket");
            if let Some(name) = gone {
                let t = cx.temp();
                let what = vec![
                    What::Socket(libc::SOCK_DGRAM, t),
                    What::Bind(t, ghost(&name)),
                ];
                self.deed(cx, None, what, "a peer that was closed");
                self.later.insert(ino, t);
                self.passing.push(t);
            } else if s.u.peer != 0 {
                let Some(p) = self.sks.get(&s.u.peer) else {
                    let why = format!("its peer (inode {}) is not in the image", s.u.peer);
                    return Err(malformed(s.entry, &why));
                };
                self.later.insert(ino, p.file);
            }
        }
        // they are needed until the connections are made
        for t in self.later.values() {
            self.passing.retain(|p| p != t);
        }
        Ok(())
    }
    fn queues(&mut self, cx: &mut PlanCx) -> Result<()> {
        let mut senders: BTreeMap<Vec<u8>, FdRef> = BTreeMap::new();
        let mut close = Vec::new();
        for ino in self.inos(|s| s.u.state != LISTEN) {
            let s = &self.sks[&ino];
            let packets = self.packets.remove(&s.entry.id).unwrap_or_default();
            let mut what = Vec::new();
            let mut roomy = BTreeSet::new();
            let mutual = self.peer_of(s).map(|p| p.file);
            let stand_in = self.stand_ins.get(&ino).copied();
            for p in packets {
                let partner = stand_in.or(match s.dgram() {
                    false => mutual,
                    true => self.paired.get(&ino).copied(),
                });
                let ext = p.entry.stasis.clone().unwrap_or_default();
                let from = ext.from.clone().unwrap_or_default();
                let (from, to) = match partner {
                    Some(f) => (f, None),
                    None if !s.dgram() => {
                        // without a peer there is nobody to send: the socket was shut down, too
                        return Err(malformed(s.entry, "it has a queue and no peer"));
                    }
                    None => (
                        self.sender(cx, s, &from, &mut senders, &mut close),
                        Some(s.file),
                    ),
                };
                if roomy.insert(from) {
                    what.push(What::Room(from));
                }
                let mut files = Vec::new();
                for scm in &p.entry.scm {
                    if scm.r#type != libc::SCM_RIGHTS as u32 {
                        let why = format!("a control message of unknown type {}", scm.r#type);
                        return Err(malformed(s.entry, &why));
                    }
                    for id in &scm.rights {
                        if !cx.files.contains_key(id) {
                            let why = format!("file {id} in its queue is not in files.img");
                            return Err(malformed(s.entry, &why));
                        }
                        files.push(cx.file(*id));
                    }
                }
                what.push(What::Send(Send {
                    from,
                    to,
                    bytes: p.bytes,
                    files,
                    cred: cred(ext.cred.as_ref()),
                    urgent: ext.oob == Some(true),
                }));
            }
            if let Some(t) = stand_in {
                if s.ext().reset == Some(true) && !s.dgram() {
                    // KERNEL: a socket that is closed with something unread resets its peer (unix_release_sock())
                    what.push(What::Send(Send {
                        from: s.file,
                        to: None,
                        bytes: vec![0],
                        files: Vec::new(),
                        cred: None,
                        urgent: false,
                    }));
                }
                close.push(t);
            }
            if !what.is_empty() {
                self.deed(cx, None, what, "its queue");
            }
        }
        // who connects to x goes before x connects to somebody else
        let mut order = Vec::new();
        for ino in self.later.keys() {
            self.before(*ino, &mut order);
        }
        let connect: Vec<What> = order
            .iter()
            .map(|i| What::Connect(self.sks[i].file, To::File(self.later[i])))
            .collect();
        if !connect.is_empty() {
            self.deed(cx, None, connect, "datagram sockets connect");
        }
        close.extend(self.done().filter_map(|s| {
            let t = self.later.get(&s.u.ino)?;
            (s.u.peer == 0).then_some(*t)
        }));
        let close: Vec<What> = close.into_iter().map(What::Close).collect();
        if !close.is_empty() {
            self.deed(cx, None, close, "peers of the moment");
        }
        Ok(())
    }
    /// Puts this socket behind all that connect to it.
    fn before(&self, ino: u32, order: &mut Vec<u32>) {
        let mut todo = vec![(ino, false)];
        let mut seen = BTreeSet::new();
        while let Some((i, ready)) = todo.pop() {
            if ready {
                if !order.contains(&i) {
                    order.push(i);
                }
                continue;
            }
            if !seen.insert(i) || order.contains(&i) {
                continue;
            }
            todo.push((i, true));
            let callers = self
                .later
                .keys()
                .filter(|w| self.sks[*w].u.peer == i && **w != i && self.sks[&i].u.peer != **w);
            todo.extend(callers.map(|w| (*w, false)));
        }
    }
    /// Who sends a datagram that came from this name.
    fn sender(
        &self,
        cx: &mut PlanCx,
        to: &Sk,
        name: &[u8],
        senders: &mut BTreeMap<Vec<u8>, FdRef>,
        close: &mut Vec<FdRef>,
    ) -> FdRef {
        let ours = |s: &&Sk| {
            s.dgram()
                && if name.is_empty() {
                    !s.named() && s.u.peer == to.u.ino
                } else {
                    s.u.name == name
                }
        };
        if let Some(s) = self.done().find(ours) {
            return s.file;
        }
        if let Some(f) = senders.get(name) {
            return *f;
        }
        let t = cx.temp();
        let mut what = vec![What::Socket(libc::SOCK_DGRAM, t)];
        if !name.is_empty() {
            what.push(What::Bind(t, ghost(name)));
        }
        self.deed(cx, None, what, "a sender that is gone");
        senders.insert(name.to_vec(), t);
        close.push(t);
        t
    }
    /// All options of a socket.
    pub(super) fn options(&self, cx: &mut PlanCx, s: &Sk) -> Result<()> {
        let o = &s.u.opts;
        sockopts::known(&o.stasis, &[sockopts::SOCKET_OPTIONS, sockopts::LOCK])?;
        sockopts::plan(cx, s.file, o)?;
        sockopts::plan_buffers(cx, s.file, o);
        if o.reuseaddr == Some(true) {
            let [addr, _] = sockopts::reuse_rows(s.file, true, false);
            cx.host(addr, "option of a socket");
        }
        sockopts::plan_filter(cx, s.file, o)
    }
    /// Options and shutdowns.
    fn late(&self, cx: &mut PlanCx) -> Result<()> {
        for s in self.done().filter(|s| s.u.state != LISTEN) {
            self.options(cx, s)?;
        }
        let down: Vec<What> = self
            .done()
            .filter(|s| !self.stand_ins.contains_key(&s.u.ino) || s.dgram())
            .filter_map(|s| {
                let how = s.u.shutdown.filter(|h| (1..=3).contains(h))?;
                Some(What::Shutdown(s.file, how - 1))
            })
            .collect();
        if !down.is_empty() {
            self.deed(cx, None, down, "shutdowns");
        }
        Ok(())
    }
}
