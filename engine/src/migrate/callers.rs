//! Whoever comes to a port where this engine's protocol is spoken.
use super::wire::{Link, Role, Token, lost, meet, prepare};
use crate::error::Result;
use crate::tls::{self, Tls};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// How long connections that belong together may take, in seconds.
pub const SOON_SECS: u64 = 10;

/// Where they come.
pub struct Callers {
    /// The port.
    pub listener: TcpListener,
    /// How connections are secured.
    pub tls: Option<Arc<Tls>>,
}

/// Somebody who speaks the protocol.
pub struct Caller {
    /// What the connection is for.
    pub role: Role,
    /// Of which migration.
    pub token: Token,
    /// The connection.
    pub link: Box<dyn Link>,
}

impl Callers {
    /// The next connection of somebody who speaks the protocol; `None` when time is up.
    ///
    /// # Errors
    /// E6720.
    pub fn accept(&self, until: Option<Instant>) -> Result<Option<Caller>> {
        loop {
            let left = match until {
                None => PollTimeout::NONE,
                Some(u) => {
                    let ms = u.saturating_duration_since(Instant::now()).as_millis();
                    if ms == 0 {
                        return Ok(None);
                    }
                    PollTimeout::try_from(ms.min(60_000) as i32).unwrap_or(PollTimeout::MAX)
                }
            };
            let mut polls = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut polls, left) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(lost(e)),
            }
            let (s, from) = self.listener.accept().map_err(lost)?;
            let met = prepare(&s).and_then(|()| {
                let mut link = tls::accept(self.tls.as_deref(), s)?;
                let (role, token) = meet(&mut *link)?;
                Ok(Caller { role, token, link })
            });
            match met {
                Ok(m) => return Ok(Some(m)),
                // anybody may knock
                Err(e) => warn!("from {from}: {e}"),
            }
        }
    }
    /// So many connections of one migration and sort.
    ///
    /// # Errors
    /// E6720: they do not come.
    pub fn links(&self, sort: Role, n: u32, token: &Token) -> Result<Vec<Box<dyn Link>>> {
        let until = Instant::now() + Duration::from_secs(SOON_SECS);
        let mut links = Vec::new();
        while links.len() < n as usize {
            match self.accept(Some(until))? {
                Some(c) if c.role == sort && c.token == *token => links.push(c.link),
                Some(_) => debug!("a connection of another migration is sent away"),
                None => return Err(lost("not all connections for pages came")),
            }
        }
        Ok(links)
    }
}
