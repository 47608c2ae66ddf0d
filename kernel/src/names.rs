//! tmp
use std::borrow::Cow;
/// tmp
pub fn syscall(nr: i64) -> Cow<'static, str> { format!("sys_{nr}").into() }
/// tmp
pub fn errno(e: i32) -> Cow<'static, str> { format!("{:?}", nix::errno::Errno::from_raw(e)).into() }
/// tmp
pub fn signal(e: i32) -> Cow<'static, str> { format!("SIG{e}").into() }
