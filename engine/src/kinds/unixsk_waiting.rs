//! Connections of unix sockets that nobody has accepted: how they come back. Not a kind of its own: part of [`super::unixsk`].
//!
//! They are made before the tree is born, so that who connects can be a process of the old number; behind all others, since what is
//! accepted is always the first that waits.
use super::PlanCx;
use super::unixsk::{ESTABLISHED, LISTEN};
use super::unixsk_acts::{Send, To, What};
use super::unixsk_plan::{Sk, World, cred, ghost};
use crate::error::Result;
use stasis_kernel::call::FdRef;
use stasis_kernel::unix::Ucred;
use stasis_proto::pb;

impl World<'_> {
    /// Connections that a listener has not accepted, in order: inode numbers, 0 for sockets that are closed.
    pub(super) fn waiting(&self, l: &Sk) -> Vec<u32> {
        let is = |s: &&Sk| !s.dgram() && s.u.state == ESTABLISHED && s.u.peer == l.u.ino;
        let clients: Vec<u32> = self.done().filter(is).map(|s| s.u.ino).collect();
        let mut order = l.ext().waiting;
        order.retain(|i| *i == 0 || clients.contains(i));
        let more = clients.iter().filter(|c| !order.contains(c)).copied();
        let more: Vec<u32> = more.collect();
        order.extend(more);
        order
    }
    /// All of them.
    pub(super) fn unaccepted(&self, cx: &mut PlanCx) -> Result<()> {
        for l in self.done().filter(|s| s.u.state == LISTEN) {
            // what waits to be accepted has some of them from its listener, which itself has no queue that they could hinder
            self.options(cx, l)?;
            let waiting = self.waiting(l);
            if waiting.is_empty() {
                continue;
            }
            let mut left = l.ext().left.into_iter();
            for ino in &waiting {
                match self.sks.get(ino) {
                    Some(c) => self.waits(cx, l, c),
                    None => self.left(cx, l, left.next().unwrap_or_default()),
                }
            }
            let again = vec![What::Listen(l.file, l.u.backlog)];
            self.deed(cx, l.cred(), again, "its backlog");
        }
        Ok(())
    }
    /// One whose other end lives.
    fn waits(&self, cx: &mut PlanCx, l: &Sk, c: &Sk) {
        let ext = c.ext();
        let by = cred(ext.own_cred.as_ref());
        let mut what = vec![What::Connect(c.file, To::File(l.file))];
        what.extend((!ext.sent.is_empty()).then_some(What::Room(c.file)));
        what.extend(early(c.file, by, ext.sent));
        self.deed(cx, by, what, "a connection that waits to be accepted");
    }
    /// One whose other end is closed.
    fn left(&self, cx: &mut PlanCx, l: &Sk, left: pb::StasisUnixLeft) {
        let (t, by) = (cx.temp(), cred(left.cred.as_ref()));
        let mut what = vec![What::Socket(l.kind(), t)];
        what.extend(left.name.map(|n| What::Bind(t, ghost(&n))));
        self.deed(cx, None, what, "a socket that was closed");
        let mut what = vec![What::Connect(t, To::File(l.file)), What::Room(t)];
        what.extend(early(t, by, left.sent));
        what.push(What::Close(t));
        self.deed(cx, by, what, "a connection that waits to be accepted");
    }
}

/// What was sent on a connection before it was accepted. The kernel tells of whoever sends, so of `by` nothing needs to be said.
fn early(
    from: FdRef,
    by: Option<Ucred>,
    sent: Vec<pb::StasisUnixMessage>,
) -> impl Iterator<Item = What> {
    sent.into_iter().map(move |m| {
        What::Send(Send {
            from,
            to: None,
            bytes: m.bytes,
            files: Vec::new(),
            cred: cred(m.cred.as_ref()).filter(|c| Some(*c) != by),
            urgent: m.oob == Some(true),
        })
    })
}
