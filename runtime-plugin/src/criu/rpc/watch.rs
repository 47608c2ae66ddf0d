//! Moments told to a runtime over its connection (`notify_scripts`, `orphan_pts_master`).
use super::connection::Connection;
use crate::criu::external;
use stasis_engine::{Blame, Error, Moment, Options, Result, Watcher};
use stasis_proto::pb::{CriuNotify, CriuReq, CriuReqType, CriuResp};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// The question for what lies outside of a frozen tree.
const QUERY: &str = "query-ext-files";

/// A runtime that wants to be told.
#[derive(Debug)]
pub struct Runtime {
    connection: Arc<Mutex<Connection>>,
    /// `notify_scripts`
    moments: bool,
    /// `orphan_pts_master`
    masters: bool,
}

impl Runtime {
    /// The runtime at the other end of this connection.
    pub fn new(connection: Arc<Mutex<Connection>>, moments: bool, masters: bool) -> Self {
        Self {
            connection,
            moments,
            masters,
        }
    }
    fn tell(
        &self,
        script: &str,
        pid: Option<i32>,
        with: Option<BorrowedFd<'_>>,
    ) -> Result<CriuReq> {
        tracing::debug!("notify {script}");
        let notice = CriuResp {
            r#type: CriuReqType::Notify as i32,
            success: true,
            notify: Some(CriuNotify {
                script: Some(script.into()),
                pid,
            }),
            ..Default::default()
        };
        let c = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        c.tell(&notice, with).map_err(|why| {
            Error::new(
                "E7001",
                Blame::Caller,
                format!("notification {script} failed"),
            )
            .why(why)
            .advice("the runtime's own log says what went wrong there")
        })
    }
}

impl Watcher for Runtime {
    fn moment(&self, moment: Moment) -> Result<()> {
        if !self.moments {
            return Ok(());
        }
        self.tell(moment.name(), moment.pid(), None).map(drop)
    }
    fn orphan_pts_master(&self, master: BorrowedFd<'_>) -> Result<bool> {
        if self.masters {
            self.tell("orphan-pts-master", None, Some(master))?;
        }
        Ok(self.masters)
    }
    fn name_external(&self, o: &mut Options) -> Result<()> {
        if !self.moments {
            return Ok(());
        }
        let answer = self.tell(QUERY, None, None)?;
        for text in answer.opts.iter().flat_map(|o| &o.external) {
            external::take(o, text).map_err(|why| {
                Error::new(
                    "E7002",
                    Blame::Caller,
                    format!("the answer to {QUERY} names {text}"),
                )
                .why(why)
                .advice("name it as --external does")
            })?;
        }
        Ok(())
    }
}
