//! How connections to another host are secured, as `stasis migrate` and `stasis receive` take it: with CRIU's names.
use clap::Args;
use stasis_engine::Result;
use stasis_engine::tls::{Files, Tls};
use std::path::PathBuf;
use std::sync::Arc;

/// TLS.
#[derive(Debug, Args)]
pub struct Secure {
    /// Encrypt the connections, and have both ends show certificates; both must say it
    #[arg(long)]
    tls: bool,
    /// Certificates of trusted authorities [default: /etc/pki/CA/cacert.pem, and the host's]
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_cacert: Option<PathBuf>,
    /// Lists of revoked certificates [default: /etc/pki/CA/cacrl.pem, if it exists]
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_cacrl: Option<PathBuf>,
    /// Our certificate [default: /etc/pki/criu/cert.pem]
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_cert: Option<PathBuf>,
    /// Its key [default: /etc/pki/criu/private/key.pem]
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_key: Option<PathBuf>,
    /// Do not check the name in the other host's certificate
    #[arg(long, requires = "tls")]
    tls_no_cn_verify: bool,
}

impl Secure {
    /// Reads the files.
    ///
    /// # Errors
    /// As for [`Tls::load`].
    pub fn load(&self) -> Result<Option<Arc<Tls>>> {
        let files = Files {
            cacert: self.tls_cacert.clone(),
            cacrl: self.tls_cacrl.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            no_name: self.tls_no_cn_verify,
        };
        files.load(self.tls)
    }
}
